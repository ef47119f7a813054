"""Cohort normalisation: how a score stands against those of other people, so that scores of different segments compare.

A segment that looks like everybody's (a hidden person, a black coat at night) scores high against all; what counts is how far a
score stands out of its own kind. Each segment n has the mean mu_n and the spread sigma_n of its logits against the nearest third
of a cohort, a sample of the gallery's segments; a pair's logit s becomes

    s' = ((s - mu_n) / sigma_n + (s - mu_j) / sigma_j) / 2

(adaptive S-norm of speaker verification, Matejka et al., Interspeech 2017). It is affine and increasing in s, so the fast form
carries over. For the statistics the cohort's segments are encoded with uniform attention.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NEAREST = 1 / 3  # share of the cohort that a segment is measured against
LEAST_VIDEOS = 8  # other videos a cohort needs: fewer say nothing about scores in general
LEAST_SPREAD = 0.05  # on the scale of the logit; a cohort of near copies would blow up every difference
BLOCK = 4096  # segments measured at a time


@dataclass(frozen=True)
class Cohort:
    """A sample of a gallery's segments. means: mean values float32 [C, d_v]; video: int64 [C], the video of each."""

    means: Tensor
    video: Tensor

    @property
    def usable(self) -> bool:
        """Whether there are enough videos to measure any segment against others than its own."""
        return len(torch.unique(self.video)) > LEAST_VIDEOS


@dataclass(frozen=True)
class CohortStatistics:
    """mean and spread: float32 [S], of the logits of each of S segments against its nearest third of the cohort."""

    mean: Tensor
    spread: Tensor

    def to(self, device: torch.device | str) -> "CohortStatistics":
        """The same on another device."""
        return CohortStatistics(self.mean.to(device), self.spread.to(device))


@torch.no_grad()
def cohort_statistics(cohort: Cohort, encodings: Tensor, video: Tensor, weight: Tensor, bias: Tensor) -> CohortStatistics:
    """How segments score against the cohort.

    encodings: [S, d_v], mean values of candidate segments, encodings of target segments. video: int64 [S], the video of each as
    in `cohort.video` (a segment is not measured against its own video), -1 for one that is not in the gallery. weight: the row
    w [d_v], bias: c. Memory: BLOCK * C * 4 bytes.
    """
    means, weight = cohort.means.float(), weight.float()
    squares = means.square() @ weight  # [C]
    parts = []
    for rows, owner in zip(encodings.float().split(BLOCK), video.split(BLOCK), strict=True):
        logits = bias + (rows.square() @ weight)[:, None] - 2 * (rows * weight) @ means.T + squares  # [s, C]
        own = owner[:, None] == cohort.video
        others = len(means) - own.sum(dim=1)  # [s]
        count = (others * NEAREST).ceil().clamp_min(1)  # [s]
        most = int(count.max())
        nearest = _largest(logits.masked_fill_(own, -math.inf), most)
        mean, spread = _moments(nearest.double())
        if (fewer := count < most).any():  # segments of the cohort's own videos, a few
            some = nearest[fewer].sort(dim=1, descending=True).values
            mean[fewer], spread[fewer] = _moments(some.double(), count[fewer])
        parts.append((mean.float(), spread.float().clamp_min(LEAST_SPREAD)))
    mean, spread = (torch.cat(column) for column in zip(*parts, strict=True))
    return CohortStatistics(mean, spread)


def _largest(logits: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, in any order. On CPUs by NumPy, which takes a third of the time that torch takes."""
    if logits.device.type != "cpu":
        return logits.topk(count, dim=1, sorted=False).values
    least = logits.shape[1] - count
    return torch.from_numpy(np.partition(logits.numpy(), least, axis=1)[:, least:])


def _moments(numbers: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each row, [n] each, of numbers [n, m]; count: int64 [n], of the first so many of a row."""
    if count is None:
        mean = numbers.mean(dim=1, keepdim=True)
        return mean[:, 0], (numbers - mean).square_().mean(dim=1).sqrt()
    chosen = torch.arange(numbers.shape[1], device=numbers.device) < count[:, None]
    mean = torch.where(chosen, numbers, 0.0).sum(dim=1, keepdim=True) / count[:, None]
    return mean[:, 0], (torch.where(chosen, numbers - mean, 0.0).square_().sum(dim=1) / count).sqrt()


def normalised_logits(logits: Tensor, target: CohortStatistics, candidate: CohortStatistics) -> Tensor:
    """s' [N, K] of pair logits [N, K], the target's statistics [N] and the candidate's [K]."""
    of_target = (logits - target.mean[:, None]) / target.spread[:, None]
    return (of_target + (logits - candidate.mean) / candidate.spread) / 2
