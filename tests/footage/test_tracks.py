"""Following people through a camera's recordings: the same candidates however they came, and nothing lost or doubled."""

import random
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import PipelineError
from pipeline.footage import stored_detections, tracks
from pipeline.footage.stored_detections import RunDetections
from pipeline.footage.tracker import TrackingSettings
from pipeline.footage.tracks import LONGEST_S, SHORTEST_S, last_settings, pieces, track
from pipeline.gallery.gallery import Gallery
from pipeline.retention.verify import verify_gallery
from tests.footage.made_up import (
    START,
    candidates,
    commit_recordings,
    footage_gallery,
    people_seen,
    walk,
    write_recordings,
)

CUTS = (10.0, 20.0, 30.0, 40.0, 50.0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Two cameras, each cut into six files, followed at once."""
    gallery = footage_gallery(tmp_path_factory.mktemp("whole") / "gallery")
    write_recordings(gallery, walk(seed=1), CUTS)
    write_recordings(gallery, walk(seed=2), CUTS, camera="yard")
    track(gallery)
    return gallery


def test_people_become_candidates_of_their_camera_and_time(whole: Gallery) -> None:
    rows = whole.snapshot().videos.to_pylist()
    assert {row["video_id"].split("#")[0] for row in rows} == {"gate/20260301T080000Z", "yard/20260301T080000Z"}
    assert len(rows) >= 12 and verify_gallery(whole) == []
    for row in rows:
        frames = whole.read_video(row)
        seconds = (row["seen_to"] - row["seen_from"]).total_seconds()
        assert seconds >= SHORTEST_S and row["seen_from"] >= START and row["sampled_frames"] == len(frames)
        assert row["seen_from"] == row["start_time"] + timedelta(seconds=frames["time_s"][0].as_py())
        assert row["camera_id"] == row["video_id"].split("/")[0] and row["uri"] == f"/recordings/{row['source_id']}.mp4"


def test_a_frame_of_a_candidate_is_a_detection_of_the_recording_that_it_names(whole: Gallery) -> None:
    recordings = {row["source_id"]: row for row in whole.snapshot().recordings.to_pylist()}
    across = 0
    for row in whole.snapshot().videos.to_pylist():
        frames = whole.read_video(row).to_pylist()
        across += len({frame["place"]["recording_id"] for frame in frames}) > 1
        for frame in frames:
            place = frame["place"]
            found = whole.read_detections(recordings[place["recording_id"]]["shard"]).to_pylist()
            same = [one for one in found if one["frame_index"] == place["frame"] and one["x"] == place["x"]]
            assert [one["feature"] for one in same] == [frame["feature"]]
            at = recordings[place["recording_id"]]["start_time"] + timedelta(seconds=place["time_s"])
            assert abs((at - row["start_time"]).total_seconds() - frame["time_s"]) < 1e-3
    assert across > 3  # otherwise this shows nothing of files that continue each other


@pytest.mark.parametrize("seed", range(3))
def test_recordings_that_come_one_by_one_in_any_order_give_the_same_candidates(whole: Gallery, tmp_path: Path, seed: int) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS, commit=False)
    rows += write_recordings(gallery, walk(seed=2), CUTS, camera="yard", commit=False)
    if seed:
        random.Random(seed).shuffle(rows)
    for row in rows:
        commit_recordings(gallery, [row])
        track(gallery)
    assert candidates(gallery) == candidates(whole)
    assert verify_gallery(gallery) == []


def test_files_that_come_in_order_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not followed anew from the first one: of a camera that records for ever that would be more each time."""
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS, commit=False)
    read: list[str] = []  # where people are in these; features are read as they are needed
    reads = Gallery.read_detections

    def noted(self: Gallery, shard: str, columns: Any = None, group: int | None = None) -> pa.Table:
        read.extend([shard] if group is None else [])
        return reads(self, shard, columns, group)

    monkeypatch.setattr(Gallery, "read_detections", noted)
    for row in rows:
        commit_recordings(gallery, [row])
        track(gallery)
    assert read.count(rows[0]["shard"]) <= 1 + sum(row["start_time"] < START + timedelta(seconds=40) for row in rows)
    read.clear()
    track(gallery)
    assert read == []


def test_a_long_recording_is_followed_with_little_of_it_in_memory(
    whole: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that one of a day needs no more than one of an hour."""
    monkeypatch.setattr("pipeline.gallery.gallery.ROW_GROUP_ROWS", 4)
    monkeypatch.setattr(stored_detections, "HELD_BYTES", 3 * 4 * 8 * 2)  # three row groups, of 8 numbers a feature
    monkeypatch.setattr(stored_detections, "RECORDINGS_HELD", 2)
    monkeypatch.setattr(tracks, "PRUNED", 20)
    held: list[int] = []
    features = RunDetections.features

    def watched(self: RunDetections, part: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = features(self, part, rows)
        held.append(sum(one.nbytes for one, _ in self._features.values()))
        return found

    monkeypatch.setattr(RunDetections, "features", watched)
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS)
    write_recordings(gallery, walk(seed=2), CUTS, camera="yard")
    track(gallery)
    assert candidates(gallery) == candidates(whole)
    assert len(gallery.detection_groups(rows[0]["shard"])) > 5  # otherwise this shows nothing
    assert max(held) <= stored_detections.HELD_BYTES


@pytest.mark.parametrize("cuts", [(), (7.4, 31.0), tuple(np.arange(5.0, 60.0, 5.0))], ids=["one file", "three", "twelve"])
def test_how_a_recording_is_cut_into_files_changes_nobody(whole: Gallery, tmp_path: Path, cuts: tuple[float, ...]) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), cuts)
    track(gallery)
    expected = {name: seen for name, seen in people_seen(whole).items() if name.startswith("gate")}
    assert people_seen(gallery) == expected


def test_a_file_that_stands_twice_or_overlaps_doubles_nobody(whole: Gallery, tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS)
    copy = rows[2] | {"source_id": "zz-copy", "uri": "/recordings/copy.mp4"}
    commit_recordings(gallery, [copy])
    overlapping = write_recordings(gallery, walk(seed=1), (39.0,), only=[1], commit=False)
    shorter = {"source_id": "z-overlap", "uri": "/recordings/overlap.mp4"}
    commit_recordings(gallery, [overlapping[0] | shorter])
    summary = track(gallery)
    assert {one.kind for one in summary.irregularities} >= {"copy"}
    gate = {name: seen for name, seen in people_seen(whole).items() if name.startswith("gate")}
    assert {name: seen for name, seen in people_seen(gallery).items() if name.startswith("gate/20260301T080000Z#")} == gate


def test_a_second_that_two_files_show_is_looked_at_once(tmp_path: Path) -> None:
    frames = walk(seed=1)
    gallery = footage_gallery(tmp_path / "gallery")
    first = write_recordings(gallery, frames, (30.0,), only=[0], commit=False)
    second = write_recordings(gallery, frames, (29.0,), only=[1], commit=False)
    commit_recordings(gallery, first + second)
    summary = track(gallery)
    assert [one.kind for one in summary.irregularities] == ["overlap"] and summary.runs == 1
    whole = footage_gallery(tmp_path / "whole")
    write_recordings(whole, frames, ())
    track(whole)
    assert people_seen(gallery) == people_seen(whole)


def test_other_settings_replace_the_tracks_and_the_first_ones_bring_them_back(whole: Gallery, tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), CUTS)
    track(gallery)
    before = candidates(gallery)
    track(gallery, replace(TrackingSettings(), start_score=0.9))
    other = candidates(gallery)
    assert other != before and len(other) == len(gallery.snapshot().videos)
    assert track(gallery).followed == 0  # settings stay as they were given last
    track(gallery, TrackingSettings())
    assert candidates(gallery) == before


def test_settings_that_half_of_the_runs_were_followed_with_are_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), CUTS)
    write_recordings(gallery, walk(seed=2), CUTS, camera="yard")
    track(gallery)
    other = replace(TrackingSettings(), start_score=0.9)
    with monkeypatch.context() as patch:
        patch.setattr(tracks, "grouped", lambda works: [works[:1]])
        track(gallery, other)
    assert last_settings(gallery.snapshot()) == other
    assert track(gallery).followed == 1
    assert {record["settings"]["start_score"] for record in gallery.snapshot().tracking.values()} == {0.9}


def test_a_commit_that_fails_leaves_the_tracks_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS, commit=False)
    commit_recordings(gallery, rows[:3])
    track(gallery)
    before = candidates(gallery)
    commit_recordings(gallery, rows[3:])

    def fails(*_: object, **__: object) -> str:
        raise PipelineError("made up")

    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "commit", fails)
        with pytest.raises(PipelineError, match="made up"):
            track(gallery)
    assert candidates(gallery) == before
    track(gallery)
    assert len(candidates(gallery)) > len(before) and verify_gallery(gallery) == []


def test_a_damaged_state_is_followed_anew(whole: Gallery, tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS, commit=False)
    commit_recordings(gallery, rows[:3])
    track(gallery)
    for file in (tmp_path / "gallery/tracking").iterdir():
        file.write_bytes(b"damaged")
    commit_recordings(gallery, rows[3:])
    track(gallery)
    assert candidates(gallery) == {name: one for name, one in candidates(whole).items() if name.startswith("gate")}


def test_a_recording_that_is_refused_later_takes_its_people_along(tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = write_recordings(gallery, walk(seed=1), CUTS)
    track(gallery)
    from pipeline.gallery.gallery import REJECTS_SCHEMA

    refused = {
        "source_id": rows[-1]["source_id"],
        "video_id": rows[-1]["source_id"],
        "reason": "undecodable",
        "message": "made up",
    }
    gallery.commit(None, pa.Table.from_pylist([refused], schema=REJECTS_SCHEMA))
    track(gallery)
    shorter = footage_gallery(tmp_path / "shorter")
    write_recordings(shorter, walk(seed=1), CUTS, only=range(5))
    track(shorter)
    assert candidates(gallery) == candidates(shorter)


def test_a_recording_that_was_taken_in_again_gives_its_new_people_and_no_old_ones(tmp_path: Path) -> None:
    gallery, expected = footage_gallery(tmp_path / "gallery"), footage_gallery(tmp_path / "expected")
    write_recordings(gallery, walk(seed=1), CUTS)
    track(gallery)
    changed = write_recordings(gallery, walk(seed=3), CUTS, only=[2], commit=False)[0] | {"ingested_hash": "file:other"}
    commit_recordings(gallery, [changed])
    track(gallery)
    others = write_recordings(expected, walk(seed=1), CUTS, only=[0, 1, 3, 4, 5], commit=False)
    commit_recordings(expected, others + write_recordings(expected, walk(seed=3), CUTS, only=[2], commit=False))
    track(expected)
    assert candidates(gallery) == candidates(expected) and verify_gallery(gallery) == []


def test_a_corrected_clock_moves_candidates_without_doubling_them(tmp_path: Path) -> None:
    gallery, expected = footage_gallery(tmp_path / "gallery"), footage_gallery(tmp_path / "expected")
    rows = write_recordings(gallery, walk(seed=1), CUTS)
    track(gallery)
    commit_recordings(gallery, [row | {"start_time": row["start_time"] - timedelta(hours=1)} for row in rows])
    track(gallery)
    write_recordings(expected, walk(seed=1), CUTS, start=START - timedelta(hours=1))
    track(expected)
    assert candidates(gallery) == candidates(expected) and len(gallery.snapshot().tracking) == 1


def test_candidates_are_cut_where_they_get_long_and_never_too_short() -> None:
    times = np.arange(0, 2 * LONGEST_S + 0.5, 0.2)
    found = pieces(times)
    assert [(part.start, part.stop) for part in found] == [(0, 1500), (1500, len(times))]
    assert pieces(np.array([0.0, 0.9])) == [] and pieces(np.array([5.0])) == []
    assert pieces(np.array([0.0, 1.0])) == [slice(0, 2)]


def test_several_groups_give_what_one_gives(whole: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), CUTS)
    write_recordings(gallery, walk(seed=2), CUTS, camera="yard")
    monkeypatch.setattr(tracks, "TASK_DETECTIONS", 10)
    monkeypatch.setattr(tracks, "SHARD_ROWS", 50)
    monkeypatch.setattr(stored_detections, "RECORDINGS_HELD", 1)
    from pipeline.footage.recordings import timeline
    from pipeline.footage.tracks import Work, follow_all, grouped

    runs, _ = timeline(gallery.snapshot().recordings)
    groups = grouped([Work(run) for run in runs])
    assert len(groups) == 2
    for group in reversed(groups):
        videos, tracked, _ = follow_all(gallery, group, TrackingSettings(), gallery.snapshot().videos)
        gallery.commit(videos, kind="track", tracked=tracked)
    assert candidates(gallery) == candidates(whole)


@pytest.mark.ray
def test_runs_are_followed_in_tasks_of_ray_where_there_is_much(
    whole: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), CUTS)
    write_recordings(gallery, walk(seed=2), CUTS, camera="yard")
    monkeypatch.setattr(tracks, "TASK_DETECTIONS", 10)
    assert track(gallery).followed == 2
    assert candidates(gallery) == candidates(whole)
