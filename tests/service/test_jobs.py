"""Long work: waited for, watched, cancelled; ingests in a process of their own that goes when the service does."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from starlette.testclient import TestClient

from pipeline.backbone.spec import find_backbone
from pipeline.errors import PipelineError
from pipeline.gallery.audit import read_records, verify
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.scoring import candidates
from pipeline.scoring.candidates import Candidates
from pipeline.search.local_partitions import LocalPartitions
from pipeline.service import intake, work
from pipeline.service.access import Access, issue
from pipeline.service.asking import Service, named
from pipeline.service.jobs import watch_job
from tests.conftest import toy_spec
from tests.decoding.test_video import write_video
from tests.service.test_cases import decided
from tests.service.test_export import EXPORTS, clips, grey
from tests.service.test_service import done, role

__all__ = ["clips", "grey"]
ROOT = Path(__file__).parents[2]
ASKED = {"gallery": "town", "target": "id:v001"}
# Says how far it is, and then waits for its end, as an ingest that is told to end, or does not listen.
WAITS = """
import pathlib, sys, time
asked = sys.stdin.readline()
print('{"stage": "ingest", "done": 3, "total": 20}', flush=True)
%s
pathlib.Path(%r).write_text(asked)
"""


def until(holds: Callable[[], Any], seconds: float = 60) -> Any:
    """What `holds` gives, once that is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found


def told(stream: str) -> list[dict]:
    """The events of a stream (HTML, 9.2.6), their data as JSON."""
    return [json.loads(one.removeprefix("data: ")) for one in stream.split("\n\n") if one.startswith("data: ")]


# ---- waiting


def test_a_search_that_is_done_in_time_is_answered_with_its_leads(anna: TestClient) -> None:
    answer = anna.post("/api/v1/searches", json=ASKED, headers={"prefer": "respond-async, wait=30"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=30")
    found = answer.json()
    assert found["state"] == "done" and answer.headers["location"] == f"/api/v1/searches/{found['search_id']}"
    assert found["leads"] == anna.get(f"{answer.headers['location']}/leads").json()["leads"] and len(found["leads"]) == 20
    again = anna.post(f"{answer.headers['location']}/refine", json={"confirmed": ["v000"]}, headers={"prefer": 'Wait="30"'})
    within = {one["video_id"]: one["within"] for one in again.json()["leads"]}
    assert again.status_code == 201 and within["v000"] == "confirmed"


@pytest.mark.parametrize(
    ("prefer", "applied"), [("wait=0", "wait=0"), ("wait=soon", None), ("return=minimal", None), ("wait=-1", None)]
)
def test_one_that_is_not_is_told_where_to_ask(
    anna: TestClient, prefer: str, applied: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = held_up(monkeypatch)
    answer = anna.post("/api/v1/searches", json=ASKED, headers={"prefer": prefer})
    assert answer.status_code == 202 and answer.headers.get("preference-applied") == applied and "leads" not in answer.json()
    go_on.set()
    assert anna.get(answer.headers["location"], params={"wait": 30}).json()["state"] == "done"


def test_nobody_waits_longer_than_a_request_may(anna: TestClient) -> None:
    answer = anna.post("/api/v1/searches", json=ASKED, headers=[("prefer", "wait=999999999"), ("prefer", "wait=1")])  # type: ignore[arg-type]
    assert (answer.status_code, answer.headers["preference-applied"]) == (201, "wait=30")


def test_a_search_that_fails_in_time_has_no_leads(anna: TestClient) -> None:
    answer = anna.post("/api/v1/searches", json=ASKED | {"target": "id:nobody"}, headers={"prefer": "wait=30"})
    assert answer.status_code == 202 and answer.json()["state"] == "failed"


# ---- watching


def held_up(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Searches stay at their shortlist until this is set."""
    go_on, asked = threading.Event(), LocalPartitions.shortlist

    def waits(self: LocalPartitions, *arguments: Any, **named: Any) -> Any:
        assert go_on.wait(60)
        return asked(self, *arguments, **named)

    monkeypatch.setattr(LocalPartitions, "shortlist", waits)
    return go_on


def test_a_job_is_watched_until_it_has_ended(anna: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = held_up(monkeypatch)
    search_id = anna.post("/api/v1/searches", json=ASKED).json()["search_id"]
    job = next(one for one in service.jobs(token("Anna")) if one.job_id == search_id)

    async def watched() -> list[tuple[str, str | None]]:
        seen = []
        async for one in watch_job(job, service):
            seen.append((one.state, one.stage))
            if one.stage == "shortlist":
                go_on.set()
        return seen

    seen = asyncio.run(watched())
    assert ("running", "shortlist") in seen and seen[-1][0] == "done" and [state for state, _ in seen].count("done") == 1
    answer = anna.get(f"/api/v1/jobs/{search_id}/events")
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.headers["cache-control"] == "no-store"
    (last,) = told(answer.text)
    assert last == anna.get(f"/api/v1/jobs/{search_id}").json() and (last["kind"], last["state"]) == ("search", "done")
    assert last["address"] == f"/searches/{search_id}" and last["about"] == "id:v001" and last["made_by"] == "Anna"


def test_jobs_are_their_persons_own(anna: TestClient, service: Service) -> None:
    search_id = done(anna)["search_id"]
    assert [one["job_id"] for one in anna.get("/api/v1/jobs").json()] == [search_id]
    for other in (role(service, "investigator", "Emil"), role(service, "admin", "Carla")):
        assert other.get("/api/v1/jobs").json() == []
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            assert other.request(method, f"/api/v1/jobs/{search_id}{path}").status_code == 404


# ---- cancelling


def test_a_search_that_runs_stops_when_it_is_cancelled(
    anna: TestClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = held_up(monkeypatch)
    search_id = anna.post("/api/v1/searches", json=ASKED | {"case": "7-26", "reason": "a mistake"}).json()["search_id"]
    until(lambda: anna.get(f"/api/v1/jobs/{search_id}").json()["stage"] == "shortlist")
    assert anna.delete(f"/api/v1/jobs/{search_id}").json()["state"] == "cancelled"
    record = read_records(gallery)[-1]
    said = {name: record[name] for name in ("action", "who", "kind", "search", "target", "case", "reason")}
    expected = ("cancel", "Anna", "search", search_id, "id:v001", "7-26", "a mistake")
    assert tuple(said.values()) == expected
    go_on.set()
    ended = anna.get(f"/api/v1/searches/{search_id}", params={"wait": 30}).json()
    assert ended["state"] == "cancelled" and anna.get(f"/api/v1/searches/{search_id}/leads").status_code == 404
    until(lambda: read_records(gallery)[-1]["action"] == "search")
    assert read_records(gallery)[-1]["failed"] == "cancelled" and "results" not in read_records(gallery)[-1]
    assert verify(gallery) == []
    before = len(read_records(gallery))
    assert anna.delete(f"/api/v1/jobs/{search_id}").json()["state"] == "cancelled"  # once more changes nothing
    assert len(read_records(gallery)) == before


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (lambda anna, _, job: anna.delete(f"/api/v1/searches/{job}"), "cancelled"),
        (lambda _, service, job: service.searches.known(job).end("failed", work.SERVICE_ENDED), work.SERVICE_ENDED),
    ],
)
def test_a_search_that_is_scoring_scores_no_more_once_it_is_ended(
    anna: TestClient,
    service: Service,
    gallery: Gallery,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[TestClient, Service, str], object],
    words: str,
) -> None:
    monkeypatch.setattr(candidates, "SCORE_PAIRS", 1)  # a video at a time
    scored, go_on, score = [], threading.Event(), Candidates._of_all_pairs

    def of_one(*arguments: Any) -> Any:
        scored.append(1)
        assert len(scored) < 4 or go_on.wait(60)
        return score(*arguments)

    monkeypatch.setattr(Candidates, "_of_all_pairs", of_one)
    search_id = anna.post("/api/v1/searches", json=ASKED | {"exact": True}).json()["search_id"]
    until(lambda: len(scored) == 4)
    assert anna.get(f"/api/v1/jobs/{search_id}").json()["stage"] == "score"
    end(anna, service, search_id)
    go_on.set()
    until(lambda: read_records(gallery)[-1].get("failed") == words)
    assert len(scored) == 4, "of 23"
    assert done(anna)["found"]["scored"] == 23 and len(scored) == 27, "the next one is answered as ever"


def test_an_export_that_is_cancelled_leaves_nothing(
    anna: TestClient, service: Service, gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])
    begun, go_on = threading.Event(), threading.Event()

    def clip(*_arguments: object) -> bytes:
        begun.set()
        assert go_on.wait(60)
        return b"a clip"

    monkeypatch.setattr("pipeline.service.handover._clip", clip)
    export_id = anna.post(EXPORTS, json={}).json()["export_id"]
    assert begun.wait(60)
    state = anna.get(f"/api/v1/jobs/{export_id}").json()
    assert (state["kind"], state["about"], state["stage"], state["total"]) == ("export", "7-26", "clips", 1)
    assert anna.delete(f"/api/v1/jobs/{export_id}").json()["state"] == "cancelled"
    go_on.set()
    job = service.exports.known(export_id)
    assert job is not None and job.future is not None
    job.future.result(timeout=60)
    assert list(service.exports.folder.iterdir()) == [] and anna.get("/api/v1/cases/7-26").json()["exports"] == []
    assert [one["action"] for one in read_records(gallery)][-1] == "cancel"
    assert anna.get(f"{EXPORTS}/{export_id}/package.zip").status_code == 409


def test_what_cannot_be_recorded_is_not_cancelled(anna: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = held_up(monkeypatch)
    search_id = anna.post("/api/v1/searches", json=ASKED).json()["search_id"]
    with monkeypatch.context() as broken:

        def full(*_arguments: object) -> str:
            raise PipelineError("the disk is full")

        broken.setattr(work, "append_record", full)
        assert anna.delete(f"/api/v1/jobs/{search_id}").status_code == 503
    go_on.set()
    assert anna.get(f"/api/v1/searches/{search_id}", params={"wait": 30}).json()["state"] == "done"


# ---- ingests


def token(person: str) -> Any:
    return type("Token", (), {"person": person, "may": lambda _self, _right: False})()


@pytest.fixture
def street(tmp_path: Path, toy_backbone: Path) -> Iterator[tuple[Service, Gallery]]:
    """An empty gallery that takes in what lies below tmp_path/nvr."""
    (tmp_path / "nvr").mkdir()
    roots = (str(tmp_path / "nvr"),)
    made = Gallery.open_or_create(tmp_path / "street", GallerySettings(find_backbone(str(toy_backbone)), 10.0, None, roots))
    service = Service(named([made]), Access())
    yield service, made
    service.close()


def waiting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listens: bool = True) -> Path:
    """Ingests are processes that wait for their end; the file that one writes when it has been told of it."""
    last = tmp_path / "ended"
    waits = "sys.stdin.read()" if listens else "time.sleep(600)"
    monkeypatch.setattr(intake, "CHILD", (sys.executable, "-c", WAITS % (waits, str(last))))
    return last


def begun(service: Service, client: TestClient, source: str) -> intake.Ingest:
    answer = client.post("/api/v1/galleries/street/ingests", json={"source": source})
    assert answer.status_code == 202, answer.text
    job = service.ingests.known(answer.json()["job_id"])
    assert job is not None and answer.headers["location"] == f"/api/v1/jobs/{job.job_id}"
    until(lambda: job.stage == "ingest")
    return job


def test_videos_are_taken_in_indexed_and_found(street: tuple[Service, Gallery], tmp_path: Path) -> None:
    service, gallery = street
    for number in range(3):
        write_video(tmp_path / "nvr" / f"p{number}.mp4", 20)
    carla = role(service, "admin", "Carla")
    answer = carla.post("/api/v1/galleries/street/ingests", json={"source": str(tmp_path / "nvr"), "reason": "the new cameras"})
    seen = told(carla.get(f"{answer.headers['location']}/events").text)  # until it has ended
    assert seen[-1]["state"] == "done", seen[-1]
    assert seen[-1]["outcome"].startswith("3 videos added, 0 rejected") and "; index 2" in seen[-1]["outcome"]
    assert {one["stage"] for one in seen} >= {"ingest"} and (seen[-1]["gallery"], seen[-1]["address"]) == ("street", None)
    asked, begins = (one for one in read_records(gallery) if one["action"] == "ingest")
    assert (asked["who"], asked["job"], asked["reason"]) == ("Carla", seen[-1]["job_id"], "the new cameras")
    assert (begins["who"], begins["inputs"]) == ("Carla", 3) and verify(gallery) == []
    videos = carla.get("/api/v1/galleries/street/videos").json()["videos"]
    target = f"id:{videos[0]['video_id']}"
    found = carla.post("/api/v1/searches", json={"gallery": "street", "target": target}, headers={"prefer": "wait=30"}).json()
    assert {one["video_id"] for one in found["leads"]} == {one["video_id"] for one in videos[1:]}


@pytest.mark.parametrize("by", ["a person", "the service's end"])
def test_an_ingest_that_is_ended_takes_its_process_along(
    street: tuple[Service, Gallery], tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, gallery = street
    last = waiting(monkeypatch, tmp_path)
    carla = role(service, "admin", "Carla")
    job = begun(service, carla, str(tmp_path / "nvr"))
    assert (job.done, job.total) == (3, 20) and job.process is not None and job.process.poll() is None
    if by == "a person":
        assert carla.delete(f"/api/v1/jobs/{job.job_id}").json()["state"] == "cancelled"
        record = read_records(gallery)[-1]
        assert (record["action"], record["who"], record["source"]) == ("cancel", "Carla", str(tmp_path / "nvr"))
    else:
        service.close()
        assert (job.state, job.error) == ("failed", work.SERVICE_ENDED)
    until(lambda: job.process is not None and job.process.poll() is not None)
    assert json.loads(last.read_text())["person"] == "Carla"  # it ended by itself


def test_an_ingest_that_does_not_listen_is_killed(
    street: tuple[Service, Gallery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "GRACE_S", 0.2)
    last = waiting(monkeypatch, tmp_path, listens=False)
    job = begun(street[0], role(street[0], "admin"), str(tmp_path / "nvr"))
    street[0].close()
    assert job.process is not None and job.process.poll() == -9 and not last.exists()


def test_an_ingest_whose_process_dies_says_so(
    street: tuple[Service, Gallery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting(monkeypatch, tmp_path)
    job = begun(street[0], role(street[0], "admin"), str(tmp_path / "nvr"))
    assert job.process is not None
    os.kill(job.process.pid, 9)
    until(lambda: not job.is_open)
    assert job.state == "failed" and "by signal 9" in str(job.error)


def test_the_process_of_an_ingest_ends_when_nobody_holds_its_input(street: tuple[Service, Gallery], tmp_path: Path) -> None:
    """As when the service is killed. 600 videos are not done within a second."""
    for number in range(600):
        (tmp_path / "nvr" / f"p{number}.mp4").write_bytes(b"none")
    asked = {"source": str(tmp_path / "nvr"), "detector": None, "pattern": None, "zone": "UTC", "index": False}
    asked |= {"update": False, "retry_rejected": False, "quiet_period": 0}
    request = json.dumps({"gallery": street[1].location.uri, "person": "Carla", "asked": asked})
    with subprocess.Popen(intake.CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(request + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"stage": "ingest", "done": 0, "total": 600}
        process.stdin.close()
        assert process.wait(60) == 130 and "brought" not in process.stdout.read()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"source": "/etc"}, "a source lies below"),
        ({"source": "nvr"}, "absolute path"),
        ({"source": "s3://bucket/videos"}, "a source lies below"),
        ({"source": "{root}/../street"}, "a source lies below"),
        ({"source": "{root}?endpoint_override=elsewhere"}, "a source lies below"),
        ({"source": "{root}/out"}, "a source lies below"),  # a link
        ({"source": "{root}", "detector": "/models/mine.onnx"}, "a detector is one of"),
        ({"source": "{root}", "pattern": "{camera}.mp4"}, "name a detector"),
        ({"source": "{root}", "detector": "rendered", "pattern": "a.mp4"}, "names no camera"),
        ({"source": "{root}", "detector": "rendered", "zone": "Nowhere"}, "zone"),
    ],
)
def test_what_may_not_be_taken_in_is_one_sentence(
    street: tuple[Service, Gallery], tmp_path: Path, asked: dict[str, str], words: str
) -> None:
    service, gallery = street
    root = tmp_path / "nvr"
    (root / "out").symlink_to("/etc")
    asked = {name: value.replace("{root}", str(root)) for name, value in asked.items()}
    answer = role(service, "admin").post("/api/v1/galleries/street/ingests", json=asked)
    assert answer.status_code == 422 and words in answer.json()["detail"], answer.text
    assert read_records(gallery) == [] and service.ingests.all() == []


def test_a_gallery_without_roots_takes_nothing_in(service: Service, gallery: Gallery) -> None:
    refused = role(service, "admin").post("/api/v1/galleries/town/ingests", json={"source": "/videos"})
    assert refused.status_code == 422 and "--root" in refused.json()["detail"]


def test_admins_take_in_and_see_the_ingests_of_others(
    street: tuple[Service, Gallery], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, gallery = street
    waiting(monkeypatch, tmp_path)
    source = str(tmp_path / "nvr")
    job = begun(service, role(service, "admin", "Carla"), source)
    other = role(service, "admin", "Dora")
    listed = other.get("/api/v1/galleries/street/ingests").json()
    assert listed["roots"] == [source] and [one["job_id"] for one in listed["jobs"]] == [job.job_id]
    assert "rendered" in listed["detectors"]
    monkeypatch.setattr(intake, "WAITING", 1)
    records = len(read_records(gallery))
    assert other.post("/api/v1/galleries/street/ingests", json={"source": source}).status_code == 429
    assert len(read_records(gallery)) == records
    for name in ("viewer", "investigator", "reviewer"):
        client = role(service, name, "Emil")  # type: ignore[arg-type]
        assert client.post("/api/v1/galleries/street/ingests", json={"source": source}).status_code == 403
        assert client.get(f"/api/v1/jobs/{job.job_id}").status_code in (403, 404)
    assert other.delete(f"/api/v1/jobs/{job.job_id}").json()["state"] == "cancelled"


def test_a_server_that_stops_ends_its_streams_and_the_processes_of_its_jobs(tmp_path: Path) -> None:
    root = tmp_path / "nvr"
    root.mkdir()
    for number in range(300):
        (root / f"p{number}.mp4").write_bytes(b"none")
    gallery = Gallery.open_or_create(tmp_path / "street", GallerySettings(toy_spec(), 10.0, None, (str(root),)))
    tokens = tmp_path / "tokens.json"
    headers = {"authorization": f"Bearer {issue(tokens, 'Carla', 1, 'admin')}", "content-type": "application/json"}
    call = [sys.executable, "-m", "jobs.serve", "--gallery", gallery.location.uri, "--port", "0", "--tokens", str(tokens)]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found is not None
        ingests = requests.post(
            f"{found[0]}/api/v1/galleries/street/ingests", json={"source": str(root)}, headers=headers, timeout=60
        )
        job = f"{found[0]}{ingests.headers['location']}"
        with requests.get(f"{job}/events", headers=headers, stream=True, timeout=60) as stream:
            lines = stream.iter_lines(chunk_size=1)
            assert any(b'"stage":"ingest"' in line for line in lines)
            below = ["pgrep", "-P", str(process.pid), "-f", "ingest_child"]
            child = int(subprocess.run(below, capture_output=True, check=True).stdout)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert all(b"event: error" not in line for line in lines) and time.monotonic() - began < 4  # it ended by itself
        _, complained = process.communicate(timeout=60)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert "Traceback" not in complained and "ASGI" not in complained, complained
    assert len(gallery.snapshot().videos) == 0 and verify(gallery) == []
