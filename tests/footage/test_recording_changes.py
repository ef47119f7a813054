"""What a second ingest makes of recordings whose files, clocks or detections are others now, without Ray or networks."""

import contextlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.source_hash import source_hash
from pipeline.footage import run
from pipeline.footage.commit import Committer
from pipeline.footage.detect import DETECTED_SCHEMA
from pipeline.footage.recordings import CameraClock, Clocks, NamePattern, name_pattern, plan_recordings
from pipeline.footage.run import ingest_footage
from pipeline.footage.summary import FootageSummary
from pipeline.gallery.detections import detections_schema
from pipeline.gallery.gallery import Gallery
from tests.footage.made_up import DIM, footage_gallery

NAMES = name_pattern("{camera}/%Y%m%d_%H%M%S.mp4")
UTC_CLOCKS = Clocks()
CREATED = datetime(2026, 7, 1, 9, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("hall/20260701_120000.mp4", "hall/20260701_120100.mp4", "hall/20260701_120200.mp4"):
        (tmp_path / "nvr" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "nvr" / name).write_bytes(name.encode())
    return tmp_path / "nvr"


class Reader:
    """Stands for Ray and the networks. bad: names of files that are rejected; read: names that were given to be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bad: set[str] = set()
        self.read: list[str] = []
        monkeypatch.setattr(run, "load_detector", lambda *_, **__: SimpleNamespace(identity="made-up@0"))
        monkeypatch.setattr(run, "connected", lambda _: contextlib.nullcontext())
        monkeypatch.setattr(run, "_run", self.run)

    def run(self, missing: pa.Table, gallery: Gallery, *more: Any) -> None:
        divide_s, snapshot, summary = more[3:6]
        committer = Committer(missing, gallery, snapshot, summary, divide_s)
        asked = committer.asked().to_pylist()
        committer.add(pa.Table.from_pylist([self.detected(row, gallery) for row in asked], schema=DETECTED_SCHEMA))
        committer.flush()

    def detected(self, row: dict[str, Any], gallery: Gallery) -> dict[str, Any]:
        name = Path(row["uri"]).name
        self.read.append(name)
        if name in self.bad:
            return row | {"reason": "truncated", "message": "cut off"}
        found = {"fps": 5.0, "source_frames": 300, "last_s": 59.8, "looked_at": 300, "detections": 0, "detector": "made-up@0"}
        found |= {
            "ingested_hash": source_hash(row["uri"]),
            "ingested_at": datetime.now(UTC),
            "passed_over": 2,
            "remarks": ["odd"],
        }
        if row["start_time"] is None:
            found |= {"start_time": CREATED - timedelta(seconds=row["clock_offset"]), "start_from": "file"}
        return row | found | {"shard": gallery.write_tables("detections", detections_schema(DIM), [])}


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    return Reader(monkeypatch)


def ingested(
    source: Path, gallery: Gallery, pattern: NamePattern | None = NAMES, clocks: Clocks = UTC_CLOCKS, **how: Any
) -> FootageSummary:
    return ingest_footage(plan_recordings(read_catalog(source), pattern, clocks), gallery, Sampling(), "made-up", **how)


def starts(gallery: Gallery) -> set[datetime]:
    return set(gallery.snapshot().recordings["start_time"].to_pylist())


def test_a_rejected_recording_is_tried_again_once_its_file_is_another(folder: Path, tmp_path: Path, reader: Reader) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    reader.bad = {"20260701_120200.mp4"}
    first = ingested(folder, gallery)  # nobody is in these recordings, which is no fault
    assert (first.done, dict(first.reasons)) == (3, {"truncated": 1})
    reader.read.clear()
    assert ingested(folder, gallery).done == 0 and reader.read == []
    reader.bad = set()
    (folder / "hall/20260701_120200.mp4").write_bytes(b"the whole of it, which is longer")
    assert ingested(folder, gallery).done == 1 and reader.read == ["20260701_120200.mp4"]
    assert len(gallery.snapshot().recordings) == 3 and len(gallery.snapshot().rejects) == 0


def test_a_file_of_the_same_bytes_has_not_changed_and_a_longer_one_has(folder: Path, tmp_path: Path, reader: Reader) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    ingested(folder, gallery)
    for file in folder.glob("hall/*"):
        os.utime(file, (1e9, 1e9))
    (folder / "hall/20260701_120100.mp4").write_bytes(b"another recording, which is longer")
    reader.read.clear()
    summary = ingested(folder, gallery)
    assert [Path(uri).name for uri in summary.changed] == ["20260701_120100.mp4"]
    assert (summary.done, summary.corrected) == (0, 0)
    assert ingested(folder, gallery, update=True).updated == 1 and reader.read == ["20260701_120100.mp4"]
    times = {Path(row["uri"]).name: row["source_mtime"].timestamp() for row in gallery.snapshot().recordings.to_pylist()}
    assert times["20260701_120000.mp4"] == 1e9  # kept, so that the bytes are compared once
    assert ingested(folder, gallery).changed == ()


def test_detections_that_cannot_be_read_are_found_anew_with_update(folder: Path, tmp_path: Path, reader: Reader) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    ingested(folder, gallery)
    rows = {Path(row["uri"]).name: row["shard"] for row in gallery.snapshot().recordings.to_pylist()}
    Path(gallery.location.join("detections", rows["20260701_120000.mp4"]).path).write_bytes(b"PAR1 no more")
    Path(gallery.location.join("detections", rows["20260701_120100.mp4"]).path).unlink()
    reader.read.clear()
    assert ingested(folder, gallery).done == 0
    assert ingested(folder, gallery, update=True).done == 2
    assert sorted(reader.read) == ["20260701_120000.mp4", "20260701_120100.mp4"]
    assert all(len(gallery.read_detections(row["shard"])) == 0 for row in gallery.snapshot().recordings.to_pylist())


def test_a_clock_that_is_corrected_later_moves_a_start_that_the_file_says(folder: Path, tmp_path: Path, reader: Reader) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    manifest = tmp_path / "recordings.csv"
    manifest.write_text(f"uri,camera_id\n{folder}/hall/20260701_120000.mp4,hall\n")
    for offset in (30.0, 30.0, -12.5):
        clocks = Clocks(cameras={"hall": CameraClock(None, offset)})
        ingested(manifest, gallery, None, clocks)
        assert starts(gallery) == {CREATED - timedelta(seconds=offset)}
    assert len(reader.read) == 1


def test_what_was_damaged_in_recordings_is_said(folder: Path, tmp_path: Path, reader: Reader) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    for _ in range(2):  # also of those that were dealt with before
        notes = ingested(folder, gallery).notes
        assert (notes.passed_over, notes.damaged, [kind.count for kind in notes.remarks]) == (6, 3, [3])
