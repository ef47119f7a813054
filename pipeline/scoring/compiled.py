"""The C sources of this package, compiled on first use by the machine's own compiler and kept in the user's cache.

Each has a Python or torch equivalent that serves where there is no compiler, where others could change what is in the cache, or
where COATTENTION_KERNEL=0 leaves them out.
"""

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.storage.downloads import cache_folder, check_owned, check_private
from pipeline.storage.hashing import sha256

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
PROCESSOR = "native"  # what is compiled for; benchmarks and tests name lesser ones, such as x86-64-v3
COMPILE_SECONDS = 120
OFF = "COATTENTION_KERNEL"  # set to 0, this environment variable leaves them out

_reasons: dict[tuple[str, str], str] = {}
_compiling = threading.Lock()  # many threads may want a library first


def library(name: str) -> ctypes.CDLL | None:
    """What <name>.c compiles to; None where no C compiler is or it cannot compile the source, see `why_not`."""
    return _library(name, PROCESSOR)


def source(name: str) -> Path:
    """The C source of this package that has this name, without its suffix."""
    (found,) = Path(__file__).parents[1].glob(f"*/{name}.c")
    return found


def why_not(name: str) -> str:
    """Why a library is not there, in words; empty where it is."""
    return "" if library(name) is not None else _reasons[name, PROCESSOR]


def function(library: ctypes.CDLL, name: str, arguments: Sequence[Any], result: Any = ctypes.c_int) -> Callable[..., Any]:
    """A function of a library with the types of its arguments and its result, so that ctypes refuses others."""
    found = getattr(library, name)
    found.argtypes, found.restype = arguments, result
    return found


@cache
def _library(name: str, processor: str) -> ctypes.CDLL | None:
    try:
        with _compiling:
            return _opened(_compiled(source(name), processor))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        reason = detail.strip().splitlines()[0] if detail.strip() else type(error).__name__
        _reasons[name, processor] = reason
        log.info("%s.c is not compiled, its equivalent in Python runs: %s", name, reason)
        return None


def _compiled(source: Path, processor: str) -> Path:
    """The shared library for this source, compiler and processor, in a folder that nobody else can change.

    Raises RuntimeError and what a compiler's failure raises.
    """
    if os.environ.get(OFF) == "0":
        raise RuntimeError(f"{OFF}=0")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("there is no C compiler; install gcc and libc6-dev")
    flags = [*FLAGS, f"-mcpu={processor}" if platform.machine() in ("aarch64", "arm64") else f"-march={processor}"]
    content = "\0".join([source.read_text(), *flags, _described(compiler, *flags)])
    folder = (cache_folder() / "kernels").resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    check_private(folder)
    library = folder / f"{source.stem}-{sha256(content)[:24]}.so"
    if not library.exists():
        handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        try:
            _run(compiler, *flags, "-o", name, str(source))
            Path(name).chmod(0o700)
            Path(name).replace(library)
        finally:
            Path(name).unlink(missing_ok=True)
    return library


@cache
def _described(compiler: str, *flags: str) -> str:
    """A compiler's version and all that it will use of this processor: a cache may be shared by machines that differ."""
    return _run(compiler, "--version") + _run(compiler, *flags, "-dM", "-E", "-x", "c", os.devnull)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_SECONDS).stdout


def _opened(library: Path) -> ctypes.CDLL:
    """The library, opened as the very file that was checked. Raises RuntimeError for one that is not this user's alone."""
    # The descriptor stays open: the loader knows libraries by their path, and would take another of this number for the same.
    file = os.open(library, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        check_owned(library, os.fstat(file))
        by_number = Path(f"/proc/self/fd/{file}")
        return ctypes.CDLL(str(by_number if by_number.exists() else library))
    except (OSError, RuntimeError):
        os.close(file)
        raise
