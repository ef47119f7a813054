"""How well people are found while they are hidden: rank-1 and mAP against the share of hidden frames, beside mean pooling.

    python -m benchmarks.occlusion --data MANIFEST --work FOLDER [--backbone B] [--head H] [--shares 0,0.25,0.5,0.75]
                                   [--ratios all,0.2] [--normalise cohort,none]

Every video gets a copy in which one stretch of its frames shows a block of one colour, a thing or another person instead of all
but the head (jobs.occlude); targets and candidates alike. Each copy is ingested and judged as jobs.evaluate does: every video a
query, the same person under the same camera left out. The last line is the same as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.cluster import connected
from pipeline.datasets.read import read_labelled
from pipeline.decoding.sampling import Sampling
from pipeline.evaluation.evaluate import EvaluationSettings, evaluate_index
from pipeline.evaluation.judged_pairs import Split, judged_pairs
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.heads import find_head
from pipeline.ingest.run import ingest
from pipeline.search.partitions import opened_partitions
from pipeline.settings import ScoreSettings
from pipeline.training.occlusion import OcclusionSettings, occlude_catalog


def occlusion(
    data: Annotated[str, typer.Option(help="Labelled videos: a manifest or a data set such as mars:FOLDER.")],
    work: Annotated[Path, typer.Option(help="Folder for the copies and their galleries; what is there is used again.")],
    backbone: Annotated[str, typer.Option(help="Backbone by name or ONNX path.")] = DEFAULT,
    head: Annotated[str | None, typer.Option(help="Folder of a head [default: the one that ships for the backbone].")] = None,
    shares: Annotated[str, typer.Option(help="Shares of hidden frames, with commas.")] = "0,0.25,0.5,0.75",
    kind: Annotated[str, typer.Option(help="What hides people: block, thing, person or mixed.")] = "block",
    part: Annotated[str, typer.Option(help="Part of a data set.")] = "all",
    ratios: Annotated[str, typer.Option(help="Top shares of pair scores, with commas; all: no share.")] = "all",
    normalise: Annotated[str, typer.Option(help="cohort, none, or both with a comma.")] = "cohort",
) -> None:
    """Print rank-1 / mAP of every method for every share of hidden frames."""
    spec = find_backbone(backbone)
    asked = [
        ScoreSettings(None if ratio == "all" else float(ratio), normalise=how)  # type: ignore[arg-type] # checked there
        for how in normalise.split(",")
        for ratio in ratios.split(",")
    ]
    figures = EvaluationSettings(shortlists=(), bootstrap=0)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    with connected(None):
        for share in shares.split(","):
            copies = work / f"{kind}-{share}"
            if not (copies / "manifest.csv").exists():
                _, left_out = occlude_catalog(
                    read_labelled(data, part=part).catalog, copies, OcclusionSettings(float(share), kind)
                )
                print(f"{share}: {len(left_out)} videos left out {left_out[:3]}", file=sys.stderr)
            place = work / f"{kind}-{share}-{spec.identity.replace('@', '-')}"
            gallery = Gallery.open_or_create(place, GallerySettings(spec, 10.0, None))
            catalog = read_catalog(copies / "manifest.csv")
            ingest(catalog, gallery, Sampling(height=spec.height, width=spec.width))
            trained, calibration = find_head(head, gallery)
            index = build_index(gallery, head=trained, calibration=calibration)
            pairs = judged_pairs(index.videos, [Split(None, None, frozenset(catalog.table["source_id"].to_pylist()))])
            with opened_partitions(gallery, index, actors=0) as partitions:
                for score in asked:
                    judged = evaluate_index(gallery, index, partitions, pairs, score, figures)
                    for method, quality in judged["methods"].items():
                        pairs = "all pairs" if score.ratio is None else f"top {score.ratio:.0%}"
                        name = f"{method}, {score.normalise}, {pairs}" if method == "co-attention" else method
                        found.setdefault(name, {})[share] = (quality["cmc"][1], quality["mean_ap"])
    print(f"{judged['queries']} queries, {index.model}, hidden by: {kind}; rank-1 / mAP")
    print(f"{'hidden frames':<40}" + "".join(f"{float(share):<16.0%}" for share in shares.split(",")))
    for method, by_share in found.items():
        print(f"{method:<40}" + "".join(f"{f'{rank1:.3f} / {mean_ap:.3f}':<16}" for rank1, mean_ap in by_share.values()))
    print(json.dumps({"data": data, "model": index.model, "kind": kind, "queries": judged["queries"], "methods": found}))


if __name__ == "__main__":
    run(occlusion)
