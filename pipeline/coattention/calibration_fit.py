"""Fits the calibration of a head's scores on labelled pairs, and judges it on people that the fit has not seen.

The practice is that of forensic voice comparison: class-balanced logistic regression (Brummer and du Preez,
"Application-independent evaluation of speaker detection", 2006), bounded by what the data support, judged by Cllr.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.coattention.calibration import Calibration, CalibrationQuality, CalibrationSet, Setting
from pipeline.coattention.calibration_quality import binned_error, cllr, expected_calibration_error, min_cllr, reliability
from pipeline.coattention.logits import Floats, linear_scores, sigmoid, softplus
from pipeline.errors import UsageError

FOLDS = 5
MIN_IDENTITIES = 2 * FOLDS  # so that a fit without two of the folds still sees 6 people
SLOPE_PRIOR = 10.0  # deviation of the slope's prior, in llr per within-class deviation of the score; real ones are 1 to 6

Integers = NDArray[np.int64]


def fit_calibration(
    scores: ArrayLike,
    query_identity: ArrayLike,
    candidate_identity: ArrayLike,
    *,
    head: str,
    settings: Mapping[str, Setting],
    bounded: bool,
    name: str,
    date: str | None = None,
) -> Calibration:
    """Fit on pairs of videos of validation identities, which the head was not trained on.

    scores: [P], raw video scores of a target against a candidate, both directions welcome. query_identity, candidate_identity:
    [P], who is on them, numbers or strings; unknown people must not be among them. Leave out a video against itself and, as
    evaluation does, the same person under the same camera. head: `pipeline.coattention.head.head_hash`; settings: `settings_of`.
    bounded: whether scores lie in 0..1 (means of sigmoids) or anywhere (cohort-normalised, or sums). name: of the data, for
    people.

    Every person counts the same, however many videos they have: same pairs of one person share a weight of 1; the different pairs
    of one query person share 1, of which each other person gets the same part. Both classes weigh 1/2, so the prior cancels
    and the fitted log odds are the llr. The slope has a normal prior (SLOPE_PRIOR), worth one person, that keeps separable
    scores finite and is below 0 nowhere.

    A straight line in the (logit of the) score is enough: a second slope, or a fit weighted towards rare matches, gained
    less than 1 % of the cost at any prior from 1/2 to 1/10,000 (OSNet features; cosine, its logit, and cohort-normalised; fitted
    on 250 rendered people, judged on 250 others). But beyond what was seen a line claims anything. So llr is cut where the
    counts end: its highest value is the largest over thresholds t of log[ S(t) / ((N D(t) + 1) / (N + 1)) ], with S and D the
    weighted shares of same and different pairs at or above t and N the pairs of different people: one more pair of strangers is
    imagined above every threshold, so N pairs of people support a ratio of N + 1 at most. The lowest likewise, N the people with
    same pairs, one more miss imagined.

    Raises UsageError for too few people or pairs, PipelineError for scores that are not finite, ValueError for unequal lengths.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not scores.shape == np.shape(query_identity) == np.shape(candidate_identity):
        raise ValueError("scores, query_identity and candidate_identity must be [P] of one length")
    x = linear_scores(scores, bounded)
    pairs = _Pairs.of(x, np.asarray(query_identity), np.asarray(candidate_identity))
    if pairs.identities < MIN_IDENTITIES or pairs.identity_pairs == 0:
        raise UsageError(
            f"a calibration needs at least {MIN_IDENTITIES} people with two videos each and pairs of different people, "
            f"but {name} has {pairs.identities} and {pairs.identity_pairs}"
        )
    line = _fit(pairs)
    llrs = _held_out(pairs, name)
    same_pairs, different_pairs = int(pairs.same.sum()), int((~pairs.same).sum())
    own = 2 * np.where(pairs.same, same_pairs, different_pairs) / len(x)
    bins = reliability(sigmoid(llrs), pairs.same, weights=pairs.weights)
    quality = CalibrationQuality(
        ece=binned_error(bins),
        ece_own_prior=expected_calibration_error(
            sigmoid(llrs + math.log(same_pairs / different_pairs)), pairs.same, weights=pairs.weights * own
        ),
        cllr=cllr(llrs, pairs.same, pairs.weights),
        min_cllr=min_cllr(pairs.x, pairs.same, pairs.weights),
        reliability=bins,
    )
    date = date or datetime.now(UTC).date().isoformat()
    fitted_on = CalibrationSet(name, pairs.identities, pairs.identity_pairs, same_pairs, different_pairs, date)
    return Calibration(head, dict(settings), bounded, *line, fitted_on, quality)


@dataclass(frozen=True)
class _Pairs:
    """Pairs as the fit takes them, [P] in ascending order of x.

    x: linear score; query, candidate: people from 0; group: number of the pair of people in this order. weights: 1/2 a class.
    """

    x: Floats
    query: Integers
    candidate: Integers
    group: Integers
    same: NDArray[np.bool_]
    weights: Floats
    identities: int
    identity_pairs: int

    @classmethod
    def of(cls, x: Floats, query: NDArray[Any], candidate: NDArray[Any]) -> "_Pairs":
        order = np.argsort(x, kind="stable")
        names, codes = np.unique(np.concatenate([query, candidate]), return_inverse=True)
        q, c = codes[: len(x)][order], codes[len(x) :][order]
        group = np.unique(q * len(names) + c, return_inverse=True)[1]
        return cls._weighted(x[order], q, c, group)

    def only(self, kept: NDArray[np.bool_]) -> "_Pairs":
        return self._weighted(self.x[kept], self.query[kept], self.candidate[kept], self.group[kept])

    @classmethod
    def _weighted(cls, x: Floats, q: Integers, c: Integers, group: Integers) -> "_Pairs":
        counts = np.bincount(group)
        one, other = (np.zeros(len(counts), np.int64) for _ in range(2))
        one[group], other[group] = q, c  # of each group
        equal, different = (counts > 0) & (one == other), (counts > 0) & (one != other)
        others = np.bincount(one[different])  # people that each query person is told from
        part = np.zeros(len(counts))
        part[equal] = 1 / (2 * max(equal.sum(), 1))
        part[different] = 1 / (2 * others[one[different]] * np.count_nonzero(others))
        either = np.stack([np.minimum(one, other), np.maximum(one, other)])[:, different]
        return cls(x, q, c, group, q == c, (part / np.maximum(counts, 1))[group], int(equal.sum()), _distinct(either))


def _fit(pairs: _Pairs) -> tuple[float, float, float, float]:
    """Intercept, slope, lowest and highest llr of `fit_calibration`."""
    centre, spread = _standard(pairs)
    offset, slope = _logistic((pairs.x - centre) / spread, pairs)
    if slope < 0:  # the objective is convex: with a slope of 0 or above, 0 is best, and balanced classes then have an llr of 0
        offset = slope = 0.0
    return (
        offset - slope * centre / spread,
        slope / spread,
        -_supported(pairs.x, ~pairs.same, pairs.weights, pairs.identities),
        _supported(-pairs.x[::-1], pairs.same[::-1], pairs.weights[::-1], pairs.identity_pairs),
    )


def _standard(pairs: _Pairs) -> tuple[float, float]:
    """Midpoint of the class means and deviation within the classes, floored where scores barely differ within them."""
    means = [np.average(pairs.x[kind], weights=pairs.weights[kind]) for kind in (pairs.same, ~pairs.same)]
    within = np.average((pairs.x - np.where(pairs.same, *means)) ** 2, weights=pairs.weights)
    centre = float(np.mean(means))
    return centre, max(math.sqrt(within), abs(means[0] - means[1]) / 100, 1e-9 * (1 + abs(centre)))


def _logistic(z: Floats, pairs: _Pairs) -> tuple[float, float]:
    """Offset and slope of the weighted logistic regression on the standardised score z [P], by Newton's method.

    Minimises sum of weight * log(1 + exp(-+ (offset + slope * z))) + slope^2 / (2 SLOPE_PRIOR^2 identities); the weights add up
    to 1. Sums and no matrix products: those would follow the number of threads in the last bits.
    """
    sign = np.where(pairs.same, 1.0, -1.0)
    ridge = 1 / (SLOPE_PRIOR**2 * pairs.identities)

    def loss(theta: Floats) -> float:
        return float((pairs.weights * softplus(-sign * (theta[0] + theta[1] * z))).sum() + ridge * theta[1] ** 2 / 2)

    theta, current = np.zeros(2), math.log(2)
    for _ in range(100):
        p = sigmoid(theta[0] + theta[1] * z)
        residual, curvature = pairs.weights * (p - pairs.same), pairs.weights * p * (1 - p)
        bend = curvature * z
        gradient = np.array([residual.sum(), (residual * z).sum() + ridge * theta[1]])
        hessian = np.array([[curvature.sum() + 1e-12, bend.sum()], [bend.sum(), (bend * z).sum() + ridge]])
        step = np.linalg.solve(hessian, gradient)
        while loss(theta - step) > current + 1e-13 and np.abs(step).max() > 1e-12:
            step /= 2
        theta = theta - step
        current = loss(theta)
        if np.abs(step).max() < 1e-10:
            break
    return float(theta[0]), float(theta[1])


def _supported(x: Floats, true: NDArray[np.bool_], weights: Floats, count: int) -> float:
    """The largest log ratio of true to false pairs from the first one on that `count` independent errors can support.

    x: [P] ascending, equal ones counted together; see `fit_calibration`.
    """
    ends = np.append(x[1:] != x[:-1], True)
    of_true, of_false = ((2 * weights * kind).cumsum()[ends] for kind in (true, ~true))
    return max(0.0, math.log(((count + 1) * of_true / (count * of_false + 1)).max()))


def _held_out(pairs: _Pairs, name: str) -> Floats:
    """llr [P] of each pair by a fit without the folds of its two people."""
    people = np.random.default_rng(0).permutation(int(max(pairs.query.max(), pairs.candidate.max())) + 1)
    with_same = np.isin(people, pairs.query[pairs.same])
    fold = np.empty(len(people), np.int64)
    fold[np.concatenate([people[with_same], people[~with_same]])] = np.arange(len(people)) % FOLDS
    first, second = fold[pairs.query], fold[pairs.candidate]
    llrs = np.empty(len(pairs.x))
    for a in range(FOLDS):
        for b in range(a, FOLDS):
            judged = ((first == a) & (second == b)) | ((first == b) & (second == a))
            if not judged.any():
                continue
            others = pairs.only(~np.isin(first, (a, b)) & ~np.isin(second, (a, b)))
            if others.identities == 0 or others.identity_pairs == 0:
                raise UsageError(
                    f"{name} has too few pairs of different people to judge a calibration: {pairs.identity_pairs} among "
                    f"{len(people)} people, none left without a fifth of them"
                )
            intercept, slope, lowest, highest = _fit(others)
            llrs[judged] = np.clip(intercept + slope * pairs.x[judged], lowest, highest)
    return llrs


def _distinct(rows: Integers) -> int:
    """Number of distinct columns of [2, n]."""
    return len(np.unique(rows[0] * (rows.max(initial=0) + 1) + rows[1]))
