"""A decoder child that misbehaves on files of certain names, for tests/decoding/test_video.py and
tests/decoding/test_sandbox.py."""

import ctypes
import importlib
import json
import os
import pickle
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.decoding import child as decoder_child
from pipeline.decoding.messages import Job
from pipeline.decoding.opening import Opened
from pipeline.decoding.reading import Heartbeat
from pipeline.decoding.requests import Request
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Event


class Taken:
    """Unpickled, it would end the process."""

    def __reduce__(self) -> tuple[Callable[[int], object], tuple[int]]:
        return os._exit, (9,)


def say(data: bytes) -> None:
    """Send bytes as one message."""
    os.write(int(sys.argv[-2]), struct.pack("!i", len(data)) + data)
    time.sleep(3600)


def chunk_of(count: int, height: int, width: int) -> bytes:
    """A message of so many frames of this size."""
    chunk = {"track": None, "number": 0, "last": True, "frame_index": [0] * count, "time_s": [0.0] * count}
    return json.dumps(["Chunk", chunk | {"frames": [height, width]}]).encode()


def compute(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def raise_(error: Exception) -> None:
    raise error


DEEDS: dict[str, Callable[[], object]] = {
    "crash": lambda: ctypes.string_at(0),
    "hang": lambda: time.sleep(3600),
    "compute": lambda: compute(3600),
    "compute a little": lambda: compute(1.5),
    "a bug": lambda: raise_(TypeError("made up")),
    "a module is missing": lambda: importlib.import_module("no_such_module") and None,
    "damage": lambda: raise_(ValueError("made up")),
    "a pickle": lambda: say(pickle.dumps(Taken())),
    "nonsense": lambda: say(b'["Chunk", [1, 2]]'),
    "too many frames": lambda: say(chunk_of(100, 2160, 3840)),
    "frames of another size": lambda: say(chunk_of(1, 8, 8)),
    "half a message": lambda: os.write(int(sys.argv[-2]), struct.pack("!i", 1000) + b"half") and time.sleep(3600),
}


@dataclass(frozen=True)
class Misbehaving:
    """A request that does what its file's name says before it is answered."""

    request: Request
    uri: str

    def answer(self, opened: Opened, sampling: Sampling, heartbeat: Heartbeat, *others: Any) -> Iterator[Event]:
        name = Path(opened.name).stem
        DEEDS.get(name, lambda: None)()
        for _ in range(20 if name == "slow and alive" else 0):
            time.sleep(0.2)
            heartbeat()
        yield from self.request.answer(opened, sampling, heartbeat, *others)


def main(channel: int, memory: int) -> None:
    events = decoder_child._events

    def misbehaving(job: Job, *others: Any) -> Iterator[Event]:
        return events(replace(job, request=Misbehaving(job.request, job.request.uri)), *others)  # type: ignore[arg-type]

    decoder_child._events = misbehaving
    decoder_child.main(channel, memory)
