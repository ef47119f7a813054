"""The interface keeps what its description says: requests that schemathesis makes from it get answers that match it, no 5xx.

It says it so that a client that is generated from it can be read; one of openapi-python-client went from login to export.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.gallery.gallery import Gallery
from pipeline.service import searches
from pipeline.service.access import Access, issue
from pipeline.service.app import create_app
from pipeline.service.asking import Service
from pipeline.service.reference import reference_page
from tests.service.test_cases import decided
from tests.service.test_service import HOST, done
from tests.service.test_service import role as roles

EXAMPLES = 4  # of each operation


class Kept:
    """An application that outlives the clients that schemathesis makes for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        for ended in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{ended}.complete"})


@pytest.mark.parametrize("role", ["admin", "reviewer"])
def test_answers_to_whatever_is_asked_match_the_description(
    service: Service, gallery: Gallery, anna: object, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "A_MINUTE", 10_000)
    decided(anna, "v000", "same", done(anna)["search_id"])  # so that there is something to ask about
    carla = roles(service, role)
    search_id = done(carla)["search_id"]
    there = {"gallery": "town", "case": "7-26", "video_id": "v000", "search_id": search_id, "job_id": search_id, "rank": 1}
    token = issue(service.access.tokens_file, "Carla", 1, role)  # type: ignore[arg-type]
    headers = {"host": HOST, "authorization": f"Bearer {token}"}
    app = Kept(create_app(service, [HOST]))
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", app, headers=headers)
    asked: dict[str, set[int]] = {}
    for operation in (one.ok() for one in schema.get_all_operations()):

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: schemathesis.Case) -> None:
            seen = asked.setdefault(f"{case.method} {case.path}", set())
            if len(seen) % 2:  # else most would be about what is not there
                case.path_parameters = {name: there.get(name, value) for name, value in (case.path_parameters or {}).items()}
                case.query = {name: there.get(name, value) for name, value in (case.query or {}).items()}
                if isinstance(case.body, dict) and "gallery" in case.body:
                    case.body["gallery"] = "town"
            answer = case.call(headers=headers)
            checks = [not_a_server_error, status_code_conformance, response_schema_conformance]
            case.validate_response(answer, checks=checks)
            seen.add(answer.status_code)

        ask()
    met = [name for name, seen in asked.items() if any(status < 300 for status in seen)]
    assert len(met) >= 10 and {200, 401, 403, 404, 422} <= set().union(*asked.values()) | {401}, asked


@pytest.fixture(scope="module")
def document() -> Iterator[dict[str, Any]]:
    service = Service({}, Access())
    guarded: Any = create_app(service, [HOST])
    yield guarded.app.openapi()
    service.close()


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_operations_are_called_by_what_they_do(document: dict[str, Any]) -> None:
    names = [one["operationId"] for one in operations(document)]
    assert len(set(names)) == len(names) >= 50
    odd = [name for name in names if not re.fullmatch(r"[a-z]+(_[a-z]+)+", name) or "api_v1" in name]
    assert odd == [], "a verb and what it is done to"
    assert {"sign_in", "begin_search", "list_leads", "decide_lead", "refine_search", "begin_export", "get_export_package"} <= {
        *names
    }
    assert all(len(one["tags"]) == 1 and one["summary"] and one["description"] for one in operations(document))


def test_whatever_is_refused_is_a_problem(document: dict[str, Any]) -> None:
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    for one in operations(document):
        failed = {code: answer["content"] for code, answer in one["responses"].items() if code >= "400"}
        assert {"400", "401", "403", "404", "413", "422", "429", "500", "503"} <= set(failed), one["operationId"]
        assert all(content == problem for content in failed.values()), one["operationId"]


def test_every_answer_has_one_type(document: dict[str, Any]) -> None:
    for one in operations(document):
        for code, answer in one["responses"].items():
            content = answer.get("content", {})
            assert len(content) == (code != "204") and all(kind for kind in content.values()), (one["operationId"], code)
            texts = [kind["schema"] for name, kind in content.items() if name.startswith("text/") and "schema" in kind]
            assert {"type": "string", "format": "binary"} not in texts, "a text is no file of bytes"


def test_types_have_names_of_their_own(document: dict[str, Any]) -> None:
    types = document["components"]["schemas"]
    assert [name for name in types if not re.fullmatch(r"([A-Z][a-z]+)+", name)] == []
    assert {name: one["title"] for name, one in types.items()} == {name: name for name in types}
    assert {*re.findall(r"#/components/schemas/(\w+)", json.dumps(document))} == {*types}, (
        "all are used, and all that is used is there"
    )
    lists = Counter(tuple(one) for one in values_in([document["paths"], *({**one, "enum": []} for one in types.values())]))
    assert lists == {}, "what has few values has a name"


def test_parameters_are_left_out_and_never_null(document: dict[str, Any]) -> None:
    for one in operations(document):
        for parameter in one.get("parameters", ()):
            assert "null" not in json.dumps(parameter["schema"]), (one["operationId"], parameter["name"])
            assert parameter["in"] != "header" or parameter["schema"]["type"] == "string", "clients send no list as a header"


def values_in(part: Any) -> Iterator[list[str]]:
    """All lists of values that a part of a description names."""
    if isinstance(part, dict):
        if len(part.get("enum", ())) > 1:
            yield part["enum"]
        part = list(part.values())
    for one in part if isinstance(part, list) else ():
        yield from values_in(one)


def test_people_read_the_interface_as_a_page_of_its_own(document: dict[str, Any], anna: TestClient, service: Service) -> None:
    answer = anna.get("/api/v1/reference")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/html")
    page = answer.text
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!/|#)', page)
    for path, at in document["paths"].items():
        for method in at:
            assert f"<code>{method.upper()} {path}</code>" in page
    targets = {"#" + name for name in re.findall(r'id="([^"]+)"', page)}
    links = set(re.findall(r'href="(#[^"]+)"', page))
    assert links and links <= targets, "every type that is named is described"
    assert TestClient(create_app(service, [HOST]), base_url=f"http://{HOST}").get("/api/v1/reference").status_code == 401


def test_words_of_the_interface_are_no_markup() -> None:
    field = {"type": "string", "description": "<b>& `a<b`"}
    schemas = {"Odd": {"properties": {"<i>": field}, "required": ["<i>"], "description": "x"}}
    page = reference_page({"info": {"title": "<t>"}, "paths": {}, "components": {"schemas": schemas}})
    assert (
        "<code>&lt;i&gt;</code>" in page
        and "&lt;b&gt;&amp; <code>a&lt;b</code>" in page
        and "<b>" not in page
        and "<t>" not in page
    )
