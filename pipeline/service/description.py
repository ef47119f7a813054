"""The interface in OpenAPI: as FastAPI describes it, with the names that a generated client is read by.

Operations are called as the functions of their routes, problems have their own media type, parameters are left out and never
null, and what may have a few values only is one type wherever it stands.
"""

from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from pipeline.service.access import Right, Role
from pipeline.service.answers import Decision
from pipeline.service.case_answers import CaseProgress
from pipeline.service.leads import LeadOrder
from pipeline.service.media import View
from pipeline.service.work import Kind, State

NAMED = {
    tuple(get_args(values)): name
    for name, values in {
        "Decision": Decision,
        "Role": Role,
        "Right": Right,
        "JobKind": Kind,
        "JobProgress": State,
        "CaseProgress": CaseProgress,
        "View": View,
        "LeadOrder": LeadOrder,
    }.items()
}


def operation_id(route: APIRoute) -> str:
    """What a client calls the operation."""
    return route.name


def described(app: FastAPI) -> dict[str, Any]:
    """The description of an application, made once."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for path in document["paths"].values():
            for operation in path.values():
                for parameter in operation.get("parameters", ()):
                    parameter["schema"] = _without_null(parameter["schema"])
                for code, answer in operation["responses"].items():
                    if code >= "400" and "content" in answer:
                        answer["content"] = {"application/problem+json": next(iter(answer["content"].values()))}
        document = _with_names(document)
        document["components"]["schemas"] |= {
            name: {"type": "string", "enum": list(values), "title": name} for values, name in NAMED.items()
        }
        app.openapi_schema = document
    return app.openapi_schema


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What a parameter may be: one that says nothing is left out, and never null."""
    kinds = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return schema if len(kinds) != 1 else {name: one for name, one in schema.items() if name != "anyOf"} | kinds[0]


def _with_names(schema: Any) -> Any:
    """A part of the document, in which lists of values that have a name stand for it."""
    if isinstance(schema, list):
        return [_with_names(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(values := schema.get("enum"), list) and (name := NAMED.get(tuple(values))):
        return {"$ref": f"#/components/schemas/{name}"}
    return {name: _with_names(one) for name, one in schema.items()}
