"""The main job from nothing: rendered recordings, ingested, indexed and searched with the real commands: make demo"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from jobs.command_line import run
from pipeline.errors import PipelineError
from pipeline.evaluation.true_boxes import Appearance, read_truth, shown_by, votes_of_tracks
from pipeline.gallery.gallery import Gallery
from pipeline.rendering.recordings import PATTERN

TARGETS = 3


def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    people: Annotated[int, typer.Option(help="Rendered people, a multiple of six.")] = 24,
    cameras: Annotated[int, typer.Option(help="Rendered cameras.")] = 4,
    seed: Annotated[int, typer.Option(help="Number that everything random is drawn from.")] = 0,
) -> None:
    """Render the recordings of a small camera network, find and follow the people in them, index, and search for three of them.

    Each step is a command that is printed before it runs; run again, steps that are done take seconds.
    """
    network, gallery = folder / "network", folder / "gallery"
    processes = str(os.cpu_count() or 1)
    size = ["--people", str(people), "--cameras", str(cameras), "--frame-rate", "5", "--seed", str(seed)]
    step("jobs.render", str(network), "--recordings", *size, "--processes", processes)
    nvr = str(network / "nvr")
    recordings = [nvr, "--detector", "rendered", "--pattern", PATTERN, "--root", nvr]  # more of it may be taken in on the page
    step("jobs.ingest", *recordings, "--gallery", str(gallery))
    step("jobs.index", "--gallery", str(gallery))
    shown = shown_by(votes_of_tracks(Gallery.open(gallery), read_truth(network / "truth.csv")))
    targets = [f"id:{name}" for name in queries(shown)]
    why = ["--other-cameras", "--reason", "demonstration on rendered people"]
    step("jobs.search", *targets, "--gallery", str(gallery), "--top", "10", "--out", str(folder), *why)
    print(f"\n{judged(folder / 'results.parquet', shown)}")
    print(f"Open {folder / 'report.html'} in a browser; everything it shows is in that one file.")
    print(f"To search it in a browser: python -m jobs.serve --gallery {shlex.quote(str(gallery))}")


def queries(shown: Mapping[str, Appearance | None]) -> list[str]:
    """Tracks of TARGETS different people, spread evenly over those of the first camera."""
    first = {appearance[1]: name for name, appearance in sorted(shown.items(), reverse=True) if appearance is not None}
    tracks = sorted(first.values())
    return [tracks[(2 * i + 1) * len(tracks) // (2 * TARGETS)] for i in range(TARGETS)]


def judged(results: Path, shown: Mapping[str, Appearance | None]) -> str:
    """Which leads show their target's person, in words."""
    lines = ["By what the renderer wrote down (truth.csv), the same person is shown by"]
    table = pd.read_parquet(results, columns=["target_id", "rank", "video_id"])
    for target, leads in table.groupby("target_id", sort=False):
        person = (shown.get(str(target)) or ("", -1))[1]
        right = [str(row.rank) for row in leads.itertuples() if (shown.get(str(row.video_id)) or ("", -2))[1] == person]
        lines.append(f"  {target}: lead {', '.join(right) or 'none'} of {len(leads)}")
    return "\n".join(lines)


def step(module: str, *arguments: str) -> None:
    """Run one command as a person would. Raises PipelineError when it fails."""
    print(f"\n$ python -m {module} {shlex.join(arguments)}", flush=True)
    ended = subprocess.run([sys.executable, "-m", module, *arguments], check=False)
    if ended.returncode != 0:
        raise PipelineError(f"{module} ended with exit code {ended.returncode}")


if __name__ == "__main__":
    run(demo)
