"""How good scores are: CMC, mAP, mINP, their intervals, and what a threshold on the score lets pass. Pure numpy.

All functions take the same three arrays, one row a query and one column a video of the gallery:

    scores  float64 [Q, G], higher is better; finite where `valid`
    valid   bool [Q, G]; False for what must not count: the query itself, the same person under the same camera, junk
    same    bool [Q, G]; True where query and video show the same person

Columns are sorted by video id, so that equal scores rank in the order of ids, as in `pipeline.scoring.video_scores.rank_videos`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RANKS = (1, 5, 10, 20)
LEVEL = 0.95  # of all intervals
_BLOCK = 8_000_000  # cells sorted at a time: 64 MB of scores and as much of positions

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class QueryFigures:
    """One number a query, each [Q].

    first_hit: int64, rank of the first match, from 1; 0 for a query without a match among what counts. average_precision: mean of
    the precisions at the matches. inverse_penalty: matches / rank of the last one. Both float64, NaN without a match.
    """

    first_hit: Integers
    average_precision: Floats
    inverse_penalty: Floats

    def found_by(self, rank: int) -> Floats:
        """1 where the first match is at this rank or before, else 0; NaN without a match: float64 [Q]."""
        return np.where(self.first_hit > 0, (self.first_hit <= rank).astype(np.float64), np.nan)


@dataclass(frozen=True)
class RankingQuality:
    """Means over the queries that have a match. cmc: share of them whose first match is at rank <= k, by k.

    mean_ap: mAP; mean_inp: mINP. queries: how many they are; unmatched: queries without any match, left out.
    """

    cmc: dict[int, float]
    mean_ap: float
    mean_inp: float
    queries: int
    unmatched: int


def left_out(same: ArrayLike, camera: ArrayLike, other_camera: ArrayLike) -> Bools:
    """Which pairs of videos must not count, by the field's rule: one person under one camera that is known.

    same: bool, whether both show one person; camera, other_camera: numbers, below 0 for one that is not known. They broadcast.

    >>> left_out([True, True, True, False], [3, 3, -1, 3], [3, 4, -1, 3]).tolist()
    [True, False, False, False]
    """
    return np.asarray(same, np.bool_) & (np.asarray(camera) == other_camera) & (np.asarray(camera) >= 0)


def query_figures(scores: ArrayLike, valid: ArrayLike, same: ArrayLike) -> QueryFigures:
    """The figures of each query's ranking. Raises ValueError for shapes that differ and for scores that are not finite."""
    scores, valid, same = _checked(scores, valid, same)
    first = np.zeros(len(scores), np.int64)
    precision, penalty = np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    for start, hits in _sorted_matches(scores, valid, same):
        matches = hits.sum(axis=1)
        rows, places = np.nonzero(hits)  # row by row, best first
        if not len(rows):
            continue
        begins = np.cumsum(matches) - matches
        number = np.arange(len(rows)) - begins[rows] + 1  # 1 for the first match of a row, 2 for the next
        some = np.flatnonzero(matches)
        first[start + some] = places[begins[some]] + 1
        totals = np.add.reduceat(number / (places + 1), begins[some])
        precision[start + some] = totals / matches[some]
        penalty[start + some] = matches[some] / (places[begins[some] + matches[some] - 1] + 1)
    return QueryFigures(first, precision, penalty)


def ranking_quality(figures: QueryFigures, ranks: Sequence[int] = RANKS) -> RankingQuality:
    """Means over queries. Raises ValueError when no query has a match.

    >>> scores = [[0.9, 0.8, 0.1], [0.2, 0.3, 0.7]]
    >>> same = [[False, True, True], [False, False, True]]
    >>> quality = ranking_quality(query_figures(scores, np.ones((2, 3), bool), same), ranks=(1,))
    >>> quality.cmc, round(quality.mean_ap, 3)
    ({1: 0.5}, 0.792)
    """
    matched = figures.first_hit > 0
    if not matched.any():
        raise ValueError("no query has a match in its ranking")
    return RankingQuality(
        cmc={rank: float(np.mean(figures.first_hit[matched] <= rank)) for rank in ranks},
        mean_ap=float(figures.average_precision[matched].mean()),
        mean_inp=float(figures.inverse_penalty[matched].mean()),
        queries=int(matched.sum()),
        unmatched=int((~matched).sum()),
    )


def identity_interval(values: ArrayLike, persons: ArrayLike, resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean over queries, by bootstrap over persons: a person's queries stay together, for they are alike.

    values: float64 [Q], NaN where a query takes no part; persons: [Q], a label each. Resamples depend only on the seed and on
    which queries take part, so the interval of `values_a - values_b` is that of a paired difference of two methods. Returns the
    percentiles (low, high). Raises ValueError when no query takes part.
    """
    values = np.asarray(values, np.float64)
    present = ~np.isnan(values)
    if not present.any():
        raise ValueError("an interval needs at least one query that takes part")
    _, codes = np.unique(np.asarray(persons)[present], return_inverse=True)
    totals = np.bincount(codes, weights=values[present])  # [persons]
    counts = np.bincount(codes).astype(np.float64)
    people = len(counts)
    drawn = np.random.default_rng(seed).multinomial(people, np.full(people, 1 / people), size=resamples)  # [resamples, persons]
    low, high = np.percentile(drawn @ totals / (drawn @ counts), [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return float(low), float(high)


@dataclass(frozen=True)
class CameraPair:
    """Figures of the queries of one camera when only videos of one gallery camera count. queries: those with a match there."""

    query_camera: str
    gallery_camera: str
    queries: int
    rank_1: float
    mean_ap: float


def camera_pairs(
    scores: ArrayLike, valid: ArrayLike, same: ArrayLike, query_cameras: ArrayLike, gallery_cameras: ArrayLike
) -> list[CameraPair]:
    """Every pair of a query camera and a gallery camera with a match, in the order of their names.

    query_cameras [Q], gallery_cameras [G]: a name each; give videos of no known camera a name of their own.
    """
    scores, valid, same = _checked(scores, valid, same)
    of_queries, of_gallery = np.asarray(query_cameras, np.str_), np.asarray(gallery_cameras, np.str_)
    pairs = []
    for camera in np.unique(of_gallery):
        columns = of_gallery == camera
        figures = query_figures(scores[:, columns], valid[:, columns], same[:, columns])
        for query_camera in np.unique(of_queries[figures.first_hit > 0]):
            rows = (of_queries == query_camera) & (figures.first_hit > 0)
            rank_1, mean_ap = float(np.mean(figures.first_hit[rows] == 1)), float(figures.average_precision[rows].mean())
            pairs.append(CameraPair(str(query_camera), str(camera), int(rows.sum()), rank_1, mean_ap))
    return sorted(pairs, key=lambda pair: (pair.query_camera, pair.gallery_camera))


@dataclass(frozen=True)
class ShortlistRecall:
    """What searches with shortlists of one size score. size: as asked ("100", "5%"); videos: how many, mean over queries.

    top_10: share of the ten videos that are best when everything is scored, over all queries; matches: share of the videos that
    show the query's person, over all pairs. NaN where there are none.
    """

    size: str
    videos: float
    top_10: float
    matches: float


def shortlist_recall(scores: ArrayLike, valid: ArrayLike, same: ArrayLike, chosen: ArrayLike, size: str) -> ShortlistRecall:
    """How much of the exhaustive result is in what was chosen, bool [Q, G], with shortlists of a size as it was asked for."""
    scores, valid, same = _checked(scores, valid, same)
    kept = valid & np.asarray(chosen, np.bool_)
    lengths = kept.sum(axis=1)
    top = kept_top = 0
    for start, order in _sorted_columns(scores, valid):
        best = order[:, :10]
        really = np.take_along_axis(valid[start : start + len(order)], best, axis=1)
        top += int(really.sum())
        kept_top += int((really & np.take_along_axis(kept[start : start + len(order)], best, axis=1)).sum())
    matches = int((valid & same).sum())
    return ShortlistRecall(
        size,
        float(lengths.mean()) if len(lengths) else 0.0,
        kept_top / top if top else math.nan,
        int((kept & same).sum()) / matches if matches else math.nan,
    )


def shortlist_length(size: str, videos: int) -> int:
    """Length of a shortlist from among so many videos. size: a whole number of videos, or a share of them as "5%", rounded up.

    Raises ValueError for anything else, and for sizes that are not above 0 (or, for a share, above 100 %).
    """
    text = size.strip()
    share = text.endswith("%")
    number = float(text[:-1]) if share else int(text)
    if not 0 < number <= (100 if share else math.inf):
        raise ValueError(f"{size!r} is no size of a shortlist")
    return min(videos, math.ceil(round(number / 100 * videos, 6)) if share else int(number))


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold on the score for verification: a pair passes with score >= threshold.

    asked: the false-match rate that was named; false_match_rate: share of the pairs of different persons that pass, at most that;
    true_match_rate: share of the pairs of the same person that pass. different, same: how many pairs those are. reachable: False
    where the rate is below 1 / different, so that these pairs cannot show it; the threshold then lets none of them pass.
    """

    asked: float
    threshold: float
    false_match_rate: float
    true_match_rate: float
    different: int
    same: int
    reachable: bool


def operating_points(scores: ArrayLike, valid: ArrayLike, same: ArrayLike, rates: Sequence[float]) -> list[OperatingPoint]:
    """The most lenient threshold for each false-match rate (0..1), over the pairs that count.

    Raises ValueError when there is no pair of different persons to measure a rate on.
    """
    scores, valid, same = _checked(scores, valid, same)
    genuine, impostor = scores[valid & same], scores[valid & ~same]
    points = []
    for rate in rates:
        threshold, reachable = threshold_for_rate(impostor, rate, genuine)
        passed = float(np.mean(impostor >= threshold))
        found = float(np.mean(genuine >= threshold)) if len(genuine) else math.nan
        points.append(OperatingPoint(rate, threshold, passed, found, len(impostor), len(genuine), reachable))
    return points


@dataclass(frozen=True)
class OpenSetPoint:
    """A threshold on the best score of a search, below which the answer is "none of these".

    asked: the false positive identification rate that was named. false_positive_identification: share of the targets that are not
    in the gallery whose best score passes; detection_and_identification: share of the targets that are in it, of which the best
    video is a match and passes. absent, present: how many targets those are. reachable: as in OperatingPoint.
    """

    asked: float
    threshold: float
    false_positive_identification: float
    detection_and_identification: float
    absent: int
    present: int
    reachable: bool


def open_set_points(scores: ArrayLike, valid: ArrayLike, same: ArrayLike, rates: Sequence[float]) -> list[OpenSetPoint]:
    """Open-set identification at rank 1, for several false positive identification rates (0..1).

    Each query serves twice: with all videos of its person taken out, as a target that is not in the gallery; and, if it has a
    match, as it is. Raises ValueError when no query has a video of another person.
    """
    scores, valid, same = _checked(scores, valid, same)
    absent = np.max(scores, axis=1, where=valid & ~same, initial=-np.inf)
    absent = absent[np.isfinite(absent)]
    present = (valid & same).any(axis=1)
    masked = np.where(valid[present], scores[present], -np.inf)
    best = masked.argmax(axis=1) if masked.size else np.zeros(0, np.int64)  # the first of equal ones, as in the ranking
    rows = np.arange(len(best))
    right, top = same[present][rows, best], masked[rows, best]
    points = []
    for rate in rates:
        threshold, reachable = threshold_for_rate(absent, rate, top)
        detected = float(np.mean(right & (top >= threshold))) if len(top) else math.nan
        passed = float(np.mean(absent >= threshold))
        points.append(OpenSetPoint(rate, threshold, passed, detected, len(absent), len(top), reachable))
    return points


def threshold_for_rate(negatives: ArrayLike, rate: float, others: ArrayLike = ()) -> tuple[float, bool]:
    """The most lenient threshold that at most this share of the negatives passes (score >= threshold), and if it is below 1 / n.

    It lies half way between the best negative that must not pass and the next higher score of negatives and others, since nothing
    is known of what lies between; just above all where none is higher. Returns (threshold, reachable): reachable is False where
    the rate is below 1 / n, so that no negative passes. Raises ValueError without negatives or for a rate outside 0..1.
    """
    negatives, others = np.asarray(negatives, np.float64), np.asarray(others, np.float64)
    if not len(negatives):
        raise ValueError("a rate needs at least one pair of different persons")
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate lies in 0..1, not {rate}")
    passing = math.floor(round(rate * len(negatives), 6))
    if passing >= len(negatives):
        return float(min(part.min() for part in (negatives, others) if len(part))), True
    place = len(negatives) - 1 - passing
    refused = float(np.partition(negatives, place)[place])  # the best of those that must not pass
    higher = [float(part.min()) for part in (negatives[negatives > refused], others[others > refused]) if len(part)]
    if not higher:
        return float(np.nextafter(refused, math.inf)), passing > 0
    middle = (refused + min(higher)) / 2
    return (middle if middle > refused else min(higher)), passing > 0


def _checked(scores: ArrayLike, valid: ArrayLike, same: ArrayLike) -> tuple[Floats, Bools, Bools]:
    scores, valid, same = np.asarray(scores, np.float64), np.asarray(valid, np.bool_), np.asarray(same, np.bool_)
    if scores.ndim != 2 or scores.shape != valid.shape or scores.shape != same.shape:
        raise ValueError(f"scores {scores.shape}, valid {valid.shape} and same {same.shape} must be [Q, G]")
    if not np.isfinite(scores).all(where=valid):
        raise ValueError("scores of pairs that count must be finite")
    return scores, valid, same


def _sorted_columns(scores: Floats, valid: Bools) -> Iterator[tuple[int, Integers]]:
    """(first row, columns best first [rows, G]) in blocks of rows; columns that do not count come last."""
    rows = max(1, _BLOCK // max(1, scores.shape[1]))
    for start in range(0, len(scores), rows):
        block = np.where(valid[start : start + rows], -scores[start : start + rows], np.inf)
        yield start, np.argsort(block, axis=1, kind="stable")


def _sorted_matches(scores: Floats, valid: Bools, same: Bools) -> Iterator[tuple[int, Bools]]:
    """(first row, matches best first, bool [rows, G]) in blocks of rows."""
    matches = valid & same
    for start, order in _sorted_columns(scores, valid):
        yield start, np.take_along_axis(matches[start : start + len(order)], order, axis=1)
