"""What can be asked of a source. `open` runs in the parent, which may open files; `answer` in the child, which may decode them.

A source is read once, front to back: what is sampled is decided as its frames come. Both raise VideoError for what spoils all of
it, with one of `pipeline.catalog.inputs.REJECT_REASONS`; what spoils one track is a Rejected event. Both call a heartbeat while
there is nothing to hand over. `answer` puts the frames of its chunks into `memory`, see `pipeline.decoding.candidates.Candidate`.
"""

import functools
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.decoding.boxes import cropped, read_boxes
from pipeline.decoding.candidates import Candidate, FramesMemory, TrackedPeople, WholeFrame
from pipeline.decoding.opening import Opened, open_boxes, open_files
from pipeline.decoding.readers import hashed, reader_of
from pipeline.decoding.reading import Frame, Heartbeat
from pipeline.decoding.sampling import Sampling, Ticks
from pipeline.decoding.video import Blank, Box, Chunk, Event, Stretch, TrackBoxes, Undivided, VideoInfo
from pipeline.errors import VideoError

SCENES_AT_ONCE = 4  # whole pictures in a chunk, where the memory holds as many


@dataclass(frozen=True)
class SourceRequest:
    """All candidates of a source: the chunks of each and, last, a VideoInfo.

    uri: a video file, an image, a folder of numbered images or a pattern of some of its images
    (`pipeline.catalog.image_folders.is_image_pattern`), local or in an object store. boxes_uri: a MOT boxes file (frame from 1,
    id, x, y, w, h in pixels): each track id becomes a candidate, cropped from the frames. frame_rate: in place of
    `Sampling.frame_rate`.
    """

    uri: str
    boxes_uri: str | None = None
    frame_rate: float | None = None

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        ticks, rate = Ticks(sampling.rate), sampling.image_rate or sampling.rate
        return open_files(self.uri, self.boxes_uri, sampling, heartbeat, lambda number, count: ticks.take(number / rate))

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        tracks = None if self.boxes_uri is None else read_boxes(opened.boxes_bytes())
        reader = reader_of(opened, sampling, heartbeat)
        source_hash = hashed(opened, sampling, heartbeat)
        begin = functools.partial(Candidate, sampling=sampling, source_hash=source_hash, memory=memory)
        candidates = WholeFrame(self.uri, begin(None)) if tracks is None else TrackedPeople(tracks, sampling, begin)
        ticks, shape = Ticks(sampling.rate), None
        for frame in reader.frames():
            if ticks.take(frame.time_s) and (shape is None or candidates.wants(frame.number)):
                picture = frame.picture()
                shape = shape or picture.shape
                yield from candidates.add(frame, picture)
        reading = reader.reading()
        if shape is None:
            raise VideoError("no_frames", f"{self.uri} has no frames")
        yield from candidates.end()
        remarks = (*reading.remarks, *candidates.remarks)
        height, width = shape[:2]
        yield VideoInfo(reading.fps, reading.frames, width, height, source_hash, reading.passed_over, remarks)


@dataclass(frozen=True)
class FramesRequest:
    """Single frames of one candidate, a Chunk each; frame numbers that the source does not have are left out.

    track: its id in the boxes file, or None for the whole frame. wanted: frame numbers, each with the time that it had when it
    was sampled, in seconds, or None; with times, a frame far into a long recording is found without reading all before it. boxes:
    what to cut out of frames, by their numbers, in place of a track.
    """

    uri: str
    boxes_uri: str | None
    track: int | None
    wanted: Mapping[int, float | None]
    boxes: Mapping[int, Box] | None = None

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        boxes_uri = None if self.track is None else self.boxes_uri
        wanted = {0, *self.wanted}  # 0 tells the size
        return open_files(self.uri, boxes_uri, sampling, heartbeat, lambda number, count: number in wanted)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        boxes: Mapping[int, Box | np.ndarray] = self.boxes or {}
        if self.track is not None and self.boxes_uri is not None:
            frames, found = read_boxes(opened.boxes_bytes()).get(self.track, ((), ()))
            boxes = dict(zip((int(frame) for frame in frames), found, strict=True))
        reader = reader_of(opened, sampling, heartbeat)
        for frame in reader.frames_at({number: time for number, time in self.wanted.items() if number >= 0}):
            picture = frame.picture()
            crop = cropped(picture, boxes[frame.number], 1) if frame.number in boxes else picture
            if crop is not None:
                yield Candidate(self.track, sampling, memory=memory).only(frame, crop)


@dataclass(frozen=True)
class MomentRequest:
    """What a box shows at the time nearest to time_s, in seconds: a Chunk of one frame, and a VideoInfo.

    A time after the end raises VideoError, and so does a box that lies outside the picture.
    """

    uri: str
    box: Box
    time_s: float

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        rate = sampling.image_rate or sampling.rate

        def looked_at(number: int, count: int) -> bool:
            return number in (0, count - 1) or abs(number / rate - self.time_s) <= 1 / rate

        return open_files(self.uri, None, sampling, heartbeat, looked_at)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        frame = reader_of(opened, sampling, heartbeat).frame_near(self.time_s)
        picture = frame.picture()
        height, width = picture.shape[:2]
        crop = cropped(picture, self.box, sampling.min_box)
        if crop is None:
            edges = ",".join(f"{edge:g}" for edge in self.box)
            message = f"the box {edges} does not lie inside the {width} x {height} picture of {self.uri}"
            raise VideoError("boxes_outside_frame", message)
        yield Candidate(None, sampling, memory=memory).only(frame, crop)
        yield VideoInfo(1.0, 1, width, height, hashed(opened, sampling, heartbeat))


@dataclass(frozen=True)
class SceneRequest:
    """The whole pictures of a recording, so many a second as `Sampling.rate` says: a Chunk each few, and a VideoInfo.

    frame_rate: in place of `Sampling.frame_rate`. A picture of more than `Sampling.scene_pixels` raises VideoError.

    divide_s: a recording that is longer than some so many seconds is not read but divided, if that is safe: the answer is its
    stretches and the VideoInfo of the whole; else Undivided comes first. stretch: only the frames of that; the VideoInfo says
    nothing of the whole then, and what may not be as in reading the whole raises VideoError.
    """

    uri: str
    frame_rate: float | None = None
    divide_s: float | None = None
    stretch: Stretch | None = None

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        return SourceRequest(self.uri).open(sampling, heartbeat)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        if self.stretch is not None:
            yield from _of_stretch(self.stretch, opened, sampling, heartbeat, memory)
            return
        reader = reader_of(opened, sampling, heartbeat)
        source_hash = hashed(opened, sampling, heartbeat)
        if self.divide_s is not None and opened.images is None:
            divided = yield from _divided(self.divide_s, opened, sampling, heartbeat, source_hash)
            if divided:
                return
        looked_at = _Scenes(self.uri, sampling, source_hash, memory)
        yield from looked_at.chunks(reader.frames(), Ticks(sampling.rate))
        reading = reader.reading()
        if looked_at.shape == (0, 0, 0):
            raise VideoError("no_frames", f"{self.uri} has no frames")
        height, width = looked_at.shape[:2]
        info = VideoInfo(reading.fps, reading.frames, width, height, source_hash, reading.passed_over, reading.remarks)
        yield replace(info, last_s=looked_at.last_s, created=reader.created())


def _divided(
    seconds: float, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, source_hash: str | None
) -> Generator[Event, None, bool]:
    """The stretches of a recording that can be divided; returns whether it was."""
    from pipeline.decoding.dividing import DivisibleRecording  # PyAV with it, which only the decoder's child needs

    recording = DivisibleRecording(Path(opened.name), opened.uri, sampling, heartbeat, opened.file)
    divided = recording.divided(seconds, source_hash)
    if divided is None:
        return False
    if isinstance(divided, str):
        yield Undivided(divided)
        return False
    reading, (height, width) = divided.reading, divided.shape[:2]
    check_pixels(opened.uri, height, width, sampling)
    yield from divided.stretches
    info = VideoInfo(reading.fps, reading.frames, width, height, source_hash, reading.passed_over, reading.remarks)
    yield replace(info, last_s=divided.last_s, created=recording.created())
    return True


def _of_stretch(
    stretch: Stretch, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None
) -> Iterator[Event]:
    from pipeline.decoding.dividing import DivisibleRecording, ticks_of

    recording = DivisibleRecording(Path(opened.name), opened.uri, sampling, heartbeat, opened.file)
    looked_at = _Scenes(opened.uri, sampling, stretch.source_hash, memory)
    yield from looked_at.chunks(recording.frames_of(stretch), ticks_of(stretch, sampling))
    height, width = looked_at.shape[:2]
    yield VideoInfo(sampling.rate, stretch.frames, width, height, stretch.source_hash, last_s=looked_at.last_s)


class _Scenes:
    """Whole pictures in chunks. shape: height, width and 3 of the pictures, zeros until there is one; last_s: time of the last
    frame that came.
    """

    def __init__(self, uri: str, sampling: Sampling, source_hash: str | None, memory: FramesMemory | None) -> None:
        self.uri, self.sampling, self.source_hash, self.memory = uri, sampling, source_hash, memory
        self.shape: tuple[int, ...] = (0, 0, 0)
        self.last_s = 0.0

    def chunks(self, frames: Iterator[Frame], ticks: Ticks) -> Iterator[Chunk]:
        """A chunk each few of the frames that are looked at. Raises VideoError where pictures are too large."""
        waiting: list[Frame] = []
        number, at_once = 0, SCENES_AT_ONCE
        for frame in frames:
            self.last_s = frame.time_s
            if ticks.take(frame.time_s):
                waiting.append(frame)
                if self.shape == (0, 0, 0):
                    self.shape = frame.picture().shape
                    at_once = min(SCENES_AT_ONCE, check_pixels(self.uri, self.shape[0], self.shape[1], self.sampling))
                if len(waiting) == at_once:
                    yield _scenes(waiting, number, self.shape, self.source_hash, self.memory)
                    waiting, number = [], number + 1
        if waiting:
            yield _scenes(waiting, number, self.shape, self.source_hash, self.memory)


def check_pixels(uri: str, height: int, width: int, sampling: Sampling) -> int:
    """How many pictures of this size may be looked at together. Raises VideoError where it is none."""
    at_once = sampling.scene_pixels // (height * width)
    if at_once == 0:
        raise VideoError("too_large", f"the pictures of {uri} have {width} x {height} pixels")
    return at_once


def _scenes(
    looked_at: list[Frame], number: int, shape: tuple[int, ...], source_hash: str | None, memory: FramesMemory | None
) -> Chunk:
    """Whole pictures as a chunk. shape: height, width, 3."""
    taken = (len(looked_at), *shape[:2])
    frames = np.empty((*taken, 3), np.uint8) if memory is None else memory(*taken)
    for place, frame in enumerate(looked_at):
        frames[place] = frame.picture()
    index = np.array([frame.number for frame in looked_at], np.int32)
    times = np.array([frame.time_s for frame in looked_at], np.float32)
    return Chunk(None, number, False, index, times, frames, source_hash)


@dataclass(frozen=True)
class ClipRequest:
    """A stretch of a source as a clip that browsers play: a ClipStart and ClipParts (`pipeline.decoding.clips`).

    start_s, end_s: seconds from the source's start. boxes: (seconds, box) ascending, of whom is cut out; (): whole pictures.
    frame_rate: in place of `Sampling.frame_rate`. blanks: what is not shown, in seconds of the source. small: a clip that is sent
    along with a page, some 25 kB for 4 s. Raises VideoError "no_frames" where the source ended before.
    """

    uri: str
    start_s: float
    end_s: float
    boxes: tuple[tuple[float, Box], ...] = ()
    frame_rate: float | None = None
    blanks: tuple[Blank, ...] = ()
    small: bool = False

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        rate = sampling.image_rate or sampling.rate

        def looked_at(number: int, count: int) -> bool:
            return number == 0 or self.start_s - 1 / rate <= number / rate <= self.end_s

        return open_files(self.uri, None, sampling, heartbeat, looked_at)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        from pipeline.decoding.clips import clip  # PyAV with it, which only the decoder's child needs

        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        reader = reader_of(opened, sampling, heartbeat)
        frames = reader.frames_between(self.start_s, self.end_s)
        yield from clip(frames, self.start_s, self.boxes, lambda: reader.pixel_aspect, self.blanks, self.small)


@dataclass(frozen=True)
class StillRequest:
    """One picture of a source for browsers: a ClipStart and a ClipPart, JPEG.

    number: of the frame, and time_s, the time that it had, in seconds, as in `FramesRequest`. box: what is cut out of it, if
    anything; fits: pixels that the sides of a whole picture have at most; blanks: as in `ClipRequest`. Raises VideoError
    "no_frames" where the source has no such frame.
    """

    uri: str
    number: int
    time_s: float | None = None
    box: Box | None = None
    frame_rate: float | None = None
    fits: tuple[int, int] | None = None
    blanks: tuple[Blank, ...] = ()

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        return open_files(self.uri, None, sampling, heartbeat, lambda number, count: number in (0, self.number))

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        from pipeline.decoding.clips import SCENE_SIZE, still  # PyAV with it, which only the decoder's child needs

        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        reader = reader_of(opened, sampling, heartbeat)
        boxes = () if self.box is None else ((0.0, self.box),)
        frames = reader.frames_at({self.number: self.time_s})
        yield from still(frames, boxes, lambda: reader.pixel_aspect, self.fits or SCENE_SIZE, self.blanks)


@dataclass(frozen=True)
class TrackRequest:
    """Where a track of a boxes file is: one TrackBoxes, empty where the file has no such track."""

    uri: str
    track: int

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        return open_boxes(self.uri, sampling, heartbeat)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        found = read_boxes(opened.boxes_bytes()).get(self.track)
        if found is None:
            yield TrackBoxes((), ())
        else:
            boxes = tuple((float(x), float(y), float(w), float(h)) for x, y, w, h in found.boxes)
            yield TrackBoxes(tuple(found.frames.tolist()), boxes)


Request = SourceRequest | FramesRequest | MomentRequest | SceneRequest | ClipRequest | StillRequest | TrackRequest
