"""Writes a small camera network of rendered pedestrians, as clips or as recordings: python -m jobs.render OUT"""

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import local_folder, run
from pipeline.rendering.network import render_network
from pipeline.rendering.recordings import PATTERN, RecordingArguments, render_recordings


def render(
    out: Annotated[Path, typer.Argument(help="Folder to write to: absent, empty, or a network rendered before.")],
    people: Annotated[int, typer.Option(help="People in the network.")] = 24,
    cameras: Annotated[int, typer.Option(help="Cameras; most people come past 2 to 4 of them.")] = 4,
    visits: Annotated[int, typer.Option(help="Clips per person and camera.")] = 1,
    seed: Annotated[int, typer.Option(help="Number that everything random is drawn from.")] = 0,
    hidden_share: Annotated[
        float, typer.Option(help="Share of clips, 0..1, in which something hides the person for a while.")
    ] = 0.35,
    processes: Annotated[int, typer.Option(help="Processes that render; the files do not depend on it.")] = 1,
    full_frame: Annotated[bool, typer.Option(help="Also render one whole camera picture, with boxes of its people.")] = True,
    recordings: Annotated[
        bool,
        typer.Option(
            "--recordings", help="Whole camera pictures instead of clips: six people at a time, everybody in every camera once."
        ),
    ] = False,
    frame_rate: Annotated[int, typer.Option(help="Frames a second of recordings.")] = RecordingArguments.frame_rate,
    seconds: Annotated[float, typer.Option(help="Length of a recording.")] = RecordingArguments.seconds,
) -> None:
    """Render clips of synthetic pedestrians in several cameras, with a manifest that names who is in which.

    OUT/manifest.csv lists the clips (OUT/clips/camNN/*.mp4) and the full-frame video (OUT/scenes), whose boxes are in MOT
    format and whose tracks OUT/labels.csv maps to people. Run again with the same flags, nothing is rendered.

    With --recordings, OUT/nvr/CAMERA/TIME.mp4 are what cameras leave behind, for jobs.ingest --detector; OUT/truth.csv says who
    is where.
    """
    if recordings:
        uris = render_recordings(local_folder(out), RecordingArguments(people, cameras, seed, frame_rate, seconds), processes)
        print(f"{len(uris)} recordings of {people} people in {cameras} cameras: {out / 'nvr'}, named {PATTERN}")
        return
    manifest = render_network(
        local_folder(out),
        people=people,
        cameras=cameras,
        clips_per_person_and_camera=visits,
        seed=seed,
        hidden_share=hidden_share,
        processes=processes,
        full_frame=full_frame,
    )
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    clips = [row for row in rows if not row["boxes_uri"]]
    roles = Counter(row["role"] for row in clips)
    hidden = sum(float(row["hidden"]) >= 0.2 for row in clips)
    print(f"{len(clips)} clips of {people} people in {cameras} cameras ({roles['query']} query, {roles['gallery']} gallery)")
    print(f"{hidden} clips hide the person in a fifth of their frames or more")
    for row in rows:
        if row["boxes_uri"]:
            print(f"full frame: {manifest.parent / row['uri']}, boxes {row['boxes_uri']}, labels labels.csv")
    print(f"manifest: {manifest}")


if __name__ == "__main__":
    run(render)
