"""One video -> sampled frames, cropped and resized, in pieces of bounded size; every failure becomes a reason.

Runs inside the child process that `pipeline.decoder` starts, so a decoder that crashes or hangs costs one video. A *piece* is
up to `Sampling.piece` frames of one candidate; a candidate is the whole frame, or one track of a boxes file.
"""

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pyarrow.fs import FileType

from pipeline.boxes import clip_box, read_boxes
from pipeline.catalog import IMAGE_SUFFIXES
from pipeline.errors import UsageError, VideoError
from pipeline.storage import Location, StorageError, resolve

BATCH_BYTES = 64 << 20  # full-size frames decoded at a time
PROGRESS_FRAMES = 100
# How files of the containers begin that cameras and tools write. Nothing else is opened: FFmpeg would also draw a text file as
# a picture, and follow a playlist to other files.
CONTAINER_MAGIC = re.compile(
    rb".{4}(ftyp|moov|mdat|wide|free|skip|pnot|uuid|styp)"  # MP4, MOV, 3GP
    rb"|\x1a\x45\xdf\xa3|RIFF.{4}AVI |FLV|OggS|DKIF|YUV4MPEG2|\x06\x0e\x2b\x34"  # Matroska and WebM, AVI, FLV, Ogg, IVF, Y4M, MXF
    rb"|\x30\x26\xb2\x75",  # ASF and WMV
    re.DOTALL,
)
STREAM_MAGIC = re.compile(rb"\x47|.{4}\x47|\x00\x00\x01[\xba\xb3]|\x00\x00\x00?\x01", re.DOTALL)  # MPEG-TS, M2TS, MPEG-PS, raw


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are looked at, in what size, and the limits past which a video is refused.

    rate: sampled frames a second of video; a video with fewer frames a second gives all of them.
    image_rate: frames a second of a folder of images; None: the folder is taken as already sampled, each image counts.
    height, width: pixels of a frame handed to the backbone.
    piece: frames a piece. max_frames: sampled frames a candidate. max_bytes: size of a video file in bytes.
    min_box: pixels of a box that must lie inside the frame, in each direction, for it to count.
    time_limit: seconds without progress after which a video is given up. memory_limit: bytes that decoding may take.
    """

    rate: float = 10.0
    image_rate: float | None = None
    height: int = 256
    width: int = 128
    piece: int = 64
    max_frames: int = 20_000
    max_bytes: int = 16 << 30
    min_box: int = 8
    time_limit: float = 60.0
    memory_limit: int = 3 << 30

    def __post_init__(self) -> None:
        positive = (
            "rate",
            "height",
            "width",
            "piece",
            "max_frames",
            "max_bytes",
            "min_box",
            "time_limit",
            "memory_limit",
        )
        for name in (*positive, *(["image_rate"] if self.image_rate is not None else [])):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name.replace('_', ' ')} must be a positive number, not {getattr(self, name)}")


@dataclass(frozen=True)
class VideoInfo:
    """What the container says: frames a second, frames in all, frame width and height in pixels."""

    fps: float
    source_frames: int
    width: int
    height: int


@dataclass(frozen=True)
class Piece:
    """Consecutive sampled frames of one candidate.

    track: the track id, or None for the whole frame. number: 0, 1, ... within the candidate; last: no piece follows.
    frame_index: int32 [n], frames of the source from 0. time_s: float32 [n], seconds from the video's first frame.
    frames: uint8 [n, height, width, 3], RGB.
    """

    track: int | None
    number: int
    last: bool
    frame_index: np.ndarray
    time_s: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class Rejected:
    """A candidate (track) or, with track None, the whole source that cannot be used, and why."""

    track: int | None
    reason: str
    message: str


@dataclass(frozen=True)
class Progress:
    """Decoding goes on; nothing to hand over yet."""


Event = VideoInfo | Piece | Rejected | Progress


def sample_times(times: np.ndarray, rate: float) -> np.ndarray:
    """Frames to look at: of each 1/rate seconds of video, the first frame.

    times: float64 [n], seconds, ascending. Returns int64 [m], m <= n, ascending. Decided from the frames' own times, so
    a variable frame rate is sampled evenly in time.
    """
    if len(times) == 0:
        return np.empty(0, np.int64)
    ticks = np.floor((times - times[0]) * rate + 1e-3)
    return np.flatnonzero(np.diff(ticks, prepend=-1.0) > 0)


def read_pieces(uri: str, boxes_uri: str | None, sampling: Sampling) -> Iterator[Event]:
    """Decode one source: first its VideoInfo, then the pieces of every candidate in it.

    uri: a video file or a folder of numbered images, local or in an object store. boxes_uri: a MOT boxes file (frame from 1,
    id, x, y, w, h in pixels): each track id becomes a candidate, cropped from the frames. Raises VideoError for what spoils
    the whole source; what spoils one track is a Rejected event.
    """
    with contextlib.ExitStack() as stack:
        reader = yield from _open(uri, sampling, stack)
        selected = reader.sampled(sampling)
        if len(selected) == 0:
            raise VideoError("no_frames", f"{uri} has no frames")
        first = reader.read(selected[:1])
        yield VideoInfo(reader.fps, len(reader.times), first.shape[2], first.shape[1])
        batch = max(1, min(sampling.piece, BATCH_BYTES // first[0].nbytes))
        if boxes_uri is None:
            yield from _whole_frames(uri, reader, selected, batch, sampling)
        else:
            yield from _tracks(boxes_uri, reader, selected, batch, sampling)


def read_frames(uri: str, boxes_uri: str | None, track: int | None, indices: list[int], sampling: Sampling) -> Iterator[Event]:
    """Single frames of one candidate, one Piece each; frame numbers that the source does not have are left out.

    track: its id in the boxes file, or None for the whole frame. Raises VideoError.
    """
    boxes = {}
    if track is not None and boxes_uri is not None:
        frames, found = read_boxes(resolve(boxes_uri)).get(track, ((), ()))
        boxes = dict(zip((int(frame) for frame in frames), found, strict=True))
    with contextlib.ExitStack() as stack:
        reader = yield from _open(uri, sampling, stack)
        for index in sorted(index for index in indices if 0 <= index < len(reader.times)):
            frame = reader.read(np.array([index]))[0]
            if index in boxes:
                crop = clip_box(boxes[index], frame.shape[1], frame.shape[0], 1)
                if crop is None:
                    continue
                frame = frame[crop[1] : crop[3], crop[0] : crop[2]]
            yield from _Candidate(track, 1, sampling).add(index, reader.times[index], frame)


def _whole_frames(uri: str, reader: "Reader", selected: np.ndarray, batch: int, sampling: Sampling) -> Iterator[Event]:
    if len(selected) > sampling.max_frames:
        raise VideoError("too_large", _too_many(f"{uri} has", len(selected), sampling))
    candidate = _Candidate(None, len(selected), sampling)
    for start in range(0, len(selected), batch):
        indices = selected[start : start + batch]
        for index, frame in zip(indices, reader.read(indices), strict=True):
            yield from candidate.add(index, reader.times[index], frame)
        yield Progress()


def _tracks(boxes_uri: str, reader: "Reader", selected: np.ndarray, batch: int, sampling: Sampling) -> Iterator[Event]:
    tracks = read_boxes(resolve(boxes_uri))
    boxes_of_frame: dict[int, list[tuple[int, tuple[int, int, int, int]]]] = {}
    candidates: dict[int, _Candidate] = {}
    sampled = set(selected.tolist())
    height, width = reader.read(selected[:1]).shape[1:3]
    for track, (frames, boxes) in tracks.items():
        seen = [(int(f), b) for f, b in zip(frames, boxes, strict=True) if int(f) in sampled]
        usable = [(f, c) for f, b in seen if (c := clip_box(b, width, height, sampling.min_box)) is not None]
        if len(usable) > sampling.max_frames:
            yield Rejected(track, "too_large", _too_many(f"track {track} has", len(usable), sampling))
        elif usable:
            candidates[track] = _Candidate(track, len(usable), sampling)
            for frame, box in usable:
                boxes_of_frame.setdefault(frame, []).append((track, box))
        elif seen:
            yield Rejected(track, "boxes_outside_frame", f"no box of track {track} lies inside the {width} x {height} frame")
        else:
            yield Rejected(track, "no_frames", f"no sampled frame of the video has a box of track {track}")
    needed = selected[np.isin(selected, list(boxes_of_frame))]
    for start in range(0, len(needed), batch):
        indices = needed[start : start + batch]
        for index, frame in zip(indices, reader.read(indices), strict=True):
            for track, (x0, y0, x1, y1) in boxes_of_frame[int(index)]:
                yield from candidates[track].add(index, reader.times[index], frame[y0:y1, x0:x1])
        yield Progress()


def _too_many(subject: str, frames: int, sampling: Sampling) -> str:
    limit = f"the limit is {sampling.max_frames} (--max-frames)"
    return f"{subject} {frames} frames at {sampling.rate:g} a second; {limit}: lower the rate, cut it, or raise the limit"


@dataclass
class _Candidate:
    """Collects one candidate's crops and hands them on a piece at a time."""

    track: int | None
    total: int
    sampling: Sampling
    number: int = 0
    done: int = 0
    indices: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)

    def add(self, index: int, time: float, frame: np.ndarray) -> Iterator[Piece]:
        self.indices.append(int(index))
        self.times.append(float(time))
        self.frames.append(resize(frame, self.sampling.height, self.sampling.width))
        self.done += 1
        last = self.done == self.total
        if last or len(self.frames) == self.sampling.piece:
            times = np.array(self.times, np.float32)
            yield Piece(self.track, self.number, last, np.array(self.indices, np.int32), times, np.stack(self.frames))
            self.number += 1
            self.indices, self.times, self.frames = [], [], []


def resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [height, width, 3]; area averaging when it shrinks, bilinear when it grows."""
    if frame.shape[:2] == (height, width):
        return frame
    shrinks = frame.shape[0] * frame.shape[1] > height * width
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


class Reader:
    """An open source. times: float64 [frames], seconds from the first frame; fps: frames a second."""

    times: np.ndarray
    fps: float

    def sampled(self, sampling: Sampling) -> np.ndarray:
        """int64 [m]: the frames to look at."""
        return sample_times(self.times, sampling.rate)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3], RGB. Raises VideoError."""
        raise NotImplementedError


class FileReader(Reader):
    """A video file through decord."""

    def __init__(self, path: Path, uri: str) -> None:
        import decord

        self.uri = uri
        self.error = decord.DECORDError
        try:
            self.video = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        except (RuntimeError, self.error) as error:
            raise _cannot_open(path, uri, error) from error
        self.fps = float(self.video.get_avg_fps())
        if not 0 < self.fps < 1000:
            self.fps = 25.0
        frames = len(self.video)
        spans = self.video.get_frame_timestamp(np.arange(frames)) if frames else []
        self.times = checked_times(np.asarray(spans, np.float64).reshape(-1, 2)[:, 0], self.fps)

    def read(self, indices: np.ndarray) -> np.ndarray:
        try:
            return self.video.get_batch(indices.tolist()).asnumpy()
        except (RuntimeError, self.error) as error:
            where = f"between {self.times[indices[0]]:.1f} s and {self.times[indices[-1]]:.1f} s"
            raise VideoError("truncated", f"{self.uri} is damaged or cut off {where} and cannot be decoded there") from error


class StreamReader(Reader):
    """A stream without an index (MPEG-TS, or raw H.264 and HEVC as cameras leave it behind) through PyAV, from front to back.

    decord opens no raw stream and fails to seek in transport streams. There is no index to count the frames from, so the stream
    is decoded once for their times and once more for the frames; packets that are damaged are passed over.
    """

    def __init__(self, path: Path, uri: str) -> None:
        import av

        self.path, self.uri, self.errors = path, uri, (av.FFmpegError, OSError)
        self.decoded: Iterator[Any] = iter(())
        self.next = 0
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise VideoError("not_a_video", f"{uri} has no video stream")
                self.fps = float(container.streams.video[0].average_rate or 25)
        except self.errors as error:
            raise VideoError("truncated", f"{uri} is a damaged or cut-off stream: {error}") from error

    def count_frames(self) -> Iterator[Event]:
        """Decode the stream once for the times of its frames; must be run through before anything is read."""
        stamps: list[float] = []
        try:
            for frame in self._frames():
                stamps.append(np.nan if frame.time is None else frame.time)
                if len(stamps) % PROGRESS_FRAMES == 0:
                    yield Progress()
        except self.errors as error:
            raise VideoError("truncated", f"{self.uri} is a damaged or cut-off stream: {error}") from error
        self.times = checked_times(np.array(stamps, np.float64), self.fps)

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = []
        for index in indices.tolist():
            if index < self.next:
                self.decoded, self.next = iter(()), 0
            if self.next == 0:
                self.decoded = self._frames()
            frame = next(itertools.islice(self.decoded, index - self.next, None), None)
            if frame is None:
                raise VideoError("truncated", f"{self.uri} decodes differently the second time; it is damaged")
            self.next = index + 1
            frames.append(frame.to_ndarray(format="rgb24"))
        return np.stack(frames)

    def _frames(self) -> Iterator[Any]:
        import av

        with av.open(str(self.path)) as container:
            for packet in container.demux(video=0):
                with contextlib.suppress(av.error.InvalidDataError):
                    yield from packet.decode()


def checked_times(stamps: np.ndarray, fps: float) -> np.ndarray:
    """Time stamps as seconds from the first frame, float64 [n]; counted from fps where the container's make no sense."""
    if not np.all(np.isfinite(stamps)) or np.any(np.diff(stamps) <= 0):
        stamps = np.arange(len(stamps)) / fps
    return stamps - stamps[0] if len(stamps) else stamps


class ImagesReader(Reader):
    """A folder of numbered images, in the order of their numbers."""

    def __init__(self, location: Location, sampling: Sampling) -> None:
        self.fps = sampling.image_rate or sampling.rate
        images = [file for file in location.list() if file.name.lower().endswith(tuple(IMAGE_SUFFIXES))]
        self.images = sorted(images, key=lambda file: image_order(file.name))
        self.times = np.arange(len(self.images)) / self.fps

    def read(self, indices: np.ndarray) -> np.ndarray:
        frames = [self._image(int(index)) for index in indices]
        height, width = frames[0].shape[:2]  # images of a tracklet may differ in size; the first one's is the video's
        return np.stack([resize(frame, height, width) for frame in frames])

    def _image(self, index: int) -> np.ndarray:
        data = self.images[index].read_bytes()
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if frame is None:
            raise VideoError("unreadable_image", f"{self.images[index].uri} is not an image that can be read")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def image_order(name: str) -> tuple[list[int], str]:
    """Sort key of a numbered image: all numbers in its name, compared as numbers, then the name."""
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def _open(uri: str, sampling: Sampling, stack: contextlib.ExitStack) -> Generator[Event, None, Reader]:
    """The opened source; what takes long (a copy from an object store, counting a stream's frames) tells its progress."""
    try:
        location = resolve(uri)
        info = location.info()
        if info.type == FileType.Directory:
            return ImagesReader(location, sampling)
        if info.type == FileType.NotFound:
            raise VideoError("missing", f"{uri} does not exist")
        if info.size == 0:
            raise VideoError("empty", f"{uri} is an empty file")
        if info.size > sampling.max_bytes:
            raise VideoError("too_large", f"{uri} has {info.size} bytes; the limit is {sampling.max_bytes} (--max-bytes)")
        path = Path(location.path) if location.is_local else (yield from _local_copy(location, stack))
        with location.open_input():  # a refusal to read is told apart from damage here; decord would mix them up
            if not _is_stream(path, uri):
                return FileReader(path, uri)
            stream = StreamReader(path, uri)
            yield from stream.count_frames()
            return stream
    except StorageError as error:
        reason = error.kind if error.kind in ("missing", "permission_denied") else "undecodable"
        raise VideoError(reason, str(error)) from error


def _local_copy(location: Location, stack: contextlib.ExitStack) -> Generator[Event, None, Path]:
    """An object as a temporary file: decord needs to seek, and seeking over the network costs more than one pass."""
    copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=Path(location.path).suffix))  # noqa: SIM115
    with location.open_input() as stream:
        while block := stream.read(16 << 20):
            copy.write(block)
            yield Progress()
    copy.flush()
    return Path(copy.name)


def _is_stream(path: Path, uri: str) -> bool:
    """Whether the file is a stream without an index rather than a container with one. Raises VideoError for what is no video."""
    with path.open("rb") as file:
        start = file.read(64)
    if STREAM_MAGIC.match(start):
        return True
    if not CONTAINER_MAGIC.match(start):
        raise VideoError("not_a_video", f"{uri} is not in a video format that is read")
    return False


def _cannot_open(path: Path, uri: str, error: Exception) -> VideoError:
    """Why decord does not open a file that begins like a video."""
    import av

    with contextlib.suppress(av.FFmpegError, OSError), av.open(str(path)) as container:
        if not container.streams.video:
            return VideoError("not_a_video", f"{uri} has no video stream")
    said = str(error).strip().splitlines()[-1].split("] ")[-1]
    return VideoError("truncated", f"{uri} is a damaged or cut-off video: {said}")


def limit_memory(limit: int) -> None:
    """Let this process take at most `limit` bytes more than it has now, so that a decompression bomb ends only itself."""
    import resource

    with Path("/proc/self/statm").open() as statm:
        taken = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + limit, resource.RLIM_INFINITY))
