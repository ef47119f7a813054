"""From raw recordings to "is the person found": rendered cameras with ground truth, beside the same search on true boxes.

    python -m benchmarks.footage --detector yolox_nano --work bench/footage

Each camera films scenes of six people who cross its picture and hide each other; everybody comes past every camera once. The
recordings go through `jobs.ingest --detector`'s own way into one gallery. Into the other go the same recordings with their true
boxes and tracks, so that nothing but detection and following differs.

- people found: of the appearances (a person in a scene, for a second or more) the share that some track shows for most of its
  frames. Frames belong to whom their box overlaps most, by half (intersection over union).
- purity: the share of all frames of tracks with a person that show the person to whom most of their track's belong; nobody:
  tracks that show no person for most of their frames.
- Each true track is searched for in both galleries, its own camera left out. An appearance counts once, by its best track; an
  appearance that no track shows is never found. rank-1: the first lead shows the person. mAP: mean average precision over
  appearances; tracks of others and of nobody that come before count against it.
"""

import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.cluster import connected
from pipeline.evaluation.true_boxes import Appearance, Truth, read_truth, shown_by, votes_of_tracks
from pipeline.footage.recordings import Clocks, name_pattern
from pipeline.footage.run import ingest_footage
from pipeline.footage.tracker import TrackingSettings
from pipeline.footage.tracks import track
from pipeline.footage.watch import Recordings
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.run import ingest
from pipeline.rendering.recordings import PATTERN, RecordingArguments, render_recordings
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search_many
from pipeline.search.targets import gallery_target
from pipeline.settings import SearchSettings

RATE = 5.0
# How people are followed: as an ingest does, and as jobs.track can, from the same detections, where the detector is less sure.
FOLLOWED = {
    "as shipped": TrackingSettings(),
    "begun surely only": replace(TrackingSettings(), weak_start_score=TrackingSettings.start_score),
    "begun at 0.4": replace(TrackingSettings(), weak_start_score=0.4),
}
LEAST_FRAMES = 5  # that an appearance is looked at: a second


def footage(
    detector: Annotated[str, typer.Option(help="Detector by name, or the path of an ONNX file with a sidecar.")],
    work: Annotated[Path, typer.Option(help="Folder for recordings and galleries; what is rendered is kept.")] = Path(
        "bench/footage"
    ),
    people: Annotated[int, typer.Option(help="People, a multiple of six.")] = 18,
    cameras: Annotated[int, typer.Option(help="Cameras.")] = 4,
    seed: Annotated[int, typer.Option(help="Number that everything random is drawn from.")] = 0,
) -> None:
    """Render, ingest both ways, search, and print what is lost on the way from raw recordings."""
    rendered = work / f"recordings-{people}-{cameras}-{seed}"
    write_true_manifest(rendered, render_recordings(rendered, RecordingArguments(people, cameras, seed)))
    truth = read_truth(rendered / "truth.csv")
    for name in ("found", "true"):
        shutil.rmtree(work / name, ignore_errors=True)
    settings = GallerySettings(find_backbone(DEFAULT), RATE, None)
    found, true = (Gallery.open_or_create(work / name, settings) for name in ("found", "true"))
    with connected(None):
        plan = Recordings(str(rendered / "nvr"), name_pattern(PATTERN), Clocks()).plan()
        ingest_footage(plan, found, gallery_sampling(found), detector)
        ingest(read_catalog(rendered / "true.csv"), true, gallery_sampling(true))
    looked_at = appearances(truth)
    shown_by_truth = {row["video_id"]: (row["uri"], int(row["track"])) for row in true.snapshot().videos.to_pylist()}
    rows: dict[str, dict[str, Any]] = {}
    for name, how in FOLLOWED.items():
        track(found, how)
        shown_by_tracks, figures = who_is_shown(found, truth, looked_at)
        rows[name] = figures | search(found, true, shown_by_tracks, shown_by_truth, looked_at)
    rows["true boxes"] = search(true, true, shown_by_truth, shown_by_truth, looked_at)
    show(rows)
    print(json.dumps({"benchmark": "footage", "detector": detector, "appearances": len(looked_at), **rows}))


def write_true_manifest(rendered: Path, uris: list[str]) -> None:
    """true.csv: the recordings with their true boxes."""
    with (rendered / "true.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("uri", "boxes_uri", "camera_id", "start_time"))
        for uri in uris:
            path = (rendered / uri).resolve()
            start = datetime.strptime(path.stem, "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
            rows.writerow((path, path.with_suffix(".boxes.txt"), path.parent.name, start.isoformat()))


def appearances(truth: Truth) -> set[Appearance]:
    """Those that last for a second of the frames that are looked at (every second one)."""
    seen = Counter(
        (uri, person) for uri, frames in truth.items() for frame, those in frames.items() if frame % 2 == 0 for person, _ in those
    )
    return {appearance for appearance, count in seen.items() if count >= LEAST_FRAMES}


def who_is_shown(
    gallery: Gallery, truth: Truth, looked_at: set[Appearance]
) -> tuple[dict[str, Appearance | None], dict[str, Any]]:
    """Whom each candidate of recordings shows for most of its frames, None: nobody; and the figures of detection and
    following.
    """
    votes = votes_of_tracks(gallery, truth)
    shown = shown_by(votes)
    own = sum(count[shown[name]] for name, count in votes.items() if shown[name] is not None)
    all_frames = sum(count.total() - count[None] for name, count in votes.items() if shown[name] is not None)
    named = {one for one in shown.values() if one is not None}
    figures = {
        "people_found": len(named & looked_at) / len(looked_at),
        "tracks": len(shown),
        "nobody": sum(one is None for one in shown.values()),
        "purity": own / all_frames,
    }
    return shown, figures


def search(
    gallery: Gallery,
    targets: Gallery,
    shown: dict[str, Any],
    of_targets: dict[str, Appearance],
    looked_at: set[Appearance],
) -> dict[str, float]:
    """rank-1 and mAP of every true track, searched for in a gallery."""
    head, calibration = find_head(None, gallery)
    index = build_index(gallery, head=head, calibration=calibration)
    names = [name for name in sorted(of_targets) if of_targets[name] in looked_at]
    found = [gallery_target(targets, name) for name in names]
    settings = SearchSettings(top=len(shown), shortlist=None, patience=None, other_cameras=True, evidence=False)
    first, precisions = [], []
    with opened_partitions(gallery, index, 0) as partitions:
        for name, result in zip(names, search_many(gallery, index, partitions, found, settings), strict=True):
            uri, person = of_targets[name]
            camera = Path(uri).parent.name
            wanted = {one for one in looked_at if one[1] == person and Path(one[0]).parent.name != camera}
            ranked = [shown[lead.video.video_id] for lead in result.leads]
            first.append(ranked[0] is not None and ranked[0][1] == person)
            precisions.append(average_precision(ranked, wanted))
    return {"targets": len(names), "rank_1": float(np.mean(first)), "mean_ap": float(np.mean(precisions))}


def average_precision(ranked: list[Appearance | None], wanted: set[Appearance]) -> float:
    """Of appearances in the order of their best leads; further leads of an appearance that was there already do not count."""
    seen: set[Appearance] = set()
    place, precisions = 0, []
    for one in ranked:
        if one is not None and one in seen:
            continue
        place += 1
        if one is not None:
            seen.add(one)
        if one in wanted:
            precisions.append((len(precisions) + 1) / place)
    return sum(precisions) / len(wanted)


def show(rows: dict[str, dict[str, Any]]) -> None:
    """The table for people."""
    names = ("people_found", "tracks", "nobody", "purity", "targets", "rank_1", "mean_ap")
    table = Table("followed", "people found", "tracks", "of nobody", "purity", "targets", "rank-1", "mAP")
    for name, row in rows.items():
        values = [row.get(one, "") for one in names]
        table.add_row(name, *(f"{value:.3f}" if isinstance(value, float) else str(value) for value in values))
    Console().print(table)


if __name__ == "__main__":
    run(footage)
