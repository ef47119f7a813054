"""What comes out of a source: events, of which frames come in chunks of bounded size, and every failure is a reason.

A *candidate* is the whole frame, or one track of a boxes file; a *chunk* is up to `Sampling.chunk` frames of one candidate.
"""

from dataclasses import dataclass

import numpy as np

Box = tuple[float, float, float, float]
"""x and y of the left upper corner, width and height, in pixels of the full frame."""


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a source once it was read: frames per second, frames in all, width and height of its pictures in pixels.

    source_hash: of the bytes, just before they are decoded (`pipeline.decoding.source_hash.source_hash`), None for images in
    object stores. passed_over: packets that could not be decoded. remarks: what was guessed or mended, a sentence each. last_s:
    time of the last frame, in seconds from the source's start, and created: when the file says that it was made, in seconds
    since 1970; both only where whole scenes were asked for.
    """

    fps: float
    source_frames: int
    width: int
    height: int
    source_hash: str | None = None
    passed_over: int = 0
    remarks: tuple[str, ...] = ()
    last_s: float | None = None
    created: float | None = None


@dataclass(frozen=True)
class Chunk:
    """Consecutive sampled frames of one candidate.

    track: the track id, or None for the whole frame. number: 0, 1, ... within the candidate; last: no chunk follows.
    frame_index: int32 [n], frames of the source from 0. time_s: float32 [n], seconds from the source's start.
    frames: uint8 [n, height, width, 3], RGB: crops of the backbone's size, or whole scenes. source_hash: see VideoInfo; whoever
    gets a chunk can tell a forgotten source before it is embedded. None where single frames were asked for.
    """

    track: int | None
    number: int
    last: bool
    frame_index: np.ndarray
    time_s: np.ndarray
    frames: np.ndarray
    source_hash: str | None = None


@dataclass(frozen=True)
class Rejected:
    """A candidate (track) or, with track None, the whole source that cannot be used, and why; whatever came of it before."""

    track: int | None
    reason: str
    message: str


@dataclass(frozen=True)
class ClipStart:
    """Of a clip or picture for browsers, before its bytes: width and height in square pixels; codec: its name by RFC 6381, empty
    for a picture. source_width, source_height: of the pictures that it was made from, in their own pixels, in which boxes are.
    """

    width: int
    height: int
    codec: str
    source_width: int
    source_height: int


Blank = tuple[float, float, Box]
"""(from, to, box): what is not shown of a source from one second of it to another, in pixels of its picture."""


@dataclass(frozen=True)
class ClipPart:
    """The next bytes of a clip, fragmented MP4, or all of a picture, JPEG."""

    data: bytes


@dataclass(frozen=True)
class TrackBoxes:
    """Where a track of a boxes file is. frames: numbers from 0, ascending; boxes: one of each."""

    frames: tuple[int, ...]
    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Stretch:
    """Consecutive frames of a long recording that are read apart from the others (`pipeline.decoding.dividing`).

    number: its place, from 0, among so many (of). first_frame: the number of its first frame; frames: how many it has. begins,
    opens: stamps of its first frame and of the recording's, in the stream's units; zero: where the recording's own start stands,
    in seconds. first_s, before_s: times of the recording's first frame and of the one before the stretch, None where there is
    none. looked_at: how many of its frames are. packets: hash of its packets. source_hash: see VideoInfo.
    """

    number: int
    of: int
    first_frame: int
    frames: int
    begins: int
    opens: int
    zero: float
    first_s: float
    before_s: float | None
    looked_at: int
    packets: str
    source_hash: str | None


@dataclass(frozen=True)
class Undivided:
    """A recording is long and is read as a whole nevertheless; why, in words."""

    why: str


Event = VideoInfo | Chunk | Rejected | ClipStart | ClipPart | TrackBoxes | Stretch | Undivided
