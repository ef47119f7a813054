"""Build and publish an index version of a gallery: python -m jobs.index --gallery G"""

import time
from typing import Annotated

import typer

from jobs.command_line import Cameras, GalleryFolder, InsecureCluster, run
from jobs.progress import say
from pipeline.cluster import Cluster
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.drafts import PREFIX
from pipeline.index.freshness import current_index, extensible_index
from pipeline.index.heads import find_head
from pipeline.index.version_files import version_files
from pipeline.index.versions import Index
from pipeline.search.worth import measure_worth
from pipeline.settings import IndexSettings


def index(
    gallery: GalleryFolder,
    head: Annotated[
        str | None, typer.Option(help="Folder of a trained co-attention head [default: the one that ships for the backbone].")
    ] = None,
    segment_length: Annotated[int, typer.Option(help="Frames a segment (T).")] = 8,
    stride: Annotated[int, typer.Option(help="Frames between the starts of two segments.")] = 4,
    partition_videos: Annotated[int, typer.Option(help="Videos a partition; partitions are what search actors own.")] = 20_000,
    prefilter: Annotated[
        str, typer.Option(help="How a shortlist is found: exact, compressed, or auto (exact up to 500,000 segments).")
    ] = "auto",
    cameras: Cameras = "auto",
    force: Annotated[
        bool, typer.Option("--force", "--rebuild", help="Build everything anew, even if nothing has changed, with a new cohort.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(help="Partitions built at a time [default: 1; on a cluster one a CPU].", min=1)
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use [default: RAY_ADDRESS, else this process].")] = None,
    insecure_cluster: InsecureCluster = False,
) -> None:
    """Make an index version of everything in the gallery and publish it in one step; searches under way keep theirs.

    What the newest version of the same settings and head holds is kept; only new videos, and those that share a partition with a
    forgotten one, are worked on.
    """
    began = time.monotonic()
    opened = Gallery.open(gallery)
    settings = IndexSettings(segment_length, stride, partition_videos, prefilter, cameras)

    trained, calibration = find_head(head, opened)
    current = None if force else current_index(opened, settings, trained, calibration)
    if current is not None and current.gallery_calibration is not None:
        print(
            f"index {current.version} of {gallery} is current: {len(current.videos)} videos; nothing to do (--force builds anew)"
        )
        advise(current)
        return

    base = None if force else extensible_index(opened, settings, trained)
    built = build_index(
        opened,
        settings,
        trained,
        lambda done, total: say(f"{done}/{total} videos indexed"),
        calibration,
        base=base,
        workers=workers,
        address=Cluster(address, insecure_cluster),
        measure=measure_worth,
    )
    manifest = built.manifest
    print(f"index {built.version} of {gallery}")
    print(f"  videos        {manifest['videos']}, {manifest['frames']} frames, {manifest['segments']} segments")
    print(f"  segments      {segment_length} frames, stride {stride}")
    print(f"  model         {built.model}" + (" (untrained)" if built.untrained else ""))
    print(f"  prefilter     {manifest['prefilter']}; {describe_partitions(built, base)}")
    if (worth := built.gallery_calibration) is not None:
        print(f"  probabilities {'none, ' if worth.why else 'from '}{worth.words}")
    print(f"  size          {sum(entry['bytes'] for _, entry in version_files(opened, manifest)) / 1e6:.1f} MB")
    print(f"  time          {time.monotonic() - began:.1f} s")
    if built.untrained:
        print("No trained head ships for this backbone and none was given: the ranking follows distances of its features.")
    advise(built)


def describe_partitions(index: Index, base: Index | None) -> str:
    """How many partitions there are, how many of them were there before, and how many an earlier build had finished."""
    before = {part["id"] for part in base.manifest["partitions"]} if base is not None else set()
    ids = [part["id"] for part in index.manifest["partitions"]]
    words = [f"{len(ids)} partitions"]
    if base is not None:
        words.append(f"{sum(one in before for one in ids)} of them kept")
    if earlier := sum(one not in before and not one.startswith(index.manifest["build"][:PREFIX]) for one in ids):
        words.append(f"{earlier} of them from a build that did not end")
    return ", ".join(words)


def advise(index: Index) -> None:
    """Say so when building everything anew would now give better results."""
    if advice := index.rebuild_advice():
        print(f"advice: {advice}; build everything anew with --rebuild")


if __name__ == "__main__":
    run(index)
