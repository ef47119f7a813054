"""The C sources of this package, compiled on first use by the machine's own compiler and kept in the user's cache.

Each has a Python or torch equivalent that serves where there is no compiler, or where COATTENTION_KERNEL=0 leaves them out.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path

from pipeline.downloads import cache_folder

log = logging.getLogger(__name__)

FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
COMPILE_SECONDS = 120
OFF = "COATTENTION_KERNEL"  # set to 0, this environment variable leaves them out

_reasons: dict[str, str] = {}
_compiling = threading.Lock()  # many threads may want a library first


@cache
def library(name: str) -> ctypes.CDLL | None:
    """What `pipeline/<name>.c` compiles to; None where no C compiler is or it cannot compile the source, see `why_not`."""
    try:
        with _compiling:
            return ctypes.CDLL(str(_compiled(Path(__file__).with_name(f"{name}.c"))))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        detail = getattr(error, "stderr", None) or str(error)
        _reasons[name] = detail.strip().splitlines()[0] if detail.strip() else type(error).__name__
        log.info("%s.c is not compiled, its equivalent in Python runs: %s", name, _reasons[name])
        return None


def why_not(name: str) -> str:
    """Why a library is not there, in words; empty where it is."""
    return "" if library(name) is not None else _reasons[name]


def _compiled(source: Path) -> Path:
    """The shared library for this source, compiler and processor. Raises RuntimeError and what a compiler's failure raises."""
    if os.environ.get(OFF) == "0":
        raise RuntimeError(f"{OFF}=0")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise RuntimeError("there is no C compiler; install gcc and libc6-dev")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True, timeout=COMPILE_SECONDS).stdout
    known = "\0".join([source.read_text(), version, *FLAGS, platform.machine(), _processor()])
    folder = cache_folder() / "kernels"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise RuntimeError(f"{folder} belongs to another user")
    library = folder / f"{source.stem}-{hashlib.sha256(known.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        handle, name = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        try:
            command = [compiler, *FLAGS, "-o", name, str(source)]
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
