"""Pair logits on a CPU by a small C kernel, compiled on first use by the machine's own compiler and kept in the user's cache.

`available()` says whether there is one; `pipeline.scoring` does the same in torch where there is none. The kernel reads float16
rows where they lie (a memory-mapped file included) and holds the products of some hundred frames at a time, so what it takes from
memory is each row once. The same library reads scattered ranges of a file (`read_ranges`), without Python in between.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.downloads import cache_folder

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
COMPILE_SECONDS = 120
OFF = "COATTENTION_KERNEL"  # set to 0, this environment variable leaves the kernel out
_NAMES = {torch.float16: "half", torch.float32: "single"}
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64


def available() -> bool:
    """Whether the kernel is there, compiling it if need be; False where no C compiler is or it cannot compile the source."""
    return _library() is not None


def why_not() -> str:
    """Why there is no kernel, in words; empty where there is one."""
    return "" if available() else _reason[0]


_reason = [""]


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _reason[0] = detail.strip().splitlines()[0] if detail.strip() else type(error).__name__
        log.info("no compiled kernel, scoring runs in torch: %s", _reason[0])
        return None


def _compiled() -> Path:
    """The shared library for this source, compiler and processor. Raises RuntimeError and what a compiler's failure raises."""
    if os.environ.get(OFF) == "0":
        raise RuntimeError(f"{OFF}=0")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("there is no C compiler; install gcc and libc6-dev")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS).stdout
    known = "\0".join([SOURCE.read_text(), version, *FLAGS, platform.machine(), _processor()])
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user")
    library = folder / f"pair_kernel-{hashlib.sha256(known.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        try:
            command = [compiler, *FLAGS, "-o", name, str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS)
            Path(name).replace(library)
        finally:
            Path(name).unlink(missing_ok=True)
    return library


def _processor() -> str:
    """What the processor can do: a cache may be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


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
    library = _library()
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


def read_ranges(file: int, at: np.ndarray, size: np.ndarray, target: np.ndarray) -> None:
    """Fill `target`, contiguous uint8, with ranges of an open file: offsets and sizes int64, in bytes. Raises OSError.

    Without a compiler Python does it.
    """
    if int(size.sum()) != len(target):
        raise ValueError(f"{int(size.sum())} bytes do not fill {len(target)}")
    library = _library()
    if library is None:
        view, done = target.data, 0
        for begin, length in zip(at.tolist(), size.tolist(), strict=True):
            if (got := os.preadv(file, [view[done : done + length]], begin)) != length:
                raise OSError(f"it ends {length - got} bytes too early")
            done += length
        return
    at, size = np.ascontiguousarray(at, np.int64), np.ascontiguousarray(size, np.int64)
    failed = library.read_ranges(file, _SIZE(len(at)), *(_POINTER(array.ctypes.data) for array in (at, size, target)))
    if failed:
        raise OSError("it ends too early") if failed < 0 else OSError(failed, os.strerror(failed))


def _padded(rows: Tensor, width: int) -> Tensor:
    """rows [N, d] as [d, width] with zeros beyond N, aligned as torch aligns its own memory."""
    table = torch.zeros(rows.shape[1], width)
    table[:, : len(rows)] = rows.T
    return table
