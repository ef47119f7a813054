"""A watch goes on while there is nothing to watch, says so once, and ends when it is told to."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from pipeline import cluster
from pipeline.errors import EmptyInputError, UsageError
from pipeline.footage import run, watch
from pipeline.footage.recordings import Plan, name_pattern
from pipeline.footage.summary import FootageSummary
from pipeline.footage.watch import Recordings, watch_footage
from pipeline.gallery.gallery import Gallery
from pipeline.ingest import progress
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.storage.faults import StorageError
from tests.conftest import touch
from tests.jobs.commands import ROOT, command, waited_for

PATTERN = "{camera}/%Y%m%d_%H%M%S.mp4"
PLAN = Recordings.plan
AWAY = StorageError("the store does not answer", "unavailable")


class World:
    """A folder that changes from look to look, and an ingest that only counts. joined: how often Ray was."""

    def __init__(self, folder: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.gallery, self.joined = folder, gallery, 0
        self.ingested: list[int] = []
        self.fails: dict[int, Exception] = {}  # by the number of the ingest, from 0
        monkeypatch.setattr(watch, "ingest_footage", self.ingest)
        monkeypatch.setattr(watch, "connected", self.connected)

    @contextlib.contextmanager
    def connected(self, _: object) -> Iterator[None]:
        self.joined += 1
        yield

    def ingest(self, plan: Plan, *_: object, **__: object) -> FootageSummary:
        self.ingested.append(len(plan.table))
        if (error := self.fails.get(len(self.ingested) - 1)) is not None:
            raise error
        return FootageSummary(recordings=len(plan.table))

    def watched(self, monkeypatch: pytest.MonkeyPatch, *before: Callable[[], Any]) -> tuple[list[str], list[FootageSummary]]:
        """What is said while the folder is looked at, `before` each look something else was done, and the summaries."""
        said: list[str] = []
        todo = list(before)
        inputs = Recordings(str(self.folder), name_pattern(PATTERN))

        def planned(one: Recordings) -> Plan:
            todo.pop(0)()
            return PLAN(one)

        monkeypatch.setattr(Recordings, "plan", planned)
        how: dict[str, Any] = {"every_s": 0.001, "rounds": len(before), "told": said.append}
        return said, list(watch_footage(inputs, self.gallery, gallery_sampling(self.gallery), "made-up", **how))


@pytest.fixture
def world(tmp_path: Path, gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "nvr").mkdir()
    return World(tmp_path / "nvr", gallery, monkeypatch)


def nothing() -> None:
    pass


def test_an_empty_folder_is_waited_for_and_said_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def come() -> None:
        touch(world.folder, "hall/20260701_120000.mp4")

    said, summaries = world.watched(monkeypatch, nothing, nothing, nothing, come, nothing)
    assert len(said) == 2 and world.ingested == [1, 1] and world.joined == 1 and len(summaries) == 1
    assert said[0].startswith("waiting, and looking again every 0.001 s: ") and "holds no video" in said[0]
    assert said[1].startswith("going on after 0.0 minutes: ")


def test_a_folder_that_goes_away_is_said_once_and_again_when_it_is_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(world.folder, "hall/20260701_120000.mp4")
    away = world.folder.with_name("unmounted")
    go, come = (lambda: world.folder.rename(away)), (lambda: away.rename(world.folder))
    said, _ = world.watched(monkeypatch, nothing, go, nothing, come, nothing, go, come)
    assert [one.split()[0] for one in said] == ["waiting,", "going", "waiting,", "going"] and world.ingested == [1] * 4
    assert f"there is no file or folder {world.folder}" in said[0]


@pytest.mark.parametrize("where", ["of recordings", "of the gallery"])
def test_a_store_that_is_away_is_said_once_and_asked_again(world: World, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    touch(world.folder, "hall/20260701_120000.mp4")

    def fail() -> None:
        if where == "of recordings":
            raise AWAY

    if where == "of the gallery":
        world.fails = {1: AWAY, 2: AWAY}
    said, _ = world.watched(monkeypatch, nothing, fail, fail, nothing)
    assert len(said) == 2 and str(AWAY) in said[0] and "going on" in said[1]
    assert world.ingested == ([1, 1] if where == "of recordings" else [1, 1, 1, 1])


def test_what_is_wrong_at_the_start_ends_a_watch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(world.folder, "hall/export.mp4")
    with pytest.raises(UsageError, match="fits none"):
        world.watched(monkeypatch, nothing)
    touch(world.folder, "hall/20260701_120000.mp4")
    world.fails = {0: AWAY}
    with pytest.raises(StorageError):
        world.watched(monkeypatch, nothing)
    world.fails = {2: UsageError("made with the detector A")}
    with pytest.raises(UsageError, match="detector A"):  # it never gets better
        world.watched(monkeypatch, nothing, nothing)


def test_a_folder_that_is_not_there_at_the_start_and_an_empty_one_without_a_watch_are_refused(tmp_path: Path) -> None:
    flags = ["--gallery", str(tmp_path / "gallery"), "--detector", "rendered", "--pattern", PATTERN]
    absent = command("ingest", str(tmp_path / "nvr"), *flags, "--watch")
    assert absent.code == 2 and "there is no file or folder" in absent.sentence
    (tmp_path / "nvr").mkdir()
    with pytest.raises(EmptyInputError):
        Recordings(str(tmp_path / "nvr")).plan()
    assert command("ingest", str(tmp_path / "nvr"), *flags).code == 2 and not (tmp_path / "gallery").exists()


def test_only_files_that_the_pattern_fits_are_counted_as_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "nvr", "hall/20260701_120000.mp4", *(f"hall/export {number}.mp4" for number in range(10)))
    monkeypatch.setattr(run, "ingest_footage", lambda plan, *_, **__: FootageSummary(len(plan.table), unnamed=plan.unnamed))
    flags = ["--gallery", str(tmp_path / "gallery"), "--detector", "rendered", "--pattern", PATTERN]
    ended = command("ingest", str(tmp_path / "nvr"), *flags)
    assert ended.code == 0 and "1 recording; if any is new" in ended.err and "11 recordings" not in ended.err + ended.out
    assert "  recordings    1 (" in ended.out and "not read      10 files that the pattern does not fit, such as" in ended.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_watch_that_waits_ends_with_0_when_it_is_told_to(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "nvr").mkdir()
    flags = ["--gallery", str(tmp_path / "gallery"), "--detector", "rendered", "--pattern", PATTERN, "--watch"]
    log = tmp_path / "log"
    with log.open("w") as sink:
        watching = subprocess.Popen(
            [sys.executable, "-m", "jobs.ingest", str(tmp_path / "nvr"), *flags], cwd=ROOT, stdout=sink, stderr=sink
        )
        try:
            assert waited_for(lambda: "looking again every 60 s" in log.read_text() or watching.poll() is not None, 120)
            began = time.monotonic()
            watching.send_signal(number)
            assert watching.wait(60) == 0, log.read_text()
            assert time.monotonic() - began < 30
        finally:
            watching.kill()
            watching.wait()
    assert "stopped watching" in log.read_text() and "Traceback" not in log.read_text()
    assert len(Gallery.open(tmp_path / "gallery").snapshot().recordings) == 0


def test_joining_ray_leaves_what_a_process_does_on_sigterm(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def init(**_: object) -> None:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(1))

    monkeypatch.setattr(cluster, "_asks_for_token", lambda _: True)
    for name, what in {"init": init, "shutdown": nothing, "is_initialized": lambda: False}.items():
        monkeypatch.setattr(ray, name, what)
    before = signal.signal(signal.SIGTERM, ours := lambda *_: None)
    try:
        with cluster.connected():
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_run_that_stops_since_storage_fails_says_so_by_its_kind(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch tells by that whether it is worth another look."""
    import ray
    import ray.data

    ray.data.DataContext.get_current()  # modules that it loads want Ray's own `remote`

    def fail(*_: object, **__: object) -> Iterator[None]:
        yield from ()
        raise AWAY

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1})
    monkeypatch.setattr(ray, "remote", lambda **_: lambda _: SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(
        ray.data, "from_blocks", lambda _: SimpleNamespace(map_batches=lambda *_, **__: SimpleNamespace(iter_batches=fail))
    )
    missing = pa.table({"source_id": ["a"]})
    with pytest.raises(StorageError, match="the ingest stopped: the store does not answer; 0 of 1") as raised:
        run._run(missing, gallery, gallery_sampling(gallery), "d", 1, 300.0, gallery.snapshot(), FootageSummary(), print, 0.0)
    assert raised.value.kind == "unavailable"


def test_who_is_interrupted_does_not_wait_for_the_recording_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    left = threading.Event()
    monkeypatch.setattr(progress, "leave", left.set)
    monkeypatch.setattr(progress.ray, "get", lambda *_, **__: 0)

    def recordings() -> Iterator[pa.Table]:
        assert left.wait(60)  # as for a worker, until Ray is left
        yield pa.table({})

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    began, counter = time.monotonic(), SimpleNamespace(read=SimpleNamespace(remote=lambda: None))
    with pytest.raises(KeyboardInterrupt):
        list(progress.polled(recordings(), counter, progress.IngestProgress(1), interrupted, began))
    assert left.is_set() and time.monotonic() - began < 30


@pytest.mark.parametrize("ours", [True, False])
def test_ray_is_left_by_whom_it_was_joined(monkeypatch: pytest.MonkeyPatch, ours: bool) -> None:
    import ray

    ended = []
    monkeypatch.setattr(cluster, "_joined", ours)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(1))
    cluster.leave()
    cluster.leave()
    assert len(ended) == ours
