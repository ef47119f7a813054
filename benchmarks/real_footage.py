"""Accuracy on real footage, end to end: every tracklet ingested, indexed, and each query searched with everything scored.

    python -m benchmarks.real_footage --shared ../shared [--backbone PATH_OR_NAME ...]

vtest: 48 clips of five people of one camera; left out are the query's own clip and clips of the same person less than 30 frames
away (the rule in the data's README). mini_mars: 32 tracklets of 16 people; left out are the query and the same person in the same
camera. vtest.avi: the full frames with their boxes file, each track a candidate, every track searched once.
"""

import csv
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.cluster import connected
from pipeline.decoding.sampling import Sampling
from pipeline.errors import UsageError
from pipeline.evaluation.as_searched import coattention_scores
from pipeline.evaluation.baselines import COSINE, cosine_scores, video_means
from pipeline.evaluation.evaluate import COATTENTION
from pipeline.evaluation.metrics import RankingQuality, query_figures, ranking_quality
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.index.versions import Index
from pipeline.ingest.run import ingest
from pipeline.scoring.video_scores import rank_videos
from pipeline.search.partitions import opened_partitions
from pipeline.settings import ScoreSettings

VTEST_AVI = Path("/usr/share/doc/opencv-doc/examples/data/vtest.avi")  # where Debian's opencv-doc puts it


@dataclass(frozen=True)
class Protocol:
    """A labelled gallery. queries: video ids; person: id -> label; counts(query, candidate): whether the pair is judged."""

    name: str
    manifest: Path
    queries: list[str]
    person: dict[str, str]
    counts: Callable[[str, str], bool]


def vtest(shared: Path) -> Protocol:
    """The clips of vtest_tracklets under the rule in its README."""
    folder = shared / "data/vtest_tracklets"
    with (folder / "tracklets.csv").open() as file:
        rows = {Path(row["file"]).stem: row for row in csv.DictReader(file)}

    def counts(query: str, candidate: str) -> bool:
        q, c = rows[query], rows[candidate]
        gap = max(int(q["start_frame"]) - int(c["end_frame"]), int(c["start_frame"]) - int(q["end_frame"]))
        return q["person_id"] != c["person_id"] or gap >= 30

    person = {video_id: row["person_id"] for video_id, row in rows.items()}
    queries = [video_id for video_id, row in rows.items() if row["role"] == "query"]
    return Protocol("vtest clips", folder / "manifest.csv", queries, person, counts)


def mini_mars(shared: Path, work: Path) -> Protocol:
    """The tracklets of mini_mars, every one a query, as folders of links to their images."""
    source = shared / "data/mini_mars"
    person, camera = {}, {}
    for entry in json.loads((source / "train.json").read_text()):
        images = [source / path for path in entry["img_paths"]]
        tracklet = images[0].name[:11]
        person[tracklet], camera[tracklet] = str(entry["pid"]), str(entry["camid"])
        folder = work / tracklet
        folder.mkdir(parents=True)
        for image in images:
            (folder / image.name).symlink_to(image.resolve())
    manifest = work / "manifest.csv"
    lines = [f"{tracklet},{tracklet},{camera[tracklet]},{person[tracklet]}" for tracklet in person]
    manifest.write_text("\n".join(["uri,video_id,camera_id,person_id", *lines]) + "\n")

    def counts(query: str, candidate: str) -> bool:
        return person[query] != person[candidate] or camera[query] != camera[candidate]

    return Protocol("mini_mars", manifest, list(person), person, counts)


def make_gallery(manifest: Path, folder: Path, backbone: str) -> Gallery:
    """Ingest a manifest into a new gallery. Ray must be running."""
    spec = find_backbone(backbone)
    gallery = Gallery.open_or_create(folder, GallerySettings(spec, 10.0, None))
    summary = ingest(read_catalog(str(manifest)), gallery, Sampling(height=spec.height, width=spec.width))
    if summary.rejected or summary.unaccounted:
        print(f"{manifest}: {summary.reasons}, {summary.unaccounted} unaccounted", file=sys.stderr)
    return gallery


def indexed(gallery: Gallery) -> Index:
    """An index with the head that ships for the gallery's backbone, or the untrained one."""
    head, calibration = find_head(None, gallery)
    return build_index(gallery, head=head, calibration=calibration)


def sorted_ids(index: Index) -> tuple[list[str], np.ndarray]:
    """The ids of all videos in order, and the rows of Index.videos that they stand in."""
    ids = index.videos["video_id"].to_pylist()
    rows = np.array(sorted(range(len(ids)), key=ids.__getitem__))
    return [ids[row] for row in rows], rows


def search_scores(gallery: Gallery, index: Index, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Co-attention scores of rows of Index.videos."""
    with opened_partitions(gallery, index, actors=0) as partitions:
        return coattention_scores(gallery, index, partitions, queries, rows, ScoreSettings())


def qualities(protocol: Protocol, gallery: Gallery) -> dict[str, RankingQuality]:
    """Co-attention and the baseline, every query of the protocol against everything."""
    index = indexed(gallery)
    ids, rows = sorted_ids(index)
    queries = [query for query in protocol.queries if query in ids]
    person, query_rows = protocol.person, rows[[ids.index(query) for query in queries]]
    valid = np.array([[v != query and v in person and protocol.counts(query, v) for v in ids] for query in queries])
    same = np.array([[person.get(v) == person[query] for v in ids] for query in queries])
    means, _ = video_means(gallery, index)
    scores = {
        COATTENTION: search_scores(gallery, index, query_rows, rows),
        COSINE: cosine_scores(means[query_rows], means[rows]),
    }
    return {name: ranking_quality(query_figures(table, valid, same)) for name, table in scores.items()}


def tracks_of_the_full_frame(shared: Path, work: Path, backbone: str) -> dict[str, list[str]]:
    """vtest.avi with its boxes file to ranked tracks: each track's ranking of the others."""
    manifest = work / "full.csv"
    boxes = (shared / "data/vtest_tracklets/boxes.csv").resolve()
    manifest.write_text(f"uri,video_id,camera_id,boxes_uri\n{VTEST_AVI},vtest,pets_view1,{boxes}\n")
    gallery = make_gallery(manifest, work / "full", backbone)
    index = indexed(gallery)
    ids, rows = sorted_ids(index)
    orders = [rank_videos(row, ids) for row in search_scores(gallery, index, rows, rows)]
    return {track: [ids[i] for i in order if ids[i] != track] for track, order in zip(ids, orders, strict=True)}


def main(
    shared: Annotated[Path, typer.Option(help="Folder with the real footage.")] = Path("../shared"),
    backbone: Annotated[list[str] | None, typer.Option(help="Backbone by name or path; may be given again.")] = None,
) -> None:
    """Rank-1 and mAP on real tracklets, and the full-frame footage as ranked tracks."""
    if not (shared / "data").is_dir():
        raise UsageError(f"{shared} has no real footage; name the folder with --shared")
    backbones = backbone or [str(shared / "models/osnet_x0_25_msmt17/osnet_x0_25_msmt17.onnx"), DEFAULT]
    figures: dict[str, object] = {}
    print(f"{'footage':<12} {'backbone':<22} {'method':<14} {'queries':>7} {'rank-1':>7} {'rank-5':>7} {'mAP':>6}")
    with tempfile.TemporaryDirectory() as folder, connected():
        for number, name in enumerate(backbones):
            work = Path(folder, str(number))
            short = find_backbone(name).name
            for protocol in (vtest(shared), mini_mars(shared, work / "tracklets")):
                gallery = make_gallery(protocol.manifest, work / protocol.name, name)
                for method, quality in qualities(protocol, gallery).items():
                    figures[f"{protocol.name}, {short}, {method}"] = asdict(quality)
                    cells = f"{quality.queries:>7} {quality.cmc[1]:7.3f} {quality.cmc[5]:7.3f} {quality.mean_ap:6.3f}"
                    print(f"{protocol.name:<12} {short:<22} {method:<14} {cells}", flush=True)
        if VTEST_AVI.is_file():
            tracks = tracks_of_the_full_frame(shared, Path(folder), backbones[-1])
            print(f"vtest.avi: {len(tracks)} tracks from full frames; each with the others, best first ({short}):")
            for track, ranked in tracks.items():
                print(f"  {track}: {', '.join(ranked)}")
            figures["vtest.avi"] = tracks
        else:
            print(f"vtest.avi is not at {VTEST_AVI}; Debian's opencv-doc installs it")
    print(json.dumps(figures))


if __name__ == "__main__":
    run(main)
