"""One video -> sampled frames, cropped and resized, in chunks of bounded size; every failure becomes a reason.

Runs inside the child process that `pipeline.decoding.decoder` starts, so a decoder that crashes or hangs costs one video. A
*chunk* is up to `Sampling.chunk` frames of one candidate; a candidate is the whole frame, or one track of a boxes file. A source
is read once, front to back: what is sampled is decided as its frames come.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.decoding.boxes import Tracks, boxes_remarks, clip_box, read_boxes
from pipeline.decoding.opening import Opened, open_files
from pipeline.decoding.readers import hashed, reader_of
from pipeline.decoding.reading import Alive, Frame
from pipeline.decoding.sampling import Sampling, Ticks, looks_like_a_scene, resize
from pipeline.errors import VideoError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a source once it was read: frames a second, frames in all, width and height of its pictures in pixels.

    source_hash: of the bytes, just before they are decoded (`pipeline.decoding.source_hash.source_hash`), None for images in
    object stores. passed_over: packets that could not be decoded. remarks: what was guessed or mended, a sentence each.
    """

    fps: float
    source_frames: int
    width: int
    height: int
    source_hash: str | None = None
    passed_over: int = 0
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chunk:
    """Consecutive sampled frames of one candidate.

    track: the track id, or None for the whole frame. number: 0, 1, ... within the candidate; last: no chunk follows.
    frame_index: int32 [n], frames of the source from 0. time_s: float32 [n], seconds from the source's start.
    frames: uint8 [n, height, width, 3], RGB. source_hash: see VideoInfo; None where it was not asked for.
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
class Progress:
    """Work goes on; nothing to hand over yet."""


Event = VideoInfo | Chunk | Rejected | Progress


@dataclass(frozen=True)
class SourceRequest:
    """All candidates of a source, see `read_chunks`. frame_rate: in place of `Sampling.frame_rate`."""

    uri: str
    boxes_uri: str | None = None
    frame_rate: float | None = None

    def open(self, sampling: Sampling, alive: Alive) -> Opened:
        ticks, rate = Ticks(sampling.rate), sampling.image_rate or sampling.rate

        def looked_at(count: int) -> list[int]:
            return [number for number in range(count) if ticks.take(number / rate)]

        return open_files(self.uri, self.boxes_uri, sampling, alive, looked_at)

    def answer(self, sampling: Sampling, alive: Alive, opened: Opened) -> Iterator[Event]:
        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        yield from read_chunks(self.uri, self.boxes_uri, sampling, alive, opened)


@dataclass(frozen=True)
class FramesRequest:
    """Single frames of one candidate, see `read_frames`."""

    uri: str
    boxes_uri: str | None
    track: int | None
    wanted: Mapping[int, float | None]
    box: Box | None = None

    def open(self, sampling: Sampling, alive: Alive) -> Opened:
        boxes_uri = None if self.track is None else self.boxes_uri

        def looked_at(count: int) -> list[int]:
            return [number for number in range(count) if number == 0 or number in self.wanted]  # 0 tells the size

        return open_files(self.uri, boxes_uri, sampling, alive, looked_at)

    def answer(self, sampling: Sampling, alive: Alive, opened: Opened) -> Iterator[Event]:
        yield from read_frames(self.uri, self.boxes_uri, self.track, self.wanted, sampling, alive, self.box, opened)


@dataclass(frozen=True)
class MomentRequest:
    """What a box shows at one moment, see `read_moment`."""

    uri: str
    box: Box
    time_s: float

    def open(self, sampling: Sampling, alive: Alive) -> Opened:
        rate = sampling.image_rate or sampling.rate

        def looked_at(count: int) -> list[int]:
            near = {number for number in range(count) if abs(number / rate - self.time_s) <= 1 / rate}
            return [number for number in range(count) if number in near or number in (0, count - 1)]

        return open_files(self.uri, None, sampling, alive, looked_at)

    def answer(self, sampling: Sampling, alive: Alive, opened: Opened) -> Iterator[Event]:
        yield from read_moment(self.uri, self.box, self.time_s, sampling, alive, opened)


Request = SourceRequest | FramesRequest | MomentRequest


def read_chunks(
    uri: str, boxes_uri: str | None, sampling: Sampling, alive: Alive = lambda: None, opened: Opened | None = None
) -> Iterator[Event]:
    """Decode one source: the chunks of every candidate in it and, last, its VideoInfo.

    uri: a video file, an image, a folder of numbered images or a pattern of some of its images
    (`pipeline.catalog.image_folders.is_image_pattern`), local or in an object store. boxes_uri: a MOT boxes file (frame from 1,
    id, x, y, w, h in pixels): each track id becomes a candidate, cropped from the frames. alive: called while there is nothing to
    hand over. opened: the source, open, which the caller closes; None: it is opened here. Raises VideoError for what spoils the
    whole source; what spoils one track is a Rejected event.
    """
    with contextlib.ExitStack() as stack:
        opened = opened or stack.enter_context(open_files(uri, boxes_uri, sampling, alive))
        candidates = _Whole(uri, sampling) if boxes_uri is None else _Tracks(read_boxes(opened.boxes_bytes()), sampling)
        reader = reader_of(opened, sampling, alive)
        source_hash = hashed(opened, sampling, alive)
        ticks, shape = Ticks(sampling.rate), None
        for frame in reader.frames():
            if ticks.take(frame.time_s) and (shape is None or candidates.show(frame.number)):
                picture = frame.picture()
                shape = shape or picture.shape
                yield from _hashed(candidates.add(frame, picture), source_hash)
        reading = reader.reading()
        if shape is None:
            raise VideoError("no_frames", f"{uri} has no frames")
        yield from _hashed(candidates.end(), source_hash)
        remarks = (*reading.remarks, *candidates.remarks)
        height, width = shape[:2]
        yield VideoInfo(reading.fps, reading.frames, width, height, source_hash, reading.passed_over, remarks)


def _hashed(events: Iterable[Event], source_hash: str | None) -> Iterator[Event]:
    """The events with the source's hash in their chunks: who gets one can tell a forgotten source before it is embedded."""
    for event in events:
        yield replace(event, source_hash=source_hash) if isinstance(event, Chunk) else event


def read_frames(
    uri: str,
    boxes_uri: str | None,
    track: int | None,
    wanted: Mapping[int, float | None],
    sampling: Sampling,
    alive: Alive = lambda: None,
    box: Box | None = None,
    opened: Opened | None = None,
) -> Iterator[Event]:
    """Single frames of one candidate, one Chunk each; frame numbers that the source does not have are left out.

    track: its id in the boxes file, or None for the whole frame. wanted: frame numbers, each with the time that it had when it
    was sampled, in seconds, or None; with times, a frame far into a long recording is found without reading all before it. box:
    what to cut out of every frame, in place of a track. opened: see `read_chunks`. Raises VideoError.
    """
    boxes: Mapping[int, Box | np.ndarray] = dict.fromkeys(wanted, box) if box is not None else {}
    if track is None:
        boxes_uri = None
    with contextlib.ExitStack() as stack:
        opened = opened or stack.enter_context(open_files(uri, boxes_uri, sampling, alive))
        if track is not None and boxes_uri is not None:
            frames, found = read_boxes(opened.boxes_bytes()).get(track, ((), ()))
            boxes = dict(zip((int(frame) for frame in frames), found, strict=True))
        reader = reader_of(opened, sampling, alive)
        for frame in reader.frames_at({number: time for number, time in wanted.items() if number >= 0}):
            picture = frame.picture()
            if frame.number in boxes:
                crop = clip_box(boxes[frame.number], picture.shape[1], picture.shape[0], 1)
                if crop is None:
                    continue
                picture = picture[crop[1] : crop[3], crop[0] : crop[2]]
            yield from _Candidate(track, sampling).only(frame, picture)


def read_moment(
    uri: str, box: Box, time_s: float, sampling: Sampling, alive: Alive = lambda: None, opened: Opened | None = None
) -> Iterator[Event]:
    """What a box (x, y, w, h, in pixels) shows at the time nearest to time_s, in seconds: a Chunk of one frame, and a VideoInfo.

    opened: see `read_chunks`. Raises VideoError, for a time after the end and a box that lies outside the picture too.
    """
    with contextlib.ExitStack() as stack:
        opened = opened or stack.enter_context(open_files(uri, None, sampling, alive))
        reader = reader_of(opened, sampling, alive)
        frame = reader.frame_near(time_s)
        picture = frame.picture()
        height, width = picture.shape[:2]
        crop = clip_box(box, width, height, sampling.min_box)
        if crop is None:
            message = (
                f"the box {','.join(f'{edge:g}' for edge in box)} does not lie inside the {width} x {height} picture of {uri}"
            )
            raise VideoError("boxes_outside_frame", message)
        yield from _Candidate(None, sampling).only(frame, picture[crop[1] : crop[3], crop[0] : crop[2]])
        yield VideoInfo(1.0, 1, width, height, hashed(opened, sampling, alive))


class _Whole:
    """The whole frame as the only candidate."""

    remarks: tuple[str, ...] = ()

    def __init__(self, uri: str, sampling: Sampling) -> None:
        self.uri, self.candidate = uri, _Candidate(None, sampling)

    def show(self, number: int) -> bool:
        return True

    def add(self, frame: Frame, picture: np.ndarray) -> Iterator[Event]:
        height, width = picture.shape[:2]
        if not self.candidate.sampling.scenes and looks_like_a_scene(height, width):
            raise VideoError("scene", f"{self.uri} looks like a whole scene, {width} x {height} pixels, not like one person")
        if self.candidate.full():
            raise VideoError("too_large", _too_many(self.uri, self.candidate.sampling))
        yield from self.candidate.add(frame, picture)

    def end(self) -> Iterator[Event]:
        yield from self.candidate.end()


class _Tracks:
    """The tracks of a boxes file as candidates. Each is handed on whole as soon as its last box has been passed."""

    def __init__(self, tracks: Tracks, sampling: Sampling) -> None:
        self.sampling = sampling
        self.remarks = tuple(boxes_remarks(tracks))
        self.boxes: dict[int, list[tuple[int, np.ndarray]]] = {}
        for track, (frames, boxes) in tracks.items():
            for number, box in zip(frames.tolist(), boxes, strict=True):
                self.boxes.setdefault(number, []).append((track, box))
        self.running = {track: _Candidate(track, sampling) for track in tracks}
        ends = sorted((int(frames[-1]), track) for track, (frames, _) in tracks.items())
        self.ends = ends[::-1]  # the next to end is the last
        self.outside: dict[int, str] = {}  # tracks with boxes in sampled frames, none of them inside

    def show(self, number: int) -> bool:
        return number in self.boxes

    def add(self, frame: Frame, picture: np.ndarray) -> Iterator[Event]:
        height, width = picture.shape[:2]
        for track, box in self.boxes.get(frame.number, ()):
            candidate = self.running.get(track)
            crop = clip_box(box, width, height, self.sampling.min_box)
            if candidate is None:  # refused already
                continue
            if crop is None:
                self.outside[track] = f"no box of track {track} lies inside the {width} x {height} frame"
            elif candidate.full():
                del self.running[track]
                yield Rejected(track, "too_large", _too_many(f"track {track}", self.sampling))
            else:
                yield from candidate.add(frame, picture[crop[1] : crop[3], crop[0] : crop[2]])
        while self.ends and self.ends[-1][0] <= frame.number:
            yield from self._end(self.ends.pop()[1])

    def end(self) -> Iterator[Event]:
        while self.ends:
            yield from self._end(self.ends.pop()[1])

    def _end(self, track: int) -> Iterator[Event]:
        candidate = self.running.pop(track, None)
        if candidate is None:
            return
        if candidate.count:
            yield from candidate.end()
        elif track in self.outside:
            yield Rejected(track, "boxes_outside_frame", self.outside[track])
        else:
            yield Rejected(track, "no_frames", f"no sampled frame of the video has a box of track {track}")


def _too_many(subject: str, sampling: Sampling) -> str:
    limit = f"{sampling.max_frames} frames at {sampling.rate:g} a second, which is the limit (--max-frames)"
    return f"{subject} has more than {limit}: lower the rate, cut it, or raise the limit"


@dataclass
class _Candidate:
    """Collects one candidate's crops and hands them on a chunk at a time. count: its frames so far."""

    track: int | None
    sampling: Sampling
    number: int = 0
    count: int = 0
    indices: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)

    def full(self) -> bool:
        return self.count == self.sampling.max_frames

    def add(self, frame: Frame, crop: np.ndarray) -> Iterator[Chunk]:
        """Takes a frame; a chunk that is complete is kept back until it is known whether it is the last one."""
        if len(self.crops) == self.sampling.chunk:
            yield self._chunk(last=False)
        self.indices.append(frame.number)
        self.times.append(frame.time_s)
        self.crops.append(resize(crop, self.sampling.height, self.sampling.width))
        self.count += 1

    def end(self) -> Iterator[Chunk]:
        yield self._chunk(last=True)

    def only(self, frame: Frame, crop: np.ndarray) -> Iterator[Chunk]:
        """A candidate of one frame."""
        yield from self.add(frame, crop)
        yield from self.end()

    def _chunk(self, last: bool) -> Chunk:
        index, times = np.array(self.indices, np.int32), np.array(self.times, np.float32)
        chunk = Chunk(self.track, self.number, last, index, times, np.stack(self.crops))
        self.number += 1
        self.indices, self.times, self.crops = [], [], []
        return chunk
