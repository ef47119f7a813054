"""The interface keeps what its description says: requests that schemathesis makes from it get answers that match it, no 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.gallery.gallery import Gallery
from pipeline.service import searches
from pipeline.service.access import issue
from pipeline.service.app import create_app
from pipeline.service.asking import Service
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
