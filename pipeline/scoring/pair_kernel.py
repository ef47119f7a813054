"""Pair logits on a CPU by a small C kernel (`pipeline.scoring.compiled`), in vectors as wide as the processor's.

`available()` says whether there is one; `pipeline.scoring.scores` does the same in torch where there is none. The kernel reads
float16 rows where they lie (a memory-mapped file included) and holds the products of some hundred frames at a time, so what it
takes from memory is each row once.
"""

import ctypes
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from pipeline.scoring import compiled
from pipeline.scoring.frame_rows import FileRows

_NAME = "pair_kernel"
_NAMES = {torch.float16: "half", torch.float32: "single"}
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_TABLES = [_SIZE, *5 * [_POINTER], *4 * [ctypes.c_float]]
# targets; queries, weighted, constant, weight, centre; agreement, unit, slack, ceiling
_ARGUMENTS = {  # of the C functions, as they stand there
    "pair_logits": [*3 * [_POINTER], *4 * [_SIZE], *2 * [_POINTER], *_TABLES, _POINTER],
    "file_logits": [*7 * [_POINTER], *5 * [_SIZE], *_TABLES, *2 * [_POINTER]],
}
LEAST_SEGMENTS = 64  # for a thread of their own


def available() -> bool:
    """Whether the kernel is there, compiling it if need be; False where no C compiler is or it cannot compile the source."""
    return compiled.library(_NAME) is not None


def why_not() -> str:
    """Why there is no kernel, in words; empty where there is one."""
    return compiled.why_not(_NAME)


def lanes(targets: int) -> int:
    """Target segments in a vector for a target of so many. Raises RuntimeError where there is no kernel."""
    return compiled.function(_library(), "lanes_for", [_SIZE], _SIZE)(targets)


def _library() -> ctypes.CDLL:
    library = compiled.library(_NAME)
    if library is None:
        raise RuntimeError(f"no compiled kernel: {why_not()}")
    return library


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="pair-kernel")


@dataclass(frozen=True)
class TargetTables:
    """What the kernel takes of a target; all float32.

    queries: [N, d_k]; weighted: [N, d_v], -2 w (e - centre); constant: [N], bias + sum w (e - centre)^2; weight, centre: [d_v];
    agreement, unit, slack: as in `pipeline.scoring.scores.TargetEncoding`. ceiling: what no logit exceeds, the bias where unit is
    not 0.
    """

    queries: Tensor
    weighted: Tensor
    constant: Tensor
    weight: Tensor
    centre: Tensor
    agreement: float
    unit: float
    slack: float
    ceiling: float

    def __len__(self) -> int:
        return len(self.queries)


def pair_logits(
    keys: Tensor,
    values: Tensor,
    band: Tensor,
    length: int,
    start: Tensor,
    last: Tensor,
    target: TargetTables,
    threads: int | None = None,
) -> Tensor:
    """Logits float32 [K, N]; see `pipeline.scoring.scores.candidate_logits`, which checks and prepares what comes in.

    keys [F, d_k], values [F, d_v], band [F, length - 1]: contiguous, all float16 or all float32. start, last: int64 [K],
    ascending by start. Nothing is checked here: frame numbers outside the arrays read foreign memory.
    """
    kernel = _Call("pair_logits", keys.dtype, target)
    segments = len(start)
    start, last = start.contiguous(), last.contiguous()
    out = torch.empty(segments, kernel.padded)

    def run(begin: int, end: int) -> int:
        return kernel(
            *(array.data_ptr() for array in (keys, values, band)),
            *(keys.shape[1], values.shape[1], length, end - begin),
            start.data_ptr() + 8 * begin,
            last.data_ptr() + 8 * begin,
            out=out[begin:end],
        )

    threads = min(threads or torch.get_num_threads(), max(1, segments // LEAST_SEGMENTS))
    _run(run, [segments * i // threads for i in range(threads + 1)])
    return out[:, : len(target)]


def file_logits(
    rows: FileRows,
    first: np.ndarray,
    frames: np.ndarray,
    segments: np.ndarray,
    target: TargetTables,
    length: int,
    stride: int,
) -> Tensor:
    """Logits float32 [K, N] of all segments of videos whose rows lie in files.

    See `pipeline.scoring.scores.file_logits`, which checks what comes in and says what is raised; rows are float16.

    Rows are copied and scored a few hundred at a time, so that the copies never leave the processor's cache. Those that the page
    cache holds are scored while a disk is asked for the others.
    """
    d_k, d_v, _ = rows.widths
    kernel = _Call("file_logits", torch.float16, target)
    ends = np.cumsum(segments)
    out = torch.empty(int(ends[-1]), kernel.padded)
    files, offsets = (np.ascontiguousarray(table, np.int64) for table in (rows.descriptors, rows.offsets))
    of_videos = [np.ascontiguousarray(part, np.int64) for part in (rows.owner, first, frames, ends - segments, segments)]

    def run(begin: int, end: int) -> int:
        at_fault = ctypes.c_int64(-1)
        failed = kernel(
            files.ctypes.data,
            offsets.ctypes.data,
            *(part.ctypes.data + 8 * begin for part in of_videos),
            *(end - begin, d_k, d_v, length, stride),
            out=out,
            more=(ctypes.addressof(at_fault),),
        )
        if at_fault.value >= 0:
            video, array = divmod(at_fault.value, len(rows.widths))
            raise rows.unreadable(begin + video, array, failed)
        return failed

    threads = min(torch.get_num_threads(), max(1, int(ends[-1]) // LEAST_SEGMENTS))
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, threads) / threads).tolist()
    _run(run, [0, *cuts, len(ends)])
    return out[:, : len(target)]


class _Call:
    """A function of the library for a type of row and a target."""

    def __init__(self, name: str, dtype: torch.dtype, target: TargetTables) -> None:
        width = lanes(len(target))
        self.function = compiled.function(_library(), f"{name}_{_NAMES[dtype]}_{width}", _ARGUMENTS[name])
        self.padded = -(-len(target) // width) * width
        queries = target.queries / math.log(2)  # the kernel's softmax is one of powers of 2
        self.numbers = target.agreement / math.log(2), target.unit, target.slack / math.log(2), target.ceiling
        self.tables = [_padded(table, self.padded) for table in (queries, target.weighted, target.constant[:, None])]
        self.tables += [target.weight.contiguous(), target.centre.contiguous()]

    def __call__(self, *arguments: int, out: Tensor, more: tuple[int, ...] = ()) -> int:
        tables = (table.data_ptr() for table in self.tables)
        return self.function(*arguments, self.padded, *tables, *self.numbers, out.data_ptr(), *more)


def _run(run: Callable[[int, int], int], cuts: list[int]) -> None:
    """`run` between neighbouring cuts, a thread for each. Raises MemoryError where one says so."""
    parts = len(cuts) - 1
    if run(*cuts) if parts == 1 else sum(_pool(parts).map(run, cuts[:-1], cuts[1:])):
        raise MemoryError("no memory for the products of a tile of frames")


def _padded(rows: Tensor, width: int) -> Tensor:
    """rows [N, d] as [d, width] with zeros beyond N, aligned as torch aligns its own memory."""
    table = torch.zeros(rows.shape[1], width)
    table[:, : len(rows)] = rows.T
    return table
