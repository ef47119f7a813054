"""What the decoder's child does: jobs and open files in, events out, in a process that can do little else."""

import contextlib
import ctypes
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import numpy as np

import pipeline.decoding.recording  # noqa: F401 - loaded now, so that the limit counts what videos take and not libraries
from pipeline.decoding.candidates import FramesMemory
from pipeline.decoding.messages import End, Job, Progress, Unconfined, mapped_frames, packed, receive_job, shaped
from pipeline.decoding.reading import Heartbeat
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.sandbox import confine, limit_memory, limit_processor
from pipeline.decoding.video import Chunk, Event, Rejected
from pipeline.errors import VideoError

HEARTBEAT_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
# What damage of a video does not raise, but a fault of this code or its installation: it ends the child, and the parent tells.
FAULTS = (AssertionError, AttributeError, ImportError, NameError, TypeError)


def main(channel: int, memory: int) -> None:
    """Answer jobs until the parent closes its end. channel: a descriptor of the socket; memory: of that for frames."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung child must not outlive its parent
    with contextlib.suppress(EOFError):
        _serve(Connection(channel), memory)


def _serve(connection: Connection, memory: int) -> None:
    sampling: Sampling = connection.recv()
    frames = _SharedFrames(connection, mapped_frames(memory))
    if missing := confine():
        connection.send_bytes(packed(Unconfined(", ".join(missing))))
    limit_memory(sampling.memory_limit)
    heartbeat = _heartbeat(connection)
    while True:
        frames.wait_until_taken()
        job = receive_job(connection)
        limit_processor(sampling.cpu_limit)
        with job.opened:
            for event in _events(job, sampling, heartbeat, frames):
                frames.full |= isinstance(event, Chunk)
                connection.send_bytes(packed(event))
        connection.send_bytes(packed(End()))


class _SharedFrames:
    """The memory for frames, uint8 [bytes]; full while a chunk is in it that the parent has not taken out."""

    def __init__(self, connection: Connection, frames: np.ndarray) -> None:
        self.connection, self.frames, self.full = connection, frames, False

    def __call__(self, count: int, height: int, width: int) -> np.ndarray:
        self.wait_until_taken()
        return shaped(self.frames, count, height, width)

    def wait_until_taken(self) -> None:
        if self.full:
            self.connection.recv()
            self.full = False


def _heartbeat(connection: Connection) -> Heartbeat:
    """What tells the parent that work goes on, at most every HEARTBEAT_SECONDS, however often it is called."""
    told = 0.0

    def beat() -> None:
        nonlocal told
        if (now := time.monotonic()) - told > HEARTBEAT_SECONDS:
            told = now
            connection.send_bytes(packed(Progress()))

    return beat


def _events(job: Job, sampling: Sampling, heartbeat: Heartbeat, memory: FramesMemory) -> Iterator[Event]:
    uri = job.request.uri
    try:
        yield from job.request.answer(job.opened, sampling, heartbeat, memory)
    except VideoError as error:
        yield Rejected(None, error.reason, error.message)
    except MemoryError:
        limit = f"{sampling.memory_limit >> 20} MiB (--memory-limit)"
        yield Rejected(None, "too_large", f"decoding {uri} takes more memory than {limit}")
    except FAULTS:
        raise
    except Exception as error:
        yield Rejected(None, "undecodable", f"{uri} cannot be decoded: {type(error).__name__}: {error}")
