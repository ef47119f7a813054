"""What a video score is worth: a likelihood ratio fitted on labelled pairs, and from it the probability of "same person".

    llr(s) = log p(s | same person) / p(s | different people)

is a property of the score alone and is kept beside the head that gives the scores, in calibration.json. The probability also
needs a prior, and that is a property of the search: one match expected among a million videos makes the same score worth less
than one among a hundred. How the ratio is fitted: `pipeline.coattention.calibration_fit`.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pipeline.coattention.calibration_quality import ReliabilityBin
from pipeline.coattention.logits import Floats, linear_scores, sigmoid
from pipeline.errors import PipelineError, UsageError
from pipeline.settings import ScoreSettings, check_expected_matches
from pipeline.storage.documents import parsed, typed
from pipeline.storage.formats import check_format, number_of
from pipeline.storage.hashing import json_sha256
from pipeline.storage.location import resolve

FILE = "calibration.json"
KIND = "score calibration"
OLDEST_FORMAT, FORMAT = 1, 1

Setting = str | int | float | bool | None


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


def calibration_version(name: str, calibration: Any) -> str:
    """Name and content hash of a calibration, a dataclass."""
    return f"{name}@{json_sha256(asdict(calibration), sort_keys=True, default=str)[:16]}"
