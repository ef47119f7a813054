"""Builds of an index that were killed go on where they were; a compaction leaves them what they have while a lease holds it."""

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from jobs.index import index as run_jobs_index
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index import drafts, partition_store
from pipeline.index.build import build_index
from pipeline.index.drafts import builds, leased, new_build
from pipeline.index.freshness import extensible_index
from pipeline.index.version_files import index_versions
from pipeline.index.versions import Index, open_index
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.remains import files_with_forgotten
from pipeline.retention.verify import verify_gallery
from pipeline.settings import IndexSettings
from tests.conftest import add_videos, people_features
from tests.index.test_index_versions import scores, stored

NINE = IndexSettings(partition_videos=9, prefilter="compressed")  # 9, 9, 9, 9 and 4 of the toy gallery's videos
KILLED = """
import os, signal, sys
import torch
from pipeline.gallery.gallery import Gallery
from pipeline.index import build, drafts, partition_store
from pipeline.index.freshness import extensible_index
from tests.index.test_drafts import NINE

torch.set_num_threads(1)
place, module, name, times = *sys.argv[1:4], int(sys.argv[4])
there = getattr(globals()[module], name)

def counted(*arguments, **named):
    global times
    times -= 1
    if not times:
        os.kill(os.getpid(), signal.SIGKILL)
    return there(*arguments, **named)

setattr(globals()[module], name, counted)
gallery = Gallery.open(place)
build.build_index(gallery, NINE, base=extensible_index(gallery, NINE))
"""
MOMENTS = {  # at which call of what a build is killed -> partitions that the next one builds
    "before it is said what was drawn": ("build", "write_draft", 1, 5),
    "in the middle of the third partition": ("partition_store", "write_videos", 3, 3),
    "before it is said that the second is there": ("build", "record_finished", 2, 4),
    "before the version is published": ("build", "_publish", 1, 0),
    "once it is published": ("build", "open_index", 1, 0),
}


def killed(gallery: Gallery, module: str, name: str, times: int) -> None:
    """Let a process of its own build an index, and kill it at a call of a function."""
    command = [sys.executable, "-c", KILLED, gallery.location.path, module, name, str(times)]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONPATH": "."})
    assert ended.returncode == -signal.SIGKILL


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The videos of each partition that is built from here on."""
    found: list[list[str]] = []
    write = partition_store.write_partition

    def noted(gallery: Gallery, videos: object, *arguments: object) -> object:
        found.append(videos["video_id"].to_pylist())  # type: ignore[index]
        return write(gallery, videos, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(partition_store, "write_partition", noted)
    return found


def contents(index: Index) -> list[tuple[object, ...]]:
    """Of each partition its place, its videos' number and the hashes of its files; of the version those of what they share."""
    parts = [(part["first_video"], part["videos"], part["files"]) for part in index.manifest["partitions"]]
    return [*parts, index.manifest["files"]]  # type: ignore[list-item]


def left(gallery: Gallery) -> list[str]:
    """Files of drafts."""
    return [file.path for file in builds(gallery).list(recursive=True)]


def age(gallery: Gallery, hours: float) -> None:
    """Let what builds have left seem so old."""
    then = (datetime.now(UTC) - timedelta(hours=hours)).timestamp()
    for path in Path(gallery.location.path, "index").rglob("*"):
        os.utime(path, (then, then))


def interrupted(
    gallery: Gallery, monkeypatch: pytest.MonkeyPatch, at: int, error: type[BaseException] = KeyboardInterrupt
) -> None:
    """Build an index until a partition, which raises."""
    write = partition_store.write_partition
    calls: list[int] = []

    def failing(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == at:
            raise error("no")
        return write(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(partition_store, "write_partition", failing)
        with pytest.raises(error):
            build_index(gallery, NINE)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_build_that_was_killed_is_gone_on_with_and_gives_the_same_index(
    toy_gallery: Gallery, written: list[list[str]], moment: str
) -> None:
    undisturbed = contents(build_index(toy_gallery, NINE))
    for path in sorted(Path(toy_gallery.location.path, "index").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    module, name, times, due = MOMENTS[moment]
    killed(toy_gallery, module, name, times)
    published = index_versions(toy_gallery)
    assert bool(published) == (moment == "once it is published")
    written.clear()
    there = open_index(toy_gallery) if published else build_index(toy_gallery, NINE)
    assert len(written) == due
    assert contents(there) == undisturbed
    if moment in list(MOMENTS)[1:4]:  # what nobody can go on with stays until its lease has run out
        assert left(toy_gallery) == []
    assert verify_gallery(toy_gallery) == []


@pytest.mark.usefixtures("one_thread")
def test_an_addition_that_was_killed_is_gone_on_with(toy_gallery: Gallery, written: list[list[str]]) -> None:
    first = build_index(toy_gallery, NINE)
    add_videos(toy_gallery, people_features(20, 1, 24, seed=5), first=40)
    killed(toy_gallery, "build", "record_finished", 3)
    written.clear()
    added = build_index(toy_gallery, NINE, base=extensible_index(toy_gallery, NINE))
    assert len(added.videos) == 60 and sum(map(len, written)) == 6  # 24 of them, in partitions of 9, 9 and 6
    whole = build_index(toy_gallery, NINE, base=open_index(toy_gallery, first.version))
    assert contents(added) == contents(whole)


def test_a_build_that_fails_leaves_what_it_has_finished_and_nothing_where_that_is_nothing(
    toy_gallery: Gallery, written: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(toy_gallery, monkeypatch, 1)
    assert left(toy_gallery) == [] and stored(toy_gallery) == set()
    interrupted(toy_gallery, monkeypatch, 3, PipelineError)
    assert len(stored(toy_gallery)) == 2 and index_versions(toy_gallery) == []
    interrupted(toy_gallery, monkeypatch, 2)
    assert len(stored(toy_gallery)) == 3
    written.clear()
    assert len(build_index(toy_gallery, NINE).videos) == 40 and len(written) == 2 and left(toy_gallery) == []


def test_videos_that_came_since_are_built_with_the_rest(
    toy_gallery: Gallery, written: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    finished = stored(toy_gallery)
    add_videos(toy_gallery, people_features(7, 1, 24, seed=5), first=40)
    compact(toy_gallery)  # shards are others now, videos the same
    written.clear()
    index = build_index(toy_gallery, NINE)
    assert len(index.videos) == 47 and sum(map(len, written)) == 20 and finished < stored(toy_gallery)
    assert set(scores(toy_gallery, index)) == {f"v{number:03d}" for number in range(47)} - {"v005"}


def test_what_was_forgotten_since_is_left_out_of_what_is_gone_on_with(
    toy_gallery: Gallery, written: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    forget(toy_gallery, Selection(("v003",)), "a test")
    index = build_index(toy_gallery, NINE)
    assert index.position("v003") == -1 and "v003" not in index.cohort_ids.to_pylist() and len(index.videos) == 39
    compact(toy_gallery)
    assert files_with_forgotten(toy_gallery) == {}


def test_a_compaction_takes_a_draft_that_holds_forgotten_videos_and_the_build_takes_itself_back(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = drafts.record_finished

    def forget_then_record(gallery: Gallery, build: str, entry: dict) -> None:
        record(gallery, build, entry)
        if not gallery.forgotten():
            forget(gallery, Selection(("v003",)), "a test")
            compact(gallery)
            assert files_with_forgotten(gallery) == {}

    monkeypatch.setattr("pipeline.index.build.record_finished", forget_then_record)
    with pytest.raises(PipelineError, match="videos were forgotten while the index was built"):
        build_index(toy_gallery, NINE)
    monkeypatch.undo()
    assert len(build_index(toy_gallery, NINE).videos) == 39


def test_a_build_of_other_settings_or_another_head_is_not_gone_on_with(
    toy_gallery: Gallery, written: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    written.clear()
    head = build_index(toy_gallery, IndexSettings(partition_videos=9)).head
    assert len(written) == 5
    build_index(toy_gallery, NINE, head)  # the untrained one, given as if it were trained
    assert len(written) == 5 + 2  # the same head and settings: gone on with
    interrupted(toy_gallery, monkeypatch, 4)
    written.clear()
    other = build_index(toy_gallery, IndexSettings(segment_length=4, stride=2, partition_videos=9)).head
    build_index(toy_gallery, NINE, other)
    assert len(written) == 10


def test_a_draft_is_not_gone_on_with_where_the_gallery_has_grown_far_beyond_it(
    toy_gallery: Gallery, written: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    add_videos(toy_gallery, people_features(120, 1, 24, seed=5), first=40)
    written.clear()
    assert build_index(toy_gallery, NINE).manifest["drawn"]["gallery_videos"] == 160
    assert sum(map(len, written)) == 160


def test_a_damaged_draft_is_built_anew(toy_gallery: Gallery, written: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    for path in left(toy_gallery):
        if path.endswith("draft.json"):
            Path(path).write_bytes(b"{")
    written.clear()
    assert len(build_index(toy_gallery, NINE).videos) == 40 and len(written) == 5


# leases


def test_a_compaction_leaves_a_build_that_lasts_for_days_what_it_has(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "RENEW_SECONDS", 0.05)
    record = drafts.record_finished

    def compact_days_later(gallery: Gallery, build: str, entry: dict) -> None:
        record(gallery, build, entry)
        age(gallery, 50)
        lease = Path(builds(gallery).join(build, "lease.json").path)
        while datetime.now(UTC).timestamp() - lease.stat().st_mtime > 3600:  # until it is renewed
            pass
        compact(gallery)

    monkeypatch.setattr("pipeline.index.build.record_finished", compact_days_later)
    assert len(build_index(toy_gallery, NINE).videos) == 40
    assert verify_gallery(toy_gallery) == []


@pytest.mark.parametrize("hours", [23, 25])
def test_what_a_build_that_died_has_left_goes_when_its_lease_has_run_out(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, hours: float
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    age(toy_gallery, hours)
    compact(toy_gallery)
    assert len(stored(toy_gallery)) == (3 if hours < 24 else 0)
    assert bool(left(toy_gallery)) == (hours < 24)
    build_index(toy_gallery, NINE)
    compact(toy_gallery)
    assert len(stored(toy_gallery)) == 5 and left(toy_gallery) == []


def test_a_lease_keeps_partitions_of_a_version_that_goes(toy_gallery: Gallery) -> None:
    first = build_index(toy_gallery, NINE)
    counted_on = first.manifest["partitions"][0]["id"]
    for _ in range(2):
        build_index(toy_gallery, NINE)
    with leased(toy_gallery, new_build(), [counted_on]):
        compact(toy_gallery, keep_indexes=1)
        assert counted_on in stored(toy_gallery) and len(stored(toy_gallery)) == 6


def test_ages_of_leases_are_told_by_the_storage_and_not_by_this_clock(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)

    class Ahead(datetime):
        @classmethod
        def now(cls, zone: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=3)

    monkeypatch.setattr(drafts, "datetime", Ahead)
    assert not drafts.held_partitions(toy_gallery)("0" * 32)
    assert all(map(drafts.held_partitions(toy_gallery), stored(toy_gallery)))


def test_the_command_says_what_it_went_on_with(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(toy_gallery, monkeypatch, 4)
    run_jobs_index(toy_gallery.location.path, partition_videos=9, prefilter="compressed")
    assert "5 partitions, 3 of them from a build that did not end" in capsys.readouterr().out
