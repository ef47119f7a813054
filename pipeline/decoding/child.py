"""What the decoder's child does: requests and open files in, events out, in a process that can do little else."""

import contextlib
import ctypes
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pipeline.decoding.recording  # noqa: F401 - loaded now, so that the limit counts what videos take and not libraries
from pipeline.decoding.messages import END, UNCONFINED, mapped_frames, packed
from pipeline.decoding.opening import Opened
from pipeline.decoding.reading import Alive
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.sandbox import confine, limit_memory, limit_processor
from pipeline.decoding.video import Chunk, Event, Progress, Rejected, Request
from pipeline.errors import VideoError

HEARTBEAT_SECONDS = 0.5
PR_SET_PDEATHSIG = 1
# What damage of a video does not raise, but a fault of this code or its installation: it ends the child, and the parent tells.
FAULTS = (AssertionError, AttributeError, ImportError, NameError, TypeError)


def main(channel: int, memory: int) -> None:
    """Answer requests until the parent closes its end. channel: a descriptor of the socket; memory: of that for frames."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung child must not outlive its parent
    connection = Connection(channel)
    with contextlib.suppress(EOFError), socket.socket(fileno=os.dup(channel)) as files:
        _serve(connection, files, memory)


def _serve(connection: Connection, files: socket.socket, memory: int) -> None:
    sampling: Sampling = connection.recv()
    frames = mapped_frames(memory, sampling)
    if missing := confine():
        connection.send_bytes(packed(UNCONFINED, missing=", ".join(missing)))
    limit_memory(sampling.memory_limit)
    full, alive = False, _Heartbeat(connection)
    while True:
        if full:
            connection.recv()  # the frames are taken
            full = False
        request, opened = connection.recv()
        limit_processor(sampling.cpu_limit)
        with _received(opened, files) as held:
            for event in _events(request, sampling, alive, held):
                if isinstance(event, Chunk):
                    if full:
                        connection.recv()  # the frames are taken
                    frames[: len(event.frames)] = event.frames
                    full = True
                connection.send_bytes(packed(event))
        connection.send_bytes(packed(END))


def _received(opened: Opened, files: socket.socket) -> Opened:
    """An open source whose descriptors come through the socket."""
    count = len(opened.descriptors())
    return opened.received(socket.recv_fds(files, 1, count)[1] if count else [])


class _Heartbeat:
    """Tells the parent that work goes on, now and then."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.told = connection, 0.0

    def __call__(self) -> None:
        if (now := time.monotonic()) - self.told > HEARTBEAT_SECONDS:
            self.told = now
            self.connection.send_bytes(packed(Progress()))


def _events(request: Request, sampling: Sampling, alive: Alive, opened: Opened) -> Iterator[Event]:
    uri = request.uri
    try:
        yield from request.answer(sampling, alive, opened)
    except VideoError as error:
        yield Rejected(None, error.reason, error.message)
    except MemoryError:
        limit = f"{sampling.memory_limit >> 20} MiB (--memory-limit)"
        yield Rejected(None, "too_large", f"decoding {uri} takes more memory than {limit}")
    except FAULTS:
        raise
    except Exception as error:
        yield Rejected(None, "undecodable", f"{uri} cannot be decoded: {type(error).__name__}: {error}")
