"""Forgetting and compaction: what was forgotten is gone and stays gone, and nothing else is lost on the way."""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.catalog.inputs import SOURCE_SCHEMA
from pipeline.coattention.head import save_head
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import read_records, verify
from pipeline.gallery.forgotten import write_forgotten
from pipeline.gallery.gallery import (
    REJECTS_SCHEMA,
    VIDEOS_SCHEMA,
    Gallery,
    GallerySettings,
    Snapshot,
    feature_matrix,
    frames_table,
)
from pipeline.gallery.log import Log
from pipeline.index.build import build_index
from pipeline.index.version_files import index_versions
from pipeline.index.versions import open_index
from pipeline.ingest.run import missing_sources
from pipeline.retention import compact as compaction
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget, take_forgotten
from pipeline.retention.verify import verify_gallery
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from pipeline.storage.location import Location
from tests.conftest import add_videos, people_features, toy_spec
from tests.jobs.commands import command

NO_VIDEOS, NO_REJECTS = VIDEOS_SCHEMA.empty_table(), REJECTS_SCHEMA.empty_table()
OLD = timedelta(hours=24)


def contents(gallery: Gallery) -> dict[str, tuple]:
    """Everything the gallery says of its videos, apart from where their frames lie."""
    rows = gallery.snapshot().videos.to_pylist()
    described = [{name: value for name, value in row.items() if name not in ("shard", "first_row")} for row in rows]
    frames = [gallery.read_video(row) for row in rows]
    return {
        row["video_id"]: (row, feature_matrix(table).tobytes(), table["frame_index"].to_pylist(), table["time_s"].to_pylist())
        for row, table in zip(described, frames, strict=True)
    }


def ids(gallery: Gallery) -> list[str]:
    return gallery.snapshot().videos["video_id"].to_pylist()


def all_files(gallery: Gallery, folder: str = "") -> set[Path]:
    return {path for path in Path(gallery.location.path, folder).rglob("*") if path.is_file()}


def traces(gallery: Gallery, video_id: str, features: np.ndarray) -> list[Path]:
    """Files below frames/, videos/ and index/ that name the video or hold one of its frames' features, read as what they are."""
    found = []
    wanted = {row.tobytes() for row in features}
    for path in sorted(all_files(gallery, "frames") | all_files(gallery, "videos") | all_files(gallery, "index")):
        data = path.read_bytes()
        hit = video_id.encode() in data or any(row in data for row in wanted)
        if data[:4] == b"PAR1":
            table = pq.read_table(path)
            hit = hit or video_id in table["video_id"].to_pylist()
            hit = hit or ("feature" in table.column_names and any(row.tobytes() in wanted for row in feature_matrix(table)))
        if hit:
            found.append(path)
    return found


def reject_row(source_id: str) -> pa.Table:
    row = {
        "uri": f"/videos/{source_id}.mp4",
        "video_id": source_id,
        "source_id": source_id,
        "reason": "empty",
        "message": "is empty",
    }
    return pa.Table.from_pylist([row], schema=REJECTS_SCHEMA)


def make_old(path: Path, age: timedelta) -> None:
    then = time.time() - age.total_seconds()
    os.utime(path, (then, then))


def shard_of(gallery: Gallery, video_id: str, frames: int = 4) -> str:
    """A shard that no commit names, as an ingest that is under way or was killed leaves it."""
    steps = np.arange(frames)
    return gallery.write_shard(frames_table([video_id], [frames], steps, steps / 10, np.ones((frames, 24), np.float16)))


# forget


def test_a_video_is_forgotten_by_its_id_and_no_other_goes(toy_gallery: Gallery) -> None:
    before = contents(toy_gallery)
    assert forget(toy_gallery, Selection(video_ids=("v003", "v017")), "asked to") == ["v003", "v017"]
    assert contents(toy_gallery) == {name: video for name, video in before.items() if name not in ("v003", "v017")}
    assert toy_gallery.forgotten() == {"v003", "v017"}


def test_a_camera_is_forgotten(toy_gallery: Gallery) -> None:
    forgotten = forget(toy_gallery, Selection(camera="cam1"), "camera taken down")
    assert forgotten == [f"v{i:03d}" for i in range(1, 40, 2)]
    assert ids(toy_gallery) == [f"v{i:03d}" for i in range(0, 40, 2)]


def test_what_starts_before_a_time_is_forgotten_and_that_moment_itself_stays(toy_gallery: Gallery) -> None:
    forgotten = forget(toy_gallery, Selection(before=datetime(2026, 3, 1, 12, 10, tzinfo=UTC)), "kept for a month")
    assert forgotten == [f"v{i:03d}" for i in range(10)]


def test_a_person_is_forgotten(toy_gallery: Gallery) -> None:
    rows = toy_gallery.snapshot().videos.to_pylist()
    expected = [row["video_id"] for row in rows if row["person_id"] == "p04"]
    assert forget(toy_gallery, Selection(person="p04"), "asked to") == expected and len(expected) == 4


def test_videos_without_a_camera_time_or_label_are_not_forgotten_by_them(toy_gallery: Gallery) -> None:
    bare = {**toy_gallery.snapshot().videos.to_pylist()[0], "video_id": "bare", "source_id": "bare"}
    bare |= dict.fromkeys(["camera_id", "start_time", "person_id"])
    toy_gallery.commit(pa.Table.from_pylist([bare], schema=VIDEOS_SCHEMA), NO_REJECTS)
    future = Selection(before=datetime(2030, 1, 1, tzinfo=UTC))
    for selection in (Selection(person="p00"), Selection(camera="cam0"), future):
        assert forget(toy_gallery, selection, "test")
    assert future.undated(toy_gallery.snapshot()) == ["bare"]
    assert ids(toy_gallery) == ["bare"]


def test_an_unknown_id_forgets_nothing_at_all(toy_gallery: Gallery) -> None:
    files = all_files(toy_gallery)
    with pytest.raises(UsageError, match=r"no video 'v999'; nothing was forgotten"):
        forget(toy_gallery, Selection(video_ids=("v001", "v999")), "typing error")
    assert len(ids(toy_gallery)) == 40 and all_files(toy_gallery) == files


@pytest.mark.parametrize("nothing", [Selection(), Selection(camera=""), Selection(person="")])
def test_a_selection_by_nothing_is_refused(toy_gallery: Gallery, nothing: Selection) -> None:
    with pytest.raises(UsageError, match="say what to forget"):
        forget(toy_gallery, nothing, "test")
    assert len(ids(toy_gallery)) == 40


def test_criteria_that_no_video_meets_change_nothing(toy_gallery: Gallery) -> None:
    files = all_files(toy_gallery)
    assert forget(toy_gallery, Selection(before=datetime(2000, 1, 1, tzinfo=UTC)), "yearly") == []
    assert all_files(toy_gallery) == files


def test_the_audit_record_comes_first(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **fields: object) -> str:
        raise PipelineError("the disk is full")

    monkeypatch.setattr(Gallery, "commit", full)
    with pytest.raises(PipelineError, match="the disk is full"):
        forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    (record,) = read_records(toy_gallery)
    assert (record["action"], record["reason"], record["videos"]) == ("forget", "asked to", ["v003"])
    monkeypatch.undo()
    assert "v003" in ids(toy_gallery)
    (fault,) = verify_gallery(toy_gallery)
    assert fault.startswith("1 videos that the audit log calls forgotten are not ('v003')")
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    assert verify_gallery(toy_gallery) == []


def test_a_deletion_that_somebody_took_back_is_found(toy_gallery: Gallery) -> None:
    gone = forget(toy_gallery, Selection(camera="cam1"), "moved away")
    max(all_files(toy_gallery, "commits")).unlink()
    (fault,) = verify_gallery(toy_gallery)
    assert fault.startswith(f"{len(gone)} videos that the audit log calls forgotten are not ('v") and "and others" in fault
    forget(toy_gallery, Selection(camera="cam1"), "moved away")
    compact(toy_gallery, timedelta(0))
    assert verify_gallery(toy_gallery) == []


def test_nothing_is_forgotten_when_the_audit_log_cannot_be_written(toy_gallery: Gallery) -> None:
    Path(toy_gallery.location.path, "audit").write_text("a file where the log should be")
    with pytest.raises(PipelineError, match="audit"):
        forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    assert "v003" in ids(toy_gallery)


# what was forgotten does not come back


@pytest.mark.parametrize("compacted", [False, True], ids=["before compaction", "after compaction"])
def test_a_forgotten_video_does_not_come_back_by_another_ingest(toy_gallery: Gallery, compacted: bool) -> None:
    forget(toy_gallery, Selection(video_ids=("v003", "v004")), "asked to")
    if compacted:
        compact(toy_gallery)
    rows = [
        {"source_id": video_id, "uri": f"/videos/{video_id}.mp4", "kind": "auto"} for video_id in ("v003", "v004", "v005", "new")
    ]
    catalog = pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)
    for retry_rejected in (False, True):
        missing, already = missing_sources(catalog, toy_gallery.snapshot(), retry_rejected)
        assert missing["source_id"].to_pylist() == ["new"] and already == 3
    add_videos(toy_gallery, people_features(10, 1, 24, seed=3))  # v000 ... v009 once more, by an ingest that had begun before
    assert not {"v003", "v004"} & set(ids(toy_gallery)) and len(ids(toy_gallery)) == 38


def test_forgetting_one_track_leaves_the_others_of_its_video(toy_gallery: Gallery) -> None:
    (row,) = [row for row in toy_gallery.snapshot().videos.to_pylist() if row["video_id"] == "v000"]
    tracks = [{**row, "video_id": f"crowd#{track}", "source_id": "crowd", "track": track} for track in (1, 2, 3)]
    toy_gallery.commit(pa.Table.from_pylist(tracks, schema=VIDEOS_SCHEMA), NO_REJECTS)
    forget(toy_gallery, Selection(video_ids=("crowd#2",)), "asked to")
    toy_gallery.commit(pa.Table.from_pylist(tracks, schema=VIDEOS_SCHEMA), NO_REJECTS)
    assert [name for name in ids(toy_gallery) if "#" in name] == ["crowd#1", "crowd#3"]


def with_bytes(gallery: Gallery, *rows: tuple[str, str | None, int | None]) -> None:
    """Commit videos (id, ingested_hash, track) that have the frames of v000 and uris of their own."""
    frames = gallery.read_video(next(row for row in gallery.snapshot().videos.to_pylist() if row["video_id"] == "v000"))
    features, steps = feature_matrix(frames), np.arange(len(frames))
    table = []
    for video_id, content, track in rows:
        row = {"video_id": video_id, "source_id": video_id.split("#")[0], "uri": f"/mount/{video_id}.mp4", "track": track}
        row |= {"shard": gallery.write_shard(frames_table([video_id], [len(steps)], steps, steps / 10, features)), "first_row": 0}
        row |= {"sampled_frames": len(steps), "ingested_hash": content}
        table.append(row)
    gallery.commit(pa.Table.from_pylist(table, schema=VIDEOS_SCHEMA), NO_REJECTS)


@pytest.mark.parametrize("compacted", [False, True], ids=["before compaction", "after compaction"])
def test_copies_go_with_a_forgotten_video_and_a_later_one_never_counts(toy_gallery: Gallery, compacted: bool) -> None:
    with_bytes(
        toy_gallery, ("one", "file:aa", None), ("copy", "file:aa", None), ("track#3", "file:aa", 3), ("bb", "file:bb", None)
    )
    assert forget(toy_gallery, Selection(video_ids=("one",)), "asked to") == ["copy", "one", "track#3"]
    if compacted:
        compact(toy_gallery)
    with_bytes(toy_gallery, ("late", "file:aa", None), ("late#1", "file:aa", 1), ("unknown", None, None))  # begun before
    assert set(ids(toy_gallery)) == {*(f"v{i:03d}" for i in range(40)), "bb", "unknown"}


def test_a_forgotten_track_takes_only_the_same_track_of_copies_along(toy_gallery: Gallery) -> None:
    with_bytes(toy_gallery, *((f"{name}#{track}", "file:aa", track) for name in ("one", "copy") for track in (1, 2)))
    with_bytes(toy_gallery, ("whole", "file:aa", None))
    assert forget(toy_gallery, Selection(video_ids=("one#2",)), "asked to") == ["copy#2", "one#2"]
    assert {"one#1", "copy#1", "whole"} <= set(ids(toy_gallery))


@pytest.fixture
def other_gallery(tmp_path: Path) -> Gallery:
    gallery = Gallery.open_or_create(tmp_path / "other", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 1, 24, seed=5))
    return gallery


def test_another_gallery_forgets_what_it_is_told_of_and_nothing_that_only_shares_an_id(
    toy_gallery: Gallery, other_gallery: Gallery, tmp_path: Path
) -> None:
    with_bytes(toy_gallery, ("one", "file:aa", None), ("two#7", "file:bb", 7), ("three", None, None))
    with_bytes(
        other_gallery, ("here", "file:aa", None), ("four#7", "file:bb", 7), ("four#8", "file:bb", 8), ("one", "file:cc", None)
    )
    forget(toy_gallery, Selection(video_ids=("one", "two#7", "three", "v001")), "secret reason", "secret case")
    listed = str(tmp_path / "list.parquet")
    assert write_forgotten(toy_gallery.snapshot().tombstones, listed) == 4
    assert pq.read_table(listed).to_pylist() == [
        {"video_id": "one", "uri": "/mount/one.mp4", "ingested_hash": "file:aa", "track": None},
        {"video_id": "three", "uri": "/mount/three.mp4", "ingested_hash": None, "track": None},
        {"video_id": "two#7", "uri": "/mount/two#7.mp4", "ingested_hash": "file:bb", "track": 7},
        {"video_id": "v001", "uri": "/videos/v001.mp4", "ingested_hash": None, "track": None},
    ]
    assert b"secret" not in Path(listed).read_bytes()
    assert take_forgotten(other_gallery, listed) == ["four#7", "here", "v001"]  # v001: known by its uri only
    assert set(ids(other_gallery)) == {*(f"v{i:03d}" for i in range(10) if i != 1), "four#8", "one"}
    assert (read_records(other_gallery)[-1]["action"], read_records(other_gallery)[-1]["videos"]) == (
        "take_forgotten",
        ["four#7", "here", "v001"],
    )
    before = other_gallery.position()
    assert take_forgotten(other_gallery, listed) == [] and other_gallery.position() == before  # told again
    with_bytes(other_gallery, ("late", "file:aa", None))
    assert "late" not in ids(other_gallery) and verify_gallery(other_gallery) == []
    # A third gallery learns from the second what the first one forgot.
    write_forgotten(other_gallery.snapshot().tombstones, listed)
    assert {("file:aa", None), ("file:bb", 7)} <= {
        (row["ingested_hash"], row["track"]) for row in pq.read_table(listed).to_pylist()
    }


def test_a_list_of_another_kind_is_refused_and_nothing_is_forgotten(toy_gallery: Gallery, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"video_id\nv001\n", b"PAR1PAR1")):
        (tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(UsageError, match="no list of forgotten videos"):
            take_forgotten(toy_gallery, str(tmp_path / f"{number}"))
    pq.write_table(pa.table({"video_id": ["v001"]}), tmp_path / "columns")
    with pytest.raises(UsageError, match="no list of forgotten videos"):
        take_forgotten(toy_gallery, str(tmp_path / "columns"))
    assert len(ids(toy_gallery)) == 40 and read_records(toy_gallery) == []


def test_a_video_is_older_when_it_ends_before_and_without_times_when_it_was_ingested_before(toy_gallery: Gallery) -> None:
    limit, hour = datetime(2020, 1, 1, tzinfo=UTC), timedelta(hours=1)
    base = toy_gallery.snapshot().videos.to_pylist()[0]
    times = {  # seen_to, start_time, ingested_at -> goes
        "ended": (limit - hour, limit - 2 * hour, limit + hour),
        "running": (limit + hour, limit - hour, limit - hour),
        "started": (None, limit - hour, limit + hour),
        "ingested": (None, None, limit - hour),
        "new": (None, None, limit),
        "undated": (None, None, None),
    }
    rows = [
        {**base, "video_id": name, "source_id": name, "seen_to": seen_to, "start_time": start, "ingested_at": ingested}
        for name, (seen_to, start, ingested) in times.items()
    ]
    toy_gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), NO_REJECTS)
    ended = command("forget", "--gallery", toy_gallery.location.path, "--before", limit.isoformat(), "--reason", "retention")
    assert set(times) & set(ids(toy_gallery)) == {"running", "new", "undated"}
    assert ended.code == 1 and "not judged, because no time of theirs is known: 1 videos (undated)" in ended.out
    again = command("forget", "--gallery", toy_gallery.location.path, "--before", "2019-01-01", "--reason", "retention")
    assert again.code == 1 and "nothing was forgotten: no video is older than 2019-01-01" in again.out


def test_the_command_says_so_when_nothing_was_forgotten(toy_gallery: Gallery, tmp_path: Path) -> None:
    asked = ("forget", "--gallery", toy_gallery.location.path, "--reason", "retention")
    nothing = command(*asked, "--before", "2019-01-01")
    assert nothing.code == 0 and nothing.out == "nothing was forgotten: no video is older than 2019-01-01\n"
    for flag, words in (("--camera", "camera 'cam7'"), ("--person", "person label 'cam7'"), ("--video-id", "video 'cam7'")):
        refused = command(*asked, flag, "cam7")
        assert refused.code == 2 and words in refused.sentence and "nothing was forgotten" in refused.sentence
    assert command("forget", "--gallery", toy_gallery.location.path, "--camera", "cam1").code == 2  # no reason
    assert len(ids(toy_gallery)) == 40 and read_records(toy_gallery) == []
    exported = command("forget", "--gallery", toy_gallery.location.path, "--export", str(tmp_path / "list"))
    assert exported.code == 0 and exported.out == f"0 forgotten videos listed in {tmp_path}/list\n"
    assert take_forgotten(toy_gallery, str(tmp_path / "list")) == []


# compaction


def test_compaction_keeps_every_video_with_its_features_in_fewer_shards(toy_gallery: Gallery) -> None:
    toy_gallery.commit(NO_VIDEOS, reject_row("bad"))
    before, rejects = contents(toy_gallery), toy_gallery.snapshot().rejects
    done = compact(toy_gallery)
    snapshot = toy_gallery.snapshot()
    assert contents(toy_gallery) == before and snapshot.rejects.equals(rejects)
    assert (done.videos, done.shards_before, done.shards_after, done.indexes) == (40, 6, 1, [])
    assert len(all_files(toy_gallery, "frames")) == len(all_files(toy_gallery, "checkpoints")) == 1
    kinds = [json.loads(path.read_text())["kind"] for path in sorted(all_files(toy_gallery, "commits"))]
    assert kinds == ["emptied"] * 8 + ["compact"] * 2  # what is going to be deleted, and that it is
    assert verify_gallery(toy_gallery) == []


def test_a_second_compaction_at_once_touches_nothing(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SHARD_FRAMES", 250)
    forget(toy_gallery, Selection(video_ids=("v000", "v020")), "asked to")
    build_index(toy_gallery)
    assert compact(toy_gallery).shards_after > 2

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in all_files(toy_gallery) - all_files(toy_gallery, "audit")}

    before = files()
    assert compact(toy_gallery, timedelta(0)).deleted == 0 and files() == before


@pytest.mark.ray
def test_shards_are_rewritten_over_ray_as_here(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    before = contents(toy_gallery)
    monkeypatch.setattr(compaction, "SHARD_FRAMES", 250)  # read where the groups are made
    monkeypatch.setattr(compaction, "cluster_is_named", lambda address: True)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        done = compact(toy_gallery, timedelta(0))
    finally:
        ray.shutdown()
    assert contents(toy_gallery) == before and verify_gallery(toy_gallery) == [] and 2 < done.shards_after < done.shards_before


def test_a_deletion_costs_the_shards_that_it_touches(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "SHARD_FRAMES", 100)
    compact(toy_gallery)
    before = {row["video_id"]: row["shard"] for row in toy_gallery.snapshot().videos.to_pylist()}
    assert len(set(before.values())) >= 5
    gone = "v005"
    forget(toy_gallery, Selection(video_ids=(gone,)), "asked to")
    read_shard, write_shard, read, written = Gallery.read_shard, Gallery.write_shard, set(), []

    def reading(gallery: Gallery, shard: str, first_row: int, rows: int) -> pa.Table:
        read.add(shard)
        return read_shard(gallery, shard, first_row, rows)

    def writing(gallery: Gallery, frames: pa.Table) -> str:
        written.append(write_shard(gallery, frames))
        return written[-1]

    monkeypatch.setattr(Gallery, "read_shard", reading)
    monkeypatch.setattr(Gallery, "write_shard", writing)
    compact(toy_gallery)
    after = {row["video_id"]: row["shard"] for row in toy_gallery.snapshot().videos.to_pylist()}
    assert before[gone] in read and len(read) <= 2 and 1 <= len(written) <= 2  # that of the deletion, and a small one
    assert {one for one in after if after[one] != before[one]} == {one for one in after if before[one] in read}
    assert not Path(toy_gallery.location.path, "frames", before[gone]).exists()


def test_rows_that_a_killed_ingest_left_in_a_committed_shard_go_with_the_first_compaction(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They stand in no log, so that a later deletion of their video would not find them."""
    monkeypatch.setattr(compaction, "SHARD_FRAMES", 10)  # no shard is small
    (_, features), (_, others) = people_features(2, 1, 24, seed=9)
    steps = np.concatenate([np.arange(len(features)), np.arange(len(others))])
    frames = frames_table(["left", "here"], [len(features), len(others)], steps, steps / 10, np.concatenate([features, others]))
    row = {"video_id": "here", "source_id": "here", "shard": toy_gallery.write_shard(frames), "first_row": len(features)}
    toy_gallery.commit(pa.Table.from_pylist([row | {"sampled_frames": len(others)}], schema=VIDEOS_SCHEMA))
    assert traces(toy_gallery, "left", features)
    before = contents(toy_gallery)
    compact(toy_gallery)
    assert contents(toy_gallery) == before and traces(toy_gallery, "left", features) == []


def test_shards_of_a_compacted_gallery_have_the_size_that_is_asked_for(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(toy_gallery)
    add_videos(toy_gallery, people_features(10, 4, 24, seed=2), first=40, videos_a_shard=1)
    sizes = [len(features) for _, features in people_features(10, 4, 24, seed=1) + people_features(10, 4, 24, seed=2)]
    monkeypatch.setattr(compaction, "SHARD_FRAMES", 100)
    done = compact(toy_gallery)
    assert done.shards_before == 46 and sum(sizes) / 300 <= done.shards_after <= sum(sizes) / 100 + 1
    after = contents(toy_gallery)
    assert len(after) == 80 and before.items() <= after.items()


def test_nothing_of_a_forgotten_video_is_on_the_disk_after_compaction(toy_gallery: Gallery) -> None:
    (_, features), *_ = people_features(10, 4, 24, seed=1)
    build_index(toy_gallery)
    assert len({path.parent.name for path in traces(toy_gallery, "v000", features)}) > 1
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    compact(toy_gallery)
    assert traces(toy_gallery, "v000", features) == []
    assert verify_gallery(toy_gallery) == []


def test_a_shard_of_which_every_video_is_forgotten_leaves_the_disk_too(toy_gallery: Gallery) -> None:
    forget(toy_gallery, Selection(video_ids=tuple(f"v{i:03d}" for i in range(7))), "asked to")
    compact(toy_gallery)
    for number, (_, features) in enumerate(people_features(10, 4, 24, seed=1)[:7]):
        assert traces(toy_gallery, f"v{number:03d}", features) == []


def test_index_versions_with_forgotten_videos_go_and_others_stay(toy_gallery: Gallery) -> None:
    holding = build_index(toy_gallery)
    forget(toy_gallery, Selection(video_ids=("v000", "v001")), "asked to")
    clean = build_index(toy_gallery)
    assert compact(toy_gallery).indexes == [holding.version]
    assert index_versions(toy_gallery) == [clean.version]
    assert not all_files(toy_gallery, f"index/{holding.version}")


def test_a_search_finds_the_same_after_compaction(toy_gallery: Gallery) -> None:
    forget(toy_gallery, Selection(video_ids=("v020",)), "asked to")
    build_index(toy_gallery, IndexSettings(partition_videos=9))

    def leads() -> tuple:
        index = open_index(toy_gallery)
        with opened_partitions(toy_gallery, index, actors=0) as partitions:
            return search(toy_gallery, index, partitions, gallery_target(toy_gallery, "v005"), SearchSettings(top=99)).leads

    before = leads()
    compact(toy_gallery)
    assert leads() == before and len(before) == 38


def test_compacting_twice_does_no_harm(toy_gallery: Gallery) -> None:
    forget(toy_gallery, Selection(camera="cam1"), "camera taken down")
    build_index(toy_gallery)
    compact(toy_gallery)
    before, versions = contents(toy_gallery), index_versions(toy_gallery)
    done = compact(toy_gallery)
    assert (done.videos, done.shards_before, done.shards_after, done.indexes) == (20, 1, 1, [])
    assert contents(toy_gallery) == before and len(all_files(toy_gallery, "frames")) == 1
    assert index_versions(toy_gallery) == versions and verify_gallery(toy_gallery) == []
    assert toy_gallery.forgotten() == {f"v{i:03d}" for i in range(1, 40, 2)}


def test_a_gallery_of_which_everything_is_forgotten_can_be_compacted(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    forget(toy_gallery, Selection(before=datetime(2030, 1, 1, tzinfo=UTC)), "end of the project")
    done = compact(toy_gallery)
    assert (done.videos, done.shards_before, done.shards_after) == (0, 0, 0)
    assert ids(toy_gallery) == [] and not all_files(toy_gallery, "frames") and not all_files(toy_gallery, "index")
    add_videos(toy_gallery, people_features(1, 2, 24, seed=8), first=90)
    assert ids(toy_gallery) == ["v090", "v091"]


def test_a_shard_holds_the_rows_it_was_given_and_no_two_share_a_file(toy_gallery: Gallery) -> None:
    whole = toy_gallery.read_shard(toy_gallery.snapshot().videos["shard"][0].as_py(), 0, 20)
    parts = [whole, whole.slice(0, 10), whole.slice(5, 10), whole.slice(10, 10)]
    parts.append(pa.concat_tables([whole.slice(0, 7), whole.slice(7)]).combine_chunks())
    names = [toy_gallery.write_shard(part) for part in parts]
    assert len(set(names)) == len(parts)
    for name, part in zip(names, parts, strict=True):
        assert toy_gallery.read_shard(name, 0, len(part)).equals(part)


def test_a_compaction_leaves_the_shards_of_the_gallery_before_it_alone_until_it_has_committed(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        compact(toy_gallery)
    first = min(toy_gallery.snapshot().videos.to_pylist(), key=lambda row: row["first_row"])
    forget(toy_gallery, Selection(video_ids=(first["video_id"],)), "asked to")
    before = contents(toy_gallery)
    seen = []
    during_compaction(monkeypatch, lambda: seen.append(contents(toy_gallery) == before))
    compact(toy_gallery)
    assert seen == [True] and contents(toy_gallery) == before


def test_compaction_is_in_the_audit_log(toy_gallery: Gallery) -> None:
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    compact(toy_gallery)
    records = read_records(toy_gallery)
    assert [record["action"] for record in records] == ["forget", "compact"] and verify(toy_gallery) == []
    assert (records[1]["videos"], records[1]["forgotten"]) == (39, 1)


# files that no commit names


def test_orphans_are_kept_while_their_ingest_may_be_running(toy_gallery: Gallery) -> None:
    young = Path(toy_gallery.location.path, "frames", shard_of(toy_gallery, "young"))
    old = Path(toy_gallery.location.path, "frames", shard_of(toy_gallery, "old"))
    table = Path(toy_gallery.location.path, "videos", f"{0:032x}.parquet")
    table.parent.mkdir()
    pq.write_table(NO_VIDEOS, table)
    make_old(young, OLD - timedelta(minutes=5))
    make_old(old, OLD + timedelta(minutes=5))
    make_old(table, OLD + timedelta(minutes=5))
    compact(toy_gallery, OLD)
    assert young.exists() and not old.exists() and not table.exists()
    assert len(ids(toy_gallery)) == 40


def test_what_killed_writers_left_is_removed_when_it_is_old(toy_gallery: Gallery) -> None:
    young, old = (Path(toy_gallery.location.path, "frames", f".writing-{name:032x}") for name in (1, 2))
    for path in (young, old):
        path.write_bytes(b"half a shard")
    make_old(old, OLD + timedelta(minutes=5))
    compact(toy_gallery, OLD)
    assert young.exists() and not old.exists()


def test_an_index_build_that_was_killed_is_removed_when_it_is_old(toy_gallery: Gallery) -> None:
    old, young = build_index(toy_gallery), build_index(toy_gallery)
    for index in (old, young):
        Path(index.location.path, "manifest.json").unlink()
    for path in all_files(toy_gallery, f"index/{old.version}"):
        make_old(path, OLD + timedelta(minutes=5))
    compact(toy_gallery, OLD)
    assert not all_files(toy_gallery, f"index/{old.version}") and all_files(toy_gallery, f"index/{young.version}")


# while others write, and when it is interrupted


def during_compaction(monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    """Have something happen after a compaction has written a shard and before it commits that."""
    write_shard = Gallery.write_shard

    def write_and_act(gallery: Gallery, frames: pa.Table) -> str:
        shard = write_shard(gallery, frames)
        if sys._getframe(1).f_code.co_name == "_move":
            monkeypatch.setattr(Gallery, "write_shard", write_shard)
            act()
        return shard

    monkeypatch.setattr(Gallery, "write_shard", write_and_act)


def test_videos_that_arrive_during_a_compaction_are_not_lost(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(toy_gallery)
    during_compaction(monkeypatch, lambda: add_videos(toy_gallery, people_features(3, 1, 24, seed=7), first=40))
    compact(toy_gallery)
    after = contents(toy_gallery)
    assert after.keys() - before.keys() == {"v040", "v041", "v042"} and before.items() <= after.items()
    assert verify_gallery(toy_gallery) == []


def test_videos_that_arrive_while_a_compaction_deletes_are_not_lost(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, read, reads = contents(toy_gallery), Gallery.snapshot, []

    def read_and_add(gallery: Gallery) -> Snapshot:
        snapshot = read(gallery)
        reads.append(snapshot)
        if len(reads) == 2:  # what is live, of which the rest is to be deleted
            add_videos(gallery, people_features(3, 1, 24, seed=7), first=40)
        return snapshot

    monkeypatch.setattr(Gallery, "snapshot", read_and_add)
    compact(toy_gallery)
    monkeypatch.undo()
    after = contents(toy_gallery)
    assert after.keys() - before.keys() == {"v040", "v041", "v042"} and before.items() <= after.items()
    assert verify_gallery(toy_gallery) == []


@pytest.mark.parametrize("moment", ["while one writes a shard", "before one deletes"])
def test_two_compactions_at_once_lose_nothing(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    before = contents(toy_gallery)
    if moment == "before one deletes":
        delete = compaction._delete_stale

        def delete_after_another(*arguments: object) -> int:
            monkeypatch.setattr(compaction, "_delete_stale", delete)
            compact(Gallery.open(toy_gallery.location.uri))
            return delete(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(compaction, "_delete_stale", delete_after_another)
    else:
        during_compaction(monkeypatch, lambda: compact(Gallery.open(toy_gallery.location.uri)))
    compact(toy_gallery)
    assert contents(toy_gallery) == before and verify_gallery(toy_gallery) == []
    assert len(all_files(toy_gallery, "frames")) == 1


def test_a_reject_that_is_mended_during_a_compaction_stays_mended(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_gallery.commit(NO_VIDEOS, reject_row("v040"))
    during_compaction(monkeypatch, lambda: add_videos(toy_gallery, people_features(1, 1, 24, seed=7), first=40))
    compact(toy_gallery)
    assert "v040" in ids(toy_gallery) and len(toy_gallery.snapshot().rejects) == 0


def test_videos_forgotten_during_a_compaction_stay_forgotten(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, features), *_ = people_features(10, 4, 24, seed=1)
    during_compaction(monkeypatch, lambda: forget(toy_gallery, Selection(video_ids=("v000",)), "asked to"))
    compact(toy_gallery)
    assert "v000" not in ids(toy_gallery)
    monkeypatch.undo()
    compact(toy_gallery)
    assert "v000" not in ids(toy_gallery) and traces(toy_gallery, "v000", features) == []


@pytest.mark.parametrize("writes", range(1, 22, 3))
def test_a_compaction_that_is_killed_is_gone_on_with(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """kill -9 before so many files were written or removed: nothing is lost, and no shard that was committed is written anew."""
    (_, features), *_ = people_features(10, 4, 24, seed=1)
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    before = contents(toy_gallery)
    monkeypatch.setattr(compaction, "SHARD_FRAMES", 250)  # 4 shards
    child = os.fork()
    if not child:
        left = itertools.count(1)

        def killed(act: Callable[..., object]) -> Callable[..., object]:
            return lambda *arguments, **how: os._exit(9) if next(left) == writes else act(*arguments, **how)

        for name in ("write_atomically", "create", "delete"):
            monkeypatch.setattr(Location, name, killed(getattr(Location, name)))
        try:
            compact(toy_gallery)
        finally:
            os._exit(0)  # whatever was raised: another pytest must not go on from here
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 9
    assert contents(toy_gallery) == before
    snapshot = toy_gallery.snapshot()
    finished = {name.removeprefix("frames/") for name in snapshot.settled & snapshot.live}
    compact(toy_gallery, timedelta(0))
    assert contents(toy_gallery) == before and verify_gallery(toy_gallery) == []
    kept = {shard for shard in finished if Path(toy_gallery.location.path, "frames", shard).exists()}
    assert len(finished - kept) <= 1, "only a last, small one is made larger"
    assert traces(toy_gallery, "v000", features) == []
    live = {path.name for path in all_files(toy_gallery, "frames")}
    assert live == set(toy_gallery.snapshot().videos["shard"].to_pylist())


def test_a_compaction_that_dies_after_its_commit_is_finished_by_the_next(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, features), *_ = people_features(10, 4, 24, seed=1)
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    expected = contents(toy_gallery)

    def die(*arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(compaction, "_delete_stale", die)
    with pytest.raises(KeyboardInterrupt):
        compact(toy_gallery)
    monkeypatch.undo()
    assert contents(toy_gallery) == expected
    compact(toy_gallery)
    assert contents(toy_gallery) == expected
    assert traces(toy_gallery, "v000", features) == []


def test_the_removal_of_an_index_that_died_half_way_is_finished_by_the_next(toy_gallery: Gallery) -> None:
    (_, features), *_ = people_features(10, 4, 24, seed=1)
    index = build_index(toy_gallery)
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    Path(index.location.path, "manifest.json").unlink()  # the first step of the removal
    for path in all_files(toy_gallery, "index"):
        make_old(path, OLD + timedelta(minutes=5))
    compact(toy_gallery, OLD)
    assert traces(toy_gallery, "v000", features) == []


def test_a_damaged_index_does_not_keep_forgotten_features_on_the_disk(toy_gallery: Gallery) -> None:
    (_, features), *_ = people_features(10, 4, 24, seed=1)
    damaged = build_index(toy_gallery)
    Path(damaged.location.path, "manifest.json").write_text("{")
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    assert compact(toy_gallery).indexes == [damaged.version]
    assert traces(toy_gallery, "v000", features) == []


def test_compaction_deletes_only_files_that_a_gallery_writes(toy_gallery: Gallery) -> None:
    root = Path(toy_gallery.location.path)
    mine = [root / "videos" / "holiday.mp4", root / "frames" / "notes.parquet", root / "index" / "my notes" / "a.txt"]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        make_old(path, OLD + timedelta(days=99))
    compact(toy_gallery, timedelta(0))
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_a_shard_that_an_ingest_has_not_committed_yet_is_not_taken_from_it(toy_gallery: Gallery) -> None:
    row = toy_gallery.snapshot().videos.to_pylist()[0]
    rows = toy_gallery.read_shard(row["shard"], 0, 20)
    written = toy_gallery.write_shard(rows)  # the same rows again, as by a job that was submitted twice
    compact(toy_gallery, OLD)
    assert toy_gallery.read_shard(written, 0, 20).equals(rows)


def test_a_damaged_index_version_does_not_keep_forgotten_videos_alive(toy_gallery: Gallery) -> None:
    damaged, sound = build_index(toy_gallery), build_index(toy_gallery)
    Path(damaged.partition_location(0).path, "videos.arrow").write_bytes(b"nonsense")
    forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
    compact(toy_gallery)
    assert not Path(damaged.location.path, "manifest.json").exists() and not Path(sound.location.path, "manifest.json").exists()


def test_an_index_does_not_outlive_videos_that_were_forgotten_while_it_was_built(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget_and_save(head: object, folder: Path, *arguments: object) -> object:
        if "builds" not in str(folder):  # it is being published
            forget(toy_gallery, Selection(video_ids=("v000",)), "asked to")
            compact(toy_gallery)
        return save_head(head, folder, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("pipeline.index.build.save_head", forget_and_save)
    with pytest.raises(PipelineError, match="forgotten while the index was built"):
        build_index(toy_gallery)
    assert index_versions(toy_gallery) == []


def test_old_index_versions_are_deleted_by_number(toy_gallery: Gallery) -> None:
    versions = [build_index(toy_gallery).version for _ in range(4)]
    compact(toy_gallery, keep_indexes=0)
    assert index_versions(toy_gallery) == versions
    compact(toy_gallery, keep_indexes=2)
    assert index_versions(toy_gallery) == versions[2:]


def test_a_reader_that_meets_a_compaction_reads_again(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    before, read, tries = contents(toy_gallery), Log._read, []

    def compacted_after_listing(log: Log, start: int, kinds: Collection[str]) -> tuple:
        tries.append(start)
        if len(tries) == 1:
            compact(Gallery.open(toy_gallery.location.uri))
        return read(log, start, kinds)

    monkeypatch.setattr(Log, "_read", compacted_after_listing)
    assert set(toy_gallery.snapshot().videos["video_id"].to_pylist()) == set(before)
    assert tries[0] == 0 < tries[-1]
