"""Build and publish an index version of a gallery: python -m jobs.index --gallery G"""

import sys
import time
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.gallery import Gallery
from pipeline.index import IndexSettings, build_index, current_index, find_head


def index(
    gallery: Annotated[str, typer.Option(help="Folder or bucket prefix of the gallery.")],
    head: Annotated[
        str | None, typer.Option(help="Folder of a trained co-attention head [default: the one that ships for the backbone].")
    ] = None,
    segment_length: Annotated[int, typer.Option(help="Frames a segment (T).")] = 8,
    stride: Annotated[int, typer.Option(help="Frames between the starts of two segments.")] = 4,
    partition_videos: Annotated[int, typer.Option(help="Videos a partition; partitions are what search actors own.")] = 20_000,
    force: Annotated[bool, typer.Option(help="Build a version even if nothing has changed since the newest.")] = False,
) -> None:
    """Build a new index version of everything in the gallery and publish it in one step; searches under way keep theirs."""
    began = time.monotonic()
    opened = Gallery.open(gallery)
    settings = IndexSettings(segment_length, stride, partition_videos)

    trained, calibration = find_head(head, opened)
    current = None if force else current_index(opened, settings, trained, calibration)
    if current is not None:
        print(
            f"index {current.version} of {gallery} is current: {len(current.videos)} videos; nothing to do (--force builds anew)"
        )
        return

    def progress(done: int, total: int) -> None:
        print(f"{done}/{total} videos indexed", file=sys.stderr, flush=True)

    built = build_index(opened, settings, trained, progress, calibration)
    manifest = built.manifest
    print(f"index {built.version} of {gallery}")
    print(f"  videos        {manifest['videos']}, {manifest['frames']} frames, {manifest['segments']} segments")
    print(f"  segments      {segment_length} frames, stride {stride}")
    print(f"  model         {built.model}" + (" (untrained)" if built.untrained else ""))
    print(f"  prefilter     {manifest['prefilter']}; {len(manifest['partitions'])} partitions")
    print(f"  size          {sum(file['bytes'] for file in manifest['files'].values()) / 1e6:.1f} MB")
    print(f"  time          {time.monotonic() - began:.1f} s")
    if built.untrained:
        print("No trained head ships for this backbone and none was given: the ranking follows distances of its features.")


if __name__ == "__main__":
    run(index)
