"""What admins take away over HTTP: videos that are forgotten with their copies, and the tokens of a person."""

import pytest
from starlette.testclient import TestClient

from pipeline.gallery.audit import read_records, set_policy, user, verify
from pipeline.gallery.gallery import Gallery
from pipeline.service.access import Access, issue
from pipeline.service.asking import Service
from tests.service.test_cases import decided
from tests.service.test_service import ORIGIN, done, role

FORGOTTEN = "/api/v1/galleries/town/forgotten"


def test_an_admin_forgets_a_video_under_their_own_name(anna: TestClient, service: Service, gallery: Gallery) -> None:
    search_id = done(anna)["search_id"]
    decided(anna, "v000", "same", search_id)
    carla = role(service, "admin", "Carla")
    (shown,) = carla.get(f"{FORGOTTEN}/preview", params={"video_id": "v000"}).json()
    assert shown["video_id"] == "v000" and shown["camera_id"] == "cam0"
    assert "v000" in gallery.snapshot().videos["video_id"].to_pylist()  # a look forgets nothing
    answer = carla.post(FORGOTTEN, json={"videos": ["v000"], "reason": "asked to", "case": "erasure 5"})
    assert answer.status_code == 201 and answer.json() == {"videos": ["v000"]}
    said = read_records(gallery)[-1]
    expected = {"action": "forget", "who": "Carla", "account": user(), "reason": "asked to", "case": "erasure 5"}
    assert expected.items() <= said.items() and said["videos"] == ["v000"] and verify(gallery) == []
    leads = anna.get(f"/api/v1/searches/{search_id}/leads").json()["leads"]
    assert "v000" not in [one["video_id"] for one in leads]
    assert anna.get("/api/v1/cases/7-26").json()["leads"] == []
    assert carla.post(FORGOTTEN, json={"videos": ["v000"], "reason": "again"}).status_code == 422


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"videos": ["v000", "nobody"], "reason": "asked to"}, "no video 'nobody'; nothing was forgotten"),
        ({"videos": ["v000"], "reason": "  "}, "a reason is needed"),
        ({"videos": ["v000"]}, "reason"),
        ({"videos": [], "reason": "asked to"}, "videos"),
        ({"videos": ["v000"], "reason": "asked to", "camera": "cam0"}, "camera"),
    ],
)
def test_what_is_not_meant_forgets_nothing(service: Service, gallery: Gallery, body: dict, words: str) -> None:
    refused = role(service, "admin").post(FORGOTTEN, json=body)
    assert refused.status_code == 422 and words in refused.json()["detail"]
    assert len(gallery.snapshot().videos) == 24 and read_records(gallery) == []


def test_a_policy_holds_for_forgetting_too(service: Service, gallery: Gallery) -> None:
    set_policy(gallery, ("case",), "rule 7")
    admin = role(service, "admin")
    assert admin.post(FORGOTTEN, json={"videos": ["v000"], "reason": "asked to"}).status_code == 422
    assert admin.post(FORGOTTEN, json={"videos": ["v000"], "reason": "asked to", "case": "5"}).status_code == 201


def test_the_tokens_of_a_person_are_revoked_on_record(service: Service, gallery: Gallery) -> None:
    file = service.access.tokens_file
    assert file is not None
    tokens = [issue(file, "Bert / night shift", 1, "reviewer") for _ in range(2)]
    session, _ = service.access.sign_in(tokens[0])  # type: ignore[misc]
    admin = role(service, "admin", "Carla")
    answer = admin.delete("/api/v1/tokens/Bert / night shift")
    assert answer.status_code == 200 and answer.json() == {"person": "Bert / night shift", "tokens": 2}
    assert [service.access.of_token(one) for one in tokens] == [None, None] and service.access.of_session(session) is None
    said = read_records(gallery)[-1]
    assert (said["action"], said["who"], said["person"]) == ("revoke", "Carla", "Bert / night shift")
    assert admin.delete("/api/v1/tokens/Bert / night shift").status_code == 404
    service.access.tokens_file = None
    assert admin.delete("/api/v1/tokens/Bert").status_code == 404


def test_nobody_but_an_admin_takes_anything_away(service: Service, gallery: Gallery) -> None:
    assert isinstance(service.access, Access) and service.access.tokens_file is not None
    issue(service.access.tokens_file, "Bert", 1)
    body = {"videos": ["v000"], "reason": "asked to"}
    for name in ("viewer", "investigator", "reviewer"):
        client = role(service, name)
        assert client.post(FORGOTTEN, json=body).status_code == 403
        assert client.get(f"{FORGOTTEN}/preview", params={"video_id": "v000"}).status_code == 403
        assert client.delete("/api/v1/tokens/Bert").status_code == 403
    forged = {"origin": "https://elsewhere.example", "sec-fetch-site": "cross-site"}
    admin = role(service, "admin")
    for method, path in (("POST", FORGOTTEN), ("DELETE", "/api/v1/tokens/Bert")):
        assert admin.request(method, f"{ORIGIN}{path}", json=body, headers=forged).status_code == 403
    assert len(gallery.snapshot().videos) == 24 and read_records(gallery) == []
