"""Copies of labelled videos with the person hidden for a while: python -m jobs.occlude INPUT --out FOLDER"""

from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import Endpoints, local_folder, printable, run
from jobs.progress import say
from pipeline.datasets.read import read_labelled
from pipeline.decoding.sampling import Sampling
from pipeline.training.occlusion import OcclusionSettings, occlude_catalog

SHOWN = 10  # videos that were left out, by name


def occlude(
    data: Annotated[str, typer.Argument(help="A manifest, a folder of videos, or a data set such as mars:FOLDER.")],
    out: Annotated[Path, typer.Option(help="Folder to write to, absent or empty: one folder of images a video, manifest.csv.")],
    share: Annotated[float, typer.Option(help="Share of each video's frames that are hidden, in one stretch, 0..1.")] = 0.5,
    kind: Annotated[
        str,
        typer.Option(
            help="What hides people: block (one colour), thing, person (another one), mixed, or switch (another one's frames)."
        ),
    ] = "block",
    seed: Annotated[int, typer.Option(help="Number that everything random is drawn from.")] = 0,
    sample_rate: Annotated[float, typer.Option(help="Frames taken, a second of video.")] = 10.0,
    part: Annotated[str, typer.Option(help="Part of a data set: train, val, test or all.")] = "test",
    endpoint: Endpoints = None,
) -> None:
    """Write copies of videos in which something covers all but the person's head for a while.

    With --share 0 the copies are the sampled frames as they are. Ingest both: jobs.train --hidden learns from the pair, and
    jobs.evaluate says what a head does where people are hidden.
    """
    local_folder(out)
    labelled = read_labelled(data, part=part, endpoints=endpoint or ())

    def progress(done: int, total: int) -> None:
        if done % 50 == 0 or done == total:
            say(f"{done}/{total} videos")

    manifest, left_out = occlude_catalog(
        labelled.catalog, out, OcclusionSettings(share, kind, seed), Sampling(rate=sample_rate), progress
    )
    for line in left_out[:SHOWN]:
        say(printable(f"left out: {line}"))
    print(f"{len(labelled.catalog.table) - len(left_out)} videos copied, {len(left_out)} left out")
    print(f"manifest: {manifest}")


if __name__ == "__main__":
    run(occlude)
