"""How long a user waits for the first lead: from starting the command to the line that names it, Python's start included.

    python -m benchmarks.first_lead TARGET --gallery GALLERY [--repeats 9] [--out FOLDER]

Each repeat starts `python -m jobs.search` and, in turns with it, a Python that only imports PyTorch, most of the wait. A first
run, after which files are in the page cache, does not count. The last line is JSON: medians, the least and the most, in seconds.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.process_figures import machine
from jobs.command_line import run
from pipeline.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
FIRST = "   1  "  # what the line of the first lead begins with


def first_lead(
    target: Annotated[str, typer.Argument(help="A video, a folder of images, or id:VIDEO_ID of the gallery.")],
    gallery: Annotated[str, typer.Option(help="Gallery with an index, on this machine.")],
    repeats: Annotated[int, typer.Option(help="Times each is timed, in turns.")] = 9,
    out: Annotated[str | None, typer.Option(help="Let the search write results and a report without clips there.")] = None,
) -> None:
    """Print the times."""
    command = [sys.executable, "-m", "jobs.search", target, "--gallery", gallery, *(["--out", out, "--no-clips"] if out else [])]
    seconds: dict[str, list[float]] = {"first_lead": [], "end": [], "import_torch": []}
    for repeat in range(repeats + 1):
        first, end = _searched(command)
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch"], check=True)
        if repeat:
            for name, value in zip(seconds, (first, end, time.perf_counter() - began), strict=True):
                seconds[name].append(value)
    for name, found in seconds.items():
        print(f"{name.replace('_', ' '):<14} {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
    figures = {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found)} for name, found in seconds.items()
    }
    print(json.dumps({"machine": machine(), "repeats": repeats} | figures))


def _searched(command: list[str]) -> tuple[float, float]:
    """Seconds from starting a search to its first lead, and to its end."""
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}  # a line comes when it is printed, as on a terminal
    first, began = None, time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=unbuffered) as search:
        for line in search.stdout or ():
            if first is None and line.startswith(FIRST):
                first = time.perf_counter() - began
    if search.returncode or first is None:
        raise PipelineError(f"{' '.join(command)} ended with {search.returncode} and {'a' if first else 'no'} lead")
    return first, time.perf_counter() - began


if __name__ == "__main__":
    run(first_lead)
