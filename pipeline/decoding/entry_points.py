"""Where a file can be entered without reading it from its front: by its packets alone, and only where they are in order."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from pipeline.decoding.frame_times import LONGEST_PAUSE
from pipeline.decoding.stream import zero_of


class Entries(NamedTuple):
    """stamps: int64 [n], of all packets, ascending; keys: int64, of those at which decoding can begin. time_base: seconds of a
    stamp's unit; zero: seconds that the file's own start stands at.
    """

    stamps: np.ndarray
    keys: np.ndarray
    time_base: float
    zero: float


def entries_of(pts: np.ndarray, keys: np.ndarray, time_base: float, start: int | None, reordered: bool) -> Entries | None:
    """Where a file can be entered, by the stamps of its packets in their order (int64 [n]) and which of them are key frames (bool
    [n]); None where they do not tell. start: the container's; reordered: whether frames are shown in another order than decoded.
    """
    before = np.maximum.accumulate(np.concatenate([pts[:1] - 1, pts[:-1]]))
    after = np.minimum.accumulate(pts[::-1])[::-1]
    closed = keys & (before < pts) & (after == pts)
    ordered = np.sort(pts)
    steps = np.diff(ordered)
    if len(pts) == 0 or not closed[0] or np.any(steps == 0) or np.any(steps * time_base > LONGEST_PAUSE):
        return None
    if not reordered and not np.array_equal(pts, ordered):
        return None
    return Entries(ordered, pts[closed], time_base, zero_of(start, float(ordered[0]) * time_base))


def in_step(frames: Iterable[Any], stamps: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Frames with their places among all stamps (int64 [n], ascending), from a key frame on, for as long as each comes next."""
    place = None
    for frame in frames:
        if place is None:
            place = int(np.searchsorted(stamps, frame.pts)) if frame.pts is not None and frame.key_frame else len(stamps)
        if place == len(stamps) or frame.pts != stamps[place] or frame.is_corrupt:
            return
        yield place, frame
        place += 1
