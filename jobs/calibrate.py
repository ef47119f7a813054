"""What the scores of a trained head are worth: python -m jobs.calibrate --data MANIFEST --head W/head --out C"""

from typing import Annotated, Any

import numpy as np
import typer

from jobs.command_line import BACKBONE_HELP, Address, Cameras, Endpoints, InsecureCluster, run
from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.cluster import Cluster
from pipeline.coattention.calibration import save_calibration, settings_of
from pipeline.coattention.calibration_fit import fit_calibration
from pipeline.datasets.read import read_labelled
from pipeline.errors import UsageError
from pipeline.evaluation.as_searched import coattention_scores
from pipeline.evaluation.judged_pairs import Split, judged_pairs
from pipeline.gallery.audit import append_record
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.freshness import current_index
from pipeline.index.heads import head_folder, head_for
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.run import ingest
from pipeline.search.partitions import opened_partitions
from pipeline.settings import IndexSettings, ScoreSettings
from pipeline.storage.location import resolve


def calibrate(
    data: Annotated[
        str, typer.Option(help="Labelled videos of people that the head was not trained on; a manifest or data set.")
    ],
    head: Annotated[str, typer.Option(help="Folder of the trained head; calibration.json is written into it.")],
    out: Annotated[str, typer.Option(help="Folder for the gallery that is made on the way.")],
    backbone: Annotated[str, typer.Option(help=BACKBONE_HELP)] = DEFAULT,
    part: Annotated[str, typer.Option(help="Part of a data set: train, val, test or all.")] = "test",
    sample_rate: Annotated[float, typer.Option(help="Frames looked at, a second of video.")] = 10.0,
    segment_length: Annotated[int, typer.Option(help="Frames a segment (T).")] = 8,
    stride: Annotated[int, typer.Option(help="Frames between the starts of two segments.")] = 4,
    ratio: Annotated[
        float | None, typer.Option(help="Make the video score of this share of the best pair scores only (the patent's: 0.2).")
    ] = ScoreSettings.ratio,
    normalise: Annotated[str, typer.Option(help="cohort or none, as in the searches that the calibration is for.")] = "cohort",
    cameras: Cameras = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the videos, for people who read a report [default: --data].")] = None,
    address: Address = None,
    insecure_cluster: InsecureCluster = False,
    endpoint: Endpoints = None,
) -> None:
    """Fit the probability of "same person" to the scores of labelled videos and keep it beside the head.

    Indexes that are built with the head from then on carry it. Searches go by it only where the index was never measured itself,
    which jobs.index does. Every pair counts but a video with itself and one person under one camera. The error printed is that of
    people left out of the fit.
    """
    spec = find_backbone(backbone)
    settings = IndexSettings(segment_length, stride, cameras=cameras)
    score = ScoreSettings(ratio, normalise=normalise).alone  # type: ignore[arg-type]
    labelled = read_labelled(data, part=part, endpoints=endpoint or ())
    gallery = Gallery.open_or_create(resolve(out).join("gallery").uri, GallerySettings(spec, sample_rate, None))
    cluster = Cluster(address, insecure_cluster)
    summary = ingest(labelled.catalog, gallery, gallery_sampling(gallery), address=cluster)
    with head_folder(head) as folder:
        trained = head_for(gallery, folder)  # whatever calibration lies there is about to be replaced
    index = current_index(gallery, settings, trained) or build_index(gallery, settings, trained)
    if score.normalise == "cohort" and not index.cohort.usable:
        raise UsageError(f"{data} has too few videos to normalise scores by a cohort; give more, or --normalise none")
    pairs = judged_pairs(index.videos, [Split.of(labelled)], data)
    with opened_partitions(gallery, index, address=cluster) as partitions:
        scores = coattention_scores(gallery, index, partitions, pairs.query_rows, pairs.gallery_rows, score)
    persons = np.array([person or "" for person in index.videos["person_id"].to_pylist()], np.str_)
    q, g = np.nonzero(pairs.valid)
    fitted = fit_calibration(
        scores[q, g],
        pairs.persons[q],
        persons[pairs.gallery_rows[g]],
        head=index.manifest["head"],
        settings=settings_of(score, segment_length, stride, cameras=cameras),
        bounded=score.aggregate == "mean",
        name=name or data,
    )
    quality, on = fitted.quality, fitted.fitted_on
    fields: dict[str, Any] = {"data": data, "model": index.model, "queries": len(pairs.query_rows)}
    append_record(gallery, "calibrate", fields)  # before anything of the outcome is written or shown
    path = save_calibration(fitted, head)
    print(f"calibration   {path}")
    print(f"videos        {len(index.videos)}, {summary.refused} rejected")
    print(f"fitted on     {on.identities} people, {on.same_pairs} pairs of one person, {on.different_pairs} of two")
    print(f"error         {quality.ece:.3f} expected calibration error on people left out of the fit")
    print(f"cost          Cllr {quality.cllr:.3f} bits (0 perfect, 1 useless), {quality.min_cllr:.3f} at best with these scores")
    print(f"supports      likelihood ratios from 1:{np.exp(-fitted.lowest):.0f} to {np.exp(fitted.highest):.0f}:1")


if __name__ == "__main__":
    run(calibrate)
