"""The files of a partition are opened by several threads at a time."""

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.index.partition_files import load_array
from pipeline.storage.location import resolve


@pytest.fixture
def busy_interpreter() -> Iterator[None]:
    """Threads that change places, and garbage that is collected, all the time."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-5)
    gc.set_threshold(50)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)


class Garbage:
    """Runs Python code when it is collected, in the middle of whatever allocates."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        for _ in range(200):
            pass


@pytest.mark.usefixtures("busy_interpreter")
def test_arrays_are_opened_by_many_threads(tmp_path: Path) -> None:
    wanted = np.arange(700, dtype=np.float16).reshape(100, 7)
    np.save(tmp_path / "array.npy", wanted)
    place = resolve(tmp_path / "array.npy")

    def opened(_: int) -> bool:
        for _ in range(5):
            Garbage()
        return bool(load_array(place)[99, 6] == wanted[99, 6])

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(opened, range(10_000)))
