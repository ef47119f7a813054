"""A decoder child that misbehaves on request, for tests/test_video.py."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pipeline.decoder
from pipeline.reading import Alive
from pipeline.sampling import Sampling
from pipeline.video import Event, Request


def misbehave(request: Request, sampling: Sampling, alive: Alive) -> Iterator[Event]:
    if request.uri == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if request.uri == "hang":
        time.sleep(3600)
    yield from request.answer(sampling, alive)


if __name__ == "__main__":
    pipeline.decoder._events = misbehave
    pipeline.decoder.serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
