"""Packages that hand a case over: what is in them, that anybody can check them, who may make them, and what is on record."""

import hashlib
import io
import json
import re
import shutil
import subprocess
import time
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from pipeline.errors import PipelineError, VideoError
from pipeline.gallery.audit import head, read_records, set_policy, verify
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.retention.forget import Selection, forget
from pipeline.search.evidence import SourcePictures
from pipeline.service.asking import Service
from pipeline.service.casebook import Casebook
from pipeline.service.cases import rows
from pipeline.service.package import write_package
from tests.jobs.commands import command, process
from tests.service.test_cases import decided
from tests.service.test_service import done, role

EXPORTS = "/api/v1/cases/7-26/exports"


@pytest.fixture(autouse=True)
def grey(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of made-up videos."""
    monkeypatch.setattr(
        SourcePictures, "__call__", lambda _self, _video, wanted: {n: np.full((192, 96, 3), 90, np.uint8) for n in wanted}
    )


@pytest.fixture(autouse=True)
def clips(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, float]]:
    """What clips are asked for; the last one cannot be made."""
    asked: list[tuple[str, float, float]] = []

    def clip(_clips: object, video: VideoRef, start: float, end: float) -> bytes:
        asked.append((video.video_id, start, end))
        if len(asked) == 4:
            raise VideoError("truncated", "the file ends too early")
        return b"an mp4 file"

    monkeypatch.setattr("pipeline.service.handover._clip", clip)
    return asked


def exported(client: TestClient, **asked: object) -> dict:
    begun = client.post(EXPORTS, json=asked)
    assert begun.status_code == 202, begun.text
    for _ in range(600):
        state = client.get(begun.headers["location"]).json()
        if state["state"] in ("done", "failed"):
            return state
        time.sleep(0.05)
    raise AssertionError(state)


def unpacked(client: TestClient, export: dict, folder: Path) -> Path:
    answer = client.get(f"{EXPORTS}/{export['export_id']}/package.zip")
    assert answer.status_code == 200 and len(answer.content) == export["bytes"]
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(folder)
    return folder / "7-26"


def checked(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False)


def test_a_package_is_checked_by_anybody_and_one_changed_byte_is_found(
    anna: TestClient, gallery: Gallery, tmp_path: Path, clips: list[tuple[str, float, float]]
) -> None:
    search_id = done(anna, case="7-26", reason="missing child")["search_id"]
    for video_id, decision in (("v000", "same"), ("v002", "same"), ("v005", "different")):
        decided(anna, video_id, decision, search_id)
    before = head(gallery)
    export = exported(anna, reason="to the court")
    assert export["state"] == "done" and export["made_by"] == "Anna"
    folder = unpacked(anna, export, tmp_path / "elsewhere")
    ended = checked(folder)
    assert ended.returncode == 0, ended.stderr
    listed = {line.split("  ", 1)[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} - {"SHA256SUMS"}
    document = json.loads((folder / "extract.json").read_text())
    assert (document["case"], document["title"], len(document["records"])) == ("7-26", "Missing child", 4)
    assert [one["video_id"] for one in document["path"]["appearances"]] == ["v000", "v001", "v002"]
    table = pq.read_table(folder / "extract.parquet").to_pylist()
    assert {(one["video_id"], one["decision"], one["decided_by"]) for one in table} == {
        (v, "same", "Anna") for v in ("v000", "v002")
    }
    assert {one["case"] for one in table} == {"7-26"} and all(len(one["best_pairs"]) == 1 for one in table)
    report = (folder / "report.html").read_text()
    assert all(words in report for words in ("v000", "v002", "7-26", "missing child")) and "v005" not in report
    assert len(list((folder / "pictures" / "lead-1").iterdir())) == 16
    assert [video_id for video_id, *_ in clips][::2] == ["v001", "v001"] and len(clips) == 4
    assert all(0 <= start < end for _, start, end in clips)
    names = [f"lead-{number}-{side}.mp4" for number, side in ((1, "lead"), (1, "target"), (2, "target"))]
    assert sorted(file.name for file in (folder / "clips").iterdir()) == names
    assert re.findall(r'<video src="([^"]+)"', report) == ["clips/lead-1-target.mp4", "clips/lead-1-lead.mp4"]
    assert "No clip: the file ends too early." in report and "data:video" not in report
    assert "media-src data: 'self';" in report  # of the file's own folder
    assert (folder / "AUDIT_HEAD").read_text().startswith(f"{before}  audit log")
    for number, record in enumerate(document["records"]):  # the chain, as it lies in the gallery
        own = Path(gallery.location.path, "cases", "7-26", f"{number:010d}.json").read_bytes()
        assert (folder / "records" / f"{number:010d}.json").read_bytes() == own and json.loads(own) == record
    record, taken = read_records(gallery)[-2:]
    assert (taken["action"], taken["who"], taken["export"]) == ("download", "Anna", export["export_id"])
    assert (record["action"], record["who"], record["package_sha256"]) == ("export", "Anna", export["sha256"])
    assert record["unconfirmed"] == ["v000", "v002"] and verify(gallery) == [] and verify(gallery, chain="cases/7-26") == []
    assert anna.get("/api/v1/cases/7-26").json()["exports"] == [export["export_id"]]
    picture = next((folder / "pictures").rglob("*.jpg"))
    data = bytearray(picture.read_bytes())
    data[len(data) // 2] ^= 1
    picture.write_bytes(data)
    assert checked(folder).returncode == 1 and f"{picture.relative_to(folder)}: FAILED" in checked(folder).stdout


def test_the_report_is_made_again_from_the_package_alone(
    anna: TestClient, gallery: Gallery, service: Service, tmp_path: Path
) -> None:
    search_id = done(anna, case="7-26", reason="missing child")["search_id"]
    for video_id in ("v000", "v002"):
        decided(anna, video_id, "same", search_id)
    together = {"target": "id:v009", "further_targets": [{"target": "id:v010"}]}
    of_other = done(anna, **together, case="7-26", reason="her mother")["search_id"]
    decided(anna, "v008", "same", of_other)
    folder = unpacked(anna, exported(anna), tmp_path / "elsewhere")
    path = json.loads((folder / "extract.json").read_text())["path"]["appearances"]
    assert {one["video_id"]: one["why"] for one in path} == {
        **dict.fromkeys(("v001", "v009", "v010"), "target"),
        **dict.fromkeys(("v000", "v002", "v008"), "same person"),
    }
    service.close()
    shutil.rmtree(gallery.location.path)  # another machine has none
    ended = process("report", str(folder), "--out", str(tmp_path / "again"))
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "the report is the one that was handed over, byte for byte"
    page = (tmp_path / "again" / "report.html").read_bytes()
    assert page == (folder / "report.html").read_bytes() and page.count(b"No clip: the file ends too early.") == 1
    assert all(words in page for words in (b"v000", b"v002", b"v008", b"missing child", b"her mother", b"v010"))
    played = re.findall(r'<video src="([^"]+)"', page.decode())
    assert len(played) == 4 and all((tmp_path / "again" / name).read_bytes() == b"an mp4 file" for name in played)
    assert checked(folder).returncode == 0  # nothing in the package was touched


def test_a_report_needs_a_package_as_it_was_handed_over(anna: TestClient, tmp_path: Path) -> None:
    decided(anna, "v000", "same", done(anna, case="7-26")["search_id"])
    folder = unpacked(anna, exported(anna), tmp_path / "elsewhere")

    def said(package: Path = folder, out: Path = tmp_path / "again") -> tuple[int, str]:
        ended = command("report", str(package), "--out", str(out))
        assert not out.exists() or ended.code == 0 or out == folder
        return ended.code, ended.sentence

    assert said(tmp_path)[0] == 2 and "is not an unpacked package: it has no SHA256SUMS" in said(tmp_path)[1]
    assert said(out=folder)[0] == 2 and "the package stays as it was handed over" in said(out=folder)[1]
    extract = folder / "extract.json"
    whole, sums = extract.read_text(), (folder / "SHA256SUMS").read_text()

    def changed(text: str) -> tuple[int, str]:
        """With another extract that its sums vouch for."""
        extract.write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (folder / "SHA256SUMS").write_text(re.sub(r"\w+(?=  extract\.json)", digest, sums))
        return said()

    extract.write_text(whole + " ")
    assert said()[0] == 1 and "extract.json is not as it was handed over" in said()[1]
    older = {name: value for name, value in json.loads(whole).items() if name not in ("format", "videos", "clips")}
    assert "has format 1; this version reads format 2: its own report.html shows it" in changed(json.dumps(older))[1]
    for text in (
        *("{", "[]", json.dumps(json.loads(whole) | {"clips": {}}), json.dumps(json.loads(whole) | {"videos": {"v000": 3}})),
        json.dumps(json.loads(whole) | {"records": [{"action": "decision"}]}),
    ):
        code, sentence = changed(text)
        assert code == 1 and "extract.json is damaged: " in sentence
    assert changed(whole)[0] == 0
    picture = next((folder / "pictures").rglob("*.jpg"))
    name = str(picture.relative_to(folder))
    picture.write_bytes(b"no picture")
    digest = hashlib.sha256(b"no picture").hexdigest()
    whole_sums = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(re.sub(rf"\w+(?=  {re.escape(name)})", digest, whole_sums))
    shutil.rmtree(tmp_path / "again")
    ended = process("report", str(folder), "--out", str(tmp_path / "again"))  # where pictures are not those of this test
    assert (ended.code, ended.sentence) == (1, f"error: {picture} is damaged: it is no picture")
    picture.unlink()
    (tmp_path / "again").mkdir()
    shutil.rmtree(tmp_path / "again")
    assert said() == (1, f"error: {picture} is missing, which SHA256SUMS names")


def test_a_lead_that_nothing_speaks_for_is_in_the_report_from_the_package(
    anna: TestClient, gallery: Gallery, tmp_path: Path
) -> None:
    """The target, an upload that is gone, is introduced by its first frame, which the package has."""
    decided(anna, "v000", "same", done(anna, case="7-26")["search_id"])
    case = Casebook().open(gallery, "town", "7-26")
    assert case is not None
    (_, record) = case.records
    bare = replace(case, records=(case.records[0], record | {"evidence": None, "target": "upload:gone"}))
    videos = rows(gallery, list(bare.shown))
    asked: list[tuple[str, list[int]]] = []

    def pictures(video: VideoRef, wanted: Mapping[int, float | None]) -> dict[int, np.ndarray]:
        asked.append((video.video_id, list(wanted)))
        return {n: np.full((192, 96, 3), 90, np.uint8) for n in wanted}

    write_package(bare, videos, {}, pictures, lambda *_: b"never asked for", tmp_path / "package.zip")
    assert asked == [("v001", [0]), ("v000", [])]
    zipfile.ZipFile(tmp_path / "package.zip").extractall(tmp_path)
    assert checked(tmp_path / "7-26").returncode == 0 and not (tmp_path / "7-26" / "clips").exists()
    assert (tmp_path / "7-26" / "pictures" / "lead-1" / "target-frame-0.jpg").is_file()
    ended = command("report", str(tmp_path / "7-26"), "--out", str(tmp_path / "again"))
    assert "byte for byte" in ended.out and "Some pictures are missing" not in (tmp_path / "again" / "report.html").read_text()


def test_an_export_waits_for_the_second_person_where_the_gallery_requires_it(
    anna: TestClient,
    bert: TestClient,
    gallery: Gallery,
) -> None:
    decided(anna, "v000", "same", done(anna, reason="why", case="7-26")["search_id"])
    set_policy(gallery, ["reason", "confirmation"], "rules")
    assert "reason" in anna.post(EXPORTS, json={}).json()["detail"]
    refused = anna.post(EXPORTS, json={"reason": "to the court"})
    assert refused.status_code == 422 and "second person" in refused.json()["detail"]
    blind = bert.post(EXPORTS, json={"reason": "to the court"})
    assert blind.status_code == 409 and "confirm the leads" in blind.json()["detail"]  # it does not tell that there is any
    tag = bert.get("/api/v1/cases/7-26").json()["leads"][0]["tag"]
    said = {"video_id": "v000", "tag": tag, "decision": "same"}
    assert bert.post("/api/v1/cases/7-26/confirmations", json=said).status_code == 201
    assert exported(anna, reason="to the court")["state"] == "done"
    assert read_records(gallery)[-1]["confirmation"] == "all by a second person" and verify(gallery) == []


def test_who_may_still_confirm_exports_nothing(anna: TestClient, bert: TestClient, gallery: Gallery) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])
    refused = bert.post(EXPORTS, json={})
    assert refused.status_code == 409 and "confirm" in refused.json()["detail"]
    export = exported(anna)
    assert bert.get(f"{EXPORTS}/{export['export_id']}/package.zip").status_code == 409


def test_packages_of_others_are_listed_and_each_download_is_on_record(
    anna: TestClient, service: Service, gallery: Gallery
) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])
    assert anna.get(EXPORTS).json() == []
    first, second = exported(anna), exported(anna)
    carla, emil = role(service, "admin", "Carla"), role(service, "investigator", "Emil")
    for somebody in (anna, carla, emil):
        assert somebody.get(EXPORTS).json() == [second, first]
    before = len(read_records(gallery))
    package = f"{EXPORTS}/{first['export_id']}/package.zip"
    taken = [somebody.get(package) for somebody in (emil, emil, carla)]
    assert [hashlib.sha256(one.content).hexdigest() for one in taken] == [first["sha256"]] * 3
    records = read_records(gallery)[before:]
    said = {
        "action": "download",
        "case": "7-26",
        "export": first["export_id"],
        "made_by": "Anna",
        "package_sha256": first["sha256"],
    }
    assert [one["who"] for one in records] == ["Emil", "Emil", "Carla"] and all(said.items() <= one.items() for one in records)
    assert role(service, "viewer", "Dora").get(EXPORTS).status_code == 403
    assert role(service, "viewer", "Dora").get(package).status_code == 403
    bert = role(service, "reviewer", "Bert")  # who may still confirm v000 is told nothing of what it was called
    assert bert.get(EXPORTS).status_code == bert.get(package).status_code == 409
    assert len(read_records(gallery)) == before + 3 and verify(gallery) == []
    anna.post("/api/v1/cases", json={"gallery": "town", "name": "8-26", "title": "Another one"})
    assert anna.get("/api/v1/cases/8-26/exports").json() == []


def test_a_download_that_cannot_be_recorded_is_none(anna: TestClient, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])
    export = exported(anna)

    def full(*_arguments: object, **_named: object) -> str:
        raise PipelineError("the disk is full")

    monkeypatch.setattr("pipeline.gallery.audit.append_record", full)
    refused = anna.get(f"{EXPORTS}/{export['export_id']}/package.zip")
    assert refused.status_code == 503 and refused.json()["detail"] == "the disk is full"


def test_there_is_something_to_hand_over_or_a_sentence(anna: TestClient, service: Service, gallery: Gallery) -> None:
    decided(anna, "v000", "different", done(anna)["search_id"])
    before = len(read_records(gallery))
    assert "nothing to hand over" in anna.post(EXPORTS, json={}).json()["detail"]
    assert role(service, "viewer", "Dora").post(EXPORTS, json={}).status_code == 403
    assert anna.get(f"{EXPORTS}/nothing").status_code == 404 and len(read_records(gallery)) == before


def test_an_export_that_cannot_be_recorded_is_not_given_out(
    anna: TestClient,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decided(anna, "v000", "same", done(anna)["search_id"])

    def full(*_arguments: object, **_named: object) -> str:
        raise PipelineError("the disk is full")

    monkeypatch.setattr("pipeline.gallery.audit.append_record", full)
    export = exported(anna)
    assert (export["state"], export["error"]) == ("failed", "the disk is full")
    assert anna.get(f"{EXPORTS}/{export['export_id']}/package.zip").status_code == 409
    assert list(service.exports.folder.iterdir()) == []


def test_a_package_that_shows_somebody_who_was_forgotten_is_gone(anna: TestClient, service: Service, gallery: Gallery) -> None:
    search_id = done(anna)["search_id"]
    for video_id in ("v000", "v002"):
        decided(anna, video_id, "same", search_id)
    export = exported(anna)
    forget(gallery, Selection(video_ids=["v005"]), "of somebody else")
    assert anna.get(f"{EXPORTS}/{export['export_id']}/package.zip").status_code == 200
    forget(gallery, Selection(video_ids=["v002"]), "asked to")
    assert anna.get(f"{EXPORTS}/{export['export_id']}/package.zip").status_code == 404 and anna.get(EXPORTS).json() == []
    assert list(service.exports.folder.iterdir()) == []
    again = exported(anna)
    assert again["state"] == "done" and again["sha256"] != export["sha256"]


def test_what_a_second_person_called_otherwise_is_not_handed_over(anna: TestClient, bert: TestClient, tmp_path: Path) -> None:
    search_id = done(anna)["search_id"]
    for video_id, second in (("v000", "different"), ("v002", "same")):
        tag = decided(anna, video_id, "same", search_id)["tag"]
        said = {"video_id": video_id, "tag": tag, "decision": second}
        assert bert.post("/api/v1/cases/7-26/confirmations", json=said).status_code == 201
    folder = unpacked(anna, exported(anna), tmp_path / "elsewhere")
    table = pq.read_table(folder / "extract.parquet").to_pylist()
    assert [(one["video_id"], one["confirmed_by"]) for one in table] == [("v002", "Bert")]
    assert "v000" not in (folder / "report.html").read_text()
