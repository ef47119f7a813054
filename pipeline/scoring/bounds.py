"""The true best k of a whole gallery, with a proof, after scoring only part of it: upper bounds of scores.

With w <= 0 and x = sqrt(-w) * vector a pair's logit is c - ||x(e) - x(e')||^2, and by the triangle inequality around the
segment's mean m

    ||x(e) - x(e')|| >= ||x(e) - x(m)|| - ||x(e') - x(m)||

The first distance is the prefilter's. The second, the shift, is at most the segment's radius (the ball: no frame is touched); or
it is known, because with the attention a (keys only) and b = a - 1/T it is sqrt(-b' D b / 2), D the squared distances between the
segment's frames, which the index keeps as a band. Principal directions of the values tighten it further: what lies in them is
exact, and the triangle inequality is left for the rest; so do the coordinates along which values vary most, which cost no
product with a basis. Cohort normalisation and the video scores are monotone, so that the same functions of bounds are bounds.
With a weight above 0 none of this holds, and an exact search scores everything.

What is bounded is the score in real arithmetic of the keys, values and target as stored, and the one computed with the float16
band. Every bound adds what float16 tables and float32 arithmetic can take from it (Higham, Accuracy and Stability of Numerical
Algorithms, section 3.1).

Sizes: N target segments, K candidate segments of T frames, F frames, V videos.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.coattention.cohort import CohortStatistics, normalised_logits
from pipeline.scoring.scores import TargetEncoding, rank_videos, video_scores
from pipeline.settings import ScoreSettings

ROUNDING = 2.0**-24  # relative, float32
TABLE_ROUNDING = 2.0**-10  # relative, of a float16 squared distance and of float32 arithmetic with it
TABLE_LEAST = 2.0**-24  # absolute, of float16 numbers near 0
SCORE_MARGIN = 2e-5  # pair scores are computed in float32, to 1e-5

Floats = NDArray[np.float64]
Numbers = NDArray[np.int64]


def boundable(target: TargetEncoding) -> bool:
    """Whether bounds hold for this head: no weight above 0."""
    return bool((target.weight <= 0).all())


def radii(table: Tensor, means: Tensor) -> Tensor:
    """The farthest frame of each segment from its mean, float32 [K], rounded up.

    table: `segment_distances` [K, T, T]; means: x(m) float32 [K, d_v] as stored, of T values added in float32.
    """
    length = table.shape[1]
    of_frame = table.mean(dim=2)  # [K, T]
    low, high = 1 - TABLE_ROUNDING, 1 + TABLE_ROUNDING
    square = of_frame.amax(dim=1) * high - of_frame.mean(dim=1) * (low / 2) + TABLE_LEAST
    return _with_rounding_of_means(square.clamp_min(0).sqrt(), means, length).nan_to_num(nan=math.inf)


def ball_logits(target: TargetEncoding, means: Tensor, radius: Tensor) -> Tensor:
    """Upper bounds float32 [N, K] of logits from the mean and radius alone: one matrix product with the means.

    means: x(m) float32 [K, d_v], as the exact prefilter stores them; radius: [K] of `radii`.
    """
    near = _centre_distances(target, means)
    return _logits(target, (near - radius).clamp_min_(0), radius)


def attention_logits(
    target: TargetEncoding, means: Tensor, keys: Tensor, table: Tensor, segment_frames: Tensor, projected: Tensor | None = None
) -> Tensor:
    """Upper bounds float32 [N, K] of logits from the true attention: keys, means and distances, no values.

    means: x(m) float32 [K, d_v]; keys: [F, d_k]; table: [K, T, T] of `segment_distances`; segment_frames: int64 [K, T], of keys.
    projected: x(v) on a few orthonormal directions, [F, r], as `Projection` makes them, to tighten the bound; means and the
    target must then be rotated into them (`rotated_target`), so that their first r numbers are their projections.
    """
    length, radius = table.shape[1], radii(table, means)
    keys = keys.float()
    heat = keys @ target.query_vectors.T  # [F, N]
    attention = heat[segment_frames].softmax(dim=1)  # [K, T, N]
    # How far heats may be off moves attention, and with it the encoding, by at most this share of the radius.
    longest = target.query_vectors.norm(dim=1) * keys.square().sum(dim=1).amax().sqrt()  # [N]
    off = 1.01 * longest * (keys.shape[1] + 8) * ROUNDING + 8 * (length + 8) * ROUNDING
    uneven = attention - 1 / length  # [K, T, N]
    inner = -((table @ uneven) * uneven).sum(dim=1) / 2  # [K, N]
    slack = uneven.abs().sum(dim=1).square() * (table.amax(dim=(1, 2)) * TABLE_ROUNDING + TABLE_LEAST)[:, None]
    square = inner + slack / 2  # [K, N], of the shift, rounded up
    near = _centre_distances(target, means)
    means_off = _with_rounding_of_means(torch.zeros(len(means)), means, length) + off[:, None] * radius  # [N, K]
    distance = (near - square.clamp_min(0).sqrt().T - means_off).nan_to_num(nan=0.0).clamp_min(0)
    if projected is not None:
        tighter = _projected_distances(target, means, attention, segment_frames, projected, square.T, near)
        distance = torch.maximum(distance, (tighter - means_off).nan_to_num(nan=0.0))
    return _logits(target, distance, radius)


@dataclass(frozen=True)
class Projection:
    """An orthonormal basis of the space of x, leading principal directions first. basis: float32 [d_v, d_v], in columns."""

    basis: Tensor

    @classmethod
    def of_sample(cls, values: Tensor) -> "Projection":
        """The principal directions of a sample of x(v), float32 [n, d_v]."""
        deviation = values.double() - values.double().mean(dim=0)
        _, basis = torch.linalg.eigh(deviation.T @ deviation)  # ascending
        return cls(basis.flip(1).float().contiguous())

    @classmethod
    def of_axes(cls, values: Tensor) -> "Projection":
        """The coordinate axes, those along which a sample of x(v) varies most first: values need only be put in their order."""
        return cls(torch.eye(values.shape[1])[:, values.double().var(dim=0, correction=0).argsort(descending=True, stable=True)])

    @property
    def order(self) -> Tensor:
        """Of `of_axes`: the coordinate that each column stands for, int64 [d_v]."""
        return self.basis.argmax(dim=0)

    def rotated_target(self, target: TargetEncoding) -> TargetEncoding:
        """The same target for values that are stored as x(v) @ basis; all weights are then -1."""
        scale = torch.sqrt(-target.weight)
        return TargetEncoding(
            target.query_vectors,
            (target.encodings * scale) @ self.basis,
            target.attention,
            -torch.ones_like(target.weight),
            target.bias,
            (target.centre * scale) @ self.basis,
        )


def video_bounds(
    logits: Tensor,
    offsets: Numbers,
    settings: ScoreSettings,
    target: CohortStatistics | None = None,
    candidate: CohortStatistics | None = None,
) -> Floats:
    """Upper bounds of the scores of videos, float64 [V], from upper bounds of logits [N, K].

    offsets: int64 [V + 1], as in `pipeline.scoring.scores.video_scores`. target, candidate: statistics [N] and [K] where scores
    are normalised by a cohort, None where they are not.
    """
    logits = logits.double()
    if target is not None and candidate is not None:
        wide = (CohortStatistics(part.mean.double(), part.spread.double()) for part in (target, candidate))
        logits = normalised_logits(logits, *wide)
    scores = (logits.sigmoid_() + SCORE_MARGIN).numpy()
    if settings.threshold is not None and settings.aggregate == "mean":
        # One more score above the threshold may lower this mean, so it is not monotone; the best pair bounds it.
        settings = replace(settings, threshold=None, ratio=1 / scores.size)
    return video_scores(scores, offsets, settings)


@dataclass(frozen=True)
class CertifiedTop:
    """The best k of all candidates, and why no other can be among them.

    videos: int64 [m], all that were scored, best first (equal scores by video_id), of which the first k are the answer; scores:
    float64 [m]. reached: how many videos each stage of bounds looked at. threshold: the k-th best score, -inf where there are
    fewer. largest_bound_left: of the videos that were not scored; below the threshold, or -inf where all were.
    """

    videos: Numbers
    scores: Floats
    reached: tuple[int, ...]
    threshold: float
    largest_bound_left: float


def certified_top(
    k: int,
    candidates: Numbers,
    video_ids: NDArray[np.str_],
    shortlist: Numbers,
    stages: Sequence[Callable[[Numbers], Floats]],
    score: Callable[[Numbers], Floats],
    block: int = 256,
) -> CertifiedTop:
    """The true best k of the candidates by their scores, with as few scores as the bounds allow.

    candidates: int64, ascending; video_ids: [V], of all numbers that candidates may hold. shortlist: candidates to score first,
    for a high threshold early; any will do, good ones save work. stages: functions from videos (int64 [m], ascending) to upper
    bounds (float64 [m]), the cheapest first; each is asked once, about what the ones before left. score: the same for scores.
    block: videos scored at a time, by descending bound. Raises ValueError for a score that exceeds its bound.
    """
    bounds = np.full(len(video_ids), math.inf)
    scores = np.full(len(video_ids), math.nan)
    best = _Best(k)

    def take(videos: Numbers) -> None:
        videos = np.sort(videos)
        scores[videos] = score(videos)
        if (wrong := videos[scores[videos] > bounds[videos]]).size:
            raise ValueError(f"video {video_ids[wrong[0]]} scores more than its bound: tables of the index do not fit each other")
        best.add(scores[videos])

    take(np.unique(shortlist))
    left = candidates[np.isnan(scores[candidates])]
    reached = []
    for stage in stages:
        reached.append(len(left))
        if len(left):
            found = stage(left)
            bounds[left] = np.minimum(bounds[left], np.where(np.isnan(found), math.inf, found))
        left = left[bounds[left] >= best.threshold]
    left = left[np.argsort(-bounds[left], kind="stable")]
    start = 0
    while start < len(left) and bounds[left[start]] >= best.threshold:
        videos = left[start : start + block]
        start += len(videos)
        take(videos[bounds[videos] >= best.threshold])
    done = candidates[~np.isnan(scores[candidates])]
    done = done[rank_videos(scores[done], video_ids[done])]
    others = candidates[np.isnan(scores[candidates])]
    return CertifiedTop(done, scores[done], tuple(reached), best.threshold, float(bounds[others].max(initial=-math.inf)))


class _Best:
    """The k best scores so far."""

    def __init__(self, k: int) -> None:
        self.k, self.scores = k, np.empty(0)

    def add(self, scores: Floats) -> None:
        self.scores = np.sort(np.concatenate([self.scores, scores]))[-self.k :]

    @property
    def threshold(self) -> float:
        return float(self.scores[0]) if len(self.scores) == self.k else -math.inf


def _scaled(target: TargetEncoding) -> Tensor:
    return target.encodings * torch.sqrt(-target.weight)  # [N, d_v]


def _centre_distances(target: TargetEncoding, means: Tensor) -> Tensor:
    """||x(e) - x(m)|| float32 [N, K], rounded down."""
    encodings = _scaled(target)
    of_target, of_mean = encodings.square().sum(dim=1)[:, None], means.square().sum(dim=1)  # [N, 1], [K]
    square = torch.addmm(of_mean.expand(len(encodings), -1), encodings, means.T, alpha=-2).add_(of_target)  # [N, K]
    off = (2 * (means.shape[1] + 16) * ROUNDING) * (of_target + of_mean)  # [N, K]
    return (square - off).clamp_min_(0).sqrt_()


def _with_rounding_of_means(radius: Tensor, means: Tensor, length: int) -> Tensor:
    return radius + (length + 16) * ROUNDING * (means.norm(dim=1) + radius)


def _logits(target: TargetEncoding, distance: Tensor, radius: Tensor) -> Tensor:
    """No logit exceeds the bias. Scores computed with the band take a'Da/2 <= radius^2 from float16 numbers."""
    square = distance.square() * (1 - 8 * ROUNDING)
    band = radius.square() * TABLE_ROUNDING + TABLE_LEAST  # [K]
    return torch.minimum(target.bias - square + (target.bias.abs() + square) * (4 * ROUNDING) + band, target.bias)


def _projected_distances(
    target: TargetEncoding,
    means: Tensor,
    attention: Tensor,
    segment_frames: Tensor,
    projected: Tensor,
    shift: Tensor,
    near: Tensor,
) -> Tensor:
    """||x(e) - x(e')|| [N, K], rounded down: exact in the first r directions, the triangle inequality in the others.

    shift: ||x(e') - x(m)||^2 rounded up, near: ||x(e) - x(m)|| rounded down; both [N, K]. A sum of squares
    (p - q)^2 + (s - t)^2 with s in [s-, s+] and t <= t+ is at least the one with max(0, s- - t+).
    """
    width = projected.shape[1]
    frames = projected.float()[segment_frames]  # [K, T, r]
    encoding = attention.mT @ frames  # [K, N, r]
    centre = means[:, None, :width]  # [K, 1, r]
    own = _scaled(target)[None, :, :width]  # [1, N, r]
    inside = (own - encoding).square().sum(dim=2).T  # [N, K]
    of_centre = (own - centre).square().sum(dim=2).T
    of_shift = (encoding - centre).square().sum(dim=2).T
    size = own.square().sum(dim=2).T + frames.square().sum(dim=2).amax(dim=1)  # [N, K]
    off = 8 * (width + frames.shape[1] + 16) * ROUNDING * size
    rest = (near.square() - of_centre - off).clamp_min(0).sqrt()
    moved = (shift - of_shift + off).clamp_min(0).sqrt()
    return ((inside - off).clamp_min(0) + (rest - moved).clamp_min(0).square()).sqrt()
