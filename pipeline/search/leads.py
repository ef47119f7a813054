"""Scores -> leads: the best videos with their evidence, their probabilities and the words for how sure these are."""

from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.coattention.calibration import settings_of
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.versions import Index
from pipeline.scoring.scores import rank_videos
from pipeline.search.partitions import Partitions
from pipeline.search.results import Lead, SearchResult, SegmentPair
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
    words = _why_not_calibrated(index, settings_of(question.score, *cut, cameras=index.settings.cameras))
    probabilities: list[float] | list[None] = [None] * len(best)
    none_probability = None
    if not len(scores):
        words = words or "no video was scored"
    elif index.calibration is not None and not words:
        probabilities = index.calibration.probabilities(scores[best], question.eligible, settings.expected_matches).tolist()
        none_probability = index.calibration.none_probability(scores, question.eligible)
        words = index.calibration.fitted_on.name
    ranked = zip(rows, scores[best].tolist(), probabilities, _prefilter_ranks(index, shortlist, best), pairs, strict=True)
    return SearchResult(
        target=question.target.video,
        target_segments=len(question.segments),
        leads=tuple(
            Lead(rank, VideoRef.of(row), score, probability, of_prefilter, tuple(of_lead))
            for rank, (row, score, probability, of_prefilter, of_lead) in enumerate(ranked, start=1)
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
        expected_matches=settings.expected_matches,
        none_probability=none_probability,
        calibration=words,
        untimed=question.untimed,
        settings=settings,
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


def _why_not_calibrated(index: Index, settings: dict[str, Any]) -> str:
    """Why there are no probabilities, in words; empty where there are."""
    if index.calibration is None:
        return "the head has no calibration"
    return index.calibration.mismatch(index.manifest["head"], settings)
