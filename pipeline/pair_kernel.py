"""Pair logits on a CPU by a small C kernel (`pipeline.compiled`).

`available()` says whether there is one; `pipeline.scoring` does the same in torch where there is none. The kernel reads float16
rows where they lie (a memory-mapped file included) and holds the products of some hundred frames at a time, so what it takes from
memory is each row once.
"""

import ctypes
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from pipeline import compiled

_NAME = "pair_kernel"
_NAMES = {torch.float16: "half", torch.float32: "single"}
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def available() -> bool:
    """Whether the kernel is there, compiling it if need be; False where no C compiler is or it cannot compile the source."""
    return compiled.library(_NAME) is not None


def why_not() -> str:
    """Why there is no kernel, in words; empty where there is one."""
    return compiled.why_not(_NAME)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="pair-kernel")


def pair_logits(
    keys: Tensor,
    values: Tensor,
    band: Tensor,
    length: int,
    start: Tensor,
    last: Tensor,
    queries: Tensor,
    weighted: Tensor,
    constant: Tensor,
    weight: Tensor,
    centre: Tensor,
    ceiling: float,
    threads: int | None = None,
) -> Tensor:
    """Logits float32 [K, N]; see `pipeline.scoring.candidate_logits`, which checks and prepares what comes in.

    keys [F, d_k], values [F, d_v], band [F, length - 1]: contiguous, all float16 or all float32. start, last: int64 [K],
    ascending by start. queries [N, d_k], weighted [N, d_v] (-2 w (e - centre)), constant [N] (bias + sum w (e - centre)^2),
    weight and centre [d_v]: float32. Nothing is checked here: frame numbers outside the arrays read foreign memory.
    """
    library = compiled.library(_NAME)
    if library is None:
        raise RuntimeError(f"no compiled kernel: {why_not()}")
    targets, segments = len(queries), len(start)
    lanes = 8 if targets <= 8 else 16
    padded = -(-targets // lanes) * lanes
    function = getattr(library, f"pair_logits_{_NAMES[keys.dtype]}_{lanes}")
    tables = [_padded(queries, padded), _padded(weighted, padded), _padded(constant[:, None], padded)]
    weight, centre = weight.contiguous(), centre.contiguous()
    start, last = start.contiguous(), last.contiguous()
    out = torch.empty(segments, padded)

    def run(begin: int, end: int) -> int:
        return function(
            *(_POINTER(array.data_ptr()) for array in (keys, values, band)),
            *(_SIZE(number) for number in (keys.shape[1], values.shape[1], length, end - begin)),
            _POINTER(start.data_ptr() + 8 * begin),
            _POINTER(last.data_ptr() + 8 * begin),
            _SIZE(padded),
            *(_POINTER(table.data_ptr()) for table in (*tables, weight, centre)),
            ctypes.c_float(ceiling),
            _POINTER(out.data_ptr() + 4 * padded * begin),
        )

    threads = min(threads or torch.get_num_threads(), max(1, segments // 64))
    cuts = [segments * i // threads for i in range(threads + 1)]
    failed = run(0, segments) if threads == 1 else sum(_pool(threads).map(run, cuts[:-1], cuts[1:]))
    if failed:
        raise MemoryError("no memory for the products of a tile of frames")
    return out[:, :targets]


def _padded(rows: Tensor, width: int) -> Tensor:
    """rows [N, d] as [d, width] with zeros beyond N, aligned as torch aligns its own memory."""
    table = torch.zeros(rows.shape[1], width)
    table[:, : len(rows)] = rows.T
    return table
