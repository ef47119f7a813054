"""What a reader of videos gives: frames in the order of presentation, and what there is to say of the reading."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import VideoError

PAST_END = 1.0  # seconds behind the last frame that still mean it
EARLY = 1e-3  # seconds that a frame may begin before a stretch and belong to it, beside what float32 rounds off
Heartbeat = Callable[[], None]
"""Called for every frame, packet or block while work goes on, so that whoever waits for it knows; cheap."""


@dataclass(frozen=True)
class Frame:
    """A decoded frame. number: its place in the order of presentation, from 0. time_s: seconds from the source's own start.

    picture: makes its pixels, uint8 [height, width, 3], RGB, upright and all of one size; only what is looked at is made.
    """

    number: int
    time_s: float
    picture: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Reading:
    """What is known once a source was read to its end. frames: how many it has; fps: frames per second.

    passed_over: packets that could not be decoded. remarks: what was guessed or mended, a sentence each.
    """

    frames: int
    fps: float
    passed_over: int = 0
    remarks: tuple[str, ...] = ()


class Reader:
    """An open source. path: of the file, or of the folder of images."""

    path: Path

    def frames(self) -> Iterator[Frame]:
        """All frames, front to back. Raises VideoError."""
        raise NotImplementedError

    def frames_at(self, wanted: Mapping[int, float | None]) -> Iterator[Frame]:
        """Some frames, ascending; those that the source does not have are left out. Raises VideoError.

        wanted: number -> the time that it had before, in seconds, or None.
        """
        last = max(wanted, default=-1)
        for frame in self.frames() if wanted else ():
            if frame.number in wanted:
                yield frame
            if frame.number >= last:
                return

    def frame_near(self, time_s: float) -> Frame:
        """The frame whose time is nearest, in seconds from the source's start. Raises VideoError, also past the end."""
        before: Frame | None = None
        for frame in self.frames():
            if frame.time_s >= time_s:
                return frame if before is None or frame.time_s - time_s <= time_s - before.time_s else before
            before = frame
        if before is None or time_s > before.time_s + PAST_END:
            end = f"ends after {before.time_s:.2f} s" if before is not None else "has no frames"
            raise VideoError("no_frames", f"there is no frame at {time_s:g} s: {self.path.name} {end}")
        return before

    def frames_between(self, start_s: float, end_s: float) -> Iterator[Frame]:
        """The frames from start_s on, up to end_s, in seconds from the source's start; where there is none, the last one before.

        Raises VideoError.
        """
        return stretch(self.frames(), start_s, end_s)

    @property
    def pixel_aspect(self) -> float:
        """The width of a pixel by its height, of upright pictures, once the first frame was read."""
        return 1.0

    def created(self) -> float | None:
        """When the file says that it was made, in seconds since 1970; None where it says nothing that can be."""
        return None

    def reading(self) -> Reading:
        """What is known of a source once `frames` was read to its end; before that a file raises RuntimeError."""
        raise NotImplementedError


def stretch(frames: Iterable[Frame], start_s: float, end_s: float) -> Iterator[Frame]:
    """Of frames in the order of time those from start_s on, up to end_s; where there is none, the last one before."""
    before: Frame | None = None
    any_yet = False
    for frame in frames:
        if frame.time_s > end_s:
            break
        if frame.time_s >= start_s - EARLY:
            any_yet = True
            yield frame
        else:
            before = frame
    if before is not None and not any_yet:
        yield before
