"""Cameras: what each of them does to the values of everybody it films, and how that is taken off. No labels are needed.

Light, colour and angle of a camera are in the features of all people it films, so that two people of one camera are often closer
than one person in two cameras. In the space of the score, x = sqrt(-w) * value, each camera c has a mean m_c and a covariance C_c
over its videos, and a frame becomes

    u = unit( A_c (x - m_c) ),   A_c = (C_c + ridge) ^ (-p)

Means and covariances are drawn towards those of all cameras, the more the fewer people they were measured on: a video says little
about its camera and much about the person in it. Directions in which a camera's people vary much tell them apart least. p = 1/2,
whitening proper, takes all of that difference away and lets noise grow; the fewer the people, the lower is p (`_power`). Who is
on many videos counts about once: videos that look alike are taken for one person's (`_alone`). The idea is that of correlation
alignment (Sun, Feng and Saenko, "Return of frustratingly easy domain adaptation", AAAI 2016), with one space that all cameras are
brought to instead of one that is brought to another.

Encodings are unit vectors then, so a pair's logit is BIAS - SCALE * (2 - 2 cos).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.coattention.network import Coattention

LEAST_VIDEOS = 5  # of a camera that has statistics of its own: those of fewer would be about people, not about the camera
MEAN_PEOPLE = 10  # a camera of so many people has half of its own mean and half of that of all
SPREAD_PEOPLE = 20  # and of so many half of its own covariance
ALL_PEOPLE = 100  # a gallery of so many has half of the mean of all, and of their covariance
LEAST_POWER, MOST_POWER = 0.1, 0.5  # p, of few people and of many
POWER_PEOPLE = 20  # p lies half way between them
ALIKE = 0.7  # cosine of two videos, a camera's mean taken off, from which on they are taken for one person's
RIDGE = 0.5  # added to every variance, in mean variances
BLOCK = 1024  # videos compared with all others at a time
SCALE = BIAS = 4.0  # a pair of cosine 0.5 has the logit 0
SLACK = 1.0  # see `CoattentionConfig.slack`

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class CameraStatistics:
    """What is taken off by camera. names: of the cameras that have statistics of their own, C of them, ascending.

    means: float16 [C + 1, d_v]; maps: float16 [C + 1, d_v, d_v], symmetric. Row 0 is for every other camera, and for none.
    """

    names: tuple[str, ...]
    means: NDArray[np.float16]
    maps: NDArray[np.float16]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.names, start=1)}

    def row(self, camera: str | None) -> int:
        """Of `means` and `maps`, for a video of this camera."""
        return 0 if camera is None else self._rows.get(camera, 0)


def camera_statistics(means: NDArray[np.floating], cameras: Sequence[str | None]) -> CameraStatistics:
    """Statistics of a sample of videos.

    means: [V, d_v], the mean of each video's x; cameras: [V], the camera of each, None where it is not known. Videos of unknown
    cameras count among all. Raises ValueError for an empty sample.
    """
    x = np.asarray(means, np.float64)
    if not len(x) or len(x) != len(cameras):
        raise ValueError(f"{len(x)} videos of {len(cameras)} cameras give no statistics")
    named = np.array(["" if camera is None else camera for camera in cameras])
    names, counts = np.unique(named, return_counts=True)
    own = [str(name) for name, count in zip(names, counts, strict=True) if count >= LEAST_VIDEOS and name]
    raw = x - x.mean(axis=0)
    for name in own:
        raw[named == name] = x[named == name] - x[named == name].mean(axis=0)
    alone = _alone(raw)
    everybody = float(alone.sum())
    everything = alone @ x / everybody * _share(everybody, ALL_PEOPLE)
    centres, people = [everything], []
    centred = x - everything
    for name in own:
        rows = named == name
        people.append(float(_alone(raw[rows]).sum()))
        centres.append(everything + _share(people[-1], MEAN_PEOPLE) * (x[rows].mean(axis=0) - everything))
        centred[rows] = x[rows] - centres[-1]
    pooled = (centred * alone[:, None]).T @ centred / everybody
    level = max(float(np.trace(pooled)) / len(pooled), 1e-12)
    share = _share(everybody, ALL_PEOPLE)
    pooled = share * pooled + (1 - share) * level * np.eye(len(pooled))
    maps = [_map(pooled, level, everybody)]
    for name, count in zip(own, people, strict=True):
        share, spread = _share(count, SPREAD_PEOPLE), raw[named == name]
        maps.append(_map(share * (spread.T @ spread) / len(spread) + (1 - share) * pooled, level, count))
    return CameraStatistics(tuple(own), np.stack(centres).astype(np.float16), np.stack(maps).astype(np.float16))


def _alone(centred: Floats) -> Floats:
    """What each of n videos [n, d_v] counts for, [n]: 1 by the number of them that look like it, itself among them.

    Their sum is about how many people are seen. centred: around their mean.
    """
    unit = (centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    alike = [(unit[start : start + BLOCK] @ unit.T >= ALIKE).sum(axis=1) for start in range(0, len(unit), BLOCK)]
    return 1 / np.maximum(np.concatenate(alike), 1)


def _share(people: float, half: int) -> float:
    return people / (people + half)


def _map(covariance: Floats, level: float, people: float) -> Floats:
    """(covariance / level + RIDGE) ^ -p, symmetric; people: on how many it was measured."""
    variances, directions = np.linalg.eigh(covariance / level)
    return (directions * (np.maximum(variances, 0) + RIDGE) ** -_power(people)) @ directions.T


def _power(people: float) -> float:
    """p: see the head of this file."""
    return LEAST_POWER + (MOST_POWER - LEAST_POWER) * _share(people, POWER_PEOPLE)


class CameraCoattention(Coattention):
    """A head for the frames of one camera: its own keys and query vectors, and values that the camera's statistics changed."""

    camera_mean: Tensor
    camera_map: Tensor

    def __init__(self, head: Coattention, mean: Tensor, by: Tensor) -> None:
        """mean: [d_v]; by: its map [d_v, d_v]. Raises ValueError for a head with weights above 0."""
        nn.Module.__init__(self)
        if not can_measure_cameras(head):
            raise ValueError("a head with weights above 0 cannot have camera statistics")
        self.config = replace(head.config, normalise_values=True, unit_encodings=True, slack=SLACK)
        for name in ("lstm", "query", "key", "value", "classifier", "agreement"):
            setattr(self, name, getattr(head, name))
        self.of_unit_values = head.config.normalise_values
        self.register_buffer("feature_mean", head.feature_mean)
        self.register_buffer("camera_mean", mean.to(head.feature_mean))
        self.register_buffer("camera_map", by.to(head.feature_mean))

    def values(self, frame_features: Tensor) -> Tensor:
        """Values [..., d_v] of frame features [..., D], unit vectors."""
        values = self.value(self.normalised(frame_features))  # [..., d_v]
        values = F.normalize(values, dim=-1) if self.of_unit_values else values
        return F.normalize((score_space(self, values) - self.camera_mean) @ self.camera_map, dim=-1)

    def score_row(self) -> tuple[Tensor, Tensor]:
        """-SCALE for every dimension, and BIAS."""
        return self.camera_mean.new_full(self.camera_mean.shape, -SCALE), self.camera_mean.new_full((), BIAS)


def can_measure_cameras(head: Coattention) -> bool:
    """Whether a head has a space of distances: no weight above 0, as `negative_weight` guarantees."""
    return bool((Coattention.score_row(head)[0] <= 0).all())


def score_space(head: Coattention, values: Tensor) -> Tensor:
    """x = sqrt(-w) * value of values [..., d_v]."""
    return values * torch.sqrt(-Coattention.score_row(head)[0])


class CameraHeads:
    """A head under every camera. statistics: None where cameras are not told apart: the head itself serves all then."""

    def __init__(self, head: Coattention, statistics: CameraStatistics | None) -> None:
        self.head, self.statistics = head, statistics
        self._known: dict[int, Coattention] = {}

    def of(self, camera: str | None) -> Coattention:
        """The head for frames of this camera, None where it is not known."""
        if self.statistics is None:
            return self.head
        row = self.statistics.row(camera)
        if row not in self._known:
            with torch.inference_mode(False):  # whoever asks first may be in it, others not
                mean, by = (
                    torch.from_numpy(part[row].astype(np.float32)) for part in (self.statistics.means, self.statistics.maps)
                )
                self._known[row] = CameraCoattention(self.head, mean, by)
        return self._known[row]

    @property
    def unit_encodings(self) -> bool:
        """Whether encodings are unit vectors."""
        return self.of(None).config.unit_encodings

    def score_row(self) -> tuple[NDArray[np.float32], float]:
        """w, float32 [d_v], and c of the score, the same for all cameras."""
        weight, bias = self.of(None).score_row()
        return weight.detach().numpy(), float(bias.detach())
