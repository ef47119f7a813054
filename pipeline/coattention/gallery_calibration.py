"""What a video score is worth within one gallery, learned from scores of its own videos among each other: nobody is labelled.

How high strangers score depends on the gallery: on its cameras, on how much of people is hidden, on how often they recur. So the
scores x of a sample of its videos among each other (logits where scores are bounded to 0..1) are taken as the mixture

    p(x) = (1 - share) f0(x) + share f1(x)

of strangers and of videos of one person. f0 is a log-gamma density (skewed to the right, with an exponential tail), its place and
width the gallery's, and beyond it a few pairs in a thousand of people who look alike, with a long exponential tail of their own
that sets in gradually (at a step the cost of a fit jumps as scores pass it, and fits stop anywhere); f1 a normal density. It is
the empirical null of Efron ("Large-scale simultaneous hypothesis testing", JASA 2004): strangers are told from the bulk of the
pairs, and matches are what stands out of it as a hump of its own.

Who stands out may still be two people who look alike. "The same person" is transitive and "looks alike" is much less so: where i
is like j and j is like k, i must be like k. Of the pairs that are likelier matches than not, the *links*, the share that is right
by their scores is lessened by what the triples say that they make (`_right_links`), and the odds of all pairs are shifted until
they say the same.

Where the sample does not support this there is no number but words, for a score x among n videos: "strong" where fewer than a
tenth of a stranger is expected to score as high, "weak" where fewer than one.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.coattention.calibration import Setting, mismatch_words, none_probability, posterior
from pipeline.coattention.logits import Floats, linear_scores, sigmoid
from pipeline.errors import PipelineError
from pipeline.storage.documents import parsed, typed
from pipeline.storage.formats import check_format, number_of

FILE = "calibration.json"
KIND = "gallery calibration"
OLDEST_FORMAT, FORMAT = 1, 3
LEAST_VIDEOS = 64  # a sample of fewer says too little about strangers to give numbers
LEAST_MEASURED = 8  # and of fewer not even words
LEAST_LINKS = 10  # pairs that stand out: from fewer nobody can say what a match scores here
HIGHEST = 8.0  # llr that no sample of hundreds of videos supports more of
MOST_RIGHT = 0.98  # share of the links that is believed to be right at most
WEIGHT = 5.0  # pairs that a video stands for in the fit: its many pairs are far from independent
BINS = 240
LEAST_WEDGES = 20  # pairs of links with a video in common, of which fewer say nothing but that links are single
STRONG, WEAK, NOT_TOLD_APART = "strong", "weak", "not told apart from strangers"

# What the parameters are expected to be, each a normal density (mean, deviation): weak beside some hundred videos. In widths of
# the strangers' scores, so that they hold for any head and any way of scoring.
MODE = (-0.25, 0.5)  # of f0, from the median of all scores
WIDTH = (0.05, 0.5)  # of f0, logarithm
SHAPE = (1.0, 0.3)  # of f0, logarithm of the gamma density's shape
MATCH = (6.2, 1.0)  # the mean of f1, from the mode of f0
MATCH_WIDTH = (0.3, 0.15)  # the deviation of f1, logarithm
ODDS = (-5.0, 2.5)  # share of matches, as a logit
ALIKE = (-6.0, 0.5)  # share of people who look alike among strangers, as a logit
FALLING = (-0.357, 0.15)  # logarithm of how fast their density falls, a width
STARTS = (
    (6.0, 0.3, -5.0),
    (4.5, 0.2, -3.5),
    (7.0, 0.4, -6.5),
    (5.0, 0.2, -2.0),
    (9.0, 0.3, -5.5),
)  # of f1 and its share
ALIKE_FROM = 3.0  # widths above the mode, around where strangers who look alike set in
ONSET = 2.0  # widths, over which they do
STEP = 1e-9  # the same in files of format 2: at once
END = (6.0, 1.0)  # as MATCH, of the third pair of a triple that closes
END_WIDTH = (0.3, 0.3)


@dataclass(frozen=True)
class Mixture:
    """f0: mode, width, shape (logarithm) of strangers; a share `alike` of them looks alike: a uniform variable, `onset` widths
    wide around ALIKE_FROM, plus an exponential one, of which the density falls by `falling` a width. f1: mean, deviation of
    matches. odds: logit of the share of matches.

    Raises ValueError for numbers that are not finite, a width, deviation, falling or onset that is not above 0, and an impossible
    share.
    """

    mode: float
    width: float
    shape: float
    mean: float
    deviation: float
    odds: float
    alike: float = 0.0
    falling: float = 1.0
    onset: float = STEP

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, asdict(self).values())) or min(self.width, self.deviation, self.falling, self.onset) <= 0:
            raise ValueError("a mixture has finite numbers, and a width, a deviation, a fall and an onset above 0")
        if not 0 <= self.alike < 1:
            raise ValueError(f"a share from 0 to below 1 of strangers looks alike, not {self.alike}")

    def log_strangers(self, x: ArrayLike) -> Floats:
        """log f0, of x [...]."""
        k = math.exp(self.shape)
        above = (np.asarray(x, np.float64) - self.mode) / self.width
        u = -above / math.sqrt(k)
        most = k * (u - np.exp(np.minimum(u, 300.0)) + self.shape) - math.lgamma(k) - math.log(self.width * math.sqrt(k))
        if not self.alike:
            return most
        begun, after = self._since_onset(above)
        with np.errstate(divide="ignore"):  # log 0, below the onset
            tail = np.log(-np.expm1(-self.falling * begun)) - self.falling * after
        return np.logaddexp(math.log1p(-self.alike) + most, tail + math.log(self.alike / self.onset / self.width))

    def log_matches(self, x: ArrayLike) -> Floats:
        """log f1, of x [...]."""
        return _log_normal(np.asarray(x, np.float64), self.mean, self.deviation)

    def strangers_above(self, x: ArrayLike) -> Floats:
        """Share of strangers with a score of x [...] or more."""
        from scipy.special import gammainc  # takes long to import, and few searches need it

        k = math.exp(self.shape)
        above = (np.asarray(x, np.float64) - self.mode) / self.width
        most = np.asarray(gammainc(k, k * np.exp(np.minimum(-above / math.sqrt(k), 300.0))), np.float64)
        begun, after = self._since_onset(above)
        left = self.onset - begun - np.expm1(-self.falling * begun) * np.exp(-self.falling * after) / self.falling
        return (1 - self.alike) * most + self.alike * left / self.onset

    def _since_onset(self, above: Floats) -> tuple[Floats, Floats]:
        """How far the onset has gone, and how far beyond it, of widths above the mode [...]."""
        since = above - (ALIKE_FROM - self.onset / 2)
        return np.clip(since, 0.0, self.onset), np.maximum(since - self.onset, 0.0)

    def llr(self, x: ArrayLike) -> Floats:
        """log f1 / f0 of x [...], never falling with x and at most HIGHEST."""
        ends = self.mode - 6 * self.width, max(self.mean + 10 * self.deviation, self.mode + 25 * self.width)
        grid = np.linspace(*ends, 4000)
        ratio = self.log_matches(grid) - self.log_strangers(grid)
        lowest = int(np.argmin(np.where(grid < self.mean, ratio, np.inf)))  # the wide f1 rises again below the strangers
        ratio[:lowest] = ratio[lowest]
        return np.interp(np.asarray(x, np.float64), grid, np.minimum(np.maximum.accumulate(ratio), HIGHEST))


@dataclass(frozen=True)
class GalleryCalibration:
    """What scores are worth in a gallery: llr(x) = mixture's llr + shift, before the search a share sigmoid(odds) being matches.

    head, settings, bounded: as in `Calibration`. videos: of the sample; links: its pairs that are likelier matches than not;
    right: the share of them that is estimated to be right. mixture: None where even strangers are not known. why: why there are
    no numbers, in words; empty where there are.
    """

    head: str
    settings: Mapping[str, Setting]
    bounded: bool
    videos: int
    links: int
    right: float
    mixture: Mixture | None
    shift: float
    why: str

    @property
    def words(self) -> str:
        """What numbers rest on, or why there are none."""
        return self.why or f"{self.videos} videos of this gallery among each other, nobody labelled"

    def mismatch(self, head: str, settings: Mapping[str, Setting]) -> str:
        """Why scores of this head under these settings are not what was measured; see `Calibration.mismatch`."""
        return mismatch_words(self.head, self.settings, head, settings)

    def expected_matches(self, eligible: int) -> float:
        """On how many of the eligible videos a person of this gallery is expected."""
        return eligible * float(sigmoid(np.array(self._mixture.odds)))

    def log_likelihood_ratios(self, scores: ArrayLike) -> Floats:
        """llr of video scores, both [...], natural logarithm, never falling with the score. Raises PipelineError for NaN."""
        return self._mixture.llr(linear_scores(scores, self.bounded)) + self.shift

    def probabilities(self, scores: ArrayLike, eligible: int, expected_matches: float) -> Floats:
        """Probability of "same person" of each score [...] on its own, see `posterior`."""
        return posterior(self.log_likelihood_ratios(scores), eligible, expected_matches)

    def none_probability(self, scores: ArrayLike, eligible: int, absent: float = 0.5) -> float:
        """Probability that no eligible video shows the target; scores: [m], of all that were scored."""
        lowest = float(self._mixture.llr(-math.inf)) + self.shift
        return none_probability(self.log_likelihood_ratios(scores), eligible, lowest, absent)

    def strengths(self, scores: ArrayLike, eligible: int) -> list[str]:
        """STRONG, WEAK or NOT_TOLD_APART for each score [m], by how many strangers are expected to score as high."""
        strangers = eligible * self._mixture.strangers_above(linear_scores(scores, self.bounded))
        return [STRONG if one <= 0.1 else WEAK if one <= 1 else NOT_TOLD_APART for one in strangers.tolist()]

    @property
    def _mixture(self) -> Mixture:
        if self.mixture is None:
            raise ValueError("nothing is known of the scores of this gallery")
        return self.mixture

    def to_json(self) -> str:
        return json.dumps({"format": f"{KIND} {FORMAT}", **asdict(self)}, indent=1, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str | bytes, source: str) -> "GalleryCalibration":
        """Read what `to_json` wrote. Raises PipelineError that names the source for anything missing, unknown or not finite."""
        try:
            document = parsed(text)
            number = number_of(document.pop("format", None) if isinstance(document, dict) else None, KIND)
            check_format(f"the gallery calibration {source}", number, OLDEST_FORMAT, FORMAT, "run jobs.index --rebuild")
            return typed(GalleryCalibration, document)
        except ValueError as error:
            raise PipelineError(f"{source} is not a usable gallery calibration: {error}; run jobs.index --rebuild") from error


def fit_gallery_calibration(
    scores: ArrayLike, apart: ArrayLike, *, head: str, settings: Mapping[str, Setting], bounded: bool
) -> GalleryCalibration:
    """Fit on scores of a sample of a gallery's videos among each other.

    scores: [M, M], raw video scores, target by candidate; the diagonal does not count. apart: bool [M, M], pairs that are known
    to show different people: one camera saw both at the same moment. head, settings, bounded: see `GalleryCalibration`.
    """
    scores, apart = np.asarray(scores, np.float64), np.asarray(apart, bool)
    videos = len(scores)
    if scores.shape != (videos, videos) or apart.shape != scores.shape:
        raise ValueError(f"scores {scores.shape} and pairs {apart.shape} are not those of a sample among itself")
    known: dict[str, Any] = {"head": head, "settings": dict(settings), "bounded": bounded, "videos": videos}
    others = ~np.eye(videos, dtype=bool)
    x = linear_scores(np.where(others, scores, 0.5), bounded)
    bulk = x[others]
    if videos < LEAST_MEASURED or np.subtract(*np.quantile(bulk, [0.5, 0.1])) < 1e-6:
        few = f"the gallery has {videos} videos" if videos < LEAST_MEASURED else "the scores of its videos hardly differ"
        return GalleryCalibration(**known, links=0, right=0.0, mixture=None, shift=0.0, why=f"{few}: too little to judge by")
    mixture = _fit(bulk, videos)
    both = (x + x.T) / 2
    log_odds = mixture.llr(both) + mixture.odds
    link = others & ~apart & ~apart.T & (log_odds > 0)
    links = int(link.sum()) // 2
    why = ""
    if videos < LEAST_VIDEOS:
        why = f"the gallery has {videos} videos, and fewer than {LEAST_VIDEOS} do not tell how high strangers score"
    elif links < LEAST_LINKS:
        why = f"among {videos} videos of this gallery too few pairs stand out from strangers to tell what a match scores"
    if why:
        return GalleryCalibration(**known, links=links, right=0.0, mixture=mixture, shift=0.0, why=why)
    right = float(sigmoid(log_odds[link]).mean()) * _right_links(both, link, apart | apart.T, mixture)
    right = min(right, MOST_RIGHT)
    shift = _shift(log_odds[link], right)
    return GalleryCalibration(**known, links=links, right=right, mixture=mixture, shift=shift, why="")


def _fit(x: Floats, videos: int) -> Mixture:
    """The mixture of the scores x [P]: the likeliest one, given what is expected of it.

    Scores below the median count as one bin: what strangers' scores look like there says nothing about those that come high.
    """
    from scipy.optimize import minimize  # takes long to import, and only a fit needs them
    from scipy.special import log_ndtr

    low, median = (float(quantile) for quantile in np.quantile(x, [0.1, 0.5]))
    unit = (median - low) / 1.2816  # of a normal density: its deviation
    counts, edges = np.histogram(x[x >= median], BINS)
    centres = ((edges[:-1] + edges[1:]) / 2)[counts > 0]
    weight = counts[counts > 0] * (WEIGHT * videos / len(x))
    below = WEIGHT * videos * float((x < median).mean())

    def mixture(theta: Floats) -> Mixture:
        mode, width = median + theta[0] * unit, unit * math.exp(theta[1])
        of_matches = mode + theta[3] * width, width * math.exp(theta[4]), theta[5]
        return Mixture(mode, width, theta[2], *of_matches, 1 / (1 + math.exp(-theta[6])), math.exp(theta[7]), ONSET)

    def cost(theta: Floats) -> float:
        of = mixture(theta)
        shares = -np.logaddexp(0, of.odds), -np.logaddexp(0, -of.odds)
        at = np.logaddexp(of.log_strangers(centres) + shares[0], of.log_matches(centres) + shares[1])
        left = np.log1p(-min(float(of.strangers_above(median)), 1 - 1e-12))
        left = np.logaddexp(left + shares[0], log_ndtr((median - of.mean) / of.deviation) + shares[1])
        prior = sum(((value - mean) / deviation) ** 2 for value, (mean, deviation) in zip(theta, expected, strict=True)) / 2
        return float(prior - (weight * at).sum() - below * left)

    expected = (MODE, WIDTH, SHAPE, MATCH, MATCH_WIDTH, ODDS, ALIKE, FALLING)
    starts = [(MODE[0], WIDTH[0], SHAPE[0], *start, ALIKE[0], FALLING[0]) for start in STARTS]
    bounds = [_bounds(*one) for one in expected]
    fits = (minimize(cost, start, method="L-BFGS-B", bounds=bounds) for start in starts)
    best = min(fits, key=lambda found: float(found.fun))
    return Mixture(*(float(value) for value in asdict(mixture(best.x)).values()))


def _right_links(x: Floats, link: NDArray[np.bool_], apart: NDArray[np.bool_], mixture: Mixture) -> float:
    """Share of the links, bool [M, M] symmetric, that is right as far as triples tell; x: [M, M], symmetric.

    A wedge is two links i-j and j-k. If all links were right i-k would be a match, too; so the scores of i-k are a mixture of
    matches and strangers of which the share of matches is fitted, and what is left are open wedges. With D links a video of which
    F are wrong, wrong ones falling anywhere, o = 2 F (D - F) + F^2 wedges a video are open: F = D - sqrt(D^2 - o).
    """
    from scipy.optimize import minimize

    joint = link.astype(np.float32) @ link.astype(np.float32)
    i, k = np.nonzero(np.triu(joint, 1))
    wedges, ends, never = joint[i, k].astype(np.float64), x[i, k], apart[i, k]
    degree = float(link.sum()) / len(link)
    closed = 0.0
    if (total := float(wedges.sum())) > LEAST_WEDGES:
        weight, at, strangers = wedges[~never], ends[~never], mixture.log_strangers(ends[~never])
        scale = min(total, 500.0) / total

        def cost(theta: Floats) -> float:
            matches = _log_normal(at, mixture.mode + theta[0] * mixture.width, mixture.width * math.exp(theta[1]))
            share = np.logaddexp(strangers - np.logaddexp(0, theta[2]), matches - np.logaddexp(0, -theta[2]))
            prior = ((theta[0] - END[0]) / END[1]) ** 2 + ((theta[1] - END_WIDTH[0]) / END_WIDTH[1]) ** 2
            return float(prior / 2 - scale * (weight * share).sum())

        bounds = [_bounds(*END), _bounds(*END_WIDTH), (-20.0, 20.0)]
        found = minimize(cost, (END[0], END_WIDTH[0], 0.0), method="L-BFGS-B", bounds=bounds)
        closed = float(sigmoid(np.array(found.x[2]))) * float(weight.sum()) / total
    opened = 2 * total * (1 - closed) / len(link)
    return math.sqrt(max(degree**2 - opened, 0.0)) / degree


def _bounds(mean: float, deviation: float) -> tuple[float, float]:
    """Where a parameter is looked for."""
    return mean - 8 * deviation, mean + 8 * deviation


def _shift(log_odds: Floats, mean: float) -> float:
    """What is to be added to log odds [n] for their probabilities to have this mean."""
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sigmoid(log_odds + middle).mean() < mean else (low, middle)
    return low


def _log_normal(x: Floats, mean: float, deviation: float) -> Floats:
    return -0.5 * ((x - mean) / deviation) ** 2 - math.log(deviation) - 0.5 * math.log(2 * math.pi)
