"""What searches score: every pair in full, the prefilter's order, and what is scored with a shortlist."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.evaluation.judged_pairs import JudgedPairs
from pipeline.evaluation.metrics import shortlist_length
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.video_scores import rank_videos
from pipeline.search.neighbours import near_leads, with_neighbours
from pipeline.search.partitions import Partitions
from pipeline.search.shortlist import segmented
from pipeline.search.targets import stored_target
from pipeline.settings import ScoreSettings

Floats = NDArray[np.float64]
Progress = Callable[[int, int], None]


def coattention_scores(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    queries: NDArray[np.int64],
    candidates: NDArray[np.int64],
    settings: ScoreSettings,
    progress: Progress = lambda done, total: None,
    *,
    one_query: bool = False,
    alone: Floats | None = None,
) -> Floats:
    """The full score of the search for every pair, float64 [q, g]; queries [q] and candidates [g] are rows of Index.videos.

    progress is told queries done and in all. one_query: candidates' frames are judged by the constant query vector of the index
    in place of each target's own. alone: [q, g], takes the scores before neighbours had a say.
    """
    scores = np.empty((len(queries), len(candidates)))
    for done, (place, target) in enumerate(encoded(gallery, index, queries), start=1):
        if one_query and index.query is not None:
            same = torch.from_numpy(index.query).expand_as(target.encoding.query_vectors).clone()
            target = replace(target, encoding=replace(target.encoding, query_vectors=same))
        scores[place] = partitions.score(target, candidates, settings)
        if alone is not None:
            alone[place] = scores[place]
        others = candidates != queries[place]  # the query itself has no say
        known = candidates[others], scores[place, others]
        scores[place, others] = with_neighbours(index, partitions, target.whole, *known, settings)
        progress(done, len(queries))
    return scores


def prefilter_places(
    gallery: Gallery, index: Index, partitions: Partitions, pairs: JudgedPairs, longest: int
) -> NDArray[np.int64]:
    """Rank of each video in the prefilter's order of what counts, from 1, int64 [Q, G]; G + 1 beyond the first `longest`."""
    ids = np.array(index.videos["video_id"].to_pylist(), np.str_)
    column = np.full(len(ids), -1, np.int64)
    column[pairs.gallery_rows] = np.arange(len(pairs.gallery_rows))
    places = np.full(pairs.valid.shape, len(pairs.gallery_rows) + 1, np.int64)
    queries = np.unique(pairs.query_rows)
    for place, target in encoded(gallery, index, queries):
        for row in np.flatnonzero(pairs.query_rows == queries[place]):
            allowed = np.zeros(len(ids), np.bool_)
            allowed[pairs.gallery_rows[pairs.valid[row]]] = True
            found, logits = partitions.shortlist(target.for_prefilter, min(longest, int(allowed.sum())), allowed)
            ranked = found[rank_videos(logits, ids[found])][:longest]
            places[row, column[ranked]] = np.arange(1, len(ranked) + 1)
    return places


def shortlisted(
    gallery: Gallery,
    index: Index,
    partitions: Partitions,
    pairs: JudgedPairs,
    places: NDArray[np.int64],
    alone: Floats,
    score: ScoreSettings,
    sizes: Sequence[str],
) -> NDArray[np.bool_]:
    """What searches score in full with shortlists of these sizes, of what counts: bool [sizes, Q, G].

    The first of the prefilter, and what is near to the best of them (`near_leads`); patience is not looked at. places: of
    `prefilter_places`, as far as the longest; alone: scores [Q, G] before neighbours had a say.
    """
    column = np.full(len(index.videos), -1, np.int64)
    column[pairs.gallery_rows] = np.arange(len(pairs.gallery_rows))
    chosen = np.zeros((len(sizes), *pairs.valid.shape), np.bool_)
    queries = np.unique(pairs.query_rows)
    for place, target in encoded(gallery, index, queries):
        for row in np.flatnonzero(pairs.query_rows == queries[place]):
            allowed = np.zeros(len(index.videos), np.bool_)
            allowed[pairs.gallery_rows[pairs.valid[row]]] = True
            for kept, size in zip(chosen, sizes, strict=True):
                first = np.flatnonzero(places[row] <= shortlist_length(size, int(allowed.sum())))
                known = pairs.gallery_rows[first], alone[row, first]
                near = near_leads(index, partitions, target.encoding, target.whole, *known, score, allowed)
                kept[row, first] = kept[row, column[near]] = True
    return chosen


def encoded(gallery: Gallery, index: Index, queries: NDArray[np.int64]) -> Iterator[tuple[int, TargetSegments]]:
    """(place in `queries`, its segments) of every query, in the order of the shards, so that each is read once."""
    videos = index.videos.take(pa.array(queries))
    for place, frames in gallery.iter_videos(videos):
        yield place, segmented(stored_target(videos.slice(place, 1).to_pylist()[0], frames), index)
