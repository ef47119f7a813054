"""Segments: how a video is cut into overlapping windows of a fixed number of frames. Pure arithmetic."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import PipelineError, UsageError


def segment_starts(frames: int, length: int, stride: int) -> NDArray[np.int64]:
    """First frame of each segment of a video [0026].

    Windows start at 0, stride, 2 * stride ... as long as they fit; where they leave a tail uncovered, one more window
    ends at the last frame, so that no frame at the end is lost. A video shorter than `length` is one segment at 0.

    frames: number of frames of the video; length: frames a segment; stride: frames between two starts.
    Returns int64 [segments], strictly ascending. Raises UsageError for length or stride below 1, PipelineError for
    frames below 1.

    >>> segment_starts(19, length=8, stride=4).tolist()
    [0, 4, 8, 11]
    """
    if length < 1:
        raise UsageError(f"a segment needs at least 1 frame, not {length}")
    if stride < 1:
        raise UsageError(f"the stride between segments is at least 1 frame, not {stride}")
    if frames < 1:
        raise PipelineError(f"a video of {frames} frames has no segments")
    last = max(frames - length, 0)
    starts = np.arange(0, last + 1, stride, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, last)


def segment_frames(starts: ArrayLike, length: int, frames: int) -> NDArray[np.int64]:
    """Frame numbers of each segment, int64 [segments, length].

    Numbers past the end are the last frame's: a video shorter than a segment is padded by repeating its last frame.

    starts: integers [segments] as `segment_starts` gives them. Raises as `segment_starts` does.

    >>> segment_frames(segment_starts(3, length=4, stride=2), length=4, frames=3).tolist()
    [[0, 1, 2, 2]]
    """
    if length < 1:
        raise UsageError(f"a segment needs at least 1 frame, not {length}")
    if frames < 1:
        raise PipelineError(f"a video of {frames} frames has no segments")
    numbers = np.asarray(starts, dtype=np.int64)[:, None] + np.arange(length, dtype=np.int64)  # [segments, length]
    return np.minimum(numbers, frames - 1)
