"""Decoding in a child process: a video that crashes, hangs or fills the memory costs that video only.

The child is `python -m pipeline.decoder SOCKET MEMORY`; it answers each request of `pipeline.video` with its events and is
renewed after a crash, after a time-out, and when it has kept so much memory that videos would no longer have what they may take.
The events come through the socket, the frames of a piece through memory that both processes map: the child waits until they are
taken out before it puts in the next. FFmpeg's chatter on stderr is dropped.
"""

import ctypes
import itertools
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from pipeline.errors import VideoError
from pipeline.reading import Alive
from pipeline.sampling import Sampling
from pipeline.video import (
    Box,
    Event,
    FramesRequest,
    MomentRequest,
    Piece,
    Progress,
    Rejected,
    Request,
    SourceRequest,
    limit_memory,
)

LEFT = 1 / 2  # of the memory that a video may take: a child that has less left for the next one is renewed
END, TAKEN = "end", "taken"
HEARTBEAT_SECONDS = 0.5
PACKAGE_ROOT = Path(__file__).resolve().parents[1]


class Decoder:
    """Decodes one video at a time in a child process. A context manager; not for several threads."""

    module = "pipeline.decoder"  # what the child runs

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._frames = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def start(self) -> None:
        """Begin the child, which takes 0.3 s, before there is a source; if it does not begin, the first source tells."""
        try:
            self._connect()
        except OSError:
            self.close()

    def events(self, uri: str, boxes_uri: str | None = None, frame_rate: float | None = None) -> Iterator[Event]:
        """The events of one source, see `pipeline.video.read_pieces`. frame_rate: in place of `Sampling.frame_rate`.

        Never raises for a bad video: what spoils all of it is a last event Rejected(None, reason, message).
        """
        yield from self._answers(SourceRequest(uri, boxes_uri, frame_rate))

    def moment(self, uri: str, box: Box, time_s: float) -> Iterator[Event]:
        """The events of what a box shows at one moment, see `pipeline.video.read_moment`; failures as those of `events`."""
        yield from self._answers(MomentRequest(uri, box, time_s))

    def frames(
        self,
        uri: str,
        boxes_uri: str | None,
        track: int | None,
        wanted: Sequence[int] | Mapping[int, float | None],
        box: Box | None = None,
    ) -> dict[int, np.ndarray]:
        """Single frames of one candidate: number -> RGB uint8 [height, width, 3]; those that cannot be read are left out.

        wanted: frame numbers; with the times that they had, in seconds, frames far into a recording are found sooner. box: cut
        out of every frame, in place of a track.
        """
        found: dict[int, np.ndarray] = {}
        times = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
        for event in self._answers(FramesRequest(uri, boxes_uri, track, times, box)):
            if isinstance(event, Piece):
                found.update(zip(event.frame_index.tolist(), event.frames, strict=True))
        return found

    def _answers(self, request: Request, again: bool = True) -> Iterator[Event]:
        """The events that a child answers. again: when it is killed from outside (SIGKILL, as by a machine short of memory, which
        no video sends), another one goes on once where it was.
        """
        finished, given, uri = False, 0, request.uri
        try:
            connection = self._connect()
            connection.send(request)
            while connection.poll(self.sampling.time_limit):
                event = connection.recv()
                if event == END:
                    finished = True
                    return
                if isinstance(event, Piece):
                    event = replace(event, frames=self._frames[: len(event.frame_index)].copy())
                    connection.send(TAKEN)
                given += not isinstance(event, Progress)
                yield event
            limit = f"{self.sampling.time_limit:g} s (--time-limit)"
            yield Rejected(None, "time_limit", f"decoding {uri} made no progress for {limit}")
        except (EOFError, OSError):  # OSError too: it died in the middle of an answer
            if again and self._exit_code() == -signal.SIGKILL:
                self.close()
                events = (event for event in self._answers(request, again=False) if not isinstance(event, Progress))
                yield from itertools.islice(events, given, None)
                return
            yield Rejected(None, "decoder_crash", f"the decoder {self._how_it_ended()} on {uri}")
        finally:
            if not finished:
                self.close()

    def close(self) -> None:
        """End the child process."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._connection = None

    def _connect(self) -> Connection:
        if self._has_grown():
            self.close()
        if self._connection is None:
            ours, theirs = socket.socketpair()
            paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            memory = os.memfd_create("frames")
            with theirs, os.fdopen(memory, "r+b") as file:
                file.truncate(frames_bytes(self.sampling))
                self._frames = mapped_frames(memory, self.sampling)
                inherited = [theirs.fileno(), memory]
                self._process = subprocess.Popen(
                    [sys.executable, "-m", self.module, *map(str, inherited)],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # Of many arenas each takes address space, which is what the memory limit counts, and keeps it.
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MALLOC_ARENA_MAX": "1"},
                )
            self._connection = Connection(ours.detach())
            self._connection.send(self.sampling)
        return self._connection

    def _has_grown(self) -> bool:
        if self._process is None:
            return False
        try:
            limit, _ = resource.prlimit(self._process.pid, resource.RLIMIT_AS)
            held = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):  # it ended
            return True
        return limit != resource.RLIM_INFINITY and limit - held < self.sampling.memory_limit * LEFT

    def _exit_code(self) -> int | None:
        """How the child ended; None where there is none, or it goes on although it closed its end of the connection."""
        try:
            return self._process.wait(5) if self._process is not None else None
        except subprocess.TimeoutExpired:
            return None

    def _how_it_ended(self) -> str:
        code = self._exit_code()
        return f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else "stopped"


def frames_bytes(sampling: Sampling) -> int:
    """Bytes of the frames of the largest piece."""
    return sampling.piece * sampling.height * sampling.width * 3


def mapped_frames(memory: int, sampling: Sampling) -> np.ndarray:
    """The memory behind a file descriptor as uint8 [piece, height, width, 3]; shared with whoever else maps it."""
    mapped = mmap.mmap(memory, frames_bytes(sampling))
    return np.frombuffer(mapped, np.uint8).reshape(sampling.piece, sampling.height, sampling.width, 3)


def serve(connection: Connection, memory: int) -> None:
    """The child's loop: a request in, events out, until the parent closes its end. memory: the descriptor for frames."""
    import pipeline.recording  # noqa: F401 - loaded now, so that the limit counts what videos take and not libraries

    sampling: Sampling = connection.recv()
    frames = mapped_frames(memory, sampling)
    limit_memory(sampling.memory_limit)
    full, alive = False, _Heartbeat(connection)
    try:
        while True:
            if full:
                connection.recv()  # TAKEN
                full = False
            request = connection.recv()
            for event in _events(request, sampling, alive):
                if isinstance(event, Piece):
                    if full:
                        connection.recv()  # TAKEN
                    frames[: len(event.frames)] = event.frames
                    full = True
                    event = replace(event, frames=event.frames[:0])
                connection.send(event)
            connection.send(END)
    except EOFError:
        return


class _Heartbeat:
    """Tells the parent that work goes on, now and then."""

    def __init__(self, connection: Connection) -> None:
        self.connection, self.told = connection, 0.0

    def __call__(self) -> None:
        if (now := time.monotonic()) - self.told > HEARTBEAT_SECONDS:
            self.told = now
            self.connection.send(Progress())


def _events(request: Request, sampling: Sampling, alive: Alive) -> Iterator[Event]:
    uri = request.uri
    try:
        yield from request.answer(sampling, alive)
    except VideoError as error:
        yield Rejected(None, error.reason, error.message)
    except MemoryError:
        limit = f"{sampling.memory_limit >> 20} MiB (--memory-limit)"
        yield Rejected(None, "too_large", f"decoding {uri} takes more memory than {limit}")
    except Exception as error:
        yield Rejected(None, "undecodable", f"{uri} cannot be decoded: {type(error).__name__}: {error}")


if __name__ == "__main__":
    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a hung child must not outlive its parent
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
