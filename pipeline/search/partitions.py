"""All partitions of an index, wherever they are: what a search asks of them.

Query vectors go out, scores come back; features never travel. A video's score does not depend on who holds its partition; whether
a compressed prefilter finds it may, since it looks into more lists where a partition names too few. In this process they are
`local_partitions`, spread over Ray actors `search_actors`.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from pipeline.cluster import Cluster, cluster_is_named, connected
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.scores import TargetEncoding
from pipeline.scoring.whole import WholeVideos
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.results import SegmentPair
from pipeline.search.search_actors import SearchActors
from pipeline.settings import ScoreSettings
from pipeline.stopping import Between, going_on

IN_PROCESS_VIDEOS = 5_000_000  # up to here one machine searches faster in this process than with Ray's workers


class Partitions(Protocol):
    """All partitions of an index, wherever they are. Videos are numbered as in Index.videos.

    between: called between two pieces of a question (partitions, videos that are scored together); what it raises ends that one.
    """

    def shortlist(
        self, target: TargetEncoding, count: int, allowed: np.ndarray | None, between: Between = going_on
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
