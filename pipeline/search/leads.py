"""Scores -> leads: the best videos with their evidence, their probabilities and the words for how sure these are."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from pipeline.coattention.calibration import Calibration, Setting, settings_of
from pipeline.coattention.gallery_calibration import GalleryCalibration
from pipeline.coattention.logits import Floats
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.versions import Index
from pipeline.scoring.video_scores import rank_videos
from pipeline.search.partitions import Partitions
from pipeline.search.results import AllScores, Lead, SearchResult, SegmentPair
from pipeline.search.scored import Scored
from pipeline.search.shortlist import Shortlist
from pipeline.settings import SearchSettings


def leads(gallery: Gallery, index: Index, partitions: Partitions, scored: Scored, settings: SearchSettings) -> SearchResult:
    """The leads of one target, best first; equal scores in the order of video ids."""
    shortlist, question, scores = scored.shortlist, scored.shortlist.question, scored.scores
    best = _first(scores, settings.top)
    if question.score.threshold:
        best = best[scores[best] != 0]  # no pair reaches the threshold: nothing speaks for them
    best = best[rank_videos(scores[best], index.ids(shortlist.videos[best]))[: settings.top]]
    pairs: list[list[SegmentPair]] = [[] for _ in best]
    if settings.evidence:
        pairs = partitions.evidence(question.segments, shortlist.videos[best], settings.pairs, question.score)
    rows = index.rows(shortlist.videos[best])
    cut = (index.settings.segment_length, index.settings.stride, settings.target_length, settings.target_stride)
    made = settings_of(question.score.alone, *cut, cameras=index.settings.cameras)
    worth = worth_of(index, made, scored.alone, best, question.eligible, settings)
    prefilter_ranks = _prefilter_ranks(index, shortlist, best)
    ranked = zip(rows, scores[best].tolist(), worth.probabilities, worth.strengths, prefilter_ranks, pairs, strict=True)
    return SearchResult(
        target=question.target.video,
        target_segments=len(question.segments),
        leads=tuple(
            Lead(rank, VideoRef.of(row), score, probability, of_prefilter, tuple(of_lead), strength=strength)
            for rank, (row, score, probability, strength, of_prefilter, of_lead) in enumerate(ranked, start=1)
        ),
        gallery=gallery.location.uri,
        gallery_videos=len(index.videos),
        eligible=question.eligible,
        scored=len(scores),
        passed_over=len(shortlist.videos) - len(scores),
        index_version=index.version,
        model=index.model,
        untrained=index.untrained,
        filters=settings.filters(),
        seconds=0.0,
        searched_at=datetime.now(UTC),
        score=question.score,
        expected_matches=worth.expected_matches,
        none_probability=worth.none_probability,
        calibration=worth.words,
        untimed=question.untimed,
        settings=settings,
        all_scores=AllScores(shortlist.videos[: len(scores)], scores),
    )


def _prefilter_ranks(index: Index, shortlist: Shortlist, places: np.ndarray) -> list[int]:
    """Of videos found, from 1: by logit, equal ones by id; what the prefilter did not name comes last, by number."""
    videos, logits = shortlist.videos, shortlist.logits
    own = logits[places]
    ranks = 1 + len(logits) - np.searchsorted(np.sort(logits), own, side="right")
    equal = np.flatnonzero(np.isin(logits, own[own > -np.inf]))
    ids = np.asarray(index.ids(videos[equal]), np.str_)
    equal = equal[np.lexsort((ids, logits[equal]))]
    first = np.searchsorted(logits[equal], logits[equal])  # of those equal to each one
    among_equals = np.zeros(len(logits), np.int64)
    among_equals[equal] = np.arange(len(equal)) - first
    unnamed = np.sort(videos[logits == -np.inf])
    ranks += np.where(own > -np.inf, among_equals[places], np.searchsorted(unnamed, videos[places]))
    return ranks.tolist()


def _first(scores: np.ndarray, count: int) -> np.ndarray:
    """Positions of all scores that are not below the first `count`, ascending; NaN is among them, for `rank_videos` to refuse."""
    if len(scores) <= count:
        return np.arange(len(scores))
    return np.flatnonzero(~(scores < np.partition(scores, -count)[-count]))


@dataclass(frozen=True)
class Worth:
    """What the leads of one target are worth. probabilities, strengths: of each lead; words: what they rest on, or why there are
    none. The rest as in `SearchResult`.
    """

    probabilities: list[float] | list[None]
    strengths: list[str] | list[None]
    words: str
    expected_matches: float | None = None
    none_probability: float | None = None


def worth_of(
    index: Index, made: dict[str, Setting], scores: Floats, best: NDArray[np.int64], eligible: int, settings: SearchSettings
) -> Worth:
    """What the scores at the places `best`, int64 [n], of all scores [m] of one target say. made: how, from `settings_of`."""
    nothing: list[None] = [None] * len(best)
    known, why = calibration_of(index, made)
    if known is None or not len(scores):
        return Worth(nothing, nothing, why or "no video was scored")
    if isinstance(known, GalleryCalibration) and why:
        return Worth(nothing, known.strengths(scores[best], eligible), why)
    expected = known.expected_matches(eligible) if settings.expected_matches is None else settings.expected_matches
    probabilities = known.probabilities(scores[best], eligible, expected).tolist()
    return Worth(probabilities, nothing, known.words, expected, known.none_probability(scores, eligible))


def calibration_of(index: Index, made: dict[str, Setting]) -> tuple[GalleryCalibration | Calibration | None, str]:
    """What says how much scores made so (`settings_of`) are worth, and why there are no numbers, empty where there are.

    The gallery's own calibration; the head's where the index has none of the gallery. None where nothing is known. One of the
    gallery that supports no numbers says in words how far a score stands out.
    """
    known = index.gallery_calibration or index.calibration
    if known is None:
        return None, "the index does not know what its scores are worth; run jobs.index --rebuild"
    if why := known.mismatch(index.manifest["head"], made):
        return None, why
    if isinstance(known, GalleryCalibration) and known.why:
        return (None if known.mixture is None else known), known.why
    return known, ""
