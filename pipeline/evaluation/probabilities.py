"""Whether what searches say of their own certainty is true: probabilities and words against labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.coattention.calibration import Calibration
from pipeline.coattention.calibration_quality import ReliabilityBin, reliability
from pipeline.coattention.gallery_calibration import NOT_TOLD_APART, STRONG, WEAK, GalleryCalibration


@dataclass(frozen=True)
class ProbabilityFigures:
    """Probabilities of the pairs of a query and a video, each query at the prior of its own search.

    ece: expected calibration error over all pairs; matches: pairs of one person, and expected: the sum of the probabilities.
    first, first_right: mean probability of the first leads, and their share of right ones. none, absent: mean probability of
    "none of these" and the share of absent people, where the matches of every other query that has any are left out; none_absent
    and none_present: its mean for these and for the others. reliability: over all pairs, without weights.
    """

    ece: float
    matches: int
    expected: float
    first: float
    first_right: float
    none: float
    absent: float
    none_absent: float
    none_present: float
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class StrengthFigures:
    """The pairs that a word is said of: how many, how many of them show the same person, and of how many first leads it is said,
    and of how many that are right.
    """

    word: str
    pairs: int
    right: int
    first: int
    first_right: int


def probability_figures(
    scores: ArrayLike, valid: ArrayLike, same: ArrayLike, calibration: Calibration | GalleryCalibration
) -> ProbabilityFigures:
    """Figures of a table of scores; arguments as in `pipeline.evaluation.metrics`. Raises ValueError where no pair counts."""
    scores, valid, same = np.asarray(scores, np.float64), np.asarray(valid, bool), np.asarray(same, bool)
    found: list[np.ndarray] = []
    firsts, none = [], []
    places = np.flatnonzero((valid & same).any(axis=1))
    left_out = set(places[::2].tolist())
    for row in np.flatnonzero(valid.any(axis=1)):
        counts = valid[row]
        found.append(_probabilities(calibration, scores[row, counts], int(counts.sum())))
        best = int(scores[row, counts].argmax())
        firsts.append((found[-1][best], same[row, counts][best]))
        if row in places:
            there = counts & ~(same[row] & (row in left_out))
            none.append((calibration.none_probability(scores[row, there], int(there.sum())), row in left_out))
    probabilities, outcomes = np.concatenate(found), same[valid]
    bins = reliability(probabilities, outcomes)
    first, first_right = (float(column.mean()) for column in np.array(firsts, np.float64).T)
    said, absent = np.array(none, np.float64).reshape(-1, 2).T
    return ProbabilityFigures(
        ece=sum(part.share * abs(part.predicted - part.observed) for part in bins),
        matches=int(outcomes.sum()),
        expected=float(probabilities.sum()),
        first=first,
        first_right=first_right,
        none=_mean(said),
        absent=_mean(absent),
        none_absent=_mean(said[absent == 1]),
        none_present=_mean(said[absent == 0]),
        reliability=bins,
    )


def strength_figures(
    scores: ArrayLike, valid: ArrayLike, same: ArrayLike, calibration: GalleryCalibration
) -> tuple[StrengthFigures, ...]:
    """What is said in words, and how often it is right; arguments as in `probability_figures`. calibration: with a mixture."""
    scores, valid, same = np.asarray(scores, np.float64), np.asarray(valid, bool), np.asarray(same, bool)
    tallies = {word: np.zeros(4, np.int64) for word in (STRONG, WEAK, NOT_TOLD_APART)}
    for row in np.flatnonzero(valid.any(axis=1)):
        counts = valid[row]
        words = np.array(calibration.strengths(scores[row, counts], int(counts.sum())))
        best = np.arange(len(words)) == scores[row, counts].argmax()
        right = same[row, counts]
        for word, tally in tallies.items():
            tally += [int((kind & (words == word)).sum()) for kind in (np.ones_like(right), right, best, best & right)]
    return tuple(StrengthFigures(word, *map(int, tally)) for word, tally in tallies.items())


def _probabilities(calibration: Calibration | GalleryCalibration, scores: np.ndarray, eligible: int) -> np.ndarray:
    expected = calibration.expected_matches(eligible)
    return calibration.probabilities(scores, eligible, expected)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0
