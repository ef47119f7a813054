"""The main job from nothing: a rendered camera network, ingested, indexed and searched with the real commands: make demo"""

import csv
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.errors import PipelineError

TARGETS = 3


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    people: Annotated[int, typer.Option(help="Rendered people.")] = 24,
    cameras: Annotated[int, typer.Option(help="Rendered cameras.")] = 4,
    seed: Annotated[int, typer.Option(help="Number that everything random is drawn from.")] = 0,
) -> None:
    """Render a small camera network, bring it into a gallery, index it and search for three of its people.

    Each step is a command that is printed before it runs; run again, steps that are done take seconds.
    """
    network, gallery = folder / "network", folder / "gallery"
    processes = str(os.cpu_count() or 1)
    size = ["--people", str(people), "--cameras", str(cameras), "--visits", "2", "--seed", str(seed)]
    step("jobs.render", str(network), *size, "--processes", processes)
    step("jobs.ingest", str(network / "manifest.csv"), "--gallery", str(gallery))
    step("jobs.index", "--gallery", str(gallery))
    targets = [f"id:{video_id}" for video_id in queries(network / "manifest.csv")]
    shown = ["--other-cameras", "--show-labels", "--reason", "demonstration on rendered people"]
    step("jobs.search", *targets, "--gallery", str(gallery), "--top", "10", "--out", str(folder), *shown)
    print(f"\nOpen {folder / 'report.html'} in a browser; everything it shows is in that one file.")
    print(f"To search it in a browser: python -m jobs.serve --gallery {shlex.quote(str(gallery))}")


def step(module: str, *arguments: str) -> None:
    """Run one command as a person would. Raises PipelineError when it fails."""
    print(f"\n$ python -m {module} {shlex.join(arguments)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if ended.returncode != 0:
        raise PipelineError(f"{module} ended with exit code {ended.returncode}")


def queries(manifest: Path) -> list[str]:
    """Three query clips of different people, spread evenly over the manifest's."""
    with manifest.open(newline="") as file:
        first_of_person = {row["person_id"]: row["video_id"] for row in csv.DictReader(file) if row["role"] == "query"}
    clips = sorted(first_of_person.values())
    return [clips[(2 * i + 1) * len(clips) // (2 * TARGETS)] for i in range(TARGETS)]


if __name__ == "__main__":
    run(demo)
