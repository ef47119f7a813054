"""Full scores of shortlists: the best of the prefilter first and until they bring no more leads."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.index.versions import Index
from pipeline.search.neighbours import with_neighbours
from pipeline.search.partitions import Partitions
from pipeline.search.shortlist import Shortlist
from pipeline.settings import SearchSettings


@dataclass(frozen=True)
class Scored:
    """A shortlist and the video scores, float64 [m], of its first m videos. alone: before neighbours had a say, [m]."""

    shortlist: Shortlist
    scores: np.ndarray
    alone: np.ndarray


def score_shortlists(
    index: Index, partitions: Partitions, shortlists: Sequence[Shortlist], settings: SearchSettings
) -> list[Scored]:
    """Score shortlists in full, those of several targets in shared passes, until the last videos brought no lead.

    What the best of them say of the others (`pipeline.search.neighbours`) comes last.
    """
    scored = [Scored(one, np.empty(0), np.empty(0)) for one in shortlists]
    while going := [(place, ahead) for place, one in enumerate(scored) if (ahead := _ahead(one, settings))]:
        segments = [shortlists[place].question.segments for place, _ in going]
        videos = [shortlists[place].videos[len(scored[place].scores) :][:ahead] for place, ahead in going]
        scores = partitions.score_many(segments, videos, shortlists[going[0][0]].question.score)
        for (place, _), mine in zip(going, scores, strict=True):
            found = np.concatenate([scored[place].scores, mine])
            scored[place] = Scored(shortlists[place], found, found)
    return [replace(one, scores=_with_neighbours(index, partitions, one)) for one in scored]


def _with_neighbours(index: Index, partitions: Partitions, scored: Scored) -> np.ndarray:
    videos, question = scored.shortlist.videos[: len(scored.scores)], scored.shortlist.question
    own = index.position(question.target.video.video_id)
    copy = -1 if own >= 0 else index.row_of_copy(question.target.content)
    whole = question.segments.whole
    return with_neighbours(index, partitions, whole, videos, scored.scores, question.score, silent=copy)


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
