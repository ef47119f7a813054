"""The pool: augmented frames that the student learns from, memory-mapped on disk.

Image i follows from the seed and i alone, so a pool that was killed half-made goes on as if nothing had been.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.distillation.frame_augmentation import augment_frame
from pipeline.distillation.people import People
from pipeline.errors import UsageError
from pipeline.storage.local_writes import new_array
from pipeline.storage.location import resolve

BLOCK = 256  # rows between two notes of how far it is

Report = Callable[[int, int], None]


def build_pool(
    people: People, learning: Sequence[int], folder: Path, count: int, seed: int, shares: Sequence[float], report: Report
) -> np.ndarray:
    """frames.npy: uint8 [count, 256, 128, 3], RGB, memory-mapped.

    learning: places in people.candidates. shares: of the pool, for each of the data that the candidates are from; within its data
    each candidate has the same chance, and so has each of its frames. Raises UsageError when no data with a share has candidates.
    """
    groups = [np.array([p for p in learning if people.candidates[p].data == data], np.int64) for data in range(len(shares))]
    chance = np.array([share if len(group) else 0.0 for share, group in zip(shares, groups, strict=True)])
    if not chance.sum() > 0:
        raise UsageError("there is no candidate to learn from; give more --data or a smaller --held-out-share")
    chance /= chance.sum()

    def frame_of(rng: np.random.Generator) -> np.ndarray:
        candidate = int(rng.choice(groups[rng.choice(len(groups), p=chance)]))
        return people.frame(candidate, int(rng.integers(people.candidates[candidate].frames)))

    def images(start: int, stop: int) -> np.ndarray:
        rngs = [np.random.default_rng([seed, place]) for place in range(start, stop)]
        return np.stack([augment_frame(frame_of(rng), frame_of(rng), rng) for rng in rngs])

    return fill_rows(folder / "frames.npy", (count, *people.chunks[0].shape[1:]), np.dtype(np.uint8), images, report)


def fill_rows(
    path: Path, shape: tuple[int, ...], dtype: np.dtype, rows: Callable[[int, int], np.ndarray], report: Report
) -> np.ndarray:
    """An array on disk, made some rows at a time by rows(start, stop); how far it is stands beside it, in a .json.

    Goes on after a kill. report: called with (rows made, rows). Returns the array memory-mapped, read-only.
    """
    progress = resolve(path.with_suffix(".json"))
    made = json.loads(progress.read_bytes())["made"] if progress.exists() else 0
    array = new_array(path, dtype, shape) if made == 0 else np.lib.format.open_memmap(path, mode="r+")
    for start in range(made, shape[0], BLOCK):
        stop = min(start + BLOCK, shape[0])
        array[start:stop] = rows(start, stop)
        array.flush()
        progress.write_atomically(json.dumps({"made": stop}).encode())
        report(stop, shape[0])
    del array
    return np.load(path, mmap_mode="r")
