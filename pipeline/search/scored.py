"""Full scores of shortlists: the best of the prefilter first and until they bring no more leads, or with a proof."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import PipelineError
from pipeline.index.versions import Index, is_compressed
from pipeline.scoring import pair_kernel
from pipeline.scoring.bounds import boundable, certified_top
from pipeline.search.partition import STAGES
from pipeline.search.partitions import Partitions
from pipeline.search.results import Proof
from pipeline.search.shortlist import Shortlist
from pipeline.settings import SearchSettings


@dataclass(frozen=True)
class Scored:
    """A shortlist and the video scores, float64, of its first len(scores) videos; proof: that no other video is a lead."""

    shortlist: Shortlist
    scores: np.ndarray
    proof: Proof | None = None


def score_shortlists(partitions: Partitions, shortlists: Sequence[Shortlist], settings: SearchSettings) -> list[Scored]:
    """Score shortlists in full, those of several targets in shared passes, until the last videos brought no lead."""
    scored = [Scored(one, np.empty(0)) for one in shortlists]
    while going := [(place, ahead) for place, one in enumerate(scored) if (ahead := _ahead(one, settings))]:
        segments = [shortlists[place].question.segments for place, _ in going]
        videos = [shortlists[place].videos[len(scored[place].scores) :][:ahead] for place, ahead in going]
        scores = partitions.score_many(segments, videos, shortlists[going[0][0]].question.score)
        for (place, _), mine in zip(going, scores, strict=True):
            scored[place] = Scored(shortlists[place], np.concatenate([scored[place].scores, mine]))
    return scored


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


def certify(index: Index, partitions: Partitions, shortlist: Shortlist, settings: SearchSettings) -> Scored:
    """Score until no video that is left can be among the leads. Raises PipelineError for an index whose bounds are damaged."""
    question = shortlist.question

    def score(videos: np.ndarray) -> np.ndarray:
        return partitions.score(question.segments, videos, question.score)

    stages: list[Callable[[np.ndarray], np.ndarray]] = []
    bounded = not pair_kernel.available() if settings.bounded is None else settings.bounded
    bounded = bounded and not is_compressed(index) and boundable(question.segments.encoding) and question.score.threshold is None
    if bounded:
        stages = [
            functools.partial(partitions.bounds, question.segments, settings=question.score, stage=stage)
            for stage in range(STAGES)
        ]
    candidates = np.flatnonzero(question.allowed)
    ids = np.asarray(index.videos["video_id"].to_pylist(), np.str_)
    try:
        top = certified_top(settings.top, candidates, ids, shortlist.videos if bounded else candidates, stages, score)
    except ValueError as error:
        raise PipelineError(f"the index {index.location.uri} is damaged: {error}; build it again with jobs.index") from error
    more = np.setdiff1d(top.videos, shortlist.videos)
    videos = np.concatenate([shortlist.videos, more])
    logits = np.concatenate([shortlist.logits, np.full(len(more), -np.inf, np.float32)])
    place = {video: i for i, video in enumerate(top.videos.tolist())}
    scores = top.scores[[place[video] for video in videos.tolist()]]
    proof = Proof(len(top.videos), top.threshold, top.largest_bound_left, top.reached)
    return Scored(Shortlist(question, videos, logits), scores, proof)
