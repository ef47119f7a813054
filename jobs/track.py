"""Follow people anew through the recordings of a gallery: python -m jobs.track --gallery G"""

from dataclasses import replace
from typing import Annotated

import typer

from jobs.command_line import Address, GalleryFolder, InsecureCluster, printable, run
from jobs.footage_words import irregularity_lines
from jobs.progress import RenewedLine
from pipeline.cluster import Cluster
from pipeline.footage.tracker import TrackingSettings
from pipeline.footage.tracks import last_settings
from pipeline.footage.tracks import track as follow
from pipeline.gallery.gallery import Gallery


def track(
    gallery: GalleryFolder,
    start_score: Annotated[float | None, typer.Option(help="Least score of a detection that surely begins a track.")] = None,
    weak_start_score: Annotated[
        float | None, typer.Option(help="Of one that begins a track that counts if its person moves, or is seen surely later.")
    ] = None,
    continue_score: Annotated[float | None, typer.Option(help="Least score of one that continues a track.")] = None,
    least_cosine: Annotated[float | None, typer.Option(help="Least cosine of a detection's feature with its track's.")] = None,
    least_overlap: Annotated[float | None, typer.Option(help="Least overlap of a box with where its track is expected.")] = None,
    patience: Annotated[float | None, typer.Option(help="Seconds after which a track that is not seen ends.")] = None,
    default: Annotated[bool, typer.Option("--default", help="Settings that are not given are the usual ones.")] = False,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
) -> None:
    """Follow people through all recordings of a gallery, from their detections: nothing is decoded or embedded again.

    Settings that are not given stay as the gallery was last followed with. Tracks of other settings replace the old ones, run by
    run; jobs.index takes them in.
    """
    opened = Gallery.open(gallery)
    given = {
        "start_score": start_score,
        "weak_start_score": weak_start_score,
        "continue_score": continue_score,
        "least_cosine": least_cosine,
        "least_overlap": least_overlap,
        "patience_s": patience,
    }
    base = TrackingSettings() if default else last_settings(opened.snapshot())
    settings = replace(base, **{name: value for name, value in given.items() if value is not None})
    line = RenewedLine()
    summary = follow(
        opened,
        settings,
        Cluster(address, insecure_cluster),
        lambda done, total: line.show(f"{done}/{total} runs", done == total),
        record=True,
    )
    lines = [
        f"tracks of {gallery}",
        f"  runs          {summary.runs}, {summary.followed} of them followed now",
        f"  candidates    {summary.candidates} tracks",
        *irregularity_lines(summary.irregularities),
    ]
    print("\n".join(map(printable, lines)))


if __name__ == "__main__":
    run(track)
