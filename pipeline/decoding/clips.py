"""A stretch of a source as a clip that browsers play, fragmented MP4 (ISO/IEC 14496-12), or one picture of it, JPEG.

Clips are made piece by piece as the source is decoded. Times are the frames' own, so that a variable rate stays one; pixels are
made square and pictures upright. Fragments are short, for a first picture at once, and every second begins with a key frame, for
jumps. Small clips, which are sent along with a page, are one piece, and are given so many bytes a second at most.
"""

import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import numpy as np

from pipeline.decoding.reading import Frame
from pipeline.decoding.video import Blank, Box, ClipPart, ClipStart
from pipeline.errors import VideoError

SCENE_SIZE = (1280, 720)  # pixels that the picture of a scene fits into
CROP_HEIGHTS = (128, 384)  # pixels, smallest and largest
MARGIN = 0.12  # of a box, around it on each side
SMALL_SIZE = (256, 208)  # pixels that a small clip fits into
JPEG_QUALITY = 85
UNITS = 90_000  # of time a second
KEY_S, FRAGMENT_S = 1.0, 0.25
SHORTEST_STEP = 1 / 61  # seconds between two frames; a source of more frames a second gives fewer
GREY = 128  # of what is not shown
MOST_ASPECT = 4.0  # of a pixel: what a file says beyond that is a mistake
# Encoders in the order of preference, with what a browser calls what they make and the options that make it fast.
ENCODERS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("libx264", "avc1.4d4028", {"preset": "veryfast", "tune": "zerolatency", "crf": "26", "profile": "main", "level": "4.0"}),
    ("libopenh264", "avc1.42c028", {"profile": "constrained_baseline", "b": "1500000"}),
    ("libvpx-vp9", "vp09.00.40.08", {"deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0", "crf": "36", "b": "0"}),
)
# The same for small clips, which nobody waits for while they are made: at most some 25 kB for 4 s, whatever they show.
SMALL_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "slow", "crf": "25", "maxrate": "48k", "bufsize": "64k", "bf": "0", "profile": "main", "level": "4.0"},
    "libopenh264": {"profile": "constrained_baseline", "b": "50000"},
    "libvpx-vp9": {"deadline": "good", "cpu-used": "2", "lag-in-frames": "0", "crf": "36", "b": "50000"},
}
MUXER = {
    "movflags": "empty_moov+default_base_moof+frag_keyframe",
    "frag_duration": str(int(FRAGMENT_S * 1e6)),
    "flush_packets": "1",
}
BT601 = 6  # the colours of RGB as swscale makes them (SMPTE 170M), in the numbers of H.273


def encoder() -> tuple[str, str, dict[str, str]]:
    """The first of ENCODERS that this FFmpeg has. Raises VideoError where it has none."""
    for name, codec, options in ENCODERS:
        try:
            av.codec.Codec(name, "w")
        except (av.FFmpegError, ValueError):
            continue
        return name, codec, options
    raise VideoError("undecodable", f"clips cannot be made here: FFmpeg has none of {', '.join(name for name, *_ in ENCODERS)}")


def clip(
    frames: Iterable[Frame],
    start_s: float,
    boxes: Sequence[tuple[float, Box]],
    pixel_aspect: Callable[[], float],
    blanks: Sequence[Blank] = (),
    small: bool = False,
) -> Iterator[Any]:
    """A ClipStart and the ClipParts of frames in the order of time, from start_s on, in seconds of the source.

    boxes: (seconds of the source, box in pixels of the picture), ascending, of whom to cut out; none: whole pictures.
    pixel_aspect: tells the width of a pixel of the source by its height, once there is a frame. blanks: what is not shown. small:
    one to be sent along, see SMALL_OPTIONS, with all frames and in one piece. Raises VideoError where there is none.
    """
    name, codec, options = encoder()
    options = SMALL_OPTIONS[name] if small else options
    window: _Window | None = None
    sink: io.BytesIO | _Sink = io.BytesIO() if small else _Sink()
    stream, container = None, None
    last = key = -1
    for frame in frames:
        pts = 0 if stream is None else round((frame.time_s - start_s) * UNITS)
        if pts - last < SHORTEST_STEP * UNITS and stream is not None:
            continue
        picture = without(frame.picture(), frame.time_s, blanks)
        if stream is None or container is None:
            window = _Window(boxes, picture.shape, pixel_aspect(), SMALL_SIZE if small else SCENE_SIZE)
            width, height = window.size
            container = av.open(sink, "w", format="mp4", options={} if small else MUXER)
            stream = container.add_stream(name, rate=25, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            context = stream.codec_context
            context.time_base = stream.time_base = Fraction(1, UNITS)
            context.gop_size, context.thread_count = 1 << 20, 1
            context.color_range, context.colorspace, context.color_trc, context.color_primaries = 1, BT601, BT601, BT601
            yield ClipStart(width, height, codec, *picture.shape[1::-1])
        assert window is not None  # noqa: S101 - for mypy
        made = av.VideoFrame.from_ndarray(window.cut(picture, frame.time_s), format="rgb24")
        made.pts, made.time_base = pts, stream.time_base
        if last < 0 or (pts - key >= KEY_S * UNITS and not small):
            made.pict_type, key = av.video.frame.PictureType.I, pts
        last = pts
        container.mux(stream.encode(made))
        if isinstance(sink, _Sink):
            yield from sink.parts()
    if container is None or stream is None:
        raise VideoError("no_frames", "the source shows nothing in that time")
    container.mux(stream.encode(None))
    container.close()
    yield from sink.parts() if isinstance(sink, _Sink) else (ClipPart(sink.getvalue()),)


def still(
    frames: Iterable[Frame],
    boxes: Sequence[tuple[float, Box]],
    pixel_aspect: Callable[[], float],
    fits: tuple[int, int] = SCENE_SIZE,
    blanks: Sequence[Blank] = (),
) -> Iterator[Any]:
    """The first of some frames as JPEG, after a ClipStart; the rest as in `clip`. fits: what a whole picture fits into, pixels.

    Raises VideoError where there is none.
    """
    frame = next(iter(frames), None)
    if frame is None:
        raise VideoError("no_frames", "the source has no such frame")
    picture = without(frame.picture(), frame.time_s, blanks)
    window = _Window(boxes, picture.shape, pixel_aspect(), fits)
    yield ClipStart(*window.size, "", *picture.shape[1::-1])
    shown = window.cut(picture, frame.time_s)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    yield ClipPart(data.tobytes())


def without(picture: np.ndarray, time_s: float, blanks: Sequence[Blank]) -> np.ndarray:
    """A picture, uint8 [h, w, 3], of a time of its source, with grey where something is blanked then."""
    due = [box for start, end, box in blanks if start <= time_s <= end]
    if due:
        picture = picture.copy()
    for x, y, w, h in due:
        rows, columns = (slice(max(0, math.floor(at)), max(0, math.ceil(at + side))) for at, side in ((y, h), (x, w)))
        picture[rows, columns] = GREY
    return picture


class _Sink:
    """A file that is only written to, and cannot be gone back in."""

    def __init__(self) -> None:
        self._written: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._written.append(bytes(data))
        return len(data)

    def parts(self) -> Iterator[ClipPart]:
        if self._written:
            data, self._written = b"".join(self._written), []
            yield ClipPart(data)


class _Window:
    """What is shown of each picture: all of it, or the surroundings of a box that moves. size: width and height, even.

    most: width and height at most, of whole pictures the larger one of their longer side, and of crops as CROP_HEIGHTS says, too.
    """

    def __init__(
        self, boxes: Sequence[tuple[float, Box]], shape: Sequence[int], pixel_aspect: float, most: tuple[int, int] = SCENE_SIZE
    ) -> None:
        height, width = shape[:2]
        aspect = pixel_aspect if 1 / MOST_ASPECT <= pixel_aspect <= MOST_ASPECT else 1.0
        self.times = np.array([time for time, _ in boxes], np.float64)
        self.boxes = np.array([box for _, box in boxes], np.float64).reshape(-1, 4)
        if not boxes:
            shown = width * max(aspect, 1.0), height * max(1 / aspect, 1.0)  # the longer side of a pixel grows
            scale = min(1.0, *(most / side for most, side in zip(_turned(most, shown), shown, strict=True)))
            self.size = _even(shown[0] * scale), _even(shown[1] * scale)
            return
        w, h = np.median(self.boxes[:, 2:], axis=0)
        self.ratio = w / h  # of the window in pixels of the source
        lowest, highest = CROP_HEIGHTS
        tall = float(np.clip(h * (1 + 2 * MARGIN) / min(aspect, 1.0), lowest, min(highest, most[1])))
        self.size = _even(np.clip(tall * self.ratio * aspect, 32, most[0])), _even(tall)

    def cut(self, picture: np.ndarray, time_s: float) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [size, 3]; what lies outside the picture repeats its edge."""
        if len(self.times):
            x, y, w, h = (float(np.interp(time_s, self.times, side)) for side in self.boxes.T)
            tall = max(h, w / self.ratio) * (1 + 2 * MARGIN)
            wide = max(tall * self.ratio, 2.0)
            left, top = round(x + w / 2 - wide / 2), round(y + h / 2 - tall / 2)
            rows = np.clip(np.arange(top, top + max(2, round(tall))), 0, picture.shape[0] - 1)
            columns = np.clip(np.arange(left, left + round(wide)), 0, picture.shape[1] - 1)
            picture = picture[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] + 1 == len(rows) else picture[rows]
            picture = picture[:, columns]
        shrinks = picture.shape[0] * picture.shape[1] > self.size[0] * self.size[1]
        if picture.shape[1::-1] != self.size:
            picture = cv2.resize(picture, self.size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return np.ascontiguousarray(picture)


def _turned(limits: tuple[int, int], shown: tuple[float, float]) -> tuple[int, int]:
    """The limits of the width and the height, the larger one for the longer side."""
    return limits if shown[0] >= shown[1] else limits[::-1]


def _even(side: float) -> int:
    return max(2, 2 * round(side / 2))
