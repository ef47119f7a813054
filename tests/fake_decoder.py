"""A decoder child that misbehaves on request, for tests/test_video.py."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import pipeline.decoder
from pipeline.sampling import Sampling
from pipeline.video import Event, read_pieces


def misbehave(request: tuple[Any, ...], sampling: Sampling) -> Iterator[Event]:
    if request[0] == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request[0] == "hang":
        time.sleep(3600)
    yield from read_pieces(*request, sampling)


if __name__ == "__main__":
    pipeline.decoder._events = misbehave
    pipeline.decoder.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
