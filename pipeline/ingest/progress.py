"""How far an ingest is: frames are counted across the cluster and told while the next table is awaited."""

import contextlib
import math
import threading
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from pipeline.cluster import leave

TELL_SECONDS = 1.0


@dataclass
class IngestProgress:
    """How far an ingest is. done, rejected: sources dealt with, and candidates rejected. frames: embedded so far.

    startup_s: seconds until the first frames were embedded; seconds: since then.
    """

    total: int
    done: int = 0
    rejected: int = 0
    frames: int = 0
    startup_s: float = 0.0
    seconds: float = 0.0


class FrameCounter:
    """Counts embedded frames across the cluster; an actor."""

    def __init__(self) -> None:
        self.frames = 0

    def add(self, frames: int) -> None:
        self.frames += frames

    def read(self) -> int:
        return self.frames


class FramesTold:
    """Tells a FrameCounter of frames, at most once a second: a call of an actor costs as much as what it counts, on small frames.

    What was told last is behind by less than a second's frames. Threads may share it.
    """

    def __init__(self, counter: Any) -> None:
        self.counter, self.untold, self.told = counter, 0, -math.inf
        self.lock = threading.Lock()

    def add(self, frames: int) -> None:
        """Count some frames."""
        with self.lock:
            self.untold += frames
            if self.untold and time.monotonic() - self.told >= TELL_SECONDS:
                self.counter.add.remote(self.untold)
                self.untold, self.told = 0, time.monotonic()


def polled(
    tables: Iterable[pa.Table], counter: Any, state: IngestProgress, progress: Callable[[IngestProgress], None], began: float
) -> Generator[pa.Table, None, None]:
    """The tables of a stream; while the next one is awaited, progress is told of the state about once a second.

    counter: the handle of a FrameCounter. began: when the ingest did, by time.monotonic. Raises what the stream raises.
    """
    batches: Any = iter(tables)  # a generator
    with contextlib.closing(batches), ThreadPoolExecutor(1) as pool:
        try:
            while True:
                following = pool.submit(next, batches, None)
                while not wait([following], timeout=1.0).done:
                    with contextlib.suppress(ray.exceptions.RayError):  # no work is lost with the counter and its node
                        state.frames = ray.get(counter.read.remote(), timeout=10.0)
                        if state.frames and state.startup_s == 0:
                            state.startup_s = time.monotonic() - began
                    state.seconds = time.monotonic() - began - state.startup_s
                    progress(state)
                if (table := following.result()) is None:
                    return
                yield table
        except KeyboardInterrupt:  # the pool would wait for the next table: of a recording that may be an hour
            leave()
            raise
