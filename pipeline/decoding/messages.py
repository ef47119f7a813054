"""What passes between a decoder and its child, a dataclass each.

The parent pickles what it says, since its child may trust it: a Sampling, then a Job per source, and Taken after each chunk. The
child answers in JSON, a list of a message's kind and its fields: who unpickles what comes from a process that reads untrusted
files runs what a forged pickle says. Frames are not in a message: they go through memory that both processes map.
"""

import base64
import fcntl
import json
import math
import mmap
import os
import socket
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any, get_args, get_type_hints

import numpy as np

from pipeline.decoding.opening import Opened
from pipeline.decoding.requests import Request
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, ClipPart, Event, Stretch, TrackBoxes, VideoInfo

LONGEST = 64 << 20  # bytes of a message


@dataclass(frozen=True)
class Job:
    """To the child: answer this request, from what is open for it. The descriptors follow over the socket (`send_job`)."""

    request: Request
    opened: Opened


@dataclass(frozen=True)
class Taken:
    """To the child: the frames of a chunk were taken out of the memory, which may be filled again."""


@dataclass(frozen=True)
class Progress:
    """Work goes on; nothing to hand over yet."""


@dataclass(frozen=True)
class End:
    """A job is done; no event of it follows."""


@dataclass(frozen=True)
class Unconfined:
    """What of its confinement the kernel refused to the child, in words."""

    missing: str


@dataclass(frozen=True)
class Fault:
    """The child's own code or its installation is at fault, and no video."""

    text: str


Answer = Event | Progress | End | Unconfined | Fault
_ANSWERS: dict[str, type[Answer]] = {kind.__name__: kind for kind in get_args(Answer)}


def send_job(connection: Connection, job: Job) -> None:
    """Send a job and the descriptors that it names. Raises OSError."""
    connection.send(job)
    if descriptors := job.opened.descriptors():
        with _socket(connection) as files:
            socket.send_fds(files, [b"f"], descriptors)


def receive_job(connection: Connection) -> Job:
    """The next job, with the descriptors as this process has them. Raises EOFError where none will come."""
    job: Job = connection.recv()
    if count := len(job.opened.descriptors()):
        with _socket(connection) as files:
            return replace(job, opened=job.opened.received(socket.recv_fds(files, 1, count)[1]))
    return job


def packed(answer: Answer) -> bytes:
    """An answer as it is sent, a chunk with the height and width of its frames in their place, bytes of a clip in base64."""
    fields = vars(answer)
    if isinstance(answer, ClipPart):
        fields = {"data": base64.b64encode(answer.data).decode()}
    if isinstance(answer, Chunk):
        numbers = {"frame_index": answer.frame_index.tolist(), "time_s": answer.time_s.tolist()}
        fields = {**fields, **numbers, "frames": answer.frames.shape[1:3]}
    return json.dumps([type(answer).__name__, fields]).encode()


def unpacked(data: bytes, frames: np.ndarray) -> Answer:
    """The answer in a message. Raises ValueError for what is none.

    frames: the memory for frames, uint8 [bytes], of which a chunk gets a copy.
    """
    try:
        kind, fields = json.loads(data)
        if kind == Chunk.__name__:
            fields = _with_frames(fields, frames)
        if kind == ClipPart.__name__:
            fields = {**fields, "data": base64.b64decode(fields["data"], validate=True)}
        if kind == TrackBoxes.__name__:
            fields = _checked_track(**fields)
        if kind == Stretch.__name__:
            fields = _checked_stretch(fields)
        answer = _ANSWERS[kind](**fields)
        return replace(answer, remarks=tuple(answer.remarks)) if isinstance(answer, VideoInfo) else answer
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not an answer of a decoder: {type(error).__name__}") from error


def _with_frames(fields: dict[str, Any], frames: np.ndarray) -> dict[str, Any]:
    index, times = np.array(fields["frame_index"], np.int32), np.array(fields["time_s"], np.float32)
    height, width = fields["frames"]
    sizes_are_meant = all(type(side) is int and side > 0 for side in (height, width))
    if not index.shape == times.shape == (len(index),) or not sizes_are_meant or len(index) * height * width * 3 > len(frames):
        raise ValueError("a chunk has as many times as frames, and no more than the memory holds")
    return {**fields, "frame_index": index, "time_s": times, "frames": shaped(frames, len(index), height, width).copy()}


def _checked_track(frames: list[int], boxes: list[list[float]]) -> dict[str, Any]:
    if len(frames) != len(boxes) or any(len(box) != 4 for box in boxes):
        raise ValueError("a track has a box for each of its frames")
    numbers = tuple(tuple(float(side) for side in box) for box in boxes)
    if not np.isfinite(numbers).all():
        raise ValueError("the sides of a box are numbers")
    return {"frames": tuple(int(frame) for frame in frames), "boxes": numbers}


def _checked_stretch(fields: dict[str, Any]) -> dict[str, Any]:
    """Another child is told of it, and others count with its numbers."""
    kinds = get_type_hints(Stretch)
    whole = [fields[name] for name, kind in kinds.items() if kind is int]
    seconds = [fields[name] for name, kind in kinds.items() if kind in (float, float | None) and fields[name] is not None]
    texts = [fields[name] for name, kind in kinds.items() if kind in (str, str | None) and fields[name] is not None]
    if not all(type(number) is int and abs(number) < 2**62 for number in whole) or not 0 <= fields["number"] < fields["of"]:
        raise ValueError("a stretch has a place among others")
    if not all(type(number) is float and math.isfinite(number) for number in seconds):
        raise ValueError("the times of a stretch are seconds")
    if None in (fields["zero"], fields["first_s"], fields["packets"]) or not all(type(text) is str for text in texts):
        raise ValueError("a stretch has a hash, and a place in time")
    return fields


def shaped(frames: np.ndarray, count: int, height: int, width: int) -> np.ndarray:
    """The beginning of the memory for frames as uint8 [count, height, width, 3]."""
    return frames[: count * height * width * 3].reshape(count, height, width, 3)


def _socket(connection: Connection) -> socket.socket:
    """The connection's socket under a descriptor of its own, which can be closed."""
    return socket.socket(fileno=os.dup(connection.fileno()))


def frames_memory(sampling: Sampling) -> tuple[int, np.ndarray]:
    """New memory for the frames of one chunk: a descriptor, to be closed, and what it maps (`mapped_frames`). Raises OSError."""
    memory = os.memfd_create("frames", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, sampling.frame_bytes)
    # Memory that the child could take away would end the parent when it reads it.
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return memory, mapped_frames(memory)


def mapped_frames(memory: int) -> np.ndarray:
    """The memory behind a file descriptor as uint8 [bytes]; shared with whoever else maps it."""
    return np.frombuffer(mmap.mmap(memory, 0), np.uint8)
