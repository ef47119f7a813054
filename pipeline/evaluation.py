"""How good a ranking is: CMC, average precision, and which gallery videos count for a query."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RankingQuality:
    """Mean over queries. cmc: share of queries whose first hit is at rank <= 1, 5, 10, 20; mean_average_precision: mAP.

    queries: that count; unmatched: queries without any match in the gallery, left out.
    """

    cmc: dict[int, float]
    mean_average_precision: float
    queries: int
    unmatched: int


def average_precision(hits: np.ndarray) -> float:
    """Mean of the precisions at the hits of a ranking; hits: bool [n], best rank first, at least one True."""
    positions = np.flatnonzero(hits)
    return float(np.mean(np.arange(1, len(positions) + 1) / (positions + 1)))


def ranking_quality(rankings: Sequence[np.ndarray], ranks: Sequence[int] = (1, 5, 10, 20)) -> RankingQuality:
    """Quality of one ranking a query, each bool [n] with True for the same person, best rank first.

    What must not count (the query itself, the same person under the same camera, junk) is left out of the rankings beforehand.
    Queries without a match are counted as `unmatched`. Raises ValueError when no query has a match.
    """
    matched = [np.asarray(hits, bool) for hits in rankings if np.any(hits)]
    if not matched:
        raise ValueError("no query has a match in its ranking")
    first = np.array([int(np.argmax(hits)) for hits in matched])
    cmc = {rank: float(np.mean(first < rank)) for rank in ranks}
    precision = float(np.mean([average_precision(hits) for hits in matched]))
    return RankingQuality(cmc, precision, len(matched), len(rankings) - len(matched))
