"""Partitions of an index on Ray actors, over the nodes of a cluster: each actor answers for those that it holds."""

import contextlib
import secrets
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pipeline.cluster import worker_errors
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index, open_index
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.scores import TargetEncoding
from pipeline.scoring.whole import WholeVideos
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.partition import WHOLE
from pipeline.search.placement import placed
from pipeline.search.results import SegmentPair
from pipeline.settings import ScoreSettings
from pipeline.stopping import CANCELLED, Between, StoppedError, going_on

START_SECONDS = 120.0  # for actors to find a place and open their partitions
LOOK_SECONDS = 2.0  # meanwhile, between two looks at how many there is room for
STOP_SECONDS = 0.2  # between two looks at whether actors are to stop
AWAY_SECONDS = 10.0  # that an actor which does not answer is waited for: it may be starting anew
ASKED_AT_ONCE = 2  # of an actor, so that a long search does not hold up a short one
ALIVE = "alive"  # group of calls that are answered beside searches
GONE = "a search actor died and is not back; nothing is lost, search again"


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

        A partition is held where it was held before, as far as the nodes are the same (`pipeline.search.placement`). Raises
        PipelineError where the cluster has no room and for an index that is damaged.
        """
        import ray

        count, partitions = self.count(index), index.manifest["partitions"]
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
        opening, end = secrets.token_hex(8), time.monotonic() + START_SECONDS
        shares: list[Share] = []
        try:
            answers = self._answers([actor.host.options(concurrency_group=ALIVE).remote() for actor in actors], index, end)
            if answers is not None:
                shares = [Share(opening, index.version, mine) for mine in placed([part["id"] for part in partitions], answers)]
                opened = [actor.open.remote(share) for actor, share in zip(actors, shares, strict=True)]
                answers = self._answers(opened, index, end)
        except BaseException:
            _drop(self.actors, opening)
            for actor in new:
                ray.kill(actor)
            raise
        self.actors += new
        if answers is None:
            _drop(actors, opening)
            return self.open(index)
        return ActorPartitions(actors, shares)

    def _answers(self, calls: list[Any], index: Index, end: float) -> list[Any] | None:
        """What all calls of actors answer until a time of the monotonic clock; None where nodes came or went meanwhile."""
        import ray

        waiting = calls
        while waiting and self.count(index) == len(calls):
            if time.monotonic() > end:
                raise PipelineError(f"the cluster has no room for {len(waiting)} of {len(calls)} search actors; try --actors")
            _, waiting = ray.wait(calls, num_returns=len(calls), timeout=LOOK_SECONDS)
        with worker_errors(GONE):
            return None if waiting else ray.get(calls)

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
        self, target: TargetEncoding, count: int, allowed: np.ndarray | None, between: Between = going_on
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

    calls = {actor.host.options(concurrency_group=ALIVE).remote(): actor for actor in actors}
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

    def host(self) -> str:
        """The address of its node. Answered in ALIVE, however long a search takes."""
        import ray

        return ray.util.get_node_ip_address()

    def _held(self, share: Share) -> LocalPartitions:
        with self.lock:
            if share.opening not in self.held:
                index = open_index(Gallery.open(self.gallery_uri), share.version)
                self.held[share.opening] = LocalPartitions(index, share.numbers, self.device)
            return self.held[share.opening]
