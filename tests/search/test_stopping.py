"""A search that is stopped ends between two pieces of the step that it is in, here and on actors."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
import torch

from pipeline.errors import PipelineError
from pipeline.gallery.audit import read_records, verify
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.scoring import candidates
from pipeline.scoring.candidates import Candidates
from pipeline.search import run as search_run
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.partition import Partition
from pipeline.search.partitions import WatchedPartitions
from pipeline.search.search import search
from pipeline.search.search_actors import SearchActors
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from pipeline.stopping import StoppedError
from tests.conftest import add_videos, people_features, toy_spec
from tests.service.test_jobs import until

PARTITIONS, PIECES = 12, 60  # of the gallery; of its scores
AHEAD = 5  # pieces that threads may be ahead of who asks them
EVERYTHING = SearchSettings(top=200, shortlist=50, exact=True)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    opened = Gallery.open_or_create(tmp_path_factory.mktemp("data") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(opened, people_features(60, 4, 24, seed=3), videos_a_shard=60)
    build_index(opened, IndexSettings(8, 4, partition_videos=240 // PARTITIONS))
    return opened


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many pieces of each step are done."""
    counts: Counter[str] = Counter()
    monkeypatch.setattr(candidates, "SCORE_PAIRS", 100)  # some four videos
    shortlist = Partition.shortlist

    def held(*arguments: Any) -> Any:
        assert counts["shortlist"] <= AHEAD or stopped.wait(60)  # threads run ahead of who asks them
        return shortlist(*arguments)

    stopped.set()
    monkeypatch.setattr(Partition, "shortlist", held)
    for step, owner, method in (
        ("shortlist", Partition, "shortlist"),
        ("score", Candidates, "_of_all_pairs"),
        ("evidence", Partition, "evidence"),
    ):
        monkeypatch.setattr(owner, method, counted(counts, step, getattr(owner, method)))
    return counts


def counted(counts: Counter[str], step: str, method: Callable[..., Any]) -> Callable[..., Any]:
    def count(*arguments: Any, **named: Any) -> Any:
        counts[step] += 1
        return method(*arguments, **named)

    return count


stopped = threading.Event()


class Stop:
    """Stops a search the nth time that it is told of a step."""

    def __init__(self, step: str, times: int) -> None:
        self.step, self.left = step, times

    def __call__(self, step: str) -> None:
        self.left -= step == self.step
        if self.left < 0:
            stopped.set()
            raise StoppedError("cancelled by Anna")


@pytest.mark.parametrize(("step", "of"), [("shortlist", PARTITIONS), ("score", PIECES), ("evidence", PARTITIONS)])
def test_what_is_left_of_a_step_is_not_done(gallery: Gallery, done: Counter[str], threads: int, step: str, of: int) -> None:
    search_run.run(gallery, ["id:v003"], EVERYTHING, watch=lambda _step: None)
    assert done[step] >= of, "it has many pieces"
    done.clear()
    if step == "shortlist":
        stopped.clear()
    with pytest.raises(StoppedError, match="cancelled by Anna"):
        search_run.run(gallery, ["id:v003"], EVERYTHING, "a mistake", watch=Stop(step, 4))
    assert done[step] <= (3 if threads == 1 or step != "shortlist" else AHEAD + threads)
    after = ["shortlist", "score", "evidence"]
    assert not any(done[one] for one in after[after.index(step) + 1 :])
    record = read_records(gallery)[-1]
    assert (record["target"], record["reason"], record["failed"]) == ("v003", "a mistake", "cancelled by Anna")
    assert "results" not in record and verify(gallery) == []


def test_it_answers_the_next_search_as_ever(gallery: Gallery, done: Counter[str], threads: int) -> None:
    expected = search_run.run(gallery, ["id:v003"], EVERYTHING).results[0].leads
    for step in ("shortlist", "score", "evidence"):
        with pytest.raises(StoppedError):
            search_run.run(gallery, ["id:v003"], EVERYTHING, watch=Stop(step, 2))
    assert search_run.run(gallery, ["id:v003"], EVERYTHING).results[0].leads == expected


def test_a_target_that_is_not_read_yet_stays_unread(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    read: Counter[str] = Counter()
    monkeypatch.setattr(
        "pipeline.search.targets.gallery_target", counted(read, "target", search_run.read_targets.__globals__["gallery_target"])
    )
    with pytest.raises(StoppedError):
        search_run.run(gallery, [f"id:v00{n}" for n in range(8)], watch=Stop("targets", 3))
    assert read["target"] == 3
    assert [one["failed"] for one in read_records(gallery)[-8:]] == ["cancelled by Anna"] * 8, "of all that were asked for"


@pytest.mark.ray
def test_actors_stop_too(gallery: Gallery) -> None:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        index = open_index(gallery)
        actors = SearchActors(gallery.location.uri, 2)
        held = actors.open(index)
        target = gallery_target(gallery, "v003")

        def of_each(asked: Callable[[Any], Any]) -> list[Any]:
            return ray.get([actor.__ray_call__.remote(asked) for actor in actors.actors])

        def stop_at_two(step: str) -> None:
            if step == "score" and min(pieces for pieces, _ in of_each(_counted)) >= 2:
                raise StoppedError("cancelled by Anna")

        of_each(_slow_pieces)
        with pytest.raises(StoppedError, match="cancelled by Anna"):
            search(gallery, index, WatchedPartitions(held, stop_at_two), target, EVERYTHING)  # type: ignore[arg-type]
        until(lambda: all(ended for _, ended in of_each(_counted)))
        stopped = of_each(_counted)
        assert all(2 <= pieces < PIECES / 4 for pieces, _ in stopped), stopped
        of_each(_hurry)
        assert search(gallery, index, held, target, EVERYTHING).scored == 239, "they are asked again"
        assert min(pieces for pieces, _ in of_each(_counted)) >= PIECES / 2
        actors.close()
    finally:
        ray.shutdown()


counts: Counter[str] = Counter()  # in an actor


def _counted(_actor: Any) -> tuple[int, int]:
    return counts["pieces"], counts["ended"]


def _hurry(_actor: Any) -> None:
    counts.clear()


def _slow_pieces(_actor: Any) -> None:
    """In an actor: many pieces of scores, each of which takes its time and is counted, as is each question that has ended."""
    candidates.SCORE_PAIRS = 100
    counts["pause_ms"] = 100
    of_piece, of_question = Candidates._of_all_pairs, LocalPartitions.score_many

    def slow(*arguments: Any) -> Any:
        counts["pieces"] += 1
        time.sleep(counts["pause_ms"] / 1000)
        return of_piece(*arguments)

    def ending(*arguments: Any, **named: Any) -> Any:
        try:
            return of_question(*arguments, **named)
        finally:
            counts["ended"] += 1

    Candidates._of_all_pairs = slow  # type: ignore[method-assign]
    LocalPartitions.score_many = ending  # type: ignore[method-assign]


def test_a_fault_of_another_kind_is_no_stop(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object, **_named: object) -> None:
        raise PipelineError("a partition is damaged")

    monkeypatch.setattr(Partition, "shortlist", broken)
    with pytest.raises(PipelineError, match="damaged"):
        search_run.run(gallery, ["id:v003"], EVERYTHING, watch=lambda _step: None)
    assert read_records(gallery)[-1]["failed"] == "a partition is damaged"
