"""All partitions of an index, in this process or spread over Ray actors that own them: what a search asks of them.

Query vectors go out, scores come back; features never travel. A video's score does not depend on who holds its partition; whether
a compressed prefilter finds it may, since it looks into more lists where a partition names too few.
"""

import contextlib
import math
import resource
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import faiss
import numpy as np
import torch

from pipeline import telemetry
from pipeline.cluster import Cluster, cluster_is_named, connected, worker_errors
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.cached_files import at_once
from pipeline.index.prefilter import PrefilterQuery
from pipeline.index.versions import Index, open_index
from pipeline.scoring import pair_kernel
from pipeline.scoring.candidates import Candidates, TargetSegments, ascending_union, joinable, score_many, together
from pipeline.scoring.whole import WholeVideos, resemblance
from pipeline.search.partition import OF_FRAMES, WHOLE, Partition
from pipeline.search.results import SegmentPair
from pipeline.settings import ScoreSettings
from pipeline.stopping import CANCELLED, Between, StoppedError, going_on, stoppable

NEARLY_ALL = 0.9  # share of the videos that a filter leaves, from where on partitions are taken to hold about as many good ones
START_SECONDS = 120.0  # for actors to find a place and open their partitions
LOOK_SECONDS = 2.0  # meanwhile, between two looks at how many there is room for
STOP_SECONDS = 0.2  # between two looks at whether actors are to stop
AWAY_SECONDS = 10.0  # that an actor which does not answer is waited for: it may be starting anew
ASKED_AT_ONCE = 2  # of an actor, so that a long search does not hold up a short one
ALIVE = "alive"  # group of calls that are answered beside searches
GONE = "a search actor died and is not back; nothing is lost, search again"
IN_PROCESS_VIDEOS = 5_000_000  # up to here one machine searches faster in this process than with Ray's workers
MAPPED_BYTES = 4 << 30  # of arrays, from where on rows are never scored where they are mapped
SPARSE = 0.25  # share of the videos that is asked for, below which they are not either: mapped reading reads what lies around too
FILES_A_PARTITION, OTHER_FILES = 14, 512  # a mapped array keeps its file open; the usual limit is 1,024 files
TOGETHER = 1_000_000  # segments that are scored together from files, about: the disk rests between two such groups

Answer = TypeVar("Answer")


class Partitions(Protocol):
    """All partitions of an index, wherever they are. Videos are numbered as in Index.videos.

    between: called between two pieces of a question (partitions, videos that are scored together); what it raises ends that one.
    """

    def shortlist(
        self, target: TargetSegments, count: int, allowed: np.ndarray | None, between: Between = going_on
    ) -> tuple[np.ndarray, np.ndarray]: ...

    def score(
        self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, between: Between = going_on
    ) -> np.ndarray: ...

    def score_many(
        self,
        targets: Sequence[TargetSegments],
        videos: Sequence[np.ndarray],
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[np.ndarray]: ...

    def evidence(
        self,
        target: TargetSegments,
        videos: np.ndarray,
        pairs: int,
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[list[SegmentPair]]: ...

    def whole(self, videos: np.ndarray, between: Between = going_on) -> WholeVideos: ...

    def resemblance(self, some: WholeVideos, videos: np.ndarray, between: Between = going_on) -> np.ndarray: ...


class WatchedPartitions:
    """Partitions of which each question is told by its name, first and between its pieces: what is told may raise, and so end a
    search there.
    """

    def __init__(self, partitions: Partitions, watch: Callable[[str], object]) -> None:
        self._partitions, self._watch = partitions, watch

    def __getattr__(self, name: str) -> Any:
        told = partial(self._watch, name.removesuffix("_many"))
        told()
        return partial(getattr(self._partitions, name), between=told)


class LocalPartitions:
    """Some or all partitions, in this process; each is opened when it is first asked for something."""

    def __init__(self, index: Index, numbers: Sequence[int], device: str = "cpu") -> None:
        self.first = np.array([index.manifest["partitions"][n]["first_video"] for n in numbers], np.int64)
        self.count = np.array([index.manifest["partitions"][n]["videos"] for n in numbers], np.int64)
        self.index, self.numbers, self.device = index, list(numbers), device
        frames = sum(index.manifest["partitions"][number]["frames"] for number in numbers)
        self.large = 2 * frames * (index.head.config.key_width + index.head.config.value_width) > MAPPED_BYTES
        self.filed = device == "cpu"
        self.fetched = not index.partition_location(0).is_local
        self.opened: dict[int, Partition] = {}
        self.threads: ThreadPoolExecutor | None = None
        _allow_open_files((FILES_A_PARTITION + self.fetched * len(OF_FRAMES)) * len(self.numbers))

    def open(self, place: int) -> Partition:
        """The partition at a place in `numbers`."""
        if place not in self.opened:
            self.opened[place] = Partition(self.index, self.numbers[place], self.device)
            telemetry.gauge("coattention_partitions_open", len(self.opened))
        return self.opened[place]

    def shortlist(
        self, target: TargetSegments, count: int, allowed: np.ndarray | None, between: Between = going_on
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best videos by the prefilter, a superset of the best `count`: (videos int64 [m], logits float32 [m]).

        Each partition is asked for somewhat more than its share, and again where it may hold more of the best.
        """
        query = PrefilterQuery(target.for_prefilter)
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        inside = [None if allowed is None else allowed[f : f + n] for f, n in zip(self.first, self.count, strict=True)]
        asked = {p: count for p, mine in enumerate(inside) if mine is None or mine.any()}
        if len(asked) > 1:
            asked = dict.fromkeys(asked, min(count, 2 * -(-count // len(asked)) + 32))

        def ask(places: list[int], least: float = -math.inf) -> None:
            def of_one(place: int) -> tuple[np.ndarray, np.ndarray]:
                return self.open(place).shortlist(query, asked[place], inside[place], least)

            answers = self._at_once(of_one, places, between)
            found.update(zip(places, answers, strict=True))

        def to_ask_for_more() -> list[int]:
            best = np.concatenate([np.empty(0, np.float32)] + [logits for _, logits in found.values()])
            last = np.partition(best, -count)[-count] if len(best) > count else -np.inf
            more = [
                place
                for place, (videos, logits) in found.items()
                if asked[place] <= len(videos) < self.count[place] and asked[place] < count and logits[-1] >= last
            ]
            asked.update({place: min(count, 4 * asked[place]) for place in more})
            return more

        wanted = list(asked)
        share = 1.0 if allowed is None else np.count_nonzero(allowed) / max(1, len(allowed))
        if share > NEARLY_ALL and len(wanted) > 2 * (some := torch.get_num_threads()):
            # What the first partitions do not name is of no interest in the others, unless all that is found is too little.
            ask(wanted[:some])
            ask(wanted[some:], min((float(logits[-1]) for _, logits in found.values() if len(logits)), default=-math.inf))
            wanted = wanted[some:] if sum(len(videos) for videos, _ in found.values()) < count else to_ask_for_more()
        while wanted:
            ask(wanted)
            wanted = to_ask_for_more()
        videos = [np.empty(0, np.int64)] + [videos + self.first[place] for place, (videos, _) in found.items()]
        return np.concatenate(videos), np.concatenate([np.empty(0, np.float32)] + [logits for _, logits in found.values()])

    def _at_once(self, ask: Callable[[int], Answer], places: Sequence[int], between: Between) -> list[Answer]:
        """`ask` of each place, a partition a thread: FAISS uses one thread for the lists of one index."""
        if len(places) < 2 or torch.get_num_threads() < 2:
            return [ask(place) for place in stoppable(places, between)]
        if self.threads is None:
            self.threads = ThreadPoolExecutor(torch.get_num_threads(), "partitions", faiss.omp_set_num_threads, (1,))
        asked = [self.threads.submit(ask, place) for place in places]
        try:
            return [one.result() for one in stoppable(asked, between)]
        finally:
            for one in asked:
                one.cancel()

    def score(
        self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, between: Between = going_on
    ) -> np.ndarray:
        """Video scores float64 [m] of the videos int64 [m]; NaN for those that lie in partitions not held here."""
        return self.score_many([target], [videos], settings, between)[0]

    def score_many(
        self,
        targets: Sequence[TargetSegments],
        videos: Sequence[np.ndarray],
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[np.ndarray]:
        """`score` of each target and its videos, the same bit by bit whatever the other targets are.

        They go group by group, so that what they share is read once, where targets may be joined (`candidates.joinable`).
        Few videos, or those of a large index, are scored from files instead of where they are mapped.
        """
        if len(targets) > 1 and (self.device != "cpu" or not joinable(targets)):
            return [self.score(target, mine, settings, between) for target, mine in zip(targets, videos, strict=True)]
        scores = [np.full(len(mine), np.nan) for mine in videos]
        orders = [np.argsort(mine, kind="stable") for mine in videos]
        orders = [order[self._held(mine[order])] for mine, order in zip(videos, orders, strict=True)]
        everything = ascending_union([mine[order] for mine, order in zip(videos, orders, strict=True)])
        few = len(everything) < SPARSE * int(self.count.sum())
        in_files = self.filed and pair_kernel.available() and (self.large or few)
        candidates = partial(self._candidates, in_files=in_files, between=between)
        for group in self._groups(everything, TOGETHER if in_files else 0):
            places = [order[slice(*np.searchsorted(mine[order], group))] for mine, order in zip(videos, orders, strict=True)]
            asked = [mine[place] for mine, place in zip(videos, places, strict=True)]
            found = score_many(targets, asked, candidates, settings, between)
            for one, place, mine in zip(scores, places, found, strict=True):
                one[place] = mine
        return scores

    def whole(self, videos: np.ndarray, between: Between = going_on) -> WholeVideos:
        """The videos int64 [n] as wholes, NaN for those not held here; of an index that `has_whole_videos`."""
        width = self.index.head.config.value_width
        found = WholeVideos(*(np.full(shape, np.nan, np.float32) for shape in ((len(videos), width), len(videos), len(videos))))
        for mine, there in stoppable(self._whole(videos), between):
            found.encodings[mine], found.mean[mine], found.spread[mine] = there.encodings, there.mean, there.spread
        return found

    def resemblance(self, some: WholeVideos, videos: np.ndarray, between: Between = going_on) -> np.ndarray:
        """`pipeline.scoring.whole.resemblance` of some videos and those of int64 [m], float32 [n, m]; NaN as in `whole`."""
        found = np.full((len(some.mean), len(videos)), np.nan, np.float32)
        for mine, there in stoppable(self._whole(videos), between):
            found[:, mine] = resemblance(some, there, *self.index.heads.score_row())
        return found

    def _whole(self, videos: np.ndarray) -> Iterator[tuple[np.ndarray, WholeVideos]]:
        """(places among the videos, these as wholes) of each partition that holds some."""
        for place, (first, number) in enumerate(zip(self.first, self.count, strict=True)):
            mine = np.flatnonzero((videos >= first) & (videos < first + number))
            if len(mine) and (whole := self.open(place).whole) is not None:
                yield mine, whole[videos[mine] - first]

    def _held(self, videos: np.ndarray) -> np.ndarray:
        """Which of the videos, int64 [m], lie in partitions that are held here: bool [m]."""
        place = np.searchsorted(self.first, videos, side="right") - 1
        return (place >= 0) & (videos < self.first[place] + self.count[place])

    def _groups(self, videos: np.ndarray, segments: int) -> Iterator[tuple[int, int]]:
        """What is scored together of the videos, int64 ascending and all held here: bounds of their numbers, those of partitions
        until they have so many segments.
        """
        size = low = high = 0
        for place, here in self._by_partition(videos):
            more = int(self.open(place).segments[here].sum())
            if size and size + more > segments:
                yield low, high
                size = 0
            low, high = low if size else int(self.first[place]), int(self.first[place] + self.count[place])
            size += more
        if size:
            yield low, high

    def _candidates(self, videos: np.ndarray, *, in_files: bool, between: Between) -> Candidates:
        """Videos held here, int64 ascending, as they are scored; of one partition unless in files."""
        held = list(self._by_partition(videos))
        if self.fetched:
            at_once(lambda one: self.open(one[0]).fetch(one[1]), held, between)
        return together([self.open(place).candidates(here, in_files=in_files) for place, here in held])

    def _by_partition(self, videos: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """The place of each partition that has any of the videos, int64 ascending, and their numbers within it."""
        for place, (first, count) in enumerate(zip(self.first, self.count, strict=True)):
            begin, end = np.searchsorted(videos, (first, first + count))
            if begin < end:
                yield place, videos[begin:end] - first

    def evidence(
        self,
        target: TargetSegments,
        videos: np.ndarray,
        pairs: int,
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[list[SegmentPair]]:
        """The best segment pairs of each video; an empty list for those not held here."""
        found: list[list[SegmentPair]] = [[] for _ in videos]
        order = np.argsort(videos, kind="stable")
        order = order[self._held(videos[order])]
        done = 0
        for place, here in self._by_partition(videos[order]):
            for of_video in self.open(place).evidence(target, here, pairs, settings, between):
                found[order[done]], done = of_video, done + 1
        return found


@dataclass(frozen=True)
class Share:
    """What an actor holds of one opening of an index version. numbers: of its partitions."""

    opening: str
    version: str
    numbers: tuple[int, ...]


class SearchActors:
    """Ray actors, spread over the nodes, that hold partitions of a gallery: GPUs where the cluster has them. `close` ends them.

    An actor that dies is started anew, where there is room, and opens what it is asked for again. wanted: how many, by default
    one per GPU, else half the CPUs.
    """

    def __init__(self, gallery_uri: str, wanted: int | None = None) -> None:
        self.gallery_uri, self.wanted = gallery_uri, wanted
        self.actors: list[Any] = []

    def count(self, index: Index) -> int:
        """How many share the partitions of a version, by the cluster as it is now."""
        gpus, cpus = _processors()
        return min(self.wanted or gpus or max(1, cpus // 2), len(index.manifest["partitions"]), gpus or cpus)

    def open(self, index: Index) -> "ActorPartitions":
        """The partitions of a version, open on the actors; those that are missing are started. What is open already stays.

        Raises PipelineError where the cluster has no room and for an index that is damaged.
        """
        import ray

        count, partitions = self.count(index), len(index.manifest["partitions"])
        gpus, _ = _processors()
        for actor in _silent(self.actors):  # it found no place when its node went
            ray.kill(actor)
            self.actors.remove(actor)
        owner = ray.remote(
            num_cpus=0 if gpus else 1,
            num_gpus=1 if gpus else 0,
            max_restarts=-1,
            max_task_retries=2,
            max_concurrency=1 if gpus else ASKED_AT_ONCE,
            concurrency_groups={ALIVE: 1},
            scheduling_strategy="SPREAD",
        )(_PartitionsActor)
        new = [owner.remote(self.gallery_uri) for _ in range(len(self.actors), count)]
        actors = [*self.actors, *new][:count]
        opening = secrets.token_hex(8)
        shares = [Share(opening, index.version, tuple(range(i, partitions, count))) for i in range(count)]
        opened = [actor.open.remote(share) for actor, share in zip(actors, shares, strict=True)]
        waiting, end = opened, time.monotonic() + START_SECONDS
        try:
            while waiting and self.count(index) == count:  # not where a node went meanwhile
                if time.monotonic() > end:
                    raise PipelineError(f"the cluster has no room for {len(waiting)} of {count} search actors; try --actors")
                _, waiting = ray.wait(opened, num_returns=count, timeout=LOOK_SECONDS)
            with worker_errors(GONE):
                ray.get([] if waiting else opened)
        except BaseException:
            _drop(self.actors, opening)
            for actor in new:
                ray.kill(actor)
            raise
        self.actors += new
        if waiting:
            _drop(actors, opening)
            return self.open(index)
        return ActorPartitions(actors, shares)

    def close(self) -> None:
        import ray

        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


class ActorPartitions:
    """All partitions of one opening of an index version, on actors, which close them when nobody holds this any more."""

    def __init__(self, actors: Sequence[Any], shares: Sequence[Share]) -> None:
        self.actors, self.shares = list(actors), list(shares)
        weakref.finalize(self, _drop, self.actors, self.shares[0].opening).atexit = False

    def shortlist(
        self, target: TargetSegments, count: int, allowed: np.ndarray | None, between: Between = going_on
    ) -> tuple[np.ndarray, np.ndarray]:
        parts = self._ask("shortlist", between, target, count, allowed)
        return np.concatenate([videos for videos, _ in parts]), np.concatenate([logits for _, logits in parts])

    def score(
        self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, between: Between = going_on
    ) -> np.ndarray:
        return np.fmax.reduce(self._ask("score", between, target, videos, settings))

    def score_many(
        self,
        targets: Sequence[TargetSegments],
        videos: Sequence[np.ndarray],
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[np.ndarray]:
        parts = self._ask("score_many", between, list(targets), list(videos), settings)
        return [np.fmax.reduce(answers) for answers in zip(*parts, strict=True)]

    def evidence(
        self,
        target: TargetSegments,
        videos: np.ndarray,
        pairs: int,
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[list[SegmentPair]]:
        parts = self._ask("evidence", between, target, videos, pairs, settings)
        return [next((found for found in of_video if found), []) for of_video in zip(*parts, strict=True)]

    def whole(self, videos: np.ndarray, between: Between = going_on) -> WholeVideos:
        parts = self._ask("whole", between, videos)
        return WholeVideos(*(np.fmax.reduce([getattr(part, name) for part in parts]) for name in WHOLE))

    def resemblance(self, some: WholeVideos, videos: np.ndarray, between: Between = going_on) -> np.ndarray:
        return np.fmax.reduce(self._ask("resemblance", between, some, videos))

    def _ask(self, method: str, between: Between, target: Any, *arguments: Any) -> list[Any]:
        """What each actor answers; where `between` ends this, they stop, too. Raises PipelineError where one is gone for longer
        than a start takes.
        """
        import ray

        shared = ray.put(target)
        with worker_errors(GONE):
            asked = {
                actor.ask.remote(share, method, shared, *arguments): actor
                for actor, share in zip(self.actors, self.shares, strict=True)
            }
            waiting, looked = list(asked), time.monotonic()
            try:
                while waiting:
                    between()
                    _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=STOP_SECONDS)
                    if waiting and time.monotonic() - looked > AWAY_SECONDS:
                        if _silent([asked[one] for one in waiting]):
                            raise PipelineError(GONE)
                        looked = time.monotonic()
            except BaseException:
                for one in waiting:
                    ray.cancel(one)
                raise
            return ray.get(list(asked))


def _processors() -> tuple[int, int]:
    """(GPUs, CPUs) of the cluster."""
    import ray

    resources = ray.cluster_resources()
    return int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))


def _silent(actors: Sequence[Any]) -> list[Any]:
    """Those that do not answer within AWAY_SECONDS, or cannot."""
    import ray

    calls = {actor.alive.options(concurrency_group=ALIVE).remote(): actor for actor in actors}
    if not calls:
        return []
    done, silent = ray.wait(list(calls), num_returns=len(calls), timeout=AWAY_SECONDS)
    for one in done:
        try:
            ray.get(one)
        except ray.exceptions.RayError:
            silent.append(one)
    return [calls[one] for one in silent]


def _drop(actors: Sequence[Any], opening: str) -> None:
    """Tell the actors that nobody asks for this opening any more."""
    import ray

    for actor in actors if ray.is_initialized() else ():  # a call would start Ray
        with contextlib.suppress(Exception):  # of an actor or a cluster that is gone
            actor.drop.remote(opening)


def _unless_cancelled() -> None:
    """Raises StoppedError in an actor whose answer nobody waits for any more."""
    import ray

    if ray.get_runtime_context().is_canceled():
        raise StoppedError(CANCELLED)


class _PartitionsActor:
    """Partitions of a Ray actor, which opens them when it is first asked for them and keeps them warm until they are dropped."""

    def __init__(self, gallery_uri: str) -> None:
        self.gallery_uri = gallery_uri  # opened when it is asked for: a store that is away then costs one answer, not the actor
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.held: dict[str, LocalPartitions] = {}
        self.lock = threading.Lock()

    def open(self, share: Share) -> None:
        """Open all of a share."""
        held = self._held(share)
        for place in range(len(share.numbers)):
            held.open(place)

    def ask(self, share: Share, method: str, *arguments: Any) -> Any:
        """What a method of LocalPartitions answers."""
        return getattr(self._held(share), method)(*arguments, between=_unless_cancelled)

    def drop(self, opening: str) -> None:
        """Close what was opened."""
        with self.lock:
            self.held.pop(opening, None)

    def alive(self) -> bool:
        """Answers, however long a search takes."""
        return True

    def _held(self, share: Share) -> LocalPartitions:
        with self.lock:
            if share.opening not in self.held:
                index = open_index(Gallery.open(self.gallery_uri), share.version)
                self.held[share.opening] = LocalPartitions(index, share.numbers, self.device)
            return self.held[share.opening]


@contextlib.contextmanager
def opened_partitions(
    gallery: Gallery, index: Index, actors: int | None = None, address: Cluster | str | None = None
) -> Iterator[Partitions]:
    """The index's partitions, ready to be searched.

    actors: 0 for this process, a number for that many Ray actors, None to decide: Ray when a cluster is named (address,
    RAY_ADDRESS) or the index has more than IN_PROCESS_VIDEOS videos, else this process.
    """
    everything = range(len(index.manifest["partitions"]))
    if actors is None and not cluster_is_named(address) and len(index.videos) <= IN_PROCESS_VIDEOS:
        actors = 0
    if actors == 0:
        yield LocalPartitions(index, everything)
        return
    with connected(address), contextlib.closing(SearchActors(gallery.location.uri, actors)) as started:
        yield started.open(index)


def _allow_open_files(more: int) -> None:
    """Let this process have so many files open beside some hundred others, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
