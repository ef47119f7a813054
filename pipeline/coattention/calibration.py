"""What a video score is worth: a likelihood ratio fitted on labelled pairs, and from it the probability of "same person".

    llr(s) = log p(s | same person) / p(s | different people)

is a property of the score alone and is kept beside the head that gives the scores, in calibration.json. The probability also
needs a prior, and that is a property of the search: one match expected among a million videos makes the same score worth less
than one among a hundred. The practice is that of forensic voice comparison: class-balanced logistic regression (Brummer and du
Preez, "Application-independent evaluation of speaker detection", 2006), bounded by what the data support, judged by Cllr.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import PipelineError, UsageError
from pipeline.settings import ScoreSettings, check_expected_matches
from pipeline.storage.documents import parsed, typed
from pipeline.storage.formats import check_format, number_of
from pipeline.storage.hashing import json_sha256
from pipeline.storage.location import resolve

FILE = "calibration.json"
KIND = "score calibration"
OLDEST_FORMAT, FORMAT = 1, 1
FOLDS = 5
MIN_IDENTITIES = 2 * FOLDS  # so that a fit without two of the folds still sees 6 people
SATURATION = 2.0**-24  # a float32 sigmoid is 1 from here on; the logit of a score is cut there
SLOPE_PRIOR = 10.0  # deviation of the slope's prior, in llr per within-class deviation of the score; real ones are 1 to 6

Setting = str | int | float | bool | None
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


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


@dataclass(frozen=True)
class CalibrationSet:
    """What a calibration was fitted on. identities: people with a same pair; identity_pairs: pairs of different people.

    same_pairs, different_pairs: of videos. date: of the fit, ISO 8601.
    """

    name: str
    identities: int
    identity_pairs: int
    same_pairs: int
    different_pairs: int
    date: str


@dataclass(frozen=True)
class CalibrationQuality:
    """How good it is on people that the fit has not seen: every pair judged by a fit without its two people's folds.

    ece: expected calibration error with both classes alike; ece_own_prior: at the set's own share of same pairs. cllr: cost of
    the log-likelihood ratios in bits, 0 for perfect and 1 for useless scores; min_cllr: what the best monotone map of the scores
    would have reached, so that min_cllr is lost by the scores and the rest by calibration. reliability: both classes alike.
    """

    ece: float
    ece_own_prior: float
    cllr: float
    min_cllr: float
    reliability: tuple[ReliabilityBin, ...]


@dataclass(frozen=True)
class Calibration:
    """llr(s) = intercept + slope * x within lowest..highest, x = logit(s) where scores are bounded to 0..1, else s.

    head: `pipeline.coattention.head.head_hash` of the head that gave the scores. settings: what else they depend on, from
    `settings_of`. Raises ValueError for numbers that no fit gives.
    """

    head: str
    settings: Mapping[str, Setting]
    bounded: bool
    intercept: float
    slope: float
    lowest: float
    highest: float
    fitted_on: CalibrationSet
    quality: CalibrationQuality

    def __post_init__(self) -> None:
        if self.slope < 0 or not self.lowest <= 0 <= self.highest:
            raise ValueError("a calibration has a slope of at least 0 and bounds about 0")

    @property
    def words(self) -> str:
        """What probabilities rest on."""
        return self.fitted_on.name

    def mismatch(self, head: str, settings: Mapping[str, Setting]) -> str:
        """Why scores of this head under these settings (`settings_of`) are not what it was fitted on, for a person to read; empty
        if they are.
        """
        return mismatch_words(self.head, self.settings, head, settings)

    def log_likelihood_ratios(self, scores: ArrayLike) -> Floats:
        """llr of video scores, both [...], natural logarithm, never falling with the score. Raises PipelineError for NaN."""
        return np.clip(self.intercept + self.slope * linear_scores(scores, self.bounded), self.lowest, self.highest)

    def expected_matches(self, eligible: int) -> float:
        """On how many of the eligible videos a person is expected: on one, since a head knows no gallery."""
        return 1.0

    def probabilities(self, scores: ArrayLike, eligible: int, expected_matches: float = 1.0) -> Floats:
        """Probability of "same person" of each score [...] on its own, see `posterior`."""
        return posterior(self.log_likelihood_ratios(scores), eligible, expected_matches)

    def none_probability(self, scores: ArrayLike, eligible: int, absent: float = 0.5) -> float:
        """Probability that no eligible video shows the target; scores: [m], of all that were scored; see `none_probability`."""
        return none_probability(self.log_likelihood_ratios(scores), eligible, self.lowest, absent)

    def to_json(self) -> str:
        return json.dumps({"format": f"{KIND} {FORMAT}", **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes, source: str) -> "Calibration":
        """Read what `to_json` wrote. Raises PipelineError that names the source for anything missing, unknown or not finite."""
        try:
            document = parsed(text)
            number = number_of(document.pop("format", None) if isinstance(document, dict) else None, KIND)
            check_format(f"the calibration {source}", number, OLDEST_FORMAT, FORMAT, "fit it anew with jobs.calibrate")
            return typed(Calibration, document)
        except ValueError as error:
            raise PipelineError(f"{source} is not a usable calibration: {error}; fit it again or remove it") from error


def mismatch_words(own_head: str, own: Mapping[str, Setting], head: str, settings: Mapping[str, Setting]) -> str:
    """See `Calibration.mismatch`."""
    if head != own_head:
        return f"the calibration belongs to the head {own_head[:16]}, not to {head[:16]}"
    other = [name for name in sorted({*settings, *own}) if settings.get(name) != own.get(name)]
    shown = [("none" if value is None else value for value in (own.get(name), settings.get(name))) for name in other]
    words = [f"{name} {here}, not {there}" for name, (here, there) in zip(other, shown, strict=True)]
    return f"the calibration is for {'; '.join(words)}" if words else ""


def settings_of(
    score: ScoreSettings,
    segment_length: int,
    stride: int,
    target_length: int | None = None,
    target_stride: int | None = None,
    *,
    cameras: str = "auto",
) -> dict[str, Setting]:
    """What a video score depends on besides head and videos: all of ScoreSettings, how both sides are cut into segments, and
    whether cameras are told apart (`IndexSettings.cameras`).

    target_length, target_stride: None for the gallery's own, as in a search.
    """
    return {
        **asdict(score),
        "segment_length": segment_length,
        "stride": stride,
        "target_length": segment_length if target_length is None else target_length,
        "target_stride": stride if target_stride is None else target_stride,
        "cameras": cameras,
    }


def save_calibration(calibration: Calibration, folder: str | Path) -> str:
    """Write calibration.json into a head's folder, here or in a bucket, and return its uri; it appears whole.

    Raises PipelineError when it cannot be written.
    """
    location = resolve(folder).join(FILE)
    location.write_atomically(calibration.to_json().encode())
    return location.uri


def load_calibration(folder: str | os.PathLike[str]) -> Calibration | None:
    """The calibration in a head's folder, None if there is none. Raises PipelineError with the path for a damaged one."""
    path = Path(folder) / FILE
    try:
        return Calibration.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise PipelineError(f"{path} cannot be read: {error}") from error


def posterior(llrs: ArrayLike, eligible: int, expected_matches: float = 1.0) -> Floats:
    """Probability of "same person" of each llr [...], before the search each of `eligible` videos being as likely as the next.

    eligible: videos that passed the filters. expected_matches: how many of them the person is expected on; prior odds are
    expected_matches / max(eligible - expected_matches, 1). Every video is judged on its own evidence: a person may be on several,
    so the probabilities need not add up to 1. Raises UsageError for expected_matches that are not above 0.

    >>> posterior([0.0, 10.0], eligible=1001).round(3).tolist()  # no evidence, and odds of 22,026 to 1
    [0.001, 0.957]
    """
    check_expected_matches(expected_matches)
    return sigmoid(np.asarray(llrs, np.float64) + math.log(expected_matches / max(eligible - expected_matches, 1.0)))


def none_probability(llrs: ArrayLike, eligible: int, lowest: float, absent: float = 0.5) -> float:
    """Probability that none of the eligible videos shows the target: absent / (absent + (1 - absent) * mean of exp(llr)).

    llrs: [m], of all videos that were scored, not of the leads alone; the eligible - m others count as `lowest`, the llr below
    which the calibration does not go: the shortlist, and a search that leaves off before its end, are taken to have dropped only
    what would have scored worst. absent:
    probability before the search that the person is on no eligible video. It assumes that the person is on one of them at most,
    each alike; where they are on several, the true probability is lower still. Scores of one target against many videos are
    taken to be independent given who is on them: a target that resembles everybody makes the answer too low. Not the complement
    of the leads' `posterior`, which takes matches to be there and lets them be several. Raises UsageError for `absent` outside
    0..1.
    """
    if not 0 <= absent <= 1:
        raise UsageError(f"the probability that the person is absent lies in 0..1, not {absent}")
    found = np.asarray(llrs, np.float64)
    if found.ndim != 1 or len(found) > eligible:
        raise ValueError(f"{found.shape} llrs do not belong to {eligible} eligible videos")
    if eligible == 0:
        return 1.0
    ratio = (np.exp(found).sum() + (eligible - len(found)) * math.exp(lowest)) / eligible
    return float(absent / (absent + (1 - absent) * ratio))


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
        ece=_error(bins),
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
    return _error(reliability(probabilities, outcomes, bins, weights))


def cllr(llrs: ArrayLike, same: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Log-likelihood-ratio cost in bits, (mean over same of log2(1 + 1/LR) + mean over different of log2(1 + LR)) / 2.

    llrs: [P], natural; same: bool [P], both kinds present; weights: [P] within the kinds, None for 1.
    """
    llr, truth = np.asarray(llrs, np.float64), np.asarray(same, bool)
    weight = np.ones(len(llr)) if weights is None else np.asarray(weights, np.float64)
    costs = _softplus(np.where(truth, -llr, llr)) / math.log(2)
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
        return float((pairs.weights * _softplus(-sign * (theta[0] + theta[1] * z))).sum() + ridge * theta[1] ** 2 / 2)

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


def _error(bins: tuple[ReliabilityBin, ...]) -> float:
    return sum(part.share * abs(part.predicted - part.observed) for part in bins)


def linear_scores(scores: ArrayLike, bounded: bool) -> Floats:
    """Scores [...] on the scale of the logit. Raises PipelineError for what is not finite, or not in 0..1 where it should be."""
    values = np.asarray(scores, np.float64)
    if not np.isfinite(values).all():
        raise PipelineError("video scores hold NaN or infinity and cannot be calibrated")
    if not bounded:
        return values
    if ((values < -1e-6) | (values > 1 + 1e-6)).any():
        raise PipelineError(f"video scores must lie in 0..1 here, not {values.min():.4g}..{values.max():.4g}")
    inside = np.clip(values, SATURATION, 1 - SATURATION)
    return np.log(inside) - np.log1p(-inside)


def sigmoid(values: Floats) -> Floats:
    return np.exp(np.minimum(values, 0)) / (1 + np.exp(-np.abs(values)))  # exact at both ends


def _softplus(values: Floats) -> Floats:
    """log(1 + exp(values)), several times as fast as np.logaddexp."""
    return np.maximum(values, 0) + np.log1p(np.exp(-np.abs(values)))


def calibration_version(name: str, calibration: Any) -> str:
    """Name and content hash of a calibration, a dataclass."""
    return f"{name}@{json_sha256(asdict(calibration), sort_keys=True, default=str)[:16]}"
