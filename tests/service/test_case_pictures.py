"""What speaks for a lead of somebody whom a person brought along: it stays with the case when the upload is gone."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.backbone.spec import find_backbone
from pipeline.gallery.audit import read_records, verify
from pipeline.gallery.forgotten import Forgotten, write_forgotten
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.retention.compact import compact
from pipeline.retention.forget import take_forgotten
from pipeline.service.access import Access
from pipeline.service.asking import Service, named
from tests.conftest import save_toy_backbone
from tests.decoding.test_video import write_video
from tests.service.test_cases import FIRST
from tests.service.test_export import exported
from tests.service.test_media import town
from tests.service.test_service import done, role


def again(made: Gallery) -> Service:
    """A service of the gallery that knows nothing of the ones before."""
    return Service(named([Gallery.open(made.location.path)]), Access())


def brightness(answer: object) -> float:
    assert answer.status_code == 200, answer.text  # type: ignore[attr-defined]
    return float(np.asarray(Image.open(io.BytesIO(answer.content))).mean())  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def decided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gallery, dict]:
    """A gallery with a case in which Anna has called v000 the person of a clip that she brought, and the record of it."""
    folder = tmp_path_factory.mktemp("kept")
    made = town(folder, GallerySettings(find_backbone(str(save_toy_backbone(folder / "toy.onnx"))), 10.0, None), 3)
    build_index(made)
    service = again(made)
    anna = role(service, "investigator", "Anna")
    assert anna.post("/api/v1/cases", json={"gallery": "town", "name": "7-26", "title": "Missing"}).status_code == 201
    clip = write_video(folder / "mine.mp4", 30, (60, 120)).read_bytes()
    target = anna.post("/api/v1/targets?name=mine.mp4", content=clip).json()["target_id"]
    search = done(anna, target=f"upload:{target}", case="7-26", whole_picture=True)
    assert search["state"] == "done", search
    said = {"decision": "same", "search": search["search_id"]}
    answer = anna.put("/api/v1/cases/7-26/decisions/v000", json=said, headers=FIRST)
    assert answer.status_code == 200, answer.text
    service.close()
    return made, read_records(made, "cases/7-26")[-1]


def picture(client: TestClient, frame: int) -> object:
    return client.get(f"/api/v1/cases/7-26/pictures/target/{frame}.jpg", params={"video_id": "v000"})


def test_who_confirms_sees_the_target_after_a_new_start(decided: tuple[Gallery, dict]) -> None:
    made, record = decided
    frames = record["evidence"]["target"]["frames"]
    assert list(record["target_pictures"]) == [str(frame) for frame in frames] and record["target_hash"].startswith("file:")
    service = again(made)
    bert = role(service, "reviewer", "Bert")
    for frame in frames:
        assert brightness(picture(bert, frame)) == pytest.approx(8.0 * frame, abs=6)  # `write_video` says a frame's number so
    assert picture(bert, 999).status_code == 404  # type: ignore[attr-defined]
    assert verify(made) == [] and verify(made, chain="cases/7-26") == []
    service.close()


def test_a_package_of_a_new_start_shows_the_target(decided: tuple[Gallery, dict]) -> None:
    made, record = decided
    service = again(made)
    anna = role(service, "investigator", "Anna")
    before = len(read_records(made))
    export = exported(anna)
    assert export["state"] == "done", export
    for _ in range(2):
        package = anna.get(f"/api/v1/cases/7-26/exports/{export['export_id']}/package.zip").content
    with zipfile.ZipFile(io.BytesIO(package)) as files:
        names = [name for name in files.namelist() if "target-frame" in name]
        shown = {name: np.asarray(Image.open(io.BytesIO(files.read(name)))).mean() for name in names}
    frames = record["evidence"]["target"]["frames"]
    assert shown == {f"7-26/pictures/lead-1/target-frame-{frame}.jpg": pytest.approx(8.0 * frame, abs=6) for frame in frames}
    export_said, *taken = read_records(made)[before:]  # each time that somebody takes a package away is on record
    assert export_said["action"] == "export" and [(one["action"], one["who"]) for one in taken] == [("download", "Anna")] * 2
    assert {one["package_sha256"] for one in taken} == {export["sha256"]} == {export_said["package_sha256"]}
    service.close()


def test_a_changed_picture_is_not_shown(decided: tuple[Gallery, dict]) -> None:
    made, record = decided
    frame, digest = next(iter(record["target_pictures"].items()))
    file = Path(made.location.path, "cases/7-26/pictures", f"{digest}.jpg")
    data = file.read_bytes()
    file.write_bytes(data[:-20] + b"x" + data[-19:])
    service = again(made)
    assert picture(role(service, "reviewer", "Bert"), int(frame)).status_code == 404  # type: ignore[attr-defined]
    file.write_bytes(data)
    service.close()


def test_a_target_whose_bytes_were_forgotten_is_shown_no_more(decided: tuple[Gallery, dict], tmp_path: Path) -> None:
    made, record = decided
    write_forgotten(Forgotten(rows=frozenset({(None, None, record["target_hash"], None)})), str(tmp_path / "gone.parquet"))
    take_forgotten(made, str(tmp_path / "gone.parquet"))
    service = again(made)
    frame = record["evidence"]["target"]["frames"][0]
    assert picture(role(service, "reviewer", "Bert"), frame).status_code == 404  # type: ignore[attr-defined]
    service.close()
    kept = Path(made.location.path, "cases/7-26/pictures")
    (kept / f"{'a' * 64}.jpg").write_bytes(b"of a target that nobody has forgotten")
    assert len(list(kept.iterdir())) == len(set(record["target_pictures"].values())) + 1
    compact(made)
    assert [file.name[:1] for file in kept.iterdir()] == ["a"]  # the others are off the disk
    assert verify(made) == [] and verify(made, chain="cases/7-26") == [] and compact(made).deleted == 0
