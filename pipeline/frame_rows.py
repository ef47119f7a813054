"""Rows of some videos' frames: where an index maps them, or read into memory of their own.

A search of a large index wants a few rows of every partition. Read through the mapping they cost a page fault every few rows and
a request to read ahead for each video, and leave memory mapped that must be given back: of 0.37 s in which a million videos'
shortlist was scored, 0.26 s. Several threads that pread just these rows make it 0.24 s.
"""

import ctypes
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline import compiled
from pipeline.errors import PipelineError

READERS = 16  # threads: a disk answers many requests at a time
PIECE = 1 << 20  # bytes that a thread reads at a time, about


@dataclass(frozen=True)
class FrameRows:
    """Rows of videos, a video's own in one piece.

    keys [F, d_k], values [F, d_v], band [F, T - 1]. first: int64, the row of the first frame of each of `videos`, int64
    ascending, or of every video where `videos` is None.
    """

    keys: Tensor
    values: Tensor
    band: Tensor
    first: np.ndarray
    videos: np.ndarray | None = None

    def first_of(self, videos: np.ndarray) -> np.ndarray:
        """The row of each video's first frame, int64."""
        return self.first[videos if self.videos is None else np.searchsorted(self.videos, videos)]


class Reading:
    """Rows that other threads are reading.

    arrays: keys, values and band, mapped from local files. videos: int64 ascending; first, frames: int64, which rows are theirs.
    """

    def __init__(self, arrays: Mapping[str, np.memmap], videos: np.ndarray, first: np.ndarray, frames: np.ndarray) -> None:
        self.videos, self.first = videos, np.cumsum(frames) - frames
        neighbours = np.flatnonzero(first[1:] == first[:-1] + frames[:-1]) + 1  # in the file: read as one
        starts = np.delete(np.arange(len(first)), neighbours)
        begin, count = first[starts], np.add.reduceat(frames, starts)
        self.arrays = {name: np.empty((int(frames.sum()), *array.shape[1:]), array.dtype) for name, array in arrays.items()}
        self.waiting: list[Future[None]] = []
        for name, array in arrays.items():
            size = array.strides[0]
            ranges = _pieces(array.offset + begin * size, count * size)
            target = self.arrays[name].reshape(-1).view(np.uint8)
            self.waiting += [_readers().submit(_read, str(array.filename), *some, target) for some in ranges]

    def rows(self) -> FrameRows:
        """All of them, as soon as they are there. Raises PipelineError for a file that has become unreadable or too short."""
        for piece in self.waiting:
            piece.result()
        return FrameRows(**{n: torch.from_numpy(a) for n, a in self.arrays.items()}, first=self.first, videos=self.videos)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="frame-rows")


def _pieces(at: np.ndarray, size: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """Ranges of a file in groups of about PIECE bytes: (offsets int64, sizes int64, where the group goes in what is read)."""
    parts = -(-size // PIECE)
    nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    at = np.repeat(at, parts) + nth * PIECE
    size = np.minimum(np.repeat(size, parts) - nth * PIECE, PIECE)
    to = np.cumsum(size) - size
    cuts = np.flatnonzero(np.diff(to // PIECE, prepend=-1))
    return [(at[i:j], size[i:j], int(to[i])) for i, j in zip(cuts, [*cuts[1:], len(at)], strict=True)]


def _read(path: str, at: np.ndarray, size: np.ndarray, to: int, target: np.ndarray) -> None:
    """Fill target, uint8, from byte `to` on with the ranges of a file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            read_ranges(file, at, size, target[to : to + int(size.sum())])
        finally:
            os.close(file)
    except OSError as error:
        raise PipelineError(f"the index file {path} cannot be read: {error.strerror or error}") from error


def read_ranges(file: int, at: np.ndarray, size: np.ndarray, target: np.ndarray) -> None:
    """Fill `target`, contiguous uint8, with ranges of an open file: offsets and sizes int64, in bytes. Raises OSError.

    Without a compiler Python does it.
    """
    if int(size.sum()) != len(target):
        raise ValueError(f"{int(size.sum())} bytes do not fill {len(target)}")
    library = compiled.library("frame_rows")
    if library is None:
        view, done = target.data, 0
        for begin, length in zip(at.tolist(), size.tolist(), strict=True):
            if (got := os.preadv(file, [view[done : done + length]], begin)) != length:
                raise OSError(f"it ends {length - got} bytes too early")
            done += length
        return
    at, size = np.ascontiguousarray(at, np.int64), np.ascontiguousarray(size, np.int64)
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in (at, size, target))
    failed = library.read_ranges(file, ctypes.c_int64(len(at)), *pointers)
    if failed:
        raise OSError("it ends too early") if failed < 0 else OSError(failed, os.strerror(failed))
