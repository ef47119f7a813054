"""Whole videos beside their segments: one encoding a video, each frame by its visibility, and how alike two of them are.

Segments tell whether somebody is seen for a moment; the whole video averages over all good frames and so over what is accidental
in each of them. Its logit is that of a pair of segments, normalised by the same cohort, times SCALE.

A track that jumped from one person to another is two videos in one, and its whole is neither. So a video whose good frames
fall into two kinds that have next to nothing in common has an encoding of each kind beside that of the whole, its parts, and
resembles a target as far as its whole does or, less COST, the likest part.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PARTS = 2
SCALE = 1.2  # a video's segments make many pairs, of which the best count most, and the whole makes one
LEAST_PARTED = 4  # frames of a video that is looked at for parts
COST = 1.5  # off the logit of a part: the likest of three may be so by chance, and what hides a person is a part, too
APART = 0.2  # cosine of two parts, below which they are two people's, or of one person in two very different views
ROUNDS = 8  # of k-means
VIDEOS_AT_ONCE = 256  # looked at for parts: several copies of their values are held
LEAST_VISIBLE = 0.3  # of a segment that the prefilter finds a video by
Singles = NDArray[np.float32]


@dataclass(frozen=True)
class WholeVideos:
    """n videos. encodings: [n, d_v]; mean, spread: [n], of their logits against the cohort (`pipeline.coattention.cohort`).

    Or the parts of n videos: [n, PARTS, d_v] and [n, PARTS].
    """

    encodings: Singles
    mean: Singles
    spread: Singles

    def __getitem__(self, rows: slice | NDArray[np.integer]) -> "WholeVideos":
        """Some of them."""
        return WholeVideos(self.encodings[rows], self.mean[rows], self.spread[rows])

    def as_parts(self) -> "WholeVideos":
        """The parts of videos that have none: each is the whole."""
        return WholeVideos(*(np.stack([part] * PARTS, axis=1) for part in (self.encodings, self.mean, self.spread)))


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
    return of_unit_length(means) if unit else means.astype(np.float32)


def of_unit_length(vectors: NDArray[np.floating]) -> Singles:
    """Vectors [..., d] of length 1, those of none as they are. `numpy.linalg.norm` takes three times as long for the lengths."""
    lengths = np.sqrt(np.einsum("...d,...d->...", vectors, vectors))
    return (vectors / np.maximum(lengths, 1e-12)[..., None]).astype(np.float32)


def video_parts(values: NDArray[np.floating], visibility: Singles, frames: NDArray[np.integer], whole: Singles) -> Singles:
    """Encodings of the parts of videos, unit vectors float32 [V, PARTS, d_v]; the whole's, twice, of a video that is one.

    values, visibility, frames: as for `video_encodings`, the values unit vectors; whole: what that gave, [V, d_v]. Frames go to
    the nearer of two means by their visibility (k-means on a sphere), at first to the most visible frame or that least like it.
    """
    ends = np.concatenate([[0], np.cumsum(frames)])
    found = np.empty((len(frames), PARTS, values.shape[1]), np.float32)
    for start in range(0, len(frames), VIDEOS_AT_ONCE):
        some = slice(start, start + VIDEOS_AT_ONCE)
        rows = slice(ends[start], ends[min(start + VIDEOS_AT_ONCE, len(frames))])
        found[some] = _two_means(values[rows].astype(np.float32), visibility[rows], frames[some], whole[some])
    return found


def _two_means(x: Singles, visibility: Singles, frames: NDArray[np.integer], whole: Singles) -> Singles:
    """`video_parts` of some videos; x: their values [F, d_v]."""
    first = np.cumsum(frames) - frames
    owner = np.repeat(np.arange(len(frames)), frames)

    def lowest(numbers: Singles) -> NDArray[np.integer]:
        """The first frame of each video that has its lowest number."""
        return np.lexsort((numbers, owner))[first]

    means = np.empty((len(frames), PARTS, x.shape[1]), np.float32)
    means[:, 0] = x[lowest(-visibility)]
    means[:, 1] = x[lowest(np.einsum("fd,fd->f", x, means[owner, 0]))]
    weighted = x * visibility[:, None]
    total = np.add.reduceat(weighted, first, axis=0)
    second = np.zeros(len(x), np.bool_)
    for _ in range(ROUNDS):
        second = np.einsum("fd,fd->f", x, (means[:, 1] - means[:, 0])[owner]) > 0
        sums = np.add.reduceat(weighted * second[:, None], first, axis=0)
        means = of_unit_length(np.stack([total - sums, sums], axis=1))
    of_second = np.add.reduceat(second.astype(np.int64), first)
    one = (of_second == 0) | (of_second == frames) | (frames < LEAST_PARTED)
    one |= np.einsum("vd,vd->v", means[:, 0], means[:, 1]) >= APART
    means[one] = whole[one, None]
    return means


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


def nearest_part(target: WholeVideos, whole: WholeVideos, parts: WholeVideos, weight: Singles, bias: float) -> Singles:
    """`resemblance` of one target and each of m videos, or, less COST, of its likest part: float32 [m]. parts: of the videos."""
    numbers = (getattr(parts, name).reshape(-1, *getattr(whole, name).shape[1:]) for name in ("encodings", "mean", "spread"))
    of_parts = resemblance(target, WholeVideos(*numbers), weight, bias)[0].reshape(-1, PARTS)
    return np.maximum(resemblance(target, whole, weight, bias)[0], of_parts.max(axis=1) - COST)
