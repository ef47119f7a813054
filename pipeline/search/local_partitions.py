"""Partitions of an index in this process: shortlists, scores and evidence of those that are held here."""

import math
import resource
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import faiss
import numpy as np
import torch

from pipeline import telemetry
from pipeline.index.cached_files import at_once
from pipeline.index.prefilter import PrefilterQuery
from pipeline.index.versions import Index
from pipeline.scoring import pair_kernel
from pipeline.scoring.candidates import Candidates, TargetSegments, ascending_union, joinable, score_many, together
from pipeline.scoring.scores import TargetEncoding
from pipeline.scoring.whole import WholeVideos, resemblance
from pipeline.search.partition import OF_FRAMES, Partition
from pipeline.search.results import SegmentPair
from pipeline.settings import ScoreSettings
from pipeline.stopping import Between, going_on, stoppable

NEARLY_ALL = 0.9  # share of the videos that a filter leaves, from where on partitions are taken to hold about as many good ones
MAPPED_BYTES = 4 << 30  # of arrays, from where on rows are never scored where they are mapped
SPARSE = 0.25  # share of the videos that is asked for, below which they are not either: mapped reading reads what lies around too
FILES_A_PARTITION, OTHER_FILES = 17, 512  # a mapped array keeps its file open; the usual limit is 1,024 files
TOGETHER = 1_000_000  # segments that are scored together from files, about: the disk rests between two such groups

Answer = TypeVar("Answer")


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
        self, target: TargetEncoding, count: int, allowed: np.ndarray | None, between: Between = going_on
    ) -> tuple[np.ndarray, np.ndarray]:
        """Best videos by the prefilter, a superset of the best `count`: (videos int64 [m], logits float32 [m]).

        Each partition is asked for somewhat more than its share, and again where it may hold more of the best.
        """
        query = PrefilterQuery(target)
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


def _allow_open_files(more: int) -> None:
    """Let this process have so many files open beside some hundred others, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = more + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
