"""The start point: a head that ranks like the mean of the features, from which every map can move."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.coattention.head import untrained_head
from pipeline.coattention.network import Coattention
from pipeline.storage.hashing import hash_order
from pipeline.training.features import FeatureSet

SAMPLE_VIDEOS, SAMPLE_FRAMES = 2048, 16  # what the directions are taken from
LEAST_DISTANCE = 1e-3  # squared distance of means below which the row is not made steeper


@dataclass(frozen=True)
class StartSettings:
    """What training starts from.

    key_width, value_width: d_k, d_v (at most the feature's width; the full width loses nothing of the distance of means).
    centre: take the features' mean off first (False: as mean pooling + cosine does). key_scale: length of the keys, the more the
    sooner the query map moves attention. temperature: of attention <mean key, key> / temperature, both of unit vectors; None
    starts with a query map of 0, attention is uniform and the score a monotone function of the distance of means.
    negative_weight: every weight of the squared difference stays below 0.
    """

    key_width: int = 128
    value_width: int = 128
    centre: bool = True
    key_scale: float = 8.0
    temperature: float | None = None
    negative_weight: bool = True


def identity_start(videos: FeatureSet, settings: StartSettings | None = None, segment_length: int = 8) -> Coattention:
    """A head with orthonormal values, accumulating LSTM and a row that puts its threshold between same and different people.

    The row is -a throughout, a such that the logit is 0 half-way between the mean squared distance of the same person's videos
    and that of different people's. The same set gives the same head. Raises as `pipeline.coattention.head.untrained_head` does.
    """
    settings = settings or StartSettings()

    def head(weight: float) -> Coattention:
        return untrained_head(
            _sample(videos),
            settings.key_width,
            settings.value_width,
            segment_length,
            settings.temperature,
            centre=settings.centre,
            candidate_scale=1.0,
            key_scale=settings.key_scale,
            weight=weight,
            negative_weight=settings.negative_weight,
        )

    middle = max(_middle_distance(head(1.0), videos), LEAST_DISTANCE)
    return head(4.0 / middle)


def _sample(videos: FeatureSet) -> NDArray[np.float16]:
    """Frames of up to SAMPLE_VIDEOS videos, chosen by hash, evenly spaced within each."""
    chosen = [videos.of_video(video) for video in sorted(hash_order(videos.video_ids, SAMPLE_VIDEOS))]
    return np.concatenate(
        [part[np.unique(np.linspace(0, len(part) - 1, min(len(part), SAMPLE_FRAMES)).astype(int))] for part in chosen]
    )


@torch.no_grad()
def _middle_distance(head: Coattention, videos: FeatureSet) -> float:
    """Half-way between the mean squared distances of mean values, same person and different people."""
    chosen = np.array(hash_order(videos.video_ids, SAMPLE_VIDEOS))
    means = torch.stack([head.values(torch.from_numpy(videos.of_video(video))).mean(0) for video in chosen])
    squared = torch.cdist(means.double(), means.double()).square().numpy()  # [V, V]
    counts = videos.counts(chosen[:, None], chosen[None])
    same = videos.person[chosen][:, None] == videos.person[chosen][None]
    return float((squared[counts & same].mean() + squared[counts & ~same].mean()) / 2)
