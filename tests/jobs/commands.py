"""Runs commands for tests, within this process or as one of their own."""

import contextlib
import gc
import io
import runpy
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq
import ray

ROOT = Path(__file__).parents[2]
SIZE = ("--input-size", "128x64")


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The last line on stderr, where an error stands."""
        return (self.err.strip().splitlines() or [""])[-1]


def command(name: str, *arguments: str) -> Ended:
    """Run a command within this process, as `python -m jobs.NAME` does, only seconds faster; Ray must not be started."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    no_ray = mock.patch.object(ray, "init", side_effect=AssertionError("Ray was started"))
    arguments_given = mock.patch.object(sys, "argv", [f"jobs.{name}", *arguments])
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), no_ray, arguments_given, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # runpy warns of modules that were imported before
        try:
            runpy.run_module(f"jobs.{name}", run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
        finally:
            gc.unfreeze()  # this process goes on
    return Ended(code, out.getvalue(), err.getvalue())


def process(name: str, *arguments: str) -> Ended:
    """Run a command as a process of its own."""
    line = [sys.executable, "-m", f"jobs.{name}", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def waited_for(condition: Callable[[], object], seconds: float) -> bool:
    """Whether a condition comes true within so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def found(out: Path) -> list[dict]:
    """The rows of results.parquet in a folder."""
    return pq.read_table(out / "results.parquet").to_pylist()
