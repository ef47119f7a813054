"""How much of a person each frame shows, in the head's own judgement, and what that makes of a video's segments.

The heat of a frame under a query vector says how good the frame is to know its person by. One constant query, the mean of many,
judges nearly as well as a target's own, and it can be asked of candidates before there is a target. Within a video

    visibility_t = exp( min( <q, k_t> - (max over the video - SLACK), 0 ) )

so the best frame and those near to it have 1, and a frame in which the person is hidden nearly 0. A segment's visibility is the
mean of its frames'. It weighs the segment among the others of its video (`pipeline.scoring.video_scores.visible_logits`):
segments in which nobody is seen resemble each other, and would otherwise make a video's score.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.coattention.network import Coattention

SLACK = 1.0  # heat below the best frame's that costs nothing
CAMERA_SLACK = 2.0  # the same where a camera's statistics are measured: more frames, more of the camera


@torch.no_grad()
def mean_query(head: Coattention, segments: NDArray[np.floating]) -> NDArray[np.float32]:
    """The mean query vector [d_k] of segments, frame features [N, T, D]; N at least 1."""
    return head.query_vectors(torch.from_numpy(segments)).mean(dim=0).float().numpy()


def frame_visibility(
    keys: NDArray[np.floating], query: NDArray[np.floating], frames: NDArray[np.integer], slack: float = SLACK
) -> NDArray[np.float32]:
    """Visibility float32 [F] of the frames of videos, one after another.

    keys: [F, d_k]; query: [d_k]; frames: [V], how many of each video, at least 1, F in all.
    """
    heat = keys.astype(np.float32) @ query.astype(np.float32)
    first = np.cumsum(frames) - frames
    best = np.repeat(np.maximum.reduceat(heat, first), frames)
    return np.exp(np.minimum(heat - best + np.float32(slack), 0))


def segment_visibility(visibility: NDArray[np.float32], segments: NDArray[np.integer]) -> NDArray[np.float32]:
    """Visibility float32 [S] of segments, above 0: the mean over their distinct frames.

    visibility: [F], of frames; segments: [S, T], frame numbers, ascending, the last one repeated where a video is shorter.
    """
    real = np.ones(segments.shape, np.float32)
    real[:, 1:] = segments[:, 1:] != segments[:, :-1]
    mean = (visibility[segments] * real).sum(axis=1) / real.sum(axis=1)
    return np.maximum(mean, np.finfo(np.float32).tiny)
