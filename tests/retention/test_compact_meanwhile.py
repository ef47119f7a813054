"""Compactions beside writers and readers, and such that are killed: nothing is lost or comes back."""

import itertools
import os
from collections.abc import Callable, Collection
from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.coattention.head import save_head
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import (
    Gallery,
    Snapshot,
)
from pipeline.gallery.log import Log
from pipeline.index.build import build_index
from pipeline.index.version_files import index_versions
from pipeline.retention import compact as compaction
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.storage.location import Location
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
