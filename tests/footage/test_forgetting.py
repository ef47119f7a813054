"""Forgetting reaches what was found in recordings: nobody who was forgotten comes back, and nothing of them stays on disk."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UsageError
from pipeline.footage.forgotten_people import ForgottenBoxes
from pipeline.footage.tracker import TrackingSettings
from pipeline.footage.tracks import track
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.remains import files_with_forgotten
from pipeline.retention.verify import verify_gallery
from tests.footage.made_up import START, candidates, commit_recordings, footage_gallery, walk, write_recordings

CUTS = (10.0, 20.0, 30.0, 40.0, 50.0)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), CUTS)
    write_recordings(gallery, walk(seed=2), CUTS, camera="yard")
    track(gallery)
    return gallery


def longest(gallery: Gallery) -> dict:
    return max(gallery.snapshot().videos.to_pylist(), key=lambda row: row["sampled_frames"])


def features_on_disk(gallery: Gallery) -> set[bytes]:
    """Every feature in every file, committed or not."""
    found = set()
    for folder in ("frames", "detections"):
        for file in (Path(gallery.location.path) / folder).glob("*.parquet"):
            table = pq.read_table(file)
            matrix = feature_matrix(table.filter(pc.is_valid(table["feature"])))
            found |= {row.tobytes() for row in matrix}
    return found


def test_a_person_who_was_forgotten_is_gone_at_once_and_from_the_disk_after_compaction(gallery: Gallery) -> None:
    row, before = longest(gallery), candidates(gallery)
    theirs = {feature.tobytes() for feature in feature_matrix(gallery.read_video(row))}
    assert theirs <= features_on_disk(gallery)
    assert forget(gallery, Selection(video_ids=(row["video_id"],)), "asked for") == [row["video_id"]]
    del before[row["video_id"]]
    assert candidates(gallery) == before
    compact(gallery)
    assert candidates(gallery) == before
    assert not theirs & features_on_disk(gallery)
    assert files_with_forgotten(gallery) == {} and verify_gallery(gallery) == []


@pytest.mark.parametrize("compacted", [False, True])
def test_following_anew_brings_back_nobody_and_renames_nobody(gallery: Gallery, compacted: bool) -> None:
    row, before = longest(gallery), candidates(gallery)
    forget(gallery, Selection(video_ids=(row["video_id"],)), "asked for")
    del before[row["video_id"]]
    if compacted:
        compact(gallery)
    track(gallery, TrackingSettings(patience_s=2.9))
    theirs = {feature.tobytes() for feature in feature_matrix(gallery.read_video(row))} if not compacted else set()
    for other in gallery.snapshot().videos.to_pylist():
        assert not theirs & {feature.tobytes() for feature in feature_matrix(gallery.read_video(other))}
    track(gallery, TrackingSettings())
    assert candidates(gallery) == before


def test_someone_forgotten_who_stays_on_is_forgotten_in_the_next_file_too(tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS, commit=False)
    commit_recordings(gallery, rows[:3])
    track(gallery)
    whole = footage_gallery(tmp_path / "whole")
    write_recordings(whole, walk(seed=1), CUTS)
    track(whole)
    ends = {row["video_id"]: row["seen_to"] for row in whole.snapshot().videos.to_pylist()}
    (gone, *_) = [
        row["video_id"] for row in gallery.snapshot().videos.to_pylist() if ends[row["video_id"]] > START + timedelta(seconds=33)
    ]
    forget(gallery, Selection(video_ids=(gone,)), "asked for")
    commit_recordings(gallery, rows[3:])
    track(gallery)
    expected = {name: one for name, one in candidates(whole).items() if name != gone}
    assert candidates(gallery) == expected
    compact(gallery)
    track(gallery, TrackingSettings(patience_s=2.9))
    track(gallery, TrackingSettings())
    assert candidates(gallery).keys() == expected.keys()


def test_a_camera_is_forgotten_with_its_recordings(gallery: Gallery) -> None:
    before = candidates(gallery)
    of_yard = {
        feature.tobytes()
        for row in gallery.snapshot().videos.to_pylist()
        if row["camera_id"] == "yard"
        for feature in feature_matrix(gallery.read_video(row))
    }
    forget(gallery, Selection(camera="yard"), "asked for")
    kept = {name: one for name, one in before.items() if name.startswith("gate")}
    assert candidates(gallery) == kept
    assert set(gallery.snapshot().recordings["camera_id"].to_pylist()) == {"gate"}
    track(gallery)
    compact(gallery)
    assert candidates(gallery) == kept and not of_yard & features_on_disk(gallery)
    assert files_with_forgotten(gallery) == {} and verify_gallery(gallery) == []
    with pytest.raises(UsageError, match="no video with the camera 'yard'"):
        forget(gallery, Selection(camera="yard"), "asked for")


def test_what_is_old_is_forgotten_by_whole_recordings(gallery: Gallery) -> None:
    before = START + timedelta(seconds=25)
    there = gallery.snapshot().videos.to_pylist()
    old = {
        row["source_id"] for row in gallery.snapshot().recordings.to_pylist() if row["start_time"] < START + timedelta(seconds=20)
    }
    gone = {row["video_id"] for row in there if row["seen_to"] < before or row["source_id"] in old}
    assert any(row["seen_to"] >= before for row in there if row["video_id"] in gone)  # of somebody who stays on in what is kept
    assert (
        set(forget(gallery, Selection(before=before), "age")) == gone == gallery.forgotten() & {row["video_id"] for row in there}
    )
    snapshot = gallery.snapshot()
    assert min(snapshot.recordings["start_time"].to_pylist()) == START + timedelta(seconds=20)
    assert all(row["seen_to"] >= before for row in snapshot.videos.to_pylist())
    track(gallery)
    compact(gallery)
    names = {
        row["recording_id"]
        for file in (Path(gallery.location.path) / "detections").glob("*.parquet")
        for row in pq.read_table(file, columns=["recording_id"]).to_pylist()
    }
    assert names == set(snapshot.recordings["source_id"].to_pylist())


def test_compaction_takes_the_features_of_those_whom_no_candidate_has(tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    frames = walk(seed=1)
    for number in range(10, 100, 7):  # somebody is seen for one moment
        time_s, boxes, scores, features = frames[number]
        stranger = -features.mean(axis=0) if len(features) else np.ones(features.shape[1])
        extra = np.array([[620 - number, 10, 15, 30]], np.float32)
        frames[number] = time_s, np.vstack([boxes, extra]), np.append(scores, np.float32(0.4)), np.vstack([features, stranger])
    write_recordings(gallery, frames, CUTS)
    track(gallery)
    before = candidates(gallery)
    held = features_on_disk(gallery)
    compact(gallery)
    in_candidates = {
        feature.tobytes() for row in gallery.snapshot().videos.to_pylist() for feature in feature_matrix(gallery.read_video(row))
    }
    assert len(features_on_disk(gallery)) < len(held) and in_candidates <= features_on_disk(gallery)
    assert candidates(gallery) == before
    assert compact(gallery).videos == len(before) and candidates(gallery) == before
    track(gallery, TrackingSettings(patience_s=2.9))
    track(gallery, TrackingSettings())
    assert candidates(gallery) == before


def test_the_same_bytes_bring_back_no_box_that_was_forgotten() -> None:
    table = pa.table(
        {
            "ingested_hash": ["file:1f"],
            "frame_index": pa.array([3], pa.int32()),
            **{side: pa.array([value], pa.float32()) for side, value in zip("xywh", (10, 20, 40, 100), strict=True)},
        }
    )
    forgotten = ForgottenBoxes(table)
    assert forgotten.hold("file:1f", 3, np.array([12.0, 22, 40, 100]))
    assert not forgotten.hold("file:1f", 4, np.array([12.0, 22, 40, 100]))
    assert not forgotten.hold("file:2f", 3, np.array([12.0, 22, 40, 100]))
    assert not forgotten.hold("file:1f", 3, np.array([60.0, 22, 40, 100]))
    assert not forgotten.hold(None, 3, np.array([12.0, 22, 40, 100]))


def test_a_copy_of_a_recording_loses_whom_the_recording_loses(tmp_path: Path) -> None:
    gallery, frames = footage_gallery(tmp_path / "gallery"), walk(seed=1)
    rows = write_recordings(gallery, frames, CUTS)
    copies = write_recordings(gallery, frames, CUTS, commit=False)
    commit_recordings(gallery, [row | {"source_id": f"later-{row['source_id']}"} for row in copies])
    track(gallery)
    row = longest(gallery)
    theirs = {feature.tobytes() for feature in feature_matrix(gallery.read_video(row))}
    forget(gallery, Selection(video_ids=(row["video_id"],)), "asked for")
    compact(gallery)
    assert not theirs & features_on_disk(gallery)
    assert len(gallery.snapshot().recordings) == 2 * len(rows)
