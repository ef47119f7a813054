"""What the decoder's child says, as JSON: its parent must not unpickle what comes from a process that reads untrusted files.

A message is a list of its kind and its fields. Frames are not in it: they go through memory that both processes map.
"""

import json
import mmap
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Event, Progress, Rejected, VideoInfo

END, UNCONFINED, FAULT = "End", "Unconfined", "Fault"
LONGEST = 64 << 20  # bytes of a message
_EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in (VideoInfo, Rejected, Progress)}


def packed(message: Event | str, **fields: Any) -> bytes:
    """An event without its frames, or a message of another kind with its fields."""
    if not isinstance(message, str):
        fields = vars(message)
        if isinstance(message, Chunk):
            fields = {**fields, "frame_index": message.frame_index.tolist(), "time_s": message.time_s.tolist(), "frames": None}
        message = type(message).__name__
    return json.dumps([message, fields]).encode()


def unpacked(data: bytes) -> tuple[str, Mapping[str, Any]]:
    """Kind and fields of a message. Raises ValueError."""
    kind, fields = json.loads(data)
    if not isinstance(kind, str) or not isinstance(fields, dict):
        raise ValueError("a message is its kind and its fields")
    return kind, fields


def event_of(kind: str, fields: Mapping[str, Any], frames: np.ndarray) -> Event:
    """The event of a message. frames: the memory for frames, uint8 [chunk, height, width, 3], of which a chunk gets a copy.

    Raises ValueError, KeyError or TypeError for what is no event.
    """
    if kind == Chunk.__name__:
        index, times = np.array(fields["frame_index"], np.int32), np.array(fields["time_s"], np.float32)
        if not index.shape == times.shape == (len(index),) or len(index) > len(frames):
            raise ValueError("a chunk has as many times as frames, and no more than the memory holds")
        return Chunk(**{**fields, "frame_index": index, "time_s": times, "frames": frames[: len(index)].copy()})
    event = _EVENTS[kind](**fields)
    return replace(event, remarks=tuple(event.remarks)) if isinstance(event, VideoInfo) else event


def frames_bytes(sampling: Sampling) -> int:
    """Bytes of the frames of the largest chunk."""
    return sampling.chunk * sampling.height * sampling.width * 3


def mapped_frames(memory: int, sampling: Sampling) -> np.ndarray:
    """The memory behind a file descriptor as uint8 [chunk, height, width, 3]; shared with whoever else maps it."""
    mapped = mmap.mmap(memory, frames_bytes(sampling))
    return np.frombuffer(mapped, np.uint8).reshape(sampling.chunk, sampling.height, sampling.width, 3)
