"""What can be asked of a source. `open` runs in the parent, which may open files; `answer` in the child, which may decode them.

A source is read once, front to back: what is sampled is decided as its frames come. Both raise VideoError for what spoils all of
it, with one of `pipeline.catalog.inputs.REJECT_REASONS`; what spoils one track is a Rejected event. Both call a heartbeat while
there is nothing to hand over. `answer` puts the frames of its chunks into `memory`, see `pipeline.decoding.candidates.Candidate`.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from pipeline.decoding.boxes import cropped, read_boxes
from pipeline.decoding.candidates import Candidate, FramesMemory, TrackedPeople, WholeFrame
from pipeline.decoding.opening import Opened, open_boxes, open_files
from pipeline.decoding.readers import hashed, reader_of
from pipeline.decoding.reading import Frame, Heartbeat
from pipeline.decoding.sampling import Sampling, Ticks
from pipeline.decoding.video import Box, Chunk, Event, TrackBoxes, VideoInfo
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
    """

    uri: str
    frame_rate: float | None = None

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        return SourceRequest(self.uri).open(sampling, heartbeat)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        reader = reader_of(opened, sampling, heartbeat)
        source_hash = hashed(opened, sampling, heartbeat)
        ticks, shape, last_s, number = Ticks(sampling.rate), (0, 0, 0), 0.0, 0
        looked_at: list[Frame] = []
        at_once = SCENES_AT_ONCE
        for frame in reader.frames():
            last_s = frame.time_s
            if ticks.take(frame.time_s):
                looked_at.append(frame)
                if shape == (0, 0, 0):
                    shape = frame.picture().shape
                    at_once = min(SCENES_AT_ONCE, sampling.scene_pixels // (shape[0] * shape[1]))
                    if at_once == 0:
                        raise VideoError("too_large", f"the pictures of {self.uri} have {shape[1]} x {shape[0]} pixels")
                if len(looked_at) == at_once:
                    yield _scenes(looked_at, number, shape, source_hash, memory)
                    looked_at, number = [], number + 1
        reading = reader.reading()
        if shape == (0, 0, 0):
            raise VideoError("no_frames", f"{self.uri} has no frames")
        if looked_at:
            yield _scenes(looked_at, number, shape, source_hash, memory)
        height, width = shape[:2]
        info = VideoInfo(reading.fps, reading.frames, width, height, source_hash, reading.passed_over, reading.remarks)
        yield replace(info, last_s=last_s, created=reader.created())


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
    frame_rate: in place of `Sampling.frame_rate`. small: a clip that is sent along with a page, some 25 kB for 4 s. Raises
    VideoError "no_frames" where the source ended before.
    """

    uri: str
    start_s: float
    end_s: float
    boxes: tuple[tuple[float, Box], ...] = ()
    frame_rate: float | None = None
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
        yield from clip(frames, self.start_s, self.boxes, lambda: reader.pixel_aspect, self.small)


@dataclass(frozen=True)
class StillRequest:
    """One picture of a source for browsers: a ClipStart and a ClipPart, JPEG.

    number: of the frame, and time_s, the time that it had, in seconds, as in `FramesRequest`. box: what is cut out of it, if
    anything. Raises VideoError "no_frames" where the source has no such frame.
    """

    uri: str
    number: int
    time_s: float | None = None
    box: Box | None = None
    frame_rate: float | None = None

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        return open_files(self.uri, None, sampling, heartbeat, lambda number, count: number in (0, self.number))

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        from pipeline.decoding.clips import still  # PyAV with it, which only the decoder's child needs

        if self.frame_rate is not None:
            sampling = replace(sampling, frame_rate=self.frame_rate)
        reader = reader_of(opened, sampling, heartbeat)
        boxes = () if self.box is None else ((0.0, self.box),)
        yield from still(reader.frames_at({self.number: self.time_s}), boxes, lambda: reader.pixel_aspect)


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
