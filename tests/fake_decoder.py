"""A decoder child that misbehaves on files of certain names, for tests/test_video.py and tests/test_sandbox.py."""

import ctypes
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline import decoder_child
from pipeline.opening import Opened
from pipeline.reading import Alive
from pipeline.sampling import Sampling
from pipeline.video import Event, Request


def misbehave(request: Request, sampling: Sampling, alive: Alive, opened: Opened) -> Iterator[Event]:
    deeds: dict[str, Callable[[], object]] = {
        "crash": lambda: ctypes.string_at(0),
        "hang": lambda: time.sleep(3600),
    }
    deeds.get(Path(request.uri).stem, lambda: None)()
    yield from request.answer(sampling, alive, opened)


def main(channel: int, memory: int) -> None:
    decoder_child._events = misbehave
    decoder_child.main(channel, memory)
