"""Judge a ranking on labelled videos: python -m jobs.evaluate --data MANIFEST_OR_DATASET --out R"""

import functools
import json
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jobs import search_flags as flags
from jobs.command_line import BACKBONE_HELP, Address, Cameras, Endpoints, InsecureCluster, now_words, output_folder, run
from jobs.progress import RenewedLine, time_left
from pipeline.backbone.spec import DEFAULT, find_backbone, parse_input_size
from pipeline.cluster import Cluster
from pipeline.datasets.labelled import LabelledData
from pipeline.datasets.read import read_labelled
from pipeline.errors import UsageError
from pipeline.evaluation.evaluate import COATTENTION, EvaluationSettings, evaluate_index
from pipeline.evaluation.judged_pairs import Split, judged_pairs
from pipeline.evaluation.pair_scores import write_pair_scores
from pipeline.evaluation.report import evaluation_text, render_evaluation
from pipeline.gallery.audit import append_record, check_policy, failures_recorded, unicode_only
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.freshness import current_index
from pipeline.index.heads import find_head
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.run import ingest
from pipeline.search.partitions import opened_partitions
from pipeline.search.worth import measure_worth
from pipeline.settings import IndexSettings, ScoreSettings
from pipeline.storage.location import Location

SPLITS = 10  # of the data sets that are divided several times
SCORE = ScoreSettings()  # its defaults


def evaluate(
    data: Annotated[str, typer.Option(help="Labelled manifest, or mars:PATH, prid2011:PATH, ilids-vid:PATH, ls-vid:PATH.")],
    out: Annotated[str, typer.Option(help="Folder for evaluation.json, .html and the gallery that is made on the way.")],
    part: Annotated[str, typer.Option(help="Part of the data set: test, val, train or all.")] = "test",
    protocol: Annotated[str, typer.Option(help="Gallery of MARS: official (with the queries) or torchreid.")] = "official",
    split: Annotated[str, typer.Option(help="Split of iLIDS-VID and PRID2011: 0 to 9, or all (mean over the ten).")] = "0",
    first_half: Annotated[str, typer.Option(help="What the first half of an iLIDS-VID split is: test or train.")] = "test",
    backbone: Annotated[str, typer.Option(help=BACKBONE_HELP)] = DEFAULT,
    input_size: Annotated[str | None, typer.Option(help="Frame size, HEIGHTxWIDTH in pixels [default: its own].")] = None,
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second of video.")] = 10.0,
    head: Annotated[
        str | None, typer.Option(help="Folder of a trained head [default: the one that ships for the backbone].")
    ] = None,
    segment_length: Annotated[int, typer.Option(help="Frames a segment (T).")] = 8,
    stride: Annotated[int, typer.Option(help="Frames between the starts of two segments.")] = 4,
    ratio: flags.Ratio = SCORE.ratio,
    neighbours: flags.Neighbours = SCORE.neighbours,
    aggregate: flags.Aggregate = "mean",
    normalise: flags.Normalise = SCORE.normalise,
    cameras: Cameras = "auto",
    false_match_rate: Annotated[
        float, typer.Option(help="Share of the pairs of different persons that may pass the threshold to be found.")
    ] = 0.001,
    false_alarm_rate: Annotated[
        float, typer.Option(help="Share of the searches for absent people that may still give an answer.")
    ] = 0.1,
    shortlists: Annotated[
        str, typer.Option(help="Sizes of shortlists to judge the prefilter at: videos or shares; empty for none.")
    ] = "10,100,1000,1%,10%",
    bootstrap: Annotated[int, typer.Option(help="Resamples of persons behind each interval; 0 for no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    save_scores: Annotated[
        bool, typer.Option("--save-scores", help="Write scores.parquet, every pair that counts with its scores.")
    ] = False,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
    endpoint: Endpoints = None,
    reason: Annotated[str | None, typer.Option(help="Why it is evaluated; goes into the audit log.")] = None,
    case: Annotated[str | None, typer.Option(help="Case or ticket number; goes into the audit log.")] = None,
) -> None:
    """Search for labelled videos in all others and print how well they are found, beside baselines on the same features.

    Left out of a ranking are the query and the same person under the same camera; queries without a match elsewhere are counted.
    Writes evaluation.json and evaluation.html. The evaluation is written to the gallery's audit log.
    """
    spec = find_backbone(backbone, parse_input_size(input_size) if input_size else None)
    settings = IndexSettings(segment_length, stride, cameras=cameras)
    score = ScoreSettings(ratio, None, aggregate, normalise, neighbours)  # type: ignore[arg-type] # checked there
    sizes = tuple(size.strip() for size in shortlists.split(",") if size.strip())
    figures = EvaluationSettings(false_match_rate, false_alarm_rate, sizes, bootstrap, seed)
    folder = output_folder(out, "an evaluation is written")
    labelled = [
        read_labelled(data, part=part, protocol=protocol, split=number, first_half=first_half, endpoints=endpoint or ())
        for number in _splits(split)
    ]
    gallery = Gallery.open_or_create(folder.join("gallery").uri, GallerySettings(spec, sample_rate, None))
    check_policy(gallery, reason, case)
    started_at = datetime.now(UTC).isoformat()
    why = {"reason": reason, "case": case, "started_at": started_at}
    cluster = Cluster(address, insecure_cluster)
    with failures_recorded(gallery, "evaluate", {"data": unicode_only(data)} | why):
        rejected = _ingest_all(labelled, gallery, cluster)
        trained, calibration = find_head(head, gallery)
        index = current_index(gallery, settings, trained, calibration)
        if index is None or index.gallery_calibration is None:
            index = build_index(gallery, settings, trained, calibration=calibration, measure=measure_worth)
        splits = list(dict.fromkeys(map(Split.of, labelled)))  # data without splits: all are one
        pairs = judged_pairs(index.videos, splits, data)
        keep: dict[str, Any] | None = {} if save_scores else None
        line, began = RenewedLine(at_once=False, brief=False), time.monotonic()

        def progress(done: int, total: int) -> None:
            line.show(f"{done}/{total} queries scored, {time_left(time.monotonic() - began, done, total)}", done == total)

        with opened_partitions(gallery, index, address=cluster) as partitions:
            judged = evaluate_index(gallery, index, partitions, pairs, score, figures, keep, progress)
    named = {"data": data, "model": index.model, "index_version": index.version, "rejected": rejected}
    asked = {"part": part, "protocol": protocol, "split": split, "first_half": first_half, "sample_rate": sample_rate}
    document = named | {
        "name": labelled[0].name,
        "notes": list(dict.fromkeys(note for one in labelled for note in one.notes)),
        "made_at": now_words(),
        "untrained": index.untrained,
        "settings": asked | asdict(settings) | asdict(score) | asdict(figures),
        **judged,
    }
    ours = judged["methods"][COATTENTION]
    found = {"mean_ap": ours["mean_ap"], "rank_1": ours["cmc"][1]}
    append_record(gallery, "evaluate", named | {"queries": judged["queries"], "figures": found} | why)
    _write(document, folder)
    if keep is not None:
        folder.join("scores.parquet").write_atomically(functools.partial(write_pair_scores, keep, index, pairs))
    print(evaluation_text(document))
    print(f"report: {folder.join('evaluation.html').uri}")


def _splits(text: str) -> range:
    if text == "all":
        return range(SPLITS)
    if not (text.isascii() and text.isdigit()) or int(text) >= SPLITS:
        raise UsageError(f"--split is a number from 0 to {SPLITS - 1} or all, not {text!r}")
    return range(int(text), int(text) + 1)


def _ingest_all(labelled: list[LabelledData], gallery: Gallery, cluster: Cluster) -> int:
    """Bring the videos of all splits into the gallery; returns how many inputs were rejected."""
    for one in labelled:
        summary = ingest(one.catalog, gallery, gallery_sampling(gallery), address=cluster)
        if summary.unaccounted:
            print(f"{summary.unaccounted} inputs were lost on the way; run the same command again", file=sys.stderr)
    sources = {source for one in labelled for source in one.catalog.table["source_id"].to_pylist()}
    return len(sources & set(gallery.snapshot().rejects["source_id"].to_pylist()))


def _write(document: dict[str, Any], folder: Location) -> None:
    folder.join("evaluation.json").write_atomically(json.dumps(document, indent=1, allow_nan=False).encode())
    folder.join("evaluation.html").write_atomically(render_evaluation(document).encode("utf-8", "replace"))


if __name__ == "__main__":
    run(evaluate)
