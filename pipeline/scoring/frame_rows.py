"""Rows of some videos' frames: where an index maps them, or read into memory of their own.

A search of a large index wants a few rows of every partition. Read through the mapping they cost a page fault every few rows and
a request to read ahead for each video, and leave memory mapped that must be given back: of 0.37 s in which a million videos'
shortlist was scored, 0.26 s. Several threads that pread just these rows while others are scored make it 0.14 s.
"""

import ctypes
import errno
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import PipelineError
from pipeline.scoring import compiled

_ARGUMENTS = [ctypes.c_int64, *4 * [ctypes.c_void_p], ctypes.POINTER(ctypes.c_int64)]  # of the C function, as they stand there
READERS = 16  # threads: a disk answers many requests at a time
PIECE = 4 << 20  # bytes that a thread reads at a time, about
TOO_MANY_FILES = "this index needs more open files than the system allows; raise the limit (ulimit -n)"


@dataclass(frozen=True)
class FrameRows:
    """Rows of frames: keys [F, d_k], values [F, d_v], band [F, T - 1]."""

    keys: Tensor
    values: Tensor
    band: Tensor


class RowFiles:
    """The files of one partition's rows, open. Raises PipelineError where one cannot be opened.

    arrays: keys, values and band, mapped from local files. descriptors: of their files, by the same names.
    """

    def __init__(self, arrays: Mapping[str, np.memmap]) -> None:
        self.arrays = arrays
        self.descriptors: dict[str, int] = {}
        weakref.finalize(self, _close, self.descriptors)
        for name, array in arrays.items():
            try:
                self.descriptors[name] = os.open(str(array.filename), os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise _unreadable(array, error) from error


@dataclass(frozen=True)
class Wanted:
    """Rows of some videos in the files of one partition: int64 [m], a video's first row there, ascending, and how many."""

    files: RowFiles
    first: np.ndarray
    frames: np.ndarray


@dataclass(frozen=True)
class FileRows:
    """Rows of some videos that are scored from files of one shape. owner: int64 [m], in which of `files` each video lies."""

    files: Sequence[RowFiles]
    owner: np.ndarray

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers in a row of keys, values and band."""
        return tuple(array.shape[1] for array in self.files[0].arrays.values())

    @property
    def descriptors(self) -> np.ndarray:
        """Of the open files, int64 [partitions, 3]."""
        return np.array([[files.descriptors[name] for name in files.arrays] for files in self.files])

    @property
    def offsets(self) -> np.ndarray:
        """Where rows begin in them, in bytes, int64 [partitions, 3]."""
        return np.array([[array.offset for array in files.arrays.values()] for files in self.files])


class Reading:
    """Rows of one or more partitions that other threads are reading, one after another into the same memory.

    first: int64 arrays, where the rows of each partition's videos begin in it. memory: flat arrays by name; those of an earlier
    reading, whose rows are not used any more, may be given, since fresh memory costs a fifth more time.
    """

    def __init__(self, parts: Sequence[Wanted], memory: Mapping[str, np.ndarray] | None = None) -> None:
        rows, frames = (np.concatenate([getattr(part, name) for part in parts]) for name in ("first", "frames"))
        owner = np.repeat(np.arange(len(parts)), [len(part.first) for part in parts])
        self.first = np.split(np.cumsum(frames) - frames, np.flatnonzero(np.diff(owner)) + 1)
        together = (rows[1:] == rows[:-1] + frames[:-1]) & (owner[1:] == owner[:-1])  # neighbours in a file: read as one
        starts = np.flatnonzero(np.concatenate([[True], ~together]))
        begin, count, owner = rows[starts], np.add.reduceat(frames, starts), owner[starts]
        self.memory: dict[str, np.ndarray] = {}
        self.arrays: dict[str, np.ndarray] = {}
        for name, array in parts[0].files.arrays.items():
            shape = int(frames.sum()), *array.shape[1:]
            flat = (memory or {}).get(name, np.empty(0, array.dtype))
            self.memory[name] = flat if len(flat) >= math.prod(shape) else np.empty(math.prod(shape), array.dtype)
            self.arrays[name] = self.memory[name][: math.prod(shape)].reshape(shape)
        self.parts = parts  # whose files stay open until the threads, which hold on to this, are done
        self.waiting: list[Future[None]] = []
        for name, target in self.arrays.items():
            offset = np.array([part.files.arrays[name].offset for part in parts])[owner]
            if not target.size:  # segments of one frame have no band
                continue
            size, into = target.strides[0], target.reshape(-1).view(np.uint8)
            for some in _pieces(owner, offset + begin * size, count * size):
                self.waiting.append(_readers().submit(self._read, name, into, *some))

    def rows(self) -> FrameRows:
        """All of them, as soon as they are there. Raises PipelineError for a file that has become unreadable or too short."""
        for piece in self.waiting:
            piece.result()
        return FrameRows(**{name: torch.from_numpy(array) for name, array in self.arrays.items()})

    def _read(self, name: str, into: np.ndarray, owner: np.ndarray, at: np.ndarray, size: np.ndarray, to: int) -> None:
        """Fill `into`, uint8, from byte `to` on with ranges of the partitions' files of this name."""
        files = np.array([part.files.descriptors[name] for part in self.parts])
        try:
            read_ranges(files[owner], at, size, into[to : to + int(size.sum())])
        except RangeError as error:
            raise _unreadable(self.parts[owner[error.number]].files.arrays[name], error) from error


class RangeError(OSError):
    """A range of a file that cannot be read. number: which of those that were asked for."""

    def __init__(self, number: int, code: int, words: str) -> None:
        super().__init__(code, words)
        self.number = number


def _unreadable(array: np.memmap, error: OSError) -> PipelineError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return PipelineError(TOO_MANY_FILES)
    return PipelineError(f"the index file {array.filename} cannot be read: {error.strerror or error}")


def _close(descriptors: dict[str, int]) -> None:
    for file in descriptors.values():
        os.close(file)


@cache
def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(READERS, thread_name_prefix="frame-rows")


def _pieces(owner: np.ndarray, at: np.ndarray, size: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]:
    """Ranges of files in groups of about PIECE bytes: (owners, offsets, sizes: int64, where the group goes in what is read)."""
    parts = -(-size // PIECE)
    nth = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    owner, at = np.repeat(owner, parts), np.repeat(at, parts) + nth * PIECE
    size = np.minimum(np.repeat(size, parts) - nth * PIECE, PIECE)
    to = np.cumsum(size) - size
    cuts = np.flatnonzero(np.diff(to // PIECE, prepend=-1))
    return [(owner[i:j], at[i:j], size[i:j], int(to[i])) for i, j in zip(cuts, [*cuts[1:], len(at)], strict=True)]


def read_ranges(file: np.ndarray, at: np.ndarray, size: np.ndarray, target: np.ndarray) -> None:
    """Fill `target`, contiguous uint8, with ranges of open files: descriptors, offsets and sizes int64, in bytes.

    Raises RangeError. Without a compiler Python does it.
    """
    if int(size.sum()) != len(target):
        raise ValueError(f"{int(size.sum())} bytes do not fill {len(target)}")
    library = compiled.library("frame_rows")
    if library is None:
        view, done = target.data, 0
        for number, (descriptor, begin, length) in enumerate(zip(file.tolist(), at.tolist(), size.tolist(), strict=True)):
            try:
                got = os.preadv(descriptor, [view[done : done + length]], begin)
            except OSError as error:
                raise RangeError(number, error.errno or errno.EIO, os.strerror(error.errno or errno.EIO)) from error
            if got != length:
                raise RangeError(number, errno.EIO, "it ends too early")
            done += length
        return
    arrays = [np.ascontiguousarray(array, np.int64) for array in (file, at, size)]
    at_fault = ctypes.c_int64()
    read = compiled.function(library, "read_ranges", _ARGUMENTS)
    failed = read(len(at), *(array.ctypes.data for array in (*arrays, target)), ctypes.byref(at_fault))
    if failed:
        raise RangeError(at_fault.value, max(failed, 0) or errno.EIO, "it ends too early" if failed < 0 else os.strerror(failed))
