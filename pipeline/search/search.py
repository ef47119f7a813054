"""Targets -> shortlists -> full scores -> leads with evidence, over partitions wherever they are (`pipeline.search.partitions`).

Every partition names its best videos by the prefilter, the shortlist is the best of those, every partition scores its share in
full, the best of the prefilter first and until it brings no more leads, and the best are asked for their evidence. Several
targets share the passes over the partitions. An exact search scores everything or, where that is slower, goes on from the
shortlist until the bounds of all other videos lie below the last lead (`pipeline.scoring.bounds`).
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline import telemetry
from pipeline.coattention.calibration import settings_of
from pipeline.coattention.cohort import cohort_statistics
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.versions import Index, is_compressed
from pipeline.scoring import pair_kernel
from pipeline.scoring.bounds import boundable, certified_top
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.scores import encode_target, rank_videos
from pipeline.search.partition import STAGES
from pipeline.search.partitions import Partitions
from pipeline.search.results import Lead, Proof, SearchResult, SegmentPair
from pipeline.search.targets import Target
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from pipeline.time_windows import seen, seen_daily, seen_within


def search(gallery: Gallery, index: Index, partitions: Partitions, target: Target, settings: SearchSettings) -> SearchResult:
    """The leads for one target, best first; equal scores in the order of video ids.

    The target itself (its id or its uri without a track) and forgotten videos are never among them. Raises UsageError when the
    filters name a camera that the gallery does not have.
    """
    return search_many(gallery, index, partitions, [target], settings)[0]


def search_many(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], settings: SearchSettings
) -> list[SearchResult]:
    """`search` for several targets, which share the passes over the partitions; `seconds` is then of all of them."""
    try:
        results = _search_many(gallery, index, partitions, targets, settings)
    except BaseException:
        telemetry.count("coattention_searches", len(targets), outcome="failed")
        raise
    telemetry.count("coattention_searches", len(results), outcome="done")
    return results


def _search_many(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], settings: SearchSettings
) -> list[SearchResult]:
    began = time.monotonic()
    times = seen_in_time(index, settings) if settings.filters_times else None  # once for all targets
    asked = [_Asked.of(gallery, index, target, settings, times) for target in targets]
    with telemetry.timed("coattention_search_seconds", stage="shortlist"):
        for one in asked:
            one.find(index, partitions)
    with telemetry.timed("coattention_search_seconds", stage="score"):
        for one in asked if settings.exact else ():
            one.certify(index, partitions)
        group = [] if settings.exact else asked
        while group := [one for one in group if one.ahead()]:
            videos = [one.found[len(one.scores) :][: one.ahead()] for one in group]
            scores = partitions.score_many([one.segments for one in group], videos, group[0].score)
            for one, mine in zip(group, scores, strict=True):
                one.scores = np.concatenate([one.scores, mine])
    with telemetry.timed("coattention_search_seconds", stage="evidence"):
        results = [one.result(gallery, index, partitions) for one in asked]
    seconds = time.monotonic() - began
    telemetry.observe("coattention_search_seconds", seconds, stage="all")
    return [replace(result, seconds=seconds) for result in results]


def segmented(
    target: Target, index: Index, length: int | None = None, stride: int | None = None, own: np.ndarray | None = None
) -> TargetSegments:
    """A target cut into segments of `length` frames, `stride` apart (None: as in the index), encoded, measured by the cohort.

    own: `Index.rows_of` the target, where they are known. Raises UsageError for sizes that cannot be meant.
    """
    head, frames = index.head, len(target.features)
    length = index.settings.segment_length if length is None else length
    stride = index.settings.stride if stride is None else stride
    IndexSettings(length, stride)  # raises UsageError
    rows = segment_frames(segment_starts(frames, length, stride), length, frames)
    means = index.cohort.means.float()
    centre = (
        means.mean(dim=0) if len(means) else means.new_zeros(means.shape[1])
    )  # near all values, and the same for every target
    encoding = encode_target(head, torch.from_numpy(target.features[rows]), centre)
    statistics = None
    if index.cohort.usable:
        own = index.rows_of(target.video) if own is None else own
        # A copy of a video is not measured against it either, although it finds it.
        video = torch.full((len(rows),), int(own[0]) if len(own) else index.row_of_copy(target.content))
        statistics = cohort_statistics(index.cohort, encoding.encodings, video, encoding.weight, encoding.bias)
    return TargetSegments(encoding, target.frame_index[rows], target.time_s[rows], statistics)


@dataclass
class _Asked:
    """One target on its way through a search.

    found: the shortlist, best first; logits: of each video by the prefilter, -inf where it did not name it; scores: in full, of
    those that are scored, the first ones.
    """

    target: Target
    settings: SearchSettings
    segments: TargetSegments
    score: ScoreSettings
    allowed: np.ndarray
    eligible: int
    untimed: int | None
    found: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    logits: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    scores: np.ndarray = field(default_factory=lambda: np.empty(0))
    proof: Proof | None = None

    @classmethod
    def of(
        cls,
        gallery: Gallery,
        index: Index,
        target: Target,
        settings: SearchSettings,
        times: tuple[np.ndarray, np.ndarray] | None,
    ) -> "_Asked":
        own = index.rows_of(target.video)
        segments = segmented(target, index, settings.target_length, settings.target_stride, own)
        allowed = allowed_videos(gallery, index, target, settings, own)
        untimed = None
        if times is not None:
            inside, without = times
            untimed = int(np.count_nonzero(allowed & without))
            allowed &= inside
        normalise = settings.score.normalise if segments.cohort is not None else "none"
        score = replace(settings.score, normalise=normalise)
        return cls(target, settings, segments, score, allowed, int(np.count_nonzero(allowed)), untimed)

    def find(self, index: Index, partitions: Partitions) -> None:
        """The shortlist, best first by the prefilter; equal ones by id where they are not all scored together."""
        count = self.eligible
        if self.settings.shortlist is not None:
            count = min(count, max(self.settings.shortlist, math.ceil(round(self.settings.shortlist_share * count, 6))))
        if count == self.eligible and is_compressed(index):  # an order of everything would take as long as scores
            self.found = np.flatnonzero(self.allowed)
            self.logits = np.full(count, -np.inf, np.float32)
            return
        allowed = None if self.eligible == len(self.allowed) else self.allowed
        found, logits = partitions.shortlist(self.segments, count, allowed)
        order = np.argsort(-logits, kind="stable")
        found, logits = found[order], logits[order]
        cuts = np.array([cut for cut in (count, *range(self.patience, count, self.patience)) if cut < len(found)], np.int64)
        equal = np.flatnonzero(np.isin(logits, logits[cuts][logits[cuts] == logits[cuts - 1]]))
        found[equal] = found[equal[rank_videos(logits[equal], _ids(index, found[equal]))]]
        self.found, self.logits = found[:count], logits[:count]

    @property
    def patience(self) -> int:
        """See `SearchSettings`; all of it is scored where everything is asked for, or the prefilter gave no order."""
        asked = self.settings.patience
        unordered = len(self.logits) > 0 and self.logits[0] == -np.inf
        return max(len(self.allowed), 1) if asked is None or self.settings.shortlist is None or unordered else asked

    def ahead(self) -> int:
        """How many videos of the shortlist are to be scored next: none once the last ones brought no lead."""
        done, left = len(self.scores), len(self.found) - len(self.scores)
        if done == 0:
            return min(left, 2 * self.patience)
        before, last = self.scores[: -self.patience], self.scores[-self.patience :]
        if len(before) >= self.settings.top and not (last >= np.partition(before, -self.settings.top)[-self.settings.top]).any():
            return 0
        return min(left, self.patience)

    def certify(self, index: Index, partitions: Partitions) -> None:
        """Score until no video that is left can be among the leads."""

        def score(videos: np.ndarray) -> np.ndarray:
            return partitions.score(self.segments, videos, self.score)

        stages: list[Callable[[np.ndarray], np.ndarray]] = []
        bounded = not pair_kernel.available() if self.settings.bounded is None else self.settings.bounded
        bounded = bounded and not is_compressed(index) and boundable(self.segments.encoding) and self.score.threshold is None
        if bounded:
            stages = [
                functools.partial(partitions.bounds, self.segments, settings=self.score, stage=stage) for stage in range(STAGES)
            ]
        candidates = np.flatnonzero(self.allowed)
        ids = np.asarray(index.videos["video_id"].to_pylist(), np.str_)
        try:
            top = certified_top(self.settings.top, candidates, ids, self.found if bounded else candidates, stages, score)
        except ValueError as error:
            raise PipelineError(f"the index {index.location.uri} is damaged: {error}; build it again with jobs.index") from error
        more = np.setdiff1d(top.videos, self.found)
        self.found = np.concatenate([self.found, more])
        self.logits = np.concatenate([self.logits, np.full(len(more), -np.inf, np.float32)])
        place = {video: i for i, video in enumerate(top.videos.tolist())}
        self.scores = top.scores[[place[video] for video in self.found.tolist()]]
        self.proof = Proof(len(top.videos), top.threshold, top.largest_bound_left, top.reached)

    def result(self, gallery: Gallery, index: Index, partitions: Partitions) -> SearchResult:
        settings = self.settings
        best = _first(self.scores, settings.top)
        if self.score.threshold:
            best = best[self.scores[best] != 0]  # no pair reaches the threshold: nothing speaks for them
        best = best[rank_videos(self.scores[best], _ids(index, self.found[best]))[: settings.top]]
        pairs: list[list[SegmentPair]] = [[] for _ in best]
        if settings.evidence:
            pairs = partitions.evidence(self.segments, self.found[best], settings.pairs, self.score)
        rows = index.rows(self.found[best])
        cut = (index.settings.segment_length, index.settings.stride, settings.target_length, settings.target_stride)
        words = _why_not_calibrated(index, settings_of(self.score, *cut))
        probabilities: list[float] | list[None] = [None] * len(best)
        none_probability = None
        if not len(self.scores):
            words = words or "no video was scored"
        elif index.calibration is not None and not words:
            probabilities = index.calibration.probabilities(self.scores[best], self.eligible, settings.expected_matches).tolist()
            none_probability = index.calibration.none_probability(self.scores, self.eligible)
            words = index.calibration.fitted_on.name
        leads = [
            Lead(rank, VideoRef.of(row), score, probability, of_prefilter, tuple(of_lead))
            for rank, (row, score, probability, of_prefilter, of_lead) in enumerate(
                zip(rows, self.scores[best].tolist(), probabilities, self._prefilter_ranks(index, best), pairs, strict=True),
                start=1,
            )
        ]
        return SearchResult(
            target=self.target.video,
            target_segments=len(self.segments),
            leads=tuple(leads),
            gallery=gallery.location.uri,
            gallery_videos=len(index.videos),
            eligible=self.eligible,
            scored=len(self.scores),
            passed_over=len(self.found) - len(self.scores),
            index_version=index.version,
            model=index.model,
            untrained=index.untrained,
            filters=settings.filters(),
            seconds=0.0,
            searched_at=datetime.now(UTC),
            score=self.score,
            expected_matches=settings.expected_matches,
            none_probability=none_probability,
            calibration=words,
            proof=self.proof,
            untimed=self.untimed,
            settings=settings,
        )

    def _prefilter_ranks(self, index: Index, places: np.ndarray) -> list[int]:
        """Of videos found, from 1: by logit, equal ones by id; what the prefilter did not name comes last, by number."""
        own = self.logits[places]
        ranks = 1 + len(self.logits) - np.searchsorted(np.sort(self.logits), own, side="right")
        equal = np.flatnonzero(np.isin(self.logits, own[own > -np.inf]))
        ids = np.asarray(_ids(index, self.found[equal]), np.str_)
        equal = equal[np.lexsort((ids, self.logits[equal]))]
        first = np.searchsorted(self.logits[equal], self.logits[equal])  # of those equal to each one
        among_equals = np.zeros(len(self.logits), np.int64)
        among_equals[equal] = np.arange(len(equal)) - first
        unnamed = np.sort(self.found[self.logits == -np.inf])
        ranks += np.where(own > -np.inf, among_equals[places], np.searchsorted(unnamed, self.found[places]))
        return ranks.tolist()


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of all scores that are not below the first `count`, ascending; NaN is among them, for `rank_videos` to refuse."""
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.flatnonzero(~(scores < np.partition(scores, -count)[-count]))


def _why_not_calibrated(index: Index, settings: dict[str, Any]) -> str:
    """Why there are no probabilities, in words; empty where there are."""
    if index.calibration is None:
        return "the head has no calibration"
    return index.calibration.mismatch(index.manifest["head"], settings)


def allowed_videos(
    gallery: Gallery, index: Index, target: Target, settings: SearchSettings, own: np.ndarray | None = None
) -> np.ndarray:
    """Which videos may become leads, whatever their times: bool [V]. own: `Index.rows_of` the target, where they are known."""
    videos = index.videos
    allowed = np.ones(len(videos), np.bool_)
    allowed[index.rows_of(target.video) if own is None else own] = False
    if forgotten := gallery.forgotten(known=frozenset(index.manifest["commits"])):
        allowed &= ~np.asarray(pc.is_in(videos["video_id"], pa.array(sorted(forgotten), pa.string())))
    if settings.other_cameras and target.video.camera_id is None:
        raise UsageError(f"the camera of {target.video.video_id} is not known, so it cannot be left out")
    if settings.cameras or settings.other_cameras:
        _check_cameras(index, settings.cameras)
        matching = set(index.partitions_matching(settings.cameras))
        for number, rows in enumerate(_rows(index)):
            allowed[rows] &= _passes(index.partition_videos(number), target, settings) if number in matching else False
    return allowed


def seen_in_time(index: Index, settings: SearchSettings) -> tuple[np.ndarray, np.ndarray]:
    """In which videos somebody is seen when the settings ask for, and which have no time: bool [V] each."""
    inside, without = (np.zeros(len(index.videos), np.bool_) for _ in range(2))
    matching = set(index.partitions_matching((), settings.after, settings.before))
    for number, rows in enumerate(_rows(index)):
        videos = index.partition_videos(number)
        if number not in matching and not videos["start_time"].null_count:
            continue
        first, last = seen(videos)
        without[rows] = np.asarray(pc.is_null(first))
        if number in matching:
            inside[rows] = seen_within(first, last, settings.after, settings.before)
            if settings.between is not None:
                inside[rows] &= seen_daily(first, last, *settings.between, settings.zone)
    return inside, without


def _rows(index: Index) -> list[slice]:
    """Where the videos of each partition stand among all of an index."""
    return [slice(part["first_video"], part["first_video"] + part["videos"]) for part in index.manifest["partitions"]]


def _check_cameras(index: Index, cameras: Sequence[str]) -> None:
    """Raises UsageError for a camera that no indexed video has."""
    named = [part["cameras"] for part in index.manifest["partitions"]]
    if not cameras or (None not in named and set(cameras) <= set().union(*named)):
        return
    known = set(pc.unique(index.videos["camera_id"]).to_pylist())
    if unknown := [camera for camera in cameras if camera not in known]:
        some = ", ".join(sorted(str(camera) for camera in known if camera is not None)[:10])
        raise UsageError(f"the gallery has no camera {unknown[0]!r}; it has {some or 'videos without camera ids only'}")


def _passes(videos: pa.Table, target: Target, settings: SearchSettings) -> np.ndarray:
    """Which of the videos the filters on cameras let through: bool [v]."""
    passes = np.ones(len(videos), np.bool_)
    if settings.cameras:
        passes &= np.asarray(pc.is_in(videos["camera_id"], pa.array(settings.cameras, pa.string())))
    if settings.other_cameras:
        passes &= np.asarray(pc.fill_null(pc.not_equal(videos["camera_id"], target.video.camera_id), True))
    return passes


def _ids(index: Index, videos: np.ndarray) -> list[str]:
    return index.videos["video_id"].take(pa.array(videos)).to_pylist()
