"""Full scores of shortlists: the best of the prefilter until they bring no more leads, then what is near to the best of all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.index.versions import Index
from pipeline.search.neighbours import near_leads, with_neighbours
from pipeline.search.partitions import Partitions
from pipeline.search.shortlist import Shortlist
from pipeline.settings import SearchSettings


@dataclass(frozen=True)
class Scored:
    """A shortlist and the video scores, float64 [m], of its first m videos. alone: before neighbours had a say, [m]."""

    shortlist: Shortlist
    scores: np.ndarray
    alone: np.ndarray

    def more(self, scores: np.ndarray) -> "Scored":
        """With the scores of the next videos."""
        found = np.concatenate([self.scores, scores])
        return Scored(self.shortlist, found, found)


def score_shortlists(
    index: Index, partitions: Partitions, shortlists: Sequence[Shortlist], settings: SearchSettings
) -> list[Scored]:
    """Score shortlists in full, those of several targets in shared passes, until the last videos brought no lead.

    What is near to the best of them (`pipeline.search.neighbours`) is scored besides, and comes next in the shortlists; what
    these say of the others comes last.
    """
    scored = [Scored(one, np.empty(0), np.empty(0)) for one in shortlists]
    while any(ahead := [_ahead(one, settings) for one in scored]):
        scored = _scored_on(partitions, scored, ahead)
    near = [_near_leads(index, partitions, one) for one in scored]
    scored = [
        replace(one, shortlist=one.shortlist.with_next(len(one.scores), videos)) for one, videos in zip(scored, near, strict=True)
    ]
    scored = _scored_on(partitions, scored, [len(videos) for videos in near])
    return [replace(one, scores=_with_neighbours(index, partitions, one)) for one in scored]


def _scored_on(partitions: Partitions, scored: Sequence[Scored], ahead: Sequence[int]) -> list[Scored]:
    """With the scores of so many more videos of each shortlist."""
    going = [place for place, more in enumerate(ahead) if more]
    if not going:
        return list(scored)
    shortlists = [scored[place].shortlist for place in going]
    videos = [one.videos[len(scored[place].scores) :][: ahead[place]] for place, one in zip(going, shortlists, strict=True)]
    segments = [one.question.segments for one in shortlists]
    found = dict(zip(going, partitions.score_many(segments, videos, shortlists[0].question.score), strict=True))
    return [one.more(found[place]) if place in found else one for place, one in enumerate(scored)]


def _near_leads(index: Index, partitions: Partitions, scored: Scored) -> np.ndarray:
    videos, question = scored.shortlist.videos[: len(scored.scores)], scored.shortlist.question
    segments = question.segments
    asked = segments.encoding, segments.whole, videos, scored.scores, question.score
    return near_leads(index, partitions, *asked, question.allowed, question.copy)


def _with_neighbours(index: Index, partitions: Partitions, scored: Scored) -> np.ndarray:
    videos, question = scored.shortlist.videos[: len(scored.scores)], scored.shortlist.question
    whole = question.segments.whole
    return with_neighbours(index, partitions, whole, videos, scored.scores, question.score, question.copy)


def _ahead(scored: Scored, settings: SearchSettings) -> int:
    """How many videos of the shortlist are to be scored next: none once the last ones brought no lead."""
    scores, patience = scored.scores, scored.shortlist.patience(settings)
    left = len(scored.shortlist.videos) - len(scores)
    if not len(scores):
        return min(left, 2 * patience)
    before, last = scores[:-patience], scores[-patience:]
    if len(before) >= settings.top and not (last >= np.partition(before, -settings.top)[-settings.top]).any():
        return 0
    return min(left, patience)
