"""The service as browsers and programs meet it: who gets in, what is refused, a search from the question to the record."""

import hashlib
import io
import json
import logging
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.backbone.spec import find_backbone
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import read_records, set_policy, user, verify
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.kept import KeptGallery
from pipeline.index.build import build_index
from pipeline.retention.forget import Selection, forget
from pipeline.search.evidence import SourcePictures
from pipeline.search.run import run as search
from pipeline.search.warm import WarmIndex
from pipeline.service import access, guard, searches
from pipeline.service.access import Access, issue, read_tokens, revoke
from pipeline.service.app import PAGE, create_app
from pipeline.service.asking import Service, named
from pipeline.service.pictures import Pictures
from pipeline.service.run import Address
from pipeline.service.uploads import Uploads, plain_name
from tests.conftest import add_videos, people_features, toy_spec
from tests.decoding.test_video import write_video
from tests.jobs.commands import command

HOST = "127.0.0.1:8080"
ORIGIN = f"http://{HOST}"
ADMIN = ["look", "investigate", "oversee", "administer"]
FROM_PAGE = {"origin": ORIGIN, "sec-fetch-site": "same-origin"}

VALUES = defaultdict(lambda: "x", {"gallery": "town", "search_id": "s", "rank": "1", "frame": "0"})  # of the paths' parameters


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """24 made-up videos of 6 people, v000 and on, four of each, indexed."""
    made = Gallery.open_or_create(tmp_path_factory.mktemp("service") / "town", GallerySettings(toy_spec(), 10.0, None))
    add_videos(made, people_features(6, 4, 24, seed=1))
    build_index(made)
    return made


@pytest.fixture(scope="module")
def service(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    made = Service(named([gallery]), Access(file))
    yield made
    made.close()


@pytest.fixture
def stranger(service: Service) -> TestClient:
    """A browser that nobody has signed in with."""
    return TestClient(create_app(service, [HOST]), base_url=ORIGIN, headers=FROM_PAGE)


@pytest.fixture
def anna(service: Service, stranger: TestClient) -> TestClient:
    """A browser in which Anna has opened the printed link."""
    signed = stranger.post("/api/v1/session", json={"token": service.access.one_time("Anna")})
    assert signed.status_code == 200 and signed.json()["person"] == "Anna"
    return stranger


def opened(gallery: Gallery) -> tuple[Service, TestClient]:
    """A service of its own for a gallery, and a browser in which Anna has signed in."""
    service = Service(named([gallery]), Access())
    client = TestClient(create_app(service, [HOST]), base_url=ORIGIN, headers=FROM_PAGE)
    client.post("/api/v1/session", json={"token": service.access.one_time("Anna")})
    return service, client


def done(client: TestClient, **asked: object) -> dict:
    """A search of the gallery when it has ended."""
    begun = client.post("/api/v1/searches", json={"gallery": "town", "target": "id:v001", **asked})
    assert begun.status_code == 202, begun.text
    ended = client.get(begun.headers["location"], params={"wait": 30}).json()
    assert ended["state"] in ("done", "failed"), ended
    return ended


def routes(service: Service) -> list[tuple[str, str]]:
    """(method, path with values in it) of all that the interface describes."""
    app = create_app(service, [HOST]).app  # type: ignore[attr-defined]
    return [
        (method.upper(), path.format_map(VALUES)) for path, operations in app.openapi()["paths"].items() for method in operations
    ] + [("GET", "/api/v1/openapi.json")]


def test_every_route_but_signing_in_asks_who_is_there(service: Service, stranger: TestClient) -> None:
    asked = [route for route in routes(service) if route != ("POST", "/api/v1/session")]
    assert len(asked) >= 14
    for method, path in asked:
        for headers in ({}, {"authorization": "Bearer nobody"}, {"authorization": "Basic YTpi"}, {"cookie": "resight-session=x"}):
            answer = stranger.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, headers, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"


def test_every_route_knows_who_signed_in(service: Service, anna: TestClient) -> None:
    for method, path in routes(service):
        if path != "/api/v1/session":
            assert anna.request(method, path).status_code not in (401, 500), (method, path)


def test_a_link_opens_one_session_and_signing_out_ends_it(service: Service, stranger: TestClient) -> None:
    token = service.access.one_time("Anna")
    cookie = stranger.post("/api/v1/session", json={"token": token}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; ")) and token not in cookie
    assert stranger.get("/api/v1/me").json() == {"person": "Anna", "role": "admin", "rights": ADMIN}
    assert stranger.post("/api/v1/session", json={"token": token}).status_code == 401
    session = stranger.cookies["resight-session"]
    assert stranger.delete("/api/v1/session").status_code == 204
    assert stranger.get("/api/v1/me", headers={"cookie": f"resight-session={session}"}).status_code == 401


def test_a_session_behind_https_says_so(gallery: Gallery) -> None:
    service = Service(named([gallery]), Access(), secure=True)
    client = TestClient(create_app(service, ["search.example"]), base_url="https://search.example")
    asked = {"json": {"token": service.access.one_time("Anna")}, "headers": {"origin": "https://search.example"}}
    answer = client.post("/api/v1/session", **asked)
    assert "Secure" in answer.headers["set-cookie"] and "strict-transport-security" in answer.headers
    service.close()


def test_sessions_links_and_tokens_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Access(tmp_path / "tokens.json")
    token, once = issue(tmp_path / "tokens.json", "Bert", 1), known.one_time("Bert")
    session, _ = known.sign_in(token)  # type: ignore[misc]
    assert (found := known.of_session(session)) and found.person == "Bert" and known.of_token(token)
    now = time.time()
    monkeypatch.setattr(access.time, "time", lambda: now + access.ONE_TIME_SECONDS + 1)
    assert known.sign_in(once) is None
    monkeypatch.setattr(access.time, "time", lambda: now + access.DAY + 1)
    assert known.of_session(session) is None and known.of_token(token) is None


def test_tokens_are_kept_hashed_and_can_be_revoked(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = [issue(file, person, 1) for person in ("Bert", "Bert", "Carla")]
    assert not any(token in file.read_text() for token in tokens) and file.stat().st_mode & 0o777 == 0o600
    known = Access(file)
    assert [one and one.person for one in map(known.of_token, tokens)] == ["Bert", "Bert", "Carla"]
    assert revoke(file, "Bert") == 2
    assert [one and one.person for one in map(known.of_token, tokens)] == [None, None, "Carla"]
    assert known.of_token(read_tokens(file)[0].sha256) is None  # what is kept opens nothing
    file.write_text(file.read_text().replace("Carla", "Clara"))
    with pytest.raises(UsageError, match="is damaged: its checksum differs"):
        known.of_token(tokens[2])
    for name in ("", " ", "x" * 101, "a\nb", "a\u202eb"):
        with pytest.raises(UsageError, match="printable"):
            issue(tmp_path / "others.json", name, 1)


def test_a_session_ends_with_the_token_that_opened_it(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    service = Access(file)
    tokens = {person: issue(file, person, days=1) for person in ("Anna", "Bert")}
    sessions = {person: service.sign_in(token)[0] for person, token in tokens.items()}  # type: ignore[index]
    by_link = service.sign_in(service.one_time("Bert"))[0]  # type: ignore[index]
    revoke(file, "Bert")
    assert service.of_session(sessions["Bert"]) is None and service.sessions == 2
    assert service.of_session(sessions["Anna"]).person == "Anna"  # type: ignore[union-attr]
    assert service.of_session(by_link).person == "Bert"  # type: ignore[union-attr] # the printed link has no token in the file


def test_tokens_are_issued_and_revoked_by_command(tmp_path: Path) -> None:
    flags = ("--tokens", str(tmp_path / "tokens.json"), "--person", "Bert")
    made = command("token", *flags)
    known = Access(tmp_path / "tokens.json").of_token(made.out.strip())
    assert made.code == 0 and known is not None and (known.person, known.role) == ("Bert", "investigator")
    reviewer = Access(tmp_path / "tokens.json").of_token(command("token", *flags, "--role", "reviewer").out.strip())
    assert reviewer is not None and reviewer.role == "reviewer" and command("token", *flags, "--role", "king").code == 2
    assert command("token", *flags, "--revoke").out.startswith("2 tokens removed")
    again = command("token", *flags, "--revoke")
    assert again.code == 2 and "holds no token of 'Bert'" in again.err
    assert command("token", *flags, "--days", "0").code == 2


def test_a_program_comes_with_a_bearer_token(service: Service, gallery: Gallery) -> None:
    assert service.access.tokens_file is not None
    token = issue(service.access.tokens_file, "Bert", 1)
    program = TestClient(create_app(service, [HOST]), base_url=ORIGIN, headers={"authorization": f"Bearer {token}"})
    assert done(program, reason="by a program")["state"] == "done"
    record = read_records(gallery)[-1]
    assert (record["action"], record["who"], record["account"]) == ("search", "Bert", user())


def test_other_names_for_this_host_are_refused(anna: TestClient) -> None:
    for host in ("evil.example", "127.0.0.1", "127.0.0.1:80", "evil.example:8080", ""):
        answer = anna.get("/api/v1/me", headers={"host": host})
        assert answer.status_code == 421 and answer.headers["content-security-policy"] == guard.POLICY
    twice = anna.get("/api/v1/me", headers=[("host", HOST), ("host", "evil.example")])  # type: ignore[arg-type]
    assert twice.status_code == 421


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "http://127.0.0.1:9999", "sec-fetch-site": "same-site"},  # cookies do not tell ports apart
        {"origin": "null", "sec-fetch-site": "same-origin"},
        {"origin": ORIGIN.replace("http", "https"), "sec-fetch-site": "same-origin"},
        {"sec-fetch-site": "cross-site"},
        {},
    ],
)
def test_a_change_that_another_site_sends_is_refused(service: Service, headers: dict[str, str]) -> None:
    session, _ = service.access.sign_in(service.access.one_time("Anna"))  # type: ignore[misc]
    client = TestClient(create_app(service, [HOST]), base_url=ORIGIN, cookies={"resight-session": session})
    body = {"gallery": "town", "target": "id:v001"}
    assert client.post("/api/v1/searches", json=body, headers=headers).status_code == 403
    assert client.get("/api/v1/me", headers=headers).status_code == (403 if headers else 200)
    taken = client.post("/api/v1/searches", json=body, headers={"origin": ORIGIN})
    assert taken.status_code == 202 and client.get(taken.headers["location"], params={"wait": 30}).json()["state"] == "done"


def test_every_answer_carries_the_headers_of_a_careful_page(stranger: TestClient) -> None:
    for path in ("/", "/page/app.js", "/api/v1/me", "/nowhere", "/healthz"):
        answer = stranger.get(path)
        assert {name: answer.headers[name] for name in guard.HEADERS} == guard.HEADERS
    assert "unsafe" not in guard.POLICY and "require-trusted-types-for 'script'" in guard.POLICY


def test_the_page_keeps_its_own_policy(stranger: TestClient) -> None:
    html = stranger.get("/").text
    assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=|https?://", html)
    for name in re.findall(r'(?:src|href)="/page/([^"]+)"', html):
        assert stranger.get(f"/page/{name}").status_code == 200
    scripts = "".join(data.decode() for name, data in PAGE.items() if name.endswith(".js"))
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|https?://(?!www\.w3\.org/2000/svg)", scripts
    )
    for name in ("..%2Fapp.py", "%2Fetc%2Fpasswd", "app.py"):
        assert stranger.get(f"/page/{name}").status_code == 404


def test_bodies_have_a_limit_whatever_they_say_of_their_length(anna: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b" " * (guard.JSON_BYTES + 1)
    assert anna.post("/api/v1/searches", content=large, headers={"content-type": "application/json"}).status_code == 413
    parts = iter([large[: guard.JSON_BYTES], b"  "])
    assert anna.post("/api/v1/searches", content=parts, headers={"content-type": "application/json"}).status_code == 413
    monkeypatch.setattr(guard, "UPLOAD_BYTES", 10)
    uploads = anna.app.app.state.service.uploads  # type: ignore[attr-defined]
    assert anna.post("/api/v1/targets?name=a.mp4", content=iter([b"12345678", b"9012"])).status_code == 413
    assert list(uploads.folder.iterdir()) == []


def test_a_search_from_the_question_to_the_record(anna: TestClient, gallery: Gallery) -> None:
    before = len(read_records(gallery))
    ended = done(anna, reason="missing child", case="2026-17", top=5)
    found = ended["found"]
    assert ended["state"] == "done" and (found["gallery_videos"], found["eligible"]) == (24, 23)
    leads = anna.get(f"/api/v1/searches/{ended['search_id']}/leads").json()["leads"]
    assert [lead["rank"] for lead in leads] == [1, 2, 3, 4, 5]
    assert {lead["video_id"] for lead in leads[:3]} == {"v000", "v002", "v003"}  # the others of the same person
    for pair in (pair for lead in leads for pair in lead["pairs"]):
        assert sum(pair["candidate"]["attention"]) == pytest.approx(1) and len(pair["candidate"]["frames"]) == 8
    (record,) = read_records(gallery)[before:]
    expected = {
        "action": "search",
        "who": "Anna",
        "account": user(),
        "reason": "missing child",
        "case": "2026-17",
        "target": "v001",
    }
    assert {name: record[name] for name in expected} == expected
    assert record["results"] == [lead["video_id"] for lead in leads]
    assert verify(gallery, found["audit_head"]) == []


def test_a_search_is_there_for_its_own_person_only(service: Service, anna: TestClient) -> None:
    search_id = done(anna)["search_id"]
    session, _ = service.access.sign_in(service.access.one_time("Bert"))  # type: ignore[misc]
    bert = TestClient(create_app(service, [HOST]), base_url=ORIGIN, headers=FROM_PAGE, cookies={"resight-session": session})
    paths = ("", "/leads", "/leads/1/frames/0.jpg", "/target/frames/0.jpg")
    assert [bert.get(f"/api/v1/searches/{search_id}{path}").status_code for path in paths] == [404] * 4
    assert bert.put(f"/api/v1/searches/{search_id}/leads/1/decision", json={"decision": "same"}).status_code == 404
    assert search_id in {one["search_id"] for one in anna.get("/api/v1/searches").json()}
    assert search_id not in {one["search_id"] for one in bert.get("/api/v1/searches").json()}


def test_decisions_are_records_and_can_be_taken_back(anna: TestClient, gallery: Gallery) -> None:
    search_id = done(anna, reason="why", case="7")["search_id"]
    address = f"/api/v1/searches/{search_id}/leads"
    before = len(read_records(gallery))
    for decision in ("same", "different", None):
        assert anna.put(f"{address}/2/decision", json={"decision": decision}).status_code == 204
        assert anna.get(address).json()["leads"][1]["decision"] == decision
    records = read_records(gallery)[before:]
    said = [(one["action"], one["who"], one["case"], one["before"], one["decision"]) for one in records]
    anna_said = ("decision", "Anna", "7")
    assert said == [(*anna_said, None, "same"), (*anna_said, "same", "different"), (*anna_said, "different", None)]
    assert {one["video_id"] for one in records} == {anna.get(address).json()["leads"][1]["video_id"]} and verify(gallery) == []
    assert anna.put(f"{address}/99/decision", json={"decision": "same"}).status_code == 404
    assert anna.put(f"{address}/1/decision", json={"decision": "maybe"}).status_code == 422


def test_confirmed_leads_refine_the_search(anna: TestClient, gallery: Gallery) -> None:
    ended = done(anna, confirmed=["v000"], rejected=["v002"], top=23)
    leads = anna.get(f"/api/v1/searches/{ended['search_id']}/leads").json()["leads"]
    within = {lead["video_id"]: lead["within"] for lead in leads}
    assert within["v000"] == "confirmed" and "v002" not in within
    assert {one for one in within if within[one]} == {"v000"}  # nothing joins by itself
    record = read_records(gallery)[-1]
    assert (record["action"], record["who"], record["following"]["confirmed"]) == ("follow", "Anna", ["v000"])


def test_pictures_are_recorded_before_they_are_seen(anna: TestClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict]] = []

    def crops(_self: SourcePictures, video: object, wanted: dict[int, float]) -> dict[int, np.ndarray]:
        assert read_records(gallery)[-1]["action"] == "view"
        asked.append((video.video_id, wanted))  # type: ignore[attr-defined]
        return {number: np.full((192, 96, 3), (250, 5, 5), np.uint8) for number in list(wanted)[:-1]}  # the last is gone

    monkeypatch.setattr(SourcePictures, "__call__", crops)
    search_id = done(anna)["search_id"]
    address = f"/api/v1/searches/{search_id}"
    lead = anna.get(f"{address}/leads").json()["leads"][0]
    frames = sorted({number for pair in lead["pairs"] for number in pair["candidate"]["frames"]})
    answers = [anna.get(f"{address}/leads/1/frames/{number}.jpg") for number in (*frames, 12345)]
    assert [one.status_code for one in answers] == [200] * (len(frames) - 1) + [404, 404]
    picture = np.asarray(Image.open(io.BytesIO(answers[0].content)))
    assert answers[0].headers["content-type"] == "image/jpeg" and picture.shape == (192, 96, 3)
    assert abs(picture.astype(int) - (250, 5, 5)).max() < 10  # RGB
    assert [(video, sorted(wanted)) for video, wanted in asked] == [(lead["video_id"], frames)]  # decoded at once, and once
    target = lead["pairs"][0]["target"]["frames"][0]
    assert anna.get(f"{address}/target/frames/{target}.jpg").status_code == 200
    views = [one for one in read_records(gallery) if one["action"] == "view" and one["search"] == search_id]
    assert len(views) == 1 and views[0]["who"] == "Anna" and lead["video_id"] in views[0]["results"]


def test_people_who_look_by_turns_share_a_decoder(
    anna: TestClient, service: Service, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is started anew for each picture takes longer than the picture."""
    monkeypatch.setattr(service, "pictures", Pictures())  # with nothing open
    opened_ones: list[Gallery] = []
    grey = np.full((192, 96, 3), 90, np.uint8)
    monkeypatch.setattr(SourcePictures, "__call__", lambda _self, _video, wanted: dict.fromkeys(wanted, grey))
    monkeypatch.setattr(
        "pipeline.service.pictures.gallery_pictures",
        lambda one: opened_ones.append(one) or SourcePictures(reach=one.reach(), gallery=one),
    )
    bert = role(service, "investigator", "Bert")
    searches = [(person, done(person, target=target)["search_id"]) for person, target in ((anna, "id:v001"), (bert, "id:v005"))]
    for rank in (1, 2, 3):
        for person, found in searches:
            leads = person.get(f"/api/v1/searches/{found}/leads").json()["leads"]
            frame = leads[rank - 1]["pairs"][0]["candidate"]["frames"][0]
            assert person.get(f"/api/v1/searches/{found}/leads/{rank}/frames/{frame}.jpg").status_code == 200
    assert len(opened_ones) == 1
    service.pictures.close()


def test_pictures_are_the_frames_that_were_scored(tmp_path: Path) -> None:
    made = Gallery.open_or_create(tmp_path / "town", GallerySettings(toy_spec(), 10.0, None))
    add_videos(made, people_features(2, 3, 24, seed=1))
    videos = made.snapshot().videos
    files = [str(write_video(tmp_path / f"{name}.mp4", 40)) for name in videos["video_id"].to_pylist()]
    made.commit(videos.set_column(1, "uri", pa.array(files)), REJECTS_SCHEMA.empty_table())
    build_index(made)
    service, client = opened(made)
    search_id = done(client)["search_id"]
    address = f"/api/v1/searches/{search_id}"
    lead = client.get(f"{address}/leads").json()["leads"][0]
    for side, place in (("candidate", "leads/1"), ("target", "target")):
        for number in lead["pairs"][0][side]["frames"]:
            picture = np.asarray(Image.open(io.BytesIO(client.get(f"{address}/{place}/frames/{number}.jpg").content)))
            assert abs(picture.mean() - min(8 * number, 255)) < 4  # `write_video` says a frame's number by its brightness
    service.close()


def test_an_upload_is_searched_for(tmp_path: Path, toy_backbone: Path) -> None:
    made = Gallery.open_or_create(tmp_path / "town", GallerySettings(find_backbone(str(toy_backbone)), 10.0, None))
    add_videos(made, people_features(4, 3, 3, seed=1))
    build_index(made)
    service, client = opened(made)
    content = write_video(tmp_path / "scene.mp4", 40, (640, 360)).read_bytes()
    brought = client.post("/api/v1/targets", params={"name": "my scene.mp4"}, content=content).json()
    assert (brought["bytes"], brought["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    target = f"upload:{brought['target_id']}"
    refused = done(client, target=target)
    assert refused["state"] == "failed" and "say who is meant" in refused["error"]
    for whom in ({"whole_picture": True}, {"box": [100, 40, 100, 200], "time_s": 1.5}):
        found = done(client, target=target, **whom)
        record = read_records(made)[-1]
        assert found["state"] == "done" and record["target_hash"] == f"file:{brought['sha256']}", found
        assert record["target_uri"].endswith("/my-scene.mp4") and record["target"].startswith("my-scene")
        lead = client.get(f"/api/v1/searches/{found['search_id']}/leads").json()["leads"][0]
        frames = lead["pairs"][0]["target"]["frames"]
        answer = client.get(f"/api/v1/searches/{found['search_id']}/target/frames/{frames[-1]}.jpg")
        picture = np.asarray(Image.open(io.BytesIO(answer.content)))
        assert abs(picture.mean() - min(8 * frames[-1], 255)) < 4  # `write_video` says a frame's number by its brightness
    service.close()


def test_what_is_looked_at_is_recorded_once_and_kept_in_mind_within_a_limit(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.service.asking.VIEWS", 3)
    service, before = Service(named([gallery]), Access()), len(read_records(gallery))

    def recorded(*videos: str, who: str = "Anna", why: str = "search") -> list[tuple[str, str]]:
        """The records of looking at these videos, one after the other."""
        known = len(read_records(gallery))
        for video_id in videos:
            service.viewed(gallery, who, {"video_id": video_id, why: "7"})
        return [(one["who"], one["video_id"]) for one in read_records(gallery)[known:]]

    assert recorded("v000", "v000", "v001", "v002", "v000") == [("Anna", name) for name in ("v000", "v001", "v002")]
    assert recorded("v000", who="Bert") == [("Bert", "v000")]  # and v001 is forgotten: it was seen longest ago
    assert recorded("v000", "v002") == [] and recorded("v001") == [("Anna", "v001")]
    assert recorded("v002", why="case") == [("Anna", "v002")]  # for another reason, although it has the same words
    assert len(service._viewed) == 3 and len(read_records(gallery)) == before + 6
    service.close()


def test_nothing_is_shown_or_kept_that_cannot_be_recorded(anna: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    search_id = done(anna)["search_id"]
    address = f"/api/v1/searches/{search_id}/leads"
    frame = anna.get(address).json()["leads"][0]["pairs"][0]["candidate"]["frames"][0]

    def full(*_arguments: object) -> str:
        raise PipelineError("the disk is full")

    monkeypatch.setattr(searches, "append_record", full)
    monkeypatch.setattr(SourcePictures, "__call__", lambda *_: pytest.fail("decoded before it was recorded"))
    answers = [
        anna.get(f"{address}/1/frames/{frame}.jpg"),
        anna.put(f"{address}/1/decision", json={"decision": "same"}),
    ]
    assert [(one.status_code, one.json()["detail"]) for one in answers] == [(503, "the disk is full")] * 2
    assert anna.get(address).json()["leads"][0]["decision"] is None


def test_a_policy_holds_here(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    set_policy(toy_gallery, ["reason", "case"], "rules")
    service, client = opened(toy_gallery)
    before = len(read_records(toy_gallery))
    asked = {"gallery": "gallery", "target": "id:v001", "reason": " ", "case": "1"}
    refused = client.post("/api/v1/searches", json=asked)
    assert refused.status_code == 422 and "requires a reason" in refused.json()["detail"]
    assert len(read_records(toy_gallery)) == before and client.get("/api/v1/searches").json() == []
    assert client.get("/api/v1/galleries/gallery").json()["requires"] == ["reason", "case"]
    assert client.post("/api/v1/searches", json=asked | {"reason": "why"}).status_code == 202
    service.close()


def test_forgotten_leads_are_gone_and_new_versions_are_taken_up(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    service, client = opened(toy_gallery)
    first = done(client, gallery="gallery", top=3)
    address = f"/api/v1/searches/{first['search_id']}/leads"
    best = client.get(address).json()["leads"][0]
    forget(toy_gallery, Selection(video_ids=[best["video_id"]]), "asked to")
    assert [lead["rank"] for lead in client.get(address).json()["leads"]] == [2, 3]
    frame = best["pairs"][0]["candidate"]["frames"][0]
    assert client.get(f"{address}/1/frames/{frame}.jpg").status_code == 404
    add_videos(toy_gallery, people_features(10, 1, 24, seed=1), first=40)
    build_index(toy_gallery)
    second = done(client, gallery="gallery", top=3)
    assert second["found"]["index_version"] > first["found"]["index_version"]
    assert second["found"]["gallery_videos"] == first["found"]["gallery_videos"] + 9
    service.close()


def test_too_many_searches_are_told_to_come_back(anna: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "WAITING_OF_ONE", 2)
    held = [service.searches._threads.submit(time.sleep, 1.5) for _ in range(searches.THREADS)]
    body = {"gallery": "town", "target": "id:v001"}
    begun = [anna.post("/api/v1/searches", json=body) for _ in range(3)]
    assert [one.status_code for one in begun] == [202, 202, 429] and int(begun[2].headers["retry-after"]) > 0
    assert anna.delete(begun[1].headers["location"]).json()["state"] == "cancelled"
    begun.append(anna.post("/api/v1/searches", json=body))  # there is room again
    assert [one.result() for one in held] == [None, None]
    ended = [anna.get(begun[place].headers["location"], params={"wait": 30}).json()["state"] for place in (0, 1, 3)]
    assert ended == ["done", "cancelled", "done"]


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"target": "/etc/passwd"}, 422, "a target is id:VIDEO_ID"),
        ({"target": "s3://bucket/a.mp4"}, 422, "a target is id:VIDEO_ID"),
        ({"target": "upload:nothing"}, 404, "no such upload"),
        ({"target": "upload:../../etc"}, 404, "no such upload"),
        ({"gallery": "city"}, 404, "no such gallery"),
        ({"zone": "Nowhere/Town"}, 422, "zone"),
        ({"top": 0}, 422, "top"),
        ({"box": [0, 0, 0, 5]}, 422, "box"),
        ({"out": "folder"}, 422, "out"),
        ({"after": "2026-01-01T00:00:00"}, 422, "after"),
        ({"reason": "\ud800"}, 422, ""),
    ],
)
def test_what_cannot_be_meant_is_one_sentence(anna: TestClient, asked: dict, status: int, words: str) -> None:
    body = json.dumps({"gallery": "town", "target": "id:v001", **asked})
    answer = anna.post("/api/v1/searches", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert answer.json().keys() == {"title", "status", "detail"}


def test_a_search_that_fails_says_why(anna: TestClient) -> None:
    ended = done(anna, target="id:nobody")
    assert ended["state"] == "failed" and "has no video 'nobody'" in ended["error"]
    assert anna.get(f"/api/v1/searches/{ended['search_id']}/leads").status_code == 404


def test_uploads_are_their_persons_and_the_newest_are_kept(
    anna: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.service.uploads.KEPT", 2)
    brought = [anna.post("/api/v1/targets", params={"name": "../a b.MP4"}, content=bytes([i + 1])).json() for i in range(3)]
    ids = [one["target_id"] for one in brought]
    held = [service.uploads.of("Anna", one) for one in ids]
    assert held[0] is None and [one.path.name for one in held[1:] if one] == ["a-b.mp4"] * 2
    assert len(list(service.uploads.folder.iterdir())) == 2 and service.uploads.of("Bert", ids[2]) is None
    assert anna.post("/api/v1/targets?name=a.mp4", content=b"").status_code == 422
    failed = done(anna, target=f"upload:{ids[2]}")  # one byte is no video
    assert failed["state"] == "failed" and failed["error"]
    assert plain_name("/etc/..") == "target" or "/" not in plain_name("/etc/..")


def test_hours_of_any_day_filter_a_search(anna: TestClient, gallery: Gallery) -> None:
    search = done(anna, between="22:00-02:00", zone="Europe/London")
    assert search["state"] == "done" and search["found"]["filters"] == ["seen between 22:00 and 02:00 Europe/London"]
    refused = anna.post("/api/v1/searches", json={"gallery": "town", "target": "id:v001", "between": "22-2"})
    assert refused.status_code == 422 and "hours of the day are two times such as 22:00-02:00" in refused.json()["detail"]


def test_nobody_s_uploads_push_out_another_person_s(anna: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "uploads", Uploads())  # nothing of the tests before
    monkeypatch.setattr("pipeline.service.uploads.KEPT", 3)
    bert = role(service, "investigator", "Bert")

    def brought(client: TestClient, count: int) -> list[str]:
        return [client.post("/api/v1/targets?name=a.mp4", content=b"x").json()["target_id"] for _ in range(count)]

    hers, his = brought(anna, 2), brought(bert, 5)
    assert [service.uploads.of("Anna", one) is not None for one in hers] == [True, True]
    assert [service.uploads.of("Bert", one) is not None for one in his] == [False, False, True, True, True]
    monkeypatch.setattr("pipeline.service.uploads.KEPT_OF_ALL", 4)
    (more,) = brought(role(service, "investigator", "Carla"), 1)  # six in all: Bert, who has most, loses one
    assert service.uploads.of("Carla", more) is not None and service.uploads.of("Bert", his[2]) is None
    assert [service.uploads.of("Anna", one) is not None for one in hers] == [True, True]
    assert len(list(service.uploads.folder.iterdir())) == 5
    service.uploads.close()


def test_a_form_is_no_file(anna: TestClient) -> None:
    answer = anna.post("/api/v1/targets?name=a.jpg", files={"file": ("a.jpg", b"not the picture itself")})
    assert answer.status_code == 415 and "not a form" in answer.json()["detail"]


def test_galleries_cameras_and_videos_are_listed(anna: TestClient) -> None:
    (facts,) = anna.get("/api/v1/galleries").json()
    assert (facts["name"], facts["videos"], facts["requires"]) == ("town", 24, [])
    cameras = anna.get("/api/v1/galleries/town/cameras").json()
    assert [(one["camera_id"], one["videos"]) for one in cameras] == [("cam0", 12), ("cam1", 12)]
    ids, after = [], ""
    while after is not None:
        page = anna.get("/api/v1/galleries/town/videos", params={"limit": 10, "cursor": after}).json()
        ids += [one["video_id"] for one in page["videos"]]
        after = page["following"]
    assert ids == [f"v{number:03d}" for number in range(24)]
    some = anna.get("/api/v1/galleries/town/videos", params={"starts_with": "v01", "camera": "cam1"}).json()["videos"]
    assert [one["video_id"] for one in some] == [f"v01{number}" for number in (1, 3, 5, 7, 9)]


def test_answers_are_as_the_description_says(anna: TestClient) -> None:
    document = anna.get("/api/v1/openapi.json").json()
    search_id = done(anna)["search_id"]
    asked = {
        "/api/v1/me": "/api/v1/me",
        "/api/v1/galleries": "/api/v1/galleries",
        "/api/v1/galleries/{gallery}": "/api/v1/galleries/town",
        "/api/v1/galleries/{gallery}/cameras": "/api/v1/galleries/town/cameras",
        "/api/v1/galleries/{gallery}/videos": "/api/v1/galleries/town/videos",
        "/api/v1/searches": "/api/v1/searches",
        "/api/v1/searches/{search_id}": f"/api/v1/searches/{search_id}",
        "/api/v1/searches/{search_id}/leads": f"/api/v1/searches/{search_id}/leads",
    }
    for path, address in [*asked.items(), ("/api/v1/galleries/{gallery}", "/api/v1/galleries/nowhere")]:
        answer = anna.get(address)
        content = document["paths"][path]["get"]["responses"][str(answer.status_code)]["content"]
        schema = content[answer.headers["content-type"]]["schema"]
        jsonschema.validate(answer.json(), {**schema, "components": document["components"]})
    for operations in document["paths"].values():
        assert all({"session": []} in one["security"] for one in operations.values() if one.get("summary") != "Sign In")


def role(service: Service, name: access.Role, person: str = "Carla") -> TestClient:
    """A browser in which a person of a role has signed in."""
    session, _ = service.access.sign_in(service.access.one_time(person, name))  # type: ignore[misc]
    return TestClient(create_app(service, [HOST]), base_url=ORIGIN, headers=FROM_PAGE, cookies={"resight-session": session})


OPEN_TO_ALL = {("GET", "/api/v1/me"), ("POST", "/api/v1/session"), ("DELETE", "/api/v1/session"), ("GET", "/api/v1/openapi.json")}
OF_VIEWERS = {("GET", f"/api/v1/galleries{rest}") for rest in ("", "/town", "/town/cameras", "/town/videos", "/town/quality")}
OF_VIEWERS |= {("GET", f"/api/v1/cases{rest}") for rest in ("", "/x", "/x/decisions/x", "/x/path", "/x/pictures/x/0.jpg")}
OF_VIEWERS |= {("GET", f"/api/v1/galleries/town/{what}") for what in ("plan", "plan.jpg")}
OF_VIEWERS |= {("GET", f"/api/v1/galleries/town/videos/x/{what}") for what in ("boxes", "clip.mp4", "frames/0.jpg")}


def test_a_viewer_looks_and_changes_nothing_whatever_the_route(service: Service) -> None:
    carla = role(service, "viewer")
    for method, path in set(routes(service)) - OPEN_TO_ALL:
        answer = carla.request(method, path)
        assert (answer.status_code == 403) == ((method, path) not in OF_VIEWERS), (method, path, answer.text)
        assert answer.status_code != 403 or "yours is viewer" in answer.json()["detail"]


def test_a_role_says_what_it_lets_do(service: Service) -> None:
    asked = {"gallery": "town", "target": "id:v001"}
    answers = {name: role(service, name).post("/api/v1/searches", json=asked).status_code for name in access.ROLES}
    assert answers == {"viewer": 403, "investigator": 202, "reviewer": 202, "admin": 202}
    assert role(service, "viewer").get("/api/v1/galleries/town/cameras").status_code == 200
    assert role(service, "reviewer").get("/api/v1/me").json()["rights"] == ["look", "investigate", "confirm", "oversee"]


def test_a_request_that_comes_again_with_its_key_is_the_same_one(anna: TestClient, service: Service) -> None:
    body, key = {"gallery": "town", "target": "id:v004"}, {"idempotency-key": "one"}
    first, again = (anna.post("/api/v1/searches", json=body, headers=key).json() for _ in range(2))
    assert first["search_id"] == again["search_id"]
    other = anna.post("/api/v1/searches", json=body | {"top": 3}, headers=key)
    assert other.status_code == 422 and "another request" in other.json()["detail"]
    carla = role(service, "investigator").post("/api/v1/searches", json=body, headers=key).json()
    assert carla["search_id"] != first["search_id"]  # keys are one's own
    assert anna.get(f"/api/v1/searches/{first['search_id']}", params={"wait": 30}).json()["state"] == "done"


def test_many_searches_within_a_minute_are_told_when_to_come_back(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "A_MINUTE", 2)
    build_index(toy_gallery)
    service, client = opened(toy_gallery)
    for _ in range(2):
        assert done(client, gallery="gallery")["state"] == "done"
    refused = client.post("/api/v1/searches", json={"gallery": "gallery", "target": "id:v001"})
    assert refused.status_code == 429 and 0 < int(refused.headers["retry-after"]) <= 60
    service.close()


def test_an_index_stays_open_until_another_one_is_there_or_something_is_forgotten(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    kept = KeptGallery(toy_gallery)
    warm = WarmIndex(kept)
    first = warm.newest()
    assert warm.newest() is first and kept.snapshot() is kept.snapshot()
    add_videos(toy_gallery, people_features(2, 1, 24, seed=1), first=40)
    assert warm.newest() is first and len(kept.snapshot().videos) == len(toy_gallery.snapshot().videos)
    forget(toy_gallery, Selection(video_ids=["v001"]), "asked to")
    again = warm.newest()
    assert again is not first and warm.newest() is again
    assert "v001" not in kept.snapshot().videos["video_id"].to_pylist()
    build_index(toy_gallery)
    assert warm.newest()[0].version > again[0].version


def test_a_warm_search_finds_what_a_cold_one_finds(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    warm = WarmIndex(toy_gallery)
    for video in ("id:v001", "id:v002"):
        one, other = (search(toy_gallery, [video], warm=how).results[0] for how in (None, warm))
        assert [(lead.video, lead.score, lead.best_pairs) for lead in one.leads] == [
            (lead.video, lead.score, lead.best_pairs) for lead in other.leads
        ]


def test_several_galleries_are_searched_each_by_its_name(toy_gallery: Gallery, gallery: Gallery) -> None:
    build_index(toy_gallery)
    service = Service(named([gallery, toy_gallery]), Access())
    client = role(service, "investigator")
    assert [one["name"] for one in client.get("/api/v1/galleries").json()] == ["town", "gallery"]
    counts = [done(client, gallery=name)["found"]["gallery_videos"] for name in ("town", "gallery")]
    assert counts == [24, len(toy_gallery.snapshot().videos)]
    service.close()


def test_what_is_for_its_own_machine_answers_nobody_else(service: Service) -> None:
    """Under Ray Serve what listens is not known to the application."""
    app = create_app(service, [HOST], only_here=True)
    for peer, status in (("127.0.0.1", 401), ("::1", 401), ("192.0.2.7", 403), ("0.0.0.0", 403)):  # noqa: S104
        answer = TestClient(app, base_url=ORIGIN, client=(peer, 50_000)).get("/api/v1/me")
        assert answer.status_code == status, peer


def test_galleries_of_one_name_are_told_apart(toy_gallery: Gallery) -> None:
    assert list(named([toy_gallery, toy_gallery, toy_gallery])) == ["gallery", "gallery-2", "gallery-3"]


def test_others_reach_it_over_https_only() -> None:
    for host in ("0.0.0.0", "::", "192.0.2.1", "search.example"):  # noqa: S104
        with pytest.raises(UsageError, match="others reach"):
            Address(host)
    with pytest.raises(UsageError, match="--name"):
        Address("0.0.0.0", behind_proxy=True)  # noqa: S104
    assert Address("192.0.2.1", name="Search.example", behind_proxy=True).hosts(8080) == ["search.example"]
    assert Address("::1").hosts(8080) == ["[::1]:8080", "localhost:8080"] and not Address().secure
    assert Address().hosts(80) == ["127.0.0.1", "127.0.0.1:80", "localhost", "localhost:80"]


def test_the_command_prints_a_link_and_no_token_is_logged(gallery: Gallery, tmp_path: Path) -> None:
    tokens, log = tmp_path / "tokens.json", tmp_path / "log.jsonl"
    token = issue(tokens, "Bert", 1)
    flags = ["--gallery", gallery.location.uri, "--port", "0", "--tokens", str(tokens)]
    flags += ["--log-format", "json", "--log-file", str(log)]
    call = [sys.executable, "-m", "jobs.serve", *flags]
    with subprocess.Popen(
        call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        try:
            address, once = re.search(r"(http://127\.0\.0\.1:\d+)/#token=(\S+)", process.stdout.readline()).groups()  # type: ignore[union-attr]

            def ask(path: str, body: object = None, **headers: str) -> tuple[dict, str]:
                data = None if body is None else json.dumps(body).encode()
                request = urllib.request.Request(  # noqa: S310 - our own
                    address + path, data, {"content-type": "application/json", "origin": address, **headers}
                )
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                    return json.loads(answer.read()), answer.headers["set-cookie"] or ""

            who, cookie = ask("/api/v1/session", {"token": once})
            assert who == {"person": user(), "role": "admin", "rights": ADMIN}
            assert ask("/api/v1/me", authorization=f"Bearer {token}")[0]["person"] == "Bert"
            with pytest.raises(urllib.error.HTTPError, match="401"):
                ask("/api/v1/me", authorization="Bearer wrong-token-of-nobody")
        finally:
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=60)
    assert process.returncode == 0 and complained == ""
    logged = said + complained + log.read_text()
    session = cookie.partition(";")[0].partition("=")[2]
    assert session and not any(secret in logged for secret in (once, token, session, "wrong-token-of-nobody"))


def test_nothing_is_logged_of_what_opens_doors(anna: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        anna.post("/api/v1/session", json={"token": "a-token-that-is-wrong"})
        anna.get("/api/v1/me")
    assert "a-token-that-is-wrong" not in caplog.text and anna.cookies["resight-session"] not in caplog.text
