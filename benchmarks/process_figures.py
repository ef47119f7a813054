"""What a step of a benchmark takes: in a process of its own, the memory of all its processes, and what it reads from disks."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch


def memory_of_tree(process: int) -> dict[str, int]:
    """Resident bytes of a process and its descendants: anonymous, and in all with mapped files and shared memory."""
    found = {"anonymous": 0, "total": 0}
    for number in _tree(process):
        try:
            lines = Path(f"/proc/{number}/status").read_text().splitlines()
        except OSError:  # it has ended
            continue
        fields = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name}
        fields |= {"VmRSS": sum(size for name, size in fields.items() if name.startswith("Rss"))}
        found["anonymous"] += fields.get("RssAnon", 0)
        found["total"] += fields["VmRSS"]
    return found


def _tree(process: int) -> Iterator[int]:
    yield process
    try:
        threads = sorted(Path(f"/proc/{process}/task").iterdir())
        children = [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from _tree(child)


class PeakMemory:
    """The most that a process and its descendants held at once while the context was open, looked at ten times a second."""

    def __init__(self) -> None:
        self.peak = {"anonymous": 0, "total": 0}

    def __enter__(self) -> "PeakMemory":
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while True:
            now = memory_of_tree(os.getpid())
            self.peak = {name: max(size, now[name]) for name, size in self.peak.items()}
            if self.ended.wait(0.1):
                return

    def __exit__(self, *error: object) -> None:
        self.ended.set()
        self.thread.join()


def in_own_process(step: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What the step gives, from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result()


def drop_from_cache(folder: Path) -> None:
    """Ask the kernel to drop the folder's files from its page cache; pages that are mapped would stay."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # what is not yet written would stay, too
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    """Bytes that this process has had read from disks."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["read_bytes"])


def size_on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def machine() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = f"{len(os.sched_getaffinity(0))} cores {names[0] if names else ''}"
    return f"{cores}, {memory:.0f} GiB, torch {torch.__version__} on {torch.get_num_threads()} threads"
