"""Rows of some videos' frames: in memory (mapped from an index, or on a GPU), or in files that the kernel reads as it scores.

A search of a large index wants a few rows of every partition. Read through a mapping they cost a page fault every few rows, and
the system reads what lies around them, too.
"""

import errno
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.errors import PipelineError

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
                raise _unreadable(array, error.errno) from error


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

    def unreadable(self, video: int, array: int, code: int) -> PipelineError:
        """What to raise where rows of a video cannot be read. array: 0, 1, 2. code: an errno, below 0 where a file ends early."""
        return _unreadable(list(self.files[self.owner[video]].arrays.values())[array], code)


def _unreadable(array: np.memmap, code: int | None) -> PipelineError:
    if code in (errno.EMFILE, errno.ENFILE):
        return PipelineError(TOO_MANY_FILES)
    words = "it ends too early" if code is None or code < 0 else os.strerror(code)
    return PipelineError(f"the index file {array.filename} cannot be read: {words}")


def _close(descriptors: dict[str, int]) -> None:
    for file in descriptors.values():
        os.close(file)
