"""Which frames of a video are looked at, in what size, and the limits past which a video is refused."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.errors import UsageError
from pipeline.storage.reach import Reach

SCENE_PIXELS = 352 * 288  # of the smallest picture that cameras usually give
LONGEST_WAIT = 1_000_000  # seconds, some twelve days; the system's calls that wait take no more than twice as long


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which frames of a video are looked at, in what size, and the limits past which a video is refused.

    rate: sampled frames per second of video; a video with fewer frames per second gives all of them.
    image_rate: frames per second of a folder of images; None: the folder is taken as already sampled, each image counts.
    frame_rate: frames per second of streams that carry no times, such as raw H.264; None: what the stream says, else a guess.
    max_damage: share of a video's packets that may be passed over because they cannot be decoded.
    height, width: pixels of a frame handed to the backbone.
    chunk: frames per chunk. max_frames: sampled frames per candidate. max_bytes: size of a video file in bytes.
    min_box: pixels of a box that must lie inside the frame, in each direction, for it to count.
    time_limit: seconds without progress after which a video is given up. memory_limit: bytes that decoding may take.
    cpu_limit: seconds of processor time that a source may take, however well it goes on.
    scene_pixels: of a whole picture, where whole pictures are asked for: larger ones are refused.
    scenes: whether a source without boxes may show a whole scene (`looks_like_a_scene`); a target may not.
    roots, endpoints: where what is opened may lie and who may be asked for it, see `pipeline.storage.reach.Reach`.

    Raises UsageError for a number that cannot be meant.
    """

    rate: float = 10.0
    image_rate: float | None = None
    frame_rate: float | None = None
    height: int = 256
    width: int = 128
    chunk: int = 64
    max_frames: int = 20_000
    max_bytes: int = 16 << 30
    min_box: int = 8
    max_damage: float = 0.5
    time_limit: float = 60.0
    memory_limit: int = 3 << 30
    cpu_limit: float = 12 * 3600.0
    scene_pixels: int = 3840 * 2160
    scenes: bool = True
    roots: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name not in ("max_damage", "scenes", "roots", "endpoints") and value is not None and not 0 < value < math.inf:
                raise UsageError(f"{name.replace('_', ' ')} must be a positive number, not {value}")
        if not 0 <= self.max_damage <= 1:
            raise UsageError(f"the damage that is passed over is a share from 0 to 1, not {self.max_damage}")
        for name in ("time_limit", "cpu_limit"):
            if getattr(self, name) > LONGEST_WAIT:
                raise UsageError(f"a {name.replace('_', ' ')} is at most {LONGEST_WAIT} seconds, not {getattr(self, name):g}")

    @property
    def frame_bytes(self) -> int:
        """Of the memory that hands over the frames of a chunk; what is not used of it takes no room."""
        return 3 * max(self.chunk * self.height * self.width, self.scene_pixels)

    @property
    def reach(self) -> Reach:
        """What may be opened, and asked."""
        return Reach(self.roots, self.endpoints)


class Ticks:
    """Which frames are looked at: of each 1/rate seconds of video, counted from its first frame, the first frame.

    Decided from the frames' own times, so a variable frame rate is sampled evenly in time.

    >>> ticks = Ticks(rate=2.0)
    >>> [time_s for time_s in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0) if ticks.take(time_s)]
    [0.0, 0.6, 1.0]
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._first: float | None = None
        self._last = -1.0

    def take(self, time_s: float) -> bool:
        """Whether the next frame, at this time in seconds, is looked at; times ascend."""
        if self._first is None:
            self._first = time_s
        tick = math.floor((time_s - self._first) * self.rate + 1e-3)
        if tick <= self._last:
            return False
        self._last = tick
        return True


def looks_like_a_scene(height: int, width: int) -> bool:
    """Whether a picture of this size in pixels is rather what a camera sees than one person cut out: large, and not upright."""
    return width >= height and height * width >= SCENE_PIXELS


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3]; area averaging when it shrinks, bilinear when it grows."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = frame.shape[0] * frame.shape[1] > height * width
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
