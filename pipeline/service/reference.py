"""The interface as a page for people: every operation with its parameters, what it takes and what it answers, from the OpenAPI.

Made here, without a script or anything from elsewhere, so that it reads where the service runs without the internet.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

HEAD = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<link rel="stylesheet" href="/page/style.css"></head>
<body class="reference"><main>
<h1>{title}</h1>
<p>{about}</p>
<p><a href="/">Back to the searches</a> · <a href="/api/v1/openapi.json">the same as OpenAPI</a>, for programs</p>
"""


def reference_page(document: dict[str, Any]) -> str:
    """The page, HTML, of an OpenAPI document (`pipeline.service.description.described`)."""
    title = f"{document['info']['title']}: the interface for programs"
    parts = [HEAD.format(title=escape(title), about=_text(document["info"].get("description", "")))]
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            section = "".join(_operation(path, method, operation))
            by_tag.setdefault(operation.get("tags", ["other"])[0], []).append(section)
    for tag, sections in by_tag.items():
        parts.append(f"<h2>{escape(tag.capitalize())}</h2>{''.join(sections)}")
    parts.append("<h2>What is sent and answered</h2>")
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(f'<section id="{escape(name)}"><h3>{escape(name)}</h3>{"".join(_schema(schema))}</section>')
    return "".join([*parts, "</main></body></html>\n"])


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<section id="{escape(operation["operationId"])}"><h3><code>{method.upper()} {escape(path)}</code></h3>'
    yield f"<p>{_text(operation.get('description') or operation.get('summary', ''))}</p>"
    rows = [
        (one["name"], one["in"], _type(one["schema"]), one.get("required", False), one.get("description", ""))
        for one in operation.get("parameters", ())
    ]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        rows.append(("body", kind, _type(content.get("schema", {})), operation["requestBody"].get("required", False), ""))
    if rows:
        yield "<table><thead><tr><th>what</th><th>where</th><th>type</th><th>meaning</th></tr></thead><tbody>"
        for name, place, kind, required, words in rows:
            said = " ".join(filter(None, ["required." if required else "", _text(words)]))
            yield f"<tr><td><code>{escape(name)}</code></td><td>{escape(place)}</td><td>{kind}</td><td>{said}</td></tr>"
        yield "</tbody></table>"
    yield "<ul>"
    refused: dict[str, list[str]] = {}
    for code, answer in operation["responses"].items():
        kinds = "; ".join(
            f"{escape(kind)} {_type(content.get('schema', {}))}".strip() for kind, content in answer.get("content", {}).items()
        )
        if code >= "400":
            refused.setdefault(kinds, []).append(code)
        else:
            yield f"<li><code>{escape(code)}</code> {kinds or 'nothing'}</li>"
    for kinds, codes in refused.items():
        yield f"<li><code>{escape(', '.join(codes))}</code> {kinds}</li>"
    yield "</ul></section>"


def _schema(schema: dict[str, Any]) -> Iterator[str]:
    if words := schema.get("description"):
        yield f"<p>{_text(words)}</p>"
    if "properties" not in schema:
        yield f"<p>{_type(schema)}</p>"
        return
    yield "<table><thead><tr><th>field</th><th>type</th><th>meaning</th></tr></thead><tbody>"
    for name, field in schema["properties"].items():
        said = " ".join(
            filter(None, ["required." if name in schema.get("required", ()) else "", _text(field.get("description", ""))])
        )
        yield f"<tr><td><code>{escape(name)}</code></td><td>{_type(field)}</td><td>{said}</td></tr>"
    yield "</tbody></table>"


def _type(schema: dict[str, Any]) -> str:
    """A type in HTML: names of ours are links to where they are described."""
    if name := schema.get("$ref", "").removeprefix("#/components/schemas/"):
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    if kinds := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
        return " or ".join(dict.fromkeys(map(_type, kinds)))
    if values := schema.get("enum"):
        return ", ".join(f"<code>{escape(str(value))}</code>" for value in values)
    if schema.get("type") == "array":
        inside: dict[str, Any] = schema.get("items", {}) or next(iter(schema.get("prefixItems", ())), {})
        return f"list of {_type(inside) or 'anything'}"
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    return escape(" ".join(filter(None, [schema.get("type", ""), schema.get("format", "")])))


def _text(words: str) -> str:
    """Words of a docstring: escaped, code between backticks, one paragraph."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(words.split())))
