"""Decoding in a child process: a video that crashes, hangs or fills the memory costs that video only, and can do nothing else.

The parent opens what a request names (`pipeline.decoding.opening`) and hands the descriptors over a socket; the child
(`pipeline.decoding.child`) answers with events, and is renewed after a crash, after a time-out, and when it has kept so much
memory that videos would no longer have what they may take. The frames of a chunk go through memory that both processes map: the
child waits until they are taken out before it puts in the next. FFmpeg's chatter on stderr is dropped.

The child has a bare environment and loads nothing from the working directory or from PYTHONPATH; `pipeline.decoding.sandbox`
takes the network, other programs and changes to files from it.
"""

import functools
import itertools
import logging
import math
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.decoding.messages import LONGEST, Answer, End, Fault, Job, Taken, Unconfined, frames_memory, send_job, unpacked
from pipeline.decoding.opening import Opened
from pipeline.decoding.requests import FramesRequest, MomentRequest, Request, SceneRequest, SourceRequest
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Box, Chunk, Event, Rejected, Stretch
from pipeline.errors import PipelineError, UsageError, VideoError

LOGGER = logging.getLogger("coattention.decoder")
LEFT = 1 / 2  # of the memory that a video may take: a child that has less left for the next one is renewed
WAIT_SECONDS = 0.5  # between two looks at whether opening a file makes progress
PACKAGE_ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = Path(np.__file__).resolve().parents[1]  # for where Python alone does not look: packages of a user, of PYTHONPATH
KEPT = ("LD_LIBRARY_PATH", "OMP_", "OPENBLAS_")  # of the environment: how names begin that loading and computing need
# What the child runs. Packages of ours are loaded from where they are, so that no folder in which anybody may put files is looked
# in for others. What goes wrong in this code is told, and the parent waited for: who ends at once may cut off what was said.
START = """
import importlib, importlib.machinery, importlib.util, json, sys, traceback
from multiprocessing.connection import Connection
root, libraries, module, channel, memory = sys.argv[1:]
sys.path.append(libraries)
try:
    for package in {"pipeline", module.partition(".")[0]}:
        spec = importlib.machinery.PathFinder.find_spec(package, [root])
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    importlib.import_module(module).main(int(channel), int(memory))
except (MemoryError, OSError):
    raise
except Exception as error:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
    connection = Connection(int(channel))
    connection.send_bytes(json.dumps(["Fault", {"text": text}]).encode())
    while True:
        connection.recv_bytes()
"""


class Decoder:
    """Decodes one video at a time in a child process. A context manager; not for several threads."""

    module = "pipeline.decoding.child"  # what the child runs

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._frames = np.empty(0, np.uint8)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
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
        """The events of one source: see `pipeline.decoding.requests.SourceRequest`.

        Never raises for a bad video: what spoils all of it is a last event Rejected(None, reason, message). Raises PipelineError
        where the decoder itself is at fault, as `moment` and `frames` do.
        """
        return self.answers(SourceRequest(uri, boxes_uri, frame_rate))

    def scenes(
        self, uri: str, frame_rate: float | None = None, divide_s: float | None = None, stretch: Stretch | None = None
    ) -> Iterator[Event]:
        """Whole pictures of a recording: see `pipeline.decoding.requests.SceneRequest`; failures as in `events`."""
        return self.answers(SceneRequest(uri, frame_rate, divide_s, stretch))

    def moment(self, uri: str, box: Box, time_s: float) -> Iterator[Event]:
        """What a box shows at one moment: see `pipeline.decoding.requests.MomentRequest`; failures as in `events`."""
        return self.answers(MomentRequest(uri, box, time_s))

    def frames(
        self,
        uri: str,
        boxes_uri: str | None,
        track: int | None,
        wanted: Sequence[int] | Mapping[int, float | None],
        box: Box | Mapping[int, Box] | None = None,
    ) -> dict[int, np.ndarray]:
        """Single frames of one candidate: number -> uint8 [height, width, 3], RGB; those that cannot be read are left out.

        wanted: frame numbers; with the times that they had, in seconds, frames far into a recording are found sooner. box: cut
        out of every frame, or of each its own by its number, in place of a track.
        """
        found: dict[int, np.ndarray] = {}
        times = dict(wanted) if isinstance(wanted, Mapping) else dict.fromkeys(wanted)
        boxes = box if box is None or isinstance(box, Mapping) else dict.fromkeys(times, box)
        for event in self.answers(FramesRequest(uri, boxes_uri, track, times, boxes)):
            if isinstance(event, Chunk):
                found.update(zip(event.frame_index.tolist(), event.frames, strict=True))
        return found

    def answers(self, request: Request) -> Iterator[Event]:
        """The events of a request. Raises PipelineError where not the video but this code or its installation is at fault."""
        self.start()  # meanwhile
        try:
            opened = _opened(request, self.sampling)
        except VideoError as error:
            yield Rejected(None, error.reason, error.message)
        except UsageError as error:
            yield Rejected(None, "undecodable", f"{request.uri} cannot be decoded: {error}")
        else:
            with opened:
                yield from self._decoded(Job(request, opened))

    def _decoded(self, job: Job, again: bool = True) -> Iterator[Event]:
        """The events that a child answers. again: when it is killed from outside (SIGKILL, as by a machine short of memory, which
        no video sends), another one goes on once where it was.
        """
        finished, given, uri = False, 0, job.request.uri
        try:
            connection = self._connect()
            send_job(connection, job)
            while not isinstance(answer := self._answer(connection, uri), End):
                if isinstance(answer, Chunk):
                    _check_size(answer, job.request, self.sampling)
                    connection.send(Taken())
                if isinstance(answer, Event):
                    given += 1
                    yield answer
            finished = True
        except VideoError as error:
            yield Rejected(None, error.reason, error.message)
        except (EOFError, OSError):  # OSError too: it died in the middle of an answer
            code = self._exit_code()
            if again and code == -signal.SIGKILL:
                self.close()
                yield from itertools.islice(self._decoded(job, again=False), given, None)
            elif code == -signal.SIGXCPU:
                limit = f"{self.sampling.cpu_limit:g} s (--cpu-limit)"
                yield Rejected(None, "time_limit", f"decoding {uri} takes more processor time than {limit}")
            else:
                ended = f"was ended by {signal.Signals(-code).name}" if code is not None and code < 0 else "stopped"
                yield Rejected(None, "decoder_crash", f"the decoder {ended} on {uri}")
        finally:
            if not finished:
                self.close()

    def _answer(self, connection: Connection, uri: str) -> Answer:
        """The child's next answer. Raises VideoError where none comes in time or it cannot be one, EOFError or OSError where the
        child ended, and PipelineError where its own code is at fault.
        """
        if not connection.poll(self.sampling.time_limit):
            raise _no_progress(f"decoding {uri}", self.sampling)
        try:
            answer = unpacked(connection.recv_bytes(LONGEST), self._frames)
        except ValueError as error:  # only whoever has taken it over says such things
            raise VideoError("decoder_crash", f"the decoder gave an answer that cannot be on {uri}") from error
        if isinstance(answer, Fault):
            raise PipelineError(
                f"the decoder itself is at fault on {uri}, not the video: {answer.text}; install the requirements "
                "anew if a module is missing, else report this and leave the video out"
            )
        if isinstance(answer, Unconfined):
            _tell_unconfined(str(answer.missing))
        return answer

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
            # A child that stops in the middle of a message, or takes none, is not waited for for ever.
            for waiting in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, waiting, struct.pack("ll", math.ceil(self.sampling.time_limit), 0))
            memory, self._frames = frames_memory(self.sampling)
            with theirs, os.fdopen(memory):
                inherited = [theirs.fileno(), memory]
                arguments = [PACKAGE_ROOT, LIBRARIES, self.module, *inherited]
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-X", "utf8", "-c", START, *map(str, arguments)],
                    pass_fds=inherited,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    # Of many arenas each takes address space, which is what the memory limit counts, and keeps it.
                    env={name: value for name, value in os.environ.items() if name.startswith(KEPT)} | {"MALLOC_ARENA_MAX": "1"},
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


def _opened(request: Request, sampling: Sampling) -> Opened:
    """What a request names, opened in a thread, since a disk that is gone or a store may keep whoever asks.

    A thread that is kept is left behind: nothing ends it, and it keeps nothing from ending. Raises what opening raises, and
    VideoError where it makes no progress.
    """
    future: Future[Opened] = Future()
    last = time.monotonic()

    def heartbeat() -> None:
        nonlocal last
        if future.cancelled():
            raise InterruptedError("nobody waits any more")
        last = time.monotonic()

    def open_files() -> None:
        try:
            opened = request.open(sampling, heartbeat)
        except BaseException as error:
            if not future.cancelled():
                future.set_exception(error)
            return
        try:
            future.set_result(opened)
        except InvalidStateError:  # nobody waits any more
            opened.__exit__()

    threading.Thread(target=open_files, name="opening", daemon=True).start()
    try:
        while not wait([future], WAIT_SECONDS).done:
            if time.monotonic() - last > sampling.time_limit:
                raise _no_progress(f"opening {request.uri}", sampling)
    except BaseException:
        if not future.cancel() and future.exception() is None:  # it was opened after all
            future.result().__exit__()
        raise
    return future.result()


def _check_size(chunk: Chunk, request: Request, sampling: Sampling) -> None:
    """Raises VideoError for frames of a size that was not asked for: only whoever has taken the child over sends such."""
    if not isinstance(request, SceneRequest) and chunk.frames.shape[1:3] != (sampling.height, sampling.width):
        raise VideoError("decoder_crash", f"the decoder gave an answer that cannot be on {request.uri}")


def _no_progress(doing: str, sampling: Sampling) -> VideoError:
    return VideoError("time_limit", f"{doing} made no progress for {sampling.time_limit:g} s (--time-limit)")


@functools.cache
def _tell_unconfined(missing: str) -> None:
    """Said once in a process."""
    LOGGER.warning("decoders are less confined than they could be: %s", missing)
