"""The way of one recording through a worker: decoded, looked at, found, cut out, embedded, written; or refused with a reason."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.catalog.inputs import SOURCE_SCHEMA, read_catalog
from pipeline.errors import UsageError
from pipeline.footage import run
from pipeline.footage.commit import Committer
from pipeline.footage.detect import DETECTED_SCHEMA, DetectPeople
from pipeline.footage.recordings import Clocks, name_pattern, plan_recordings
from pipeline.footage.summary import FootageSummary
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA, boxes_of
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery, feature_matrix
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.source_changes import STILL_CHANGING, with_states
from tests.footage.made_up import commit_recordings, walk, write_recordings
from tests.footage.red_squares import SIDE, RedSquares, write_square

PATTERN = "{camera}/%Y%m%d_%H%M%S.mp4"


def rows(worker: DetectPeople, folder: Path, pattern: str | None = PATTERN) -> list[dict[str, Any]]:
    plan = plan_recordings(read_catalog(folder), name_pattern(pattern) if pattern else None, Clocks())
    return [row for table in worker(with_states(plan.table)) for row in table.to_pylist()]


def test_a_recording_gives_its_detections_at_their_times(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    write_square(tmp_path / "nvr/hall/20260701_120000.mp4")
    (row,) = rows(people(), tmp_path / "nvr")
    assert row["reason"] is None and (row["looked_at"], row["detections"], row["source_frames"]) == (15, 15, 30)
    assert row["last_s"] == pytest.approx(2.9) and (row["width"], row["height"], row["start_from"]) == (320, 240, "name")
    found = gallery.read_detections(row["shard"])
    assert found["frame_index"].to_pylist() == list(range(0, 30, 2))
    assert np.asarray(found["time_s"]) == pytest.approx(np.arange(15) / 5, abs=1e-5)
    expected = np.array([[20 + 4 * k, 60, SIDE, SIDE] for k in range(0, 30, 2)])
    assert np.abs(boxes_of(found) - expected).max() <= 2
    red = feature_matrix(found).astype(float)
    assert red[:, 0].min() > 200 and red[:, 3].max() < 60  # of the crop, not of the scene


def test_the_file_says_when_it_began_where_nobody_else_does(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    write_square(tmp_path / "nvr/export.mp4", creation_time="2026-07-01T12:00:00.000000Z")
    write_square(tmp_path / "nvr/other.mp4", frames=20)
    by_name = {Path(row["uri"]).name: row for row in rows(people(), tmp_path / "nvr", pattern=None)}
    said, unsaid = by_name["export.mp4"], by_name["other.mp4"]
    assert (said["start_time"], said["start_from"]) == (datetime(2026, 7, 1, 12, tzinfo=UTC), "file")
    assert (unsaid["start_time"], unsaid["camera_id"]) == (None, None)


def test_what_cannot_be_used_is_refused_and_leaves_no_file(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    good = write_square(tmp_path / "nvr/hall/20260701_120000.mp4")
    (tmp_path / "nvr/hall/20260701_120100.mp4").write_bytes(b"nothing of the kind" * 100)
    (tmp_path / "nvr/hall/20260701_120200.mp4").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "nvr/hall/20260701_120300.mp4").touch()
    by_name = {Path(row["uri"]).name: row for row in rows(people(), tmp_path / "nvr")}
    reasons = {name: row["reason"] for name, row in by_name.items()}
    assert reasons["20260701_120000.mp4"] is None and reasons["20260701_120300.mp4"] == "empty"
    assert {reasons["20260701_120100.mp4"], reasons["20260701_120200.mp4"]} <= {"not_a_video", "truncated", "undecodable"}
    assert len(list((Path(gallery.location.path) / "detections").iterdir())) == 1


def test_what_was_forgotten_is_not_looked_at_again(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    write_square(tmp_path / "nvr/hall/20260701_120000.mp4")
    (first,) = rows(people(), tmp_path / "nvr")
    boxes = gallery.read_detections(first["shard"]).to_pylist()[:5]
    gone = [{"ingested_hash": first["ingested_hash"], **{name: box[name] for name in ("frame_index", *"xywh")}} for box in boxes]
    (again,) = rows(people(boxes=pa.Table.from_pylist(gone, schema=FORGOTTEN_BOXES_SCHEMA)), tmp_path / "nvr")
    assert again["detections"] == 10 and gallery.read_detections(again["shard"])["frame_index"][0].as_py() == 10
    whole = Forgotten(rows=frozenset({("x", "/x", first["ingested_hash"], None)}))
    (refused,) = rows(people(forgotten=whole), tmp_path / "nvr")
    assert refused["reason"] == "forgotten" and refused["shard"] is None


def test_a_recording_that_is_still_written_is_left(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    path = write_square(tmp_path / "nvr/hall/20260701_120000.mp4")
    plan = with_states(plan_recordings(read_catalog(tmp_path / "nvr"), name_pattern(PATTERN), Clocks()).table)
    with path.open("ab") as file:
        file.write(b"more")
    (row,) = [row for table in people()(plan) for row in table.to_pylist()]
    assert row["reason"] == STILL_CHANGING


def test_commits_count_a_recording_once_and_leave_what_changes(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    write_square(tmp_path / "nvr/hall/20260701_120000.mp4")
    (tmp_path / "nvr/hall/20260701_120300.mp4").touch()
    found = rows(people(), tmp_path / "nvr")
    changing = found[0] | {"source_id": "other", "reason": STILL_CHANGING}
    summary = FootageSummary()
    committer = Committer(SOURCE_SCHEMA.empty_table(), gallery, gallery.snapshot(), summary, 300.0)
    for row in (*found, *found, changing):
        committer.add(pa.Table.from_pylist([row], schema=DETECTED_SCHEMA))
    committer.flush()
    snapshot = gallery.snapshot()
    assert len(snapshot.recordings) == 1 and snapshot.rejects["reason"].to_pylist() == ["empty"]
    assert (summary.done, summary.left, summary.looked_at, summary.detections, committer.taken) == (2, 1, 15, 15, 3)
    assert snapshot.finished_sources() == {row["source_id"] for row in found}


def test_a_corrected_clock_or_camera_changes_rows_without_decoding(gallery: Gallery) -> None:
    schema = pa.schema([*SOURCE_SCHEMA, RECORDINGS_SCHEMA.field("start_from")])
    there = [row | {"source_size": 6} for row in write_recordings(gallery, walk(seed=1, seconds=20), (10.0,), commit=False)]
    commit_recordings(gallery, there)
    planned = [row | {"start_time": row["start_time"] + timedelta(hours=1), "clock_offset": -3600.0} for row in there]
    planned[1]["camera_id"] = "yard"
    table = pa.Table.from_pylist(planned, schema=schema)
    changed, _, corrections, corrected = run._compared(table, gallery.snapshot())
    assert changed == frozenset() and corrected == 2 and corrections["camera_id"].to_pylist() == ["gate", "yard"]
    commit_recordings(gallery, corrections.to_pylist())
    assert gallery.snapshot().recordings["start_time"].to_pylist() == [row["start_time"] for row in planned]
    assert len(run._compared(table, gallery.snapshot())[2]) == 0
    resized = pa.Table.from_pylist([planned[0] | {"source_size": 7}], schema=schema)
    assert run._compared(resized, gallery.snapshot())[0] == {planned[0]["source_id"]}


def test_files_that_are_there_as_videos_of_one_person_are_not_taken_for_recordings(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_square(tmp_path / "nvr/hall/20260701_120000.mp4")
    plan = plan_recordings(read_catalog(tmp_path / "nvr"), name_pattern(PATTERN), Clocks())
    row = {"source_id": plan.table["source_id"][0].as_py(), "video_id": "a", "uri": plan.table["uri"][0].as_py(), "shard": "none"}
    gallery.commit(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA))
    monkeypatch.setattr(run, "load_detector", lambda *_, **__: RedSquares())
    with pytest.raises(UsageError, match=r"1 of these files are in .* as videos of one person each"):
        run.ingest_footage(plan, gallery, gallery_sampling(gallery), "red")


def test_recordings_are_opened_below_the_gallerys_roots_alone(gallery: Gallery, people: Any, tmp_path: Path) -> None:
    write_square(tmp_path / "outside/20260701_120000.mp4")
    (tmp_path / "nvr/hall").mkdir(parents=True)
    (tmp_path / "nvr/hall/20260701_120000.mp4").symlink_to(tmp_path / "outside/20260701_120000.mp4")
    plan = plan_recordings(read_catalog(tmp_path / "nvr", roots=[tmp_path / "nvr"]), name_pattern(PATTERN), Clocks())
    worker = people()
    (row,) = [row for table in worker(with_states(plan.table)) for row in table.to_pylist()]
    assert row["reason"] == "outside_roots" and plan.reach.roots == (str(tmp_path / "nvr"),)
