"""How good probabilities and likelihood ratios are, judged on labelled pairs."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pipeline.coattention.logits import softplus


@dataclass(frozen=True)
class ReliabilityBin:
    """Held-out pairs of one probability bin. predicted, observed: their mean probability and their share of same pairs.

    share: of all pairs, by weight; pairs: their number. All but `pairs` are weighted: both classes alike, and within a class all
    people alike.
    """

    predicted: float
    observed: float
    share: float
    pairs: int


def reliability(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10, weights: ArrayLike | None = None
) -> tuple[ReliabilityBin, ...]:
    """Probabilities [P] against outcomes bool [P] in `bins` bins of equal width, less the empty ones. weights: [P] or 1."""
    p, truth = np.asarray(probabilities, np.float64), np.asarray(outcomes, bool)
    weight = np.ones(len(p)) if weights is None else np.asarray(weights, np.float64)
    number = np.minimum((p * bins).astype(int), bins - 1)
    mass, predicted, observed = (np.bincount(number, weight * part, bins) for part in (np.ones(len(p)), p, truth))
    counts = np.bincount(number, minlength=bins)
    return tuple(
        ReliabilityBin(float(predicted[b] / mass[b]), float(observed[b] / mass[b]), float(mass[b] / weight.sum()), int(counts[b]))
        for b in np.flatnonzero(mass)
    )


def expected_calibration_error(
    probabilities: ArrayLike, outcomes: ArrayLike, bins: int = 10, weights: ArrayLike | None = None
) -> float:
    """Mean over pairs of |mean probability - share of same| of the pair's bin; arguments as in `reliability`."""
    return binned_error(reliability(probabilities, outcomes, bins, weights))


def binned_error(bins: tuple[ReliabilityBin, ...]) -> float:
    return sum(part.share * abs(part.predicted - part.observed) for part in bins)


def cllr(llrs: ArrayLike, same: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Log-likelihood-ratio cost in bits, (mean over same of log2(1 + 1/LR) + mean over different of log2(1 + LR)) / 2.

    llrs: [P], natural; same: bool [P], both kinds present; weights: [P] within the kinds, None for 1.
    """
    llr, truth = np.asarray(llrs, np.float64), np.asarray(same, bool)
    weight = np.ones(len(llr)) if weights is None else np.asarray(weights, np.float64)
    costs = softplus(np.where(truth, -llr, llr)) / math.log(2)
    return float(sum(np.average(costs[kind], weights=weight[kind]) for kind in (truth, ~truth)) / 2)


def min_cllr(scores: ArrayLike, same: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Cllr after the best non-decreasing map of the scores (pool adjacent violators): what the order of scores is worth."""
    from scipy.optimize import isotonic_regression  # takes long to import, and a search needs no fit

    truth = np.asarray(same, bool)
    weight = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    weight = weight / np.where(truth, weight[truth].sum(), weight[~truth].sum())
    _, level = np.unique(np.asarray(scores), return_inverse=True)  # equal scores share one value
    mass = np.bincount(level, weight)
    share = np.clip(isotonic_regression(np.bincount(level, weight * truth) / mass, weights=mass).x, 0, 1)[level]
    with np.errstate(divide="ignore"):
        return cllr(np.log(share) - np.log1p(-share), truth, weight)
