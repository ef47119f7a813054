"""Cases: decisions of several people as chained records, blind confirmation, conflicts, and the path that comes out."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from pipeline.errors import UsageError
from pipeline.gallery.audit import cases, head, read_records, set_policy, verify
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.places import CameraPlace
from pipeline.gallery.video_ref import VideoRef
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.search.evidence import SourcePictures
from pipeline.service.access import Access
from pipeline.service.asking import Service, named
from pipeline.service.travel import legs
from tests.service.test_service import done, role

FIRST = {"if-none-match": "*"}


def decided(client: TestClient, video_id: str, decision: str | None, search: str | None, headers: dict = FIRST) -> dict:
    body = {"decision": decision, "search": search, "note": "by the coat"}
    answer = client.put(f"/api/v1/cases/7-26/decisions/{video_id}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return {"etag": answer.headers["etag"], **next((one for one in answer.json()["leads"] if one["video_id"] == video_id), {})}


def test_a_case_from_its_beginning_to_its_end(anna: TestClient, gallery: Gallery) -> None:
    search_id = done(anna, case="7-26")["search_id"]
    lead = decided(anna, "v000", "same", search_id)
    assert (lead["decision"], lead["who"], lead["note"], lead["target"]) == ("same", "Anna", "by the coat", "id:v001")
    assert len(lead["evidence"]["candidate"]["frames"]) == 8 and lead["confirmation"] is None
    (summary,) = anna.get("/api/v1/cases").json()
    assert (summary["name"], summary["state"], summary["judged"], summary["waiting"]) == ("7-26", "open", 1, 1)
    assert anna.put("/api/v1/cases/7-26/state", json={"state": "closed"}).json()["state"] == "closed"
    refused = anna.put("/api/v1/cases/7-26/decisions/v002", json={"decision": "same", "search": search_id}, headers=FIRST)
    assert refused.status_code == 409 and "is closed" in refused.json()["detail"]
    assert anna.put("/api/v1/cases/7-26/state", json={"state": "open"}).json()["state"] == "open"
    found = anna.get("/api/v1/cases/7-26").json()
    assert [one["action"] for one in found["events"]] == ["case", "decision", "close", "reopen"]
    assert found["head"] == head(gallery, "cases/7-26") and verify(gallery, found["head"], "cases/7-26") == []
    actions = [(one["action"], one["who"], one["case"]) for one in read_records(gallery) if one["action"] != "search"]
    assert actions == [(action, "Anna", "7-26") for action in ("case", "decision", "close", "reopen")] and verify(gallery) == []


def test_decisions_do_not_overwrite_each_other(anna: TestClient, service: Service) -> None:
    search_id, carla = done(anna)["search_id"], role(service, "investigator", "Carla")
    address, body = "/api/v1/cases/7-26/decisions/v000", {"decision": "different", "search": search_id}
    assert anna.put(address, json=body).status_code == 428
    first = decided(anna, "v000", "same", search_id)
    assert anna.get(address).headers["etag"] == first["etag"]
    for stale in (FIRST, {"if-match": '"1"'}, {"if-match": "nonsense"}):
        assert anna.put(address, json=body, headers=stale).status_code == 412
    hers = {"decision": "unsure", "search": done(carla)["search_id"]}
    assert carla.put(address, json=hers, headers={"if-match": first["etag"]}).status_code == 200
    late = anna.put(address, json=body, headers={"if-match": first["etag"]})
    assert late.status_code == 412 and "meanwhile" in late.json()["detail"]
    assert anna.get(address).json()["who"] == "Carla"


def test_what_is_taken_back_stays_on_record(anna: TestClient, gallery: Gallery) -> None:
    search_id = done(anna)["search_id"]
    first = decided(anna, "v000", "same", search_id)
    undone = decided(anna, "v000", None, None, {"if-match": first["etag"]})
    assert "decision" not in undone and anna.get("/api/v1/cases/7-26/decisions/v000").status_code == 404
    said = [(one["before"], one["decision"]) for one in read_records(gallery, "cases/7-26") if one["action"] == "decision"]
    assert said == [(None, "same"), ("same", None)]
    assert decided(anna, "v000", "different", search_id)["decision"] == "different"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"decision": "same"}, 422, "which search of yours"),
        ({"decision": "same", "search": "nothing"}, 404, "no such search"),
        ({"decision": "maybe", "search": "nothing"}, 422, "decision"),
        ({"decision": "same", "search": "s", "who": "Bert"}, 422, "who"),
    ],
)
def test_a_decision_that_cannot_be_meant_is_refused(anna: TestClient, body: dict, status: int, words: str) -> None:
    answer = anna.put("/api/v1/cases/7-26/decisions/v000", json=body, headers=FIRST)
    assert answer.status_code == status and words in answer.json()["detail"]


def test_a_decision_is_about_a_lead_of_ones_own_search(anna: TestClient, service: Service) -> None:
    carla = role(service, "investigator", "Carla")
    for search_id, video_id, status in ((done(carla)["search_id"], "v000", 404), (done(anna)["search_id"], "v001", 422)):
        body = {"decision": "same", "search": search_id}
        assert anna.put(f"/api/v1/cases/7-26/decisions/{video_id}", json=body, headers=FIRST).status_code == status


def test_triage_of_a_search_that_names_the_case_goes_into_it(anna: TestClient) -> None:
    search_id = done(anna, case="7-26")["search_id"]
    address = f"/api/v1/searches/{search_id}/leads"
    assert anna.put(f"{address}/1/decision", json={"decision": "same"}).status_code == 204
    lead = anna.get(address).json()["leads"][0]
    assert lead["decision"] == "same"
    (mine,) = anna.get("/api/v1/cases/7-26").json()["leads"]
    assert (mine["video_id"], mine["rank"], mine["search"]) == (lead["video_id"], 1, search_id)
    assert anna.put(f"{address}/1/decision", json={"decision": None}).status_code == 204
    assert anna.get("/api/v1/cases/7-26").json()["leads"] == []


def test_the_second_person_decides_without_having_seen_what_the_first_one_said(anna: TestClient, bert: TestClient) -> None:
    first = decided(anna, "v000", "same", done(anna)["search_id"])
    seen = [bert.get(f"/api/v1/cases/7-26{rest}") for rest in ("", "/decisions/v000", "/path")]
    leads = [seen[0].json()["leads"][0], seen[1].json()]
    for lead in leads:
        assert lead["hidden"] and {lead[name] for name in ("decision", "who", "note", "rank", "score", "probability")} == {None}
    assert all("same" not in one.text and "Anna" not in json.dumps(one.json().get("leads")) for one in seen)
    assert seen[2].json() == {"appearances": [], "legs": [], "hidden": 1}
    assert [one["who"] for one in seen[0].json()["events"]] == ["Anna", None]
    answer = bert.post("/api/v1/cases/7-26/confirmations", json={"video_id": "v000", "tag": leads[0]["tag"], "decision": "same"})
    assert answer.status_code == 201 and answer.json()["decision"] == "same" and answer.json()["who"] == "Anna"
    said = answer.json()["confirmation"]
    assert (said["who"], said["agrees"]) == ("Bert", True)
    assert anna.get("/api/v1/cases/7-26").json()["waiting"] == 0
    again = decided(anna, "v000", "different", done(anna)["search_id"], {"if-match": first["etag"]})
    assert again["confirmation"] is None  # it was of another decision


def test_only_a_second_person_with_the_role_confirms(anna: TestClient, bert: TestClient, service: Service) -> None:
    body = {"video_id": "v000", "tag": 0, "decision": "same"}
    for name in ("viewer", "investigator", "admin"):
        assert role(service, name, "Dora").post("/api/v1/cases/7-26/confirmations", json=body).status_code == 403
    his = decided(bert, "v000", "same", done(bert)["search_id"])
    own = bert.post("/api/v1/cases/7-26/confirmations", json=body | {"tag": his["tag"]})
    assert own.status_code == 409 and "another person" in own.json()["detail"]
    assert not bert.get("/api/v1/cases/7-26").json()["leads"][0]["hidden"]  # it is his own
    decided(anna, "v000", "same", done(anna)["search_id"], {"if-match": his["etag"]})
    tag = anna.get("/api/v1/cases/7-26").json()["leads"][0]["tag"]
    assert bert.post("/api/v1/cases/7-26/confirmations", json=body | {"tag": tag}).status_code == 409  # he has decided it before
    carla = role(service, "reviewer", "Carla")
    assert carla.post("/api/v1/cases/7-26/confirmations", json=body | {"tag": his["tag"]}).status_code == 412
    assert carla.post("/api/v1/cases/7-26/confirmations", json=body | {"tag": tag, "decision": "different"}).status_code == 201
    late = role(service, "reviewer", "Dora").post("/api/v1/cases/7-26/confirmations", json=body | {"tag": tag})
    assert late.status_code == 409 and "Carla has confirmed" in late.json()["detail"]
    assert anna.get("/api/v1/cases/7-26/path").json()["appearances"] == []  # the second one did not agree


def test_the_second_person_sees_the_same_pictures_and_that_is_recorded(
    anna: TestClient, bert: TestClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        SourcePictures, "__call__", lambda _self, _video, wanted: {n: np.zeros((192, 96, 3), np.uint8) for n in wanted}
    )
    lead = decided(anna, "v000", "same", done(anna)["search_id"])
    for side in ("target", "candidate"):
        frame = lead["evidence"][side]["frames"][0]
        picture = bert.get(f"/api/v1/cases/7-26/pictures/{side}/{frame}.jpg", params={"video_id": "v000"})
        assert picture.status_code == 200 and picture.headers["content-type"] == "image/jpeg"
    views = [one for one in read_records(gallery) if one["action"] == "view"]
    assert [(one["who"], one["case"], one["video_id"]) for one in views] == [("Bert", "7-26", "v000")]
    for wrong in (
        "/pictures/target/9999.jpg?video_id=v000",
        "/pictures/third/0.jpg?video_id=v000",
        "/pictures/target/0.jpg?video_id=v9",
    ):
        assert bert.get(f"/api/v1/cases/7-26{wrong}").status_code == 404


def test_a_case_lasts_longer_than_the_service_and_forgets_with_the_gallery(anna: TestClient, gallery: Gallery) -> None:
    search_id = done(anna)["search_id"]
    decided(anna, "v000", "same", search_id)
    decided(anna, "v002", "different", search_id)
    again = Service(named([gallery]), Access())
    client = role(again, "investigator", "Carla")
    assert [one["decision"] for one in client.get("/api/v1/cases/7-26").json()["leads"]] == ["same", "different"]
    forget(gallery, Selection(video_ids=["v000"]), "asked to")
    assert [one["video_id"] for one in client.get("/api/v1/cases/7-26").json()["leads"]] == ["v002"]
    again.close()


def test_names_of_cases_are_their_own(anna: TestClient, gallery: Gallery) -> None:
    body = {"gallery": "town", "name": "7-26", "title": "Again"}
    assert anna.post("/api/v1/cases", json=body).status_code == 412
    for name in ("", "..", "a/b", "x" * 65, "-x"):
        assert anna.post("/api/v1/cases", json=body | {"name": name}).status_code == 422
    key = {"idempotency-key": "k"}
    assert [anna.post("/api/v1/cases", json=body | {"name": "8"}, headers=key).status_code for _ in range(2)] == [201, 201]
    assert cases(gallery) == ["7-26", "8"]


def test_a_policy_holds_for_cases(gallery: Gallery, service: Service) -> None:
    set_policy(gallery, ["reason"], "rules")
    client, body = role(service, "investigator"), {"gallery": "town", "name": "9", "title": "Nine"}
    refused = client.post("/api/v1/cases", json=body)
    assert refused.status_code == 422 and "reason" in refused.json()["detail"] and cases(gallery) == []
    assert client.post("/api/v1/cases", json=body | {"reason": "why"}).status_code == 201


def test_a_case_that_was_changed_behind_the_service_is_found(anna: TestClient, gallery: Gallery) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])
    file = Path(gallery.location.path, "cases", "7-26", "0000000001.json")
    file.write_text(file.read_text().replace('"same"', '"different"'))
    assert "case 7-26: 0000000001.json was changed" in verify_gallery(gallery)


def test_a_search_s_page_overwrites_nobody_else_s_decision(anna: TestClient, service: Service) -> None:
    carla, searches = role(service, "investigator", "Carla"), {}
    for person in (anna, carla):
        searches[person] = done(person, case="7-26")["search_id"]

    def say(person: TestClient, decision: str | None) -> int:
        leads = person.get(f"/api/v1/searches/{searches[person]}/leads").json()["leads"]
        rank = next(one["rank"] for one in leads if one["video_id"] == "v000")
        answer = person.put(f"/api/v1/searches/{searches[person]}/leads/{rank}/decision", json={"decision": decision})
        return answer.status_code

    assert [say(anna, "same"), say(anna, "unsure"), say(carla, "different")] == [204, 204, 412]
    (lead,) = anna.get("/api/v1/cases/7-26").json()["leads"]
    assert (lead["decision"], lead["who"]) == ("unsure", "Anna")
    assert [say(anna, None), say(carla, "different")] == [204, 204]  # what was taken back is free


def test_cameras_have_names_and_places(service: Service, gallery: Gallery) -> None:
    admin, address = role(service, "admin"), "/api/v1/galleries/town/cameras"
    placed = [{"camera_id": "cam0", "name": "Station", "zone": "Europe/London", "latitude": 51.5, "longitude": -0.1}]
    answer = admin.put(address, json={"cameras": placed})
    assert answer.status_code == 200 and answer.json() == admin.get(address).json()
    assert {name: answer.json()[0][name] for name in placed[0]} == placed[0] and answer.json()[1]["name"] is None
    assert read_records(gallery)[-1]["action"] == "cameras" and read_records(gallery)[-1]["who"] == "Carla"
    assert role(service, "reviewer").put(address, json={"cameras": placed}).status_code == 403
    for wrong in ({"latitude": 5.0}, {"latitude": 91.0, "longitude": 0.0}, {"zone": "Nowhere/Town"}, {"zone": "../etc/passwd"}):
        assert admin.put(address, json={"cameras": [{"camera_id": "cam0", **wrong}]}).status_code == 422
    before = len(read_records(gallery))
    assert admin.put(address, json={"cameras": placed * 2}).status_code == 422
    assert len(read_records(gallery)) == before  # nothing is on record that was not done
    assert admin.get(address).json()[0]["name"] == "Station"


def test_a_way_that_nobody_can_have_gone_is_flagged() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)

    def seen(video_id: str, camera: str, start: float, end: float) -> VideoRef:
        times = [noon + timedelta(seconds=at) for at in (start, end)]
        return VideoRef(video_id, video_id, camera, seen_from=times[0], seen_to=times[1])

    places = {name: CameraPlace(name, x_m=x, y_m=0.0) for name, x in (("a", 0.0), ("b", 300.0), ("c", 350.0))}
    videos = [seen("3", "c", 15, 20), seen("1", "a", 0, 10), seen("2", "b", 12, 16), seen("4", "d", 400, 410)]
    found = legs([*videos, VideoRef("5", "5", "a")], places)
    assert [(one.start, one.end, one.metres) for one in found] == [("1", "2", 300.0), ("2", "3", 50.0), ("3", "4", None)]
    assert found[0].impossible == "300 m in 2 s: more than 10 m a second"
    assert found[1].impossible == "seen in two cameras at once" and found[2].impossible is None
    assert legs(videos, places, fastest=200.0)[0].impossible is None
    with pytest.raises(UsageError, match="two numbers"):
        CameraPlace("a", x_m=1.0)


def test_the_path_of_a_case_is_what_was_called_the_same_person(anna: TestClient, bert: TestClient) -> None:
    search_id = done(anna)["search_id"]
    for video_id, decision in (("v000", "same"), ("v002", "same"), ("v004", "different")):
        lead = decided(anna, video_id, decision, search_id)
    tag = anna.get("/api/v1/cases/7-26/decisions/v000").json()["tag"]
    assert (
        bert.post("/api/v1/cases/7-26/confirmations", json={"video_id": "v000", "tag": tag, "decision": "same"}).status_code
        == 201
    )
    path = anna.get("/api/v1/cases/7-26/path").json()
    found = {one["video_id"]: (one["why"], one["confirmed"]) for one in path["appearances"]}
    assert found == {"v000": ("same person", True), "v001": ("target", False), "v002": ("same person", False)}
    assert lead["decision"] == "different" and path["hidden"] == 0
