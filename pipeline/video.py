"""One video -> sampled frames, cropped and resized, in pieces of bounded size; every failure becomes a reason.

Runs inside the child process that `pipeline.decoder` starts, so a decoder that crashes or hangs costs one video. A *piece* is
up to `Sampling.piece` frames of one candidate; a candidate is the whole frame, or one track of a boxes file.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.boxes import clip_box, read_boxes
from pipeline.errors import VideoError
from pipeline.readers import Progress, Reader, hashed, open_source, refuse_outside
from pipeline.sampling import Sampling, resize
from pipeline.storage import resolve

BATCH_BYTES = 64 << 20  # full-size frames decoded at a time


@dataclass(frozen=True)
class VideoInfo:
    """What the container says: frames a second, frames in all, frame width and height in pixels.

    source_hash: of the bytes, just before they are decoded (`pipeline.provenance.source_hash`), None for images in object stores.
    """

    fps: float
    source_frames: int
    width: int
    height: int
    source_hash: str | None = None


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


Event = VideoInfo | Piece | Rejected | Progress


def read_pieces(uri: str, boxes_uri: str | None, sampling: Sampling) -> Iterator[Event]:
    """Decode one source: its VideoInfo, then the pieces of every candidate in it, and Progress between them all.

    uri: a video file, a folder of numbered images or a pattern of some of its images (`pipeline.catalog.is_image_pattern`), local
    or in an object store. boxes_uri: a MOT boxes file (frame from 1, id, x, y, w, h in pixels): each track id becomes a
    candidate, cropped from the frames. Raises VideoError for what spoils the whole source; what spoils one track is a Rejected
    event.
    """
    with contextlib.ExitStack() as stack:
        reader = yield from open_source(uri, sampling, stack)
        source_hash = yield from hashed(reader)
        selected = reader.sampled(sampling)
        if len(selected) == 0:
            raise VideoError("no_frames", f"{uri} has no frames")
        first = reader.read(selected[:1])
        yield VideoInfo(reader.fps, len(reader.times), first.shape[2], first.shape[1], source_hash)
        batch = max(1, min(sampling.piece, BATCH_BYTES // first[0].nbytes))
        if boxes_uri is None:
            yield from _whole_frames(uri, reader, selected, first, batch, sampling)
        else:
            yield from _tracks(boxes_uri, reader, selected, first, batch, sampling)


def read_frames(uri: str, boxes_uri: str | None, track: int | None, indices: list[int], sampling: Sampling) -> Iterator[Event]:
    """Single frames of one candidate, one Piece each; frame numbers that the source does not have are left out.

    track: its id in the boxes file, or None for the whole frame. Raises VideoError.
    """
    boxes = {}
    if track is not None and boxes_uri is not None:
        refuse_outside(boxes_uri, sampling)
        frames, found = read_boxes(resolve(boxes_uri)).get(track, ((), ()))
        boxes = dict(zip((int(frame) for frame in frames), found, strict=True))
    with contextlib.ExitStack() as stack:
        reader = yield from open_source(uri, sampling, stack)
        for index in sorted(index for index in indices if 0 <= index < len(reader.times)):
            frame = reader.read(np.array([index]))[0]
            if index in boxes:
                crop = clip_box(boxes[index], frame.shape[1], frame.shape[0], 1)
                if crop is None:
                    continue
                frame = frame[crop[1] : crop[3], crop[0] : crop[2]]
            yield from _Candidate(track, 1, sampling).add(index, reader.times[index], frame)


def _in_batches(reader: Reader, indices: np.ndarray, decoded: np.ndarray, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames with their numbers, up to `batch` at a time. decoded: those that the indices begin with, if they are there already:
    the reader goes on behind them instead of going back.
    """
    if len(decoded):
        yield indices[: len(decoded)], decoded
    for start in range(len(decoded), len(indices), batch):
        yield indices[start : start + batch], reader.read(indices[start : start + batch])


def _whole_frames(
    uri: str, reader: Reader, selected: np.ndarray, first: np.ndarray, batch: int, sampling: Sampling
) -> Iterator[Event]:
    if len(selected) > sampling.max_frames:
        raise VideoError("too_large", _too_many(f"{uri} has", len(selected), sampling))
    candidate = _Candidate(None, len(selected), sampling)
    for indices, frames in _in_batches(reader, selected, first, batch):
        for index, frame in zip(indices, frames, strict=True):
            yield from candidate.add(index, reader.times[index], frame)
        yield Progress()


def _tracks(
    boxes_uri: str, reader: Reader, selected: np.ndarray, first: np.ndarray, batch: int, sampling: Sampling
) -> Iterator[Event]:
    refuse_outside(boxes_uri, sampling)
    tracks = read_boxes(resolve(boxes_uri))
    boxes_of_frame: dict[int, list[tuple[int, tuple[int, int, int, int]]]] = {}
    candidates: dict[int, _Candidate] = {}
    sampled = set(selected.tolist())
    height, width = first.shape[1:3]
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
    decoded = first if len(needed) and needed[0] == selected[0] else first[:0]
    for indices, frames in _in_batches(reader, needed, decoded, batch):
        for index, frame in zip(indices, frames, strict=True):
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


def limit_memory(limit: int) -> None:
    """Let this process take at most `limit` bytes more than it has now, so that a decompression bomb ends only itself."""
    import resource

    with Path("/proc/self/statm").open() as statm:
        taken = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (taken + limit, resource.RLIM_INFINITY))
