"""Judge a ranking on labelled videos: python -m jobs.evaluate --data MANIFEST --out R"""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.audit import append_record
from pipeline.backbone import DEFAULT, find_backbone, parse_input_size
from pipeline.catalog import read_catalog
from pipeline.errors import UsageError
from pipeline.evaluation import RankingQuality, judge, rank_by_mean, rank_by_search, same_camera_left_out
from pipeline.gallery import Gallery, GallerySettings
from pipeline.index import IndexSettings, build_index, current_index, find_head
from pipeline.ingest import ingest
from pipeline.sampling import Sampling
from pipeline.scoring import ScoreSettings
from pipeline.search import opened_partitions
from pipeline.storage import resolve


def evaluate(
    data: Annotated[str, typer.Option(help="Manifest with person_id (and camera_id), or another input of jobs.ingest.")],
    out: Annotated[str, typer.Option(help="Folder for evaluation.json and the gallery that is made on the way.")],
    backbone: Annotated[str, typer.Option(help="Backbone by name, or path of an ONNX file with a sidecar .json.")] = DEFAULT,
    input_size: Annotated[str | None, typer.Option(help="Frame size, HEIGHTxWIDTH in pixels [default: its own].")] = None,
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second of video.")] = 10.0,
    head: Annotated[str | None, typer.Option(help="Folder of a trained head [default: the one that needs no training].")] = None,
    segment_length: Annotated[int, typer.Option(help="Frames a segment (T).")] = 8,
    stride: Annotated[int, typer.Option(help="Frames between the starts of two segments.")] = 4,
    ratio: Annotated[float, typer.Option(help="Share of the best segment pair scores that make the video score.")] = 0.2,
    address: Annotated[str | None, typer.Option(help="Ray cluster to use [default: RAY_ADDRESS, else this machine].")] = None,
) -> None:
    """Search for every labelled video in all others and print CMC and mAP, with mean pooling + cosine beside it.

    Left out of a ranking are the query and the same person under the same camera; queries without a match elsewhere are counted.
    """
    spec = find_backbone(backbone, parse_input_size(input_size) if input_size else None)
    settings, score = IndexSettings(segment_length, stride), ScoreSettings(ratio)
    catalog = read_catalog(data)
    gallery = Gallery.open_or_create(resolve(out).join("gallery").uri, GallerySettings(spec, sample_rate, None))
    summary = ingest(catalog, gallery, Sampling(sample_rate, None, spec.height, spec.width), address=address)
    trained = find_head(head, gallery) if head is not None else None
    index = current_index(gallery, settings, trained) or build_index(gallery, settings, trained)
    rows = [row for row in index.videos.to_pylist() if row["person_id"] is not None]
    if not rows:
        raise UsageError(f"{data} has no video with a person_id, so nothing can be judged")
    person = {row["video_id"]: row["person_id"] for row in rows}
    counts = same_camera_left_out(index.videos)
    with opened_partitions(gallery, index, address=address) as partitions:
        rankings = {"co-attention": rank_by_search(gallery, index, partitions, list(person), score)}
    rankings["mean + cosine"] = rank_by_mean(gallery, index.videos, list(person))
    try:
        qualities = {name: judge(ranked, person, counts) for name, ranked in rankings.items()}
    except ValueError as error:
        raise UsageError(f"{data}: {error}; each person needs a second video, under another camera") from error
    fields = {"data": data, "model": index.model, "index_version": index.version, "rejected": summary.refused}
    append_record(gallery, "evaluate", {**fields, "queries": len(person)})
    print(describe(qualities, index.model, summary.refused))
    document = fields | {"methods": {name: asdict(quality) for name, quality in qualities.items()}}
    resolve(out).join("evaluation.json").write_atomically(json.dumps(document, indent=1).encode())


def describe(qualities: dict[str, RankingQuality], model: str, rejected: int) -> str:
    """The figures as a table for people."""
    quality = next(iter(qualities.values()))
    lines = [
        f"{quality.queries} queries, {quality.unmatched} without a match elsewhere, {rejected} inputs rejected; {model}",
        f"{'':<16}" + "".join(f"rank-{rank:<4}" for rank in quality.cmc) + "mAP",
    ]
    for name, quality in qualities.items():
        lines.append(f"{name:<16}" + "".join(f"{value:<9.3f}" for value in quality.cmc.values()) + f"{quality.mean_ap:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    run(evaluate)
