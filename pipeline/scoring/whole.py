"""Whole videos beside their segments: one encoding a video, each frame by its visibility, and how alike two of them are.

Segments tell whether somebody is seen for a moment; the whole video averages over all good frames and so over what is accidental
in each of them. Its logit is that of a pair of segments, normalised by the same cohort, times SCALE.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SCALE = 1.2  # a video's segments make many pairs, of which the best count most, and the whole makes one
LEAST_VISIBLE = 0.3  # of a segment that the prefilter finds a video by
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class WholeVideos:
    """n videos. encodings: [n, d_v]; mean, spread: [n], of their logits against the cohort (`pipeline.coattention.cohort`)."""

    encodings: Singles
    mean: Singles
    spread: Singles

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> "WholeVideos":
        """Some of them."""
        return WholeVideos(self.encodings[rows], self.mean[rows], self.spread[rows])


def joined(parts: list[WholeVideos]) -> WholeVideos:
    """Videos of several parts, one after another."""
    return WholeVideos(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("encodings", "mean", "spread")))


def video_encodings(values: NDArray[np.floating], visibility: Singles, frames: NDArray[np.integer], unit: bool) -> Singles:
    """Encodings float32 [V, d_v] of videos whose frames lie one after another.

    values: [F, d_v]; visibility: [F], of the frames; frames: [V], how many of each, at least 1. unit: as unit vectors.
    """
    first = np.cumsum(frames) - frames
    sums = np.add.reduceat(values.astype(np.float32) * visibility[:, None], first, axis=0)
    means = sums / np.add.reduceat(visibility, first)[:, None]
    if unit:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return means.astype(np.float32)


def or_whole(encodings: Singles, visibility: Singles, whole: Singles) -> Singles:
    """Encodings of segments [S, d_v]; those of a visibility [S] below LEAST_VISIBLE are their whole video's, [S, d_v].

    What looks for candidates by one good segment would otherwise find those that are hidden alike.
    """
    return np.where((visibility < LEAST_VISIBLE)[:, None], whole, encodings)


def resemblance(some: WholeVideos, others: WholeVideos, weight: Singles, bias: float) -> Singles:
    """Normalised logits times SCALE, float32 [n, m], of each of n videos and each of m others; weight: the row w, [d_v]; bias: c.

    Each is summed for itself, so that its last bit does not depend on what stands beside it.
    """
    logits = np.empty((len(some.encodings), len(others.encodings)), np.float32)
    stored = others.encodings.astype(np.float32)
    for row, encoding in zip(logits, some.encodings.astype(np.float32), strict=True):
        gaps = stored - encoding
        gaps *= gaps
        gaps *= weight
        row[:] = bias + gaps.sum(axis=1)
    of_some = (logits - some.mean[:, None]) / some.spread[:, None]
    return (SCALE / 2 * (of_some + (logits - others.mean) / others.spread)).astype(np.float32)
