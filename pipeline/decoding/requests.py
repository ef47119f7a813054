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
from pipeline.decoding.opening import Opened, open_files
from pipeline.decoding.readers import hashed, reader_of
from pipeline.decoding.reading import Heartbeat
from pipeline.decoding.sampling import Sampling, Ticks
from pipeline.decoding.video import Box, Event, VideoInfo
from pipeline.errors import VideoError


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
    was sampled, in seconds, or None; with times, a frame far into a long recording is found without reading all before it. box:
    what to cut out of every frame, in place of a track.
    """

    uri: str
    boxes_uri: str | None
    track: int | None
    wanted: Mapping[int, float | None]
    box: Box | None = None

    def open(self, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
        boxes_uri = None if self.track is None else self.boxes_uri
        wanted = {0, *self.wanted}  # 0 tells the size
        return open_files(self.uri, boxes_uri, sampling, heartbeat, lambda number, count: number in wanted)

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory | None) -> Iterator[Event]:
        boxes: Mapping[int, Box | np.ndarray] = dict.fromkeys(self.wanted, self.box) if self.box is not None else {}
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


Request = SourceRequest | FramesRequest | MomentRequest
