"""How good a ranking is: every labelled video of a gallery as a query, judged by CMC and average precision.

The rule is the field's: left out of a query's ranking are the query itself, videos of the same person under the same camera, and
videos without a label. Queries without a match elsewhere are counted and left out of the means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.gallery import Gallery, feature_matrix
from pipeline.index import Index
from pipeline.scoring import ScoreSettings, rank_videos
from pipeline.search import Partitions, SearchSettings, search
from pipeline.targets import gallery_target

RANKS = (1, 5, 10, 20)
Counts = Callable[[str, str], bool]


@dataclass(frozen=True)
class RankingQuality:
    """Mean over queries. cmc: share of queries whose first hit is at rank <= 1, 5, 10, 20; mean_ap: mAP.

    queries: that count; unmatched: queries without any match in the gallery, left out.
    """

    cmc: dict[int, float]
    mean_ap: float
    queries: int
    unmatched: int


def average_precision(hits: np.ndarray) -> float:
    """Mean of the precisions at the hits of a ranking; hits: bool [n], best rank first, at least one True."""
    positions = np.flatnonzero(hits)
    return float(np.mean(np.arange(1, len(positions) + 1) / (positions + 1)))


def ranking_quality(rankings: Sequence[np.ndarray], ranks: Sequence[int] = RANKS) -> RankingQuality:
    """Quality of one ranking a query, each bool [n] with True for the same person, best rank first.

    What must not count is left out of the rankings beforehand. Queries without a match are counted as `unmatched`. Raises
    ValueError when no query has a match.
    """
    matched = [np.asarray(hits, bool) for hits in rankings if np.any(hits)]
    if not matched:
        raise ValueError("no query has a match in its ranking")
    first = np.array([int(np.argmax(hits)) for hits in matched])
    cmc = {rank: float(np.mean(first < rank)) for rank in ranks}
    precision = float(np.mean([average_precision(hits) for hits in matched]))
    return RankingQuality(cmc, precision, len(matched), len(rankings) - len(matched))


def same_camera_left_out(videos: pa.Table) -> Counts:
    """The field's rule for a pair (query, candidate) of labelled videos: not the same person under the same known camera."""
    rows = {row["video_id"]: (row["person_id"], row["camera_id"]) for row in videos.to_pylist()}

    def counts(query: str, candidate: str) -> bool:
        return rows[query][0] != rows[candidate][0] or None in rows[query] or rows[query][1] != rows[candidate][1]

    return counts


def rank_by_search(
    gallery: Gallery, index: Index, partitions: Partitions, queries: Sequence[str], settings: ScoreSettings
) -> dict[str, list[str]]:
    """query id -> all other video ids, best first, by the full score of every pair of segments."""
    everything = SearchSettings(top=len(index.videos), shortlist=None, pairs=1, evidence=False, score=settings)
    return {
        query: [
            lead.video.video_id for lead in search(gallery, index, partitions, gallery_target(gallery, query), everything).leads
        ]
        for query in queries
    }


def rank_by_mean(gallery: Gallery, videos: pa.Table, queries: Sequence[str]) -> dict[str, list[str]]:
    """The baseline: query id -> all other video ids, best first, by the cosine of mean frame features."""
    means = np.empty((len(videos), gallery.feature_width))
    counts = videos["sampled_frames"].to_pylist()
    for positions, frames in gallery.iter_features(videos):
        ends = np.cumsum([counts[p] for p in positions])
        features = feature_matrix(frames)
        for position, end in zip(positions, ends, strict=True):
            means[position] = features[end - counts[position] : end].mean(axis=0, dtype=np.float64)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    ids = videos["video_id"].to_pylist()
    places = {video_id: i for i, video_id in enumerate(ids)}
    order = {query: rank_videos(means @ means[places[query]], ids) for query in queries}
    return {query: [ids[i] for i in ranked if ids[i] != query] for query, ranked in order.items()}


def judge(rankings: dict[str, list[str]], person: dict[str, str], counts: Counts) -> RankingQuality:
    """Quality of rankings (query id -> ids, best first). person: id -> label; videos without one are left out."""
    return ranking_quality(
        [
            np.array([person[v] == person[query] for v in ranked if v in person and counts(query, v)])
            for query, ranked in rankings.items()
        ]
    )
