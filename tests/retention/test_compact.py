"""Compaction: every video stays, in fewer shards, and what was forgotten leaves the disk."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.gallery.audit import read_records, verify
from pipeline.gallery.gallery import (
    VIDEOS_SCHEMA,
    Gallery,
    frames_table,
)
from pipeline.index.build import build_index
from pipeline.index.version_files import index_versions
from pipeline.index.versions import open_index
from pipeline.retention import compact as compaction
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from tests.conftest import add_videos, people_features
from tests.retention.galleries import (
    NO_VIDEOS,
    OLD,
    all_files,
    contents,
    during_compaction,
    ids,
    make_old,
    reject_row,
    traces,
)


def shard_of(gallery: Gallery, video_id: str, frames: int = 4) -> str:
    """A shard that no commit names, as an ingest that is under way or was killed leaves it."""
    steps = np.arange(frames)
    return gallery.write_shard(frames_table([video_id], [frames], steps, steps / 10, np.ones((frames, 24), np.float16)))


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
