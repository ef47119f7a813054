"""What searches of benchmarks.scale find of the exhaustive top, beside FAISS alone and exact searches."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import torch

from benchmarks.scale_report import BATCH, SHARES
from benchmarks.scale_searches import (
    BEST,
    USUAL_SHARE,
    Plan,
    ids_of,
    latencies,
    median,
    shortlist_of,
    some_targets,
    timed,
    whole_shortlist,
)
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.partition_files import encode_videos, segment_means
from pipeline.index.versions import Index, open_index
from pipeline.search.partitions import Partitions, opened_partitions
from pipeline.search.search import search, search_many
from pipeline.search.shortlist import segmented
from pipeline.search.targets import Target
from pipeline.segments import segment_frames, segment_starts


def recall_step(plan: Plan, means: str) -> dict[str, Any]:
    """Recall of the exhaustive top in shortlists by the best segment and by means of videos; FAISS's own rankings; times."""
    gallery = Gallery.open(plan.gallery)
    index = open_index(gallery)
    targets = some_targets(gallery, index, plan.judged, plan.seed)
    count = len(index.videos)
    best = min(BEST, count - 1)
    everything = replace(shortlist_of(index, 1.0), shortlist=None, top=best, evidence=False)
    figures: dict[str, Any] = {"judged": len(targets), "best": best}
    with opened_partitions(gallery, index, plan.actors) as partitions:
        search(gallery, index, partitions, targets[0], replace(everything, shortlist=BEST))  # starts what a first search starts
        seconds, first = timed(search, gallery, index, partitions, targets[0], everything)
        figures["exhaustive_1_seconds"] = seconds
        exhaustive = [ids_of(first)]
        at_once, total = min(BATCH, len(targets)), 0.0
        for start in range(0, len(targets), at_once):
            seconds, results = timed(search_many, gallery, index, partitions, targets[start : start + at_once], everything)
            total += seconds
            exhaustive[start:] = [ids_of(result) for result in results]
        figures["exhaustive_batch_seconds_a_target"] = total / len(targets)
        sizes = {share: max(best, math.ceil(share * count)) for share in SHARES}
        shortlists = {}
        for share, size in sizes.items():
            wanted = replace(everything, shortlist=size)
            shortlists[share] = [ids_of(r) for r in search_many(gallery, index, partitions, targets, wanted)]
        figures["recall_segments"] = {str(share): recall(exhaustive, found) for share, found in shortlists.items()}
        asked = whole_shortlist(replace(everything, shortlist=sizes[USUAL_SHARE]))
        whole = [ids_of(r) for r in search_many(gallery, index, partitions, targets, asked)]
        figures["recall_whole_shortlist"] = recall(exhaustive, whole)
        own = [ids_of(r) for r in search_many(gallery, index, partitions, targets, replace(everything, shortlist=best))]
        figures |= exact_searches(gallery, index, partitions, targets[: plan.exact], exhaustive)
    figures["faiss_segments_recall"] = recall(exhaustive, own)
    vectors = video_means(gallery, index, Path(means))
    flat = faiss.IndexFlatL2(vectors.shape[1])
    flat.add(vectors)
    queries = [np.ascontiguousarray(segmented(target, index).encoding.encodings.numpy() * metric_of(index)) for target in targets]
    figures["faiss_videos_seconds"] = median([timed(flat.search, query, best + 1)[0] for query in queries])
    ranked = [nearest_videos(vectors, query, max(sizes.values()) + 1) for query in queries]
    ids = index.videos["video_id"]
    by_video = [
        [name for name in ids.take(pa.array(found)).to_pylist() if name != t.video.video_id]
        for found, t in zip(ranked, targets, strict=True)
    ]
    figures["recall_videos"] = {
        str(share): recall(exhaustive, [found[:size] for found in by_video]) for share, size in sizes.items()
    }
    figures["faiss_videos_recall"] = recall(exhaustive, [found[:best] for found in by_video])
    figures["shortlist_sizes"] = {str(share): size for share, size in sizes.items()}
    person = dict(zip(ids.to_pylist(), index.videos["person_id"].to_pylist(), strict=True))
    rankings = {"exhaustive": exhaustive, "shortlist": shortlists[USUAL_SHARE], "faiss_segments": own, "faiss_videos": by_video}
    figures["same_person_in_top"] = {
        name: float(
            np.mean(
                [
                    np.mean([person[i] == person[t.video.video_id] for i in found[:best]])
                    for found, t in zip(of, targets, strict=True)
                ]
            )
        )
        for name, of in rankings.items()
    }
    return figures


def recall(wanted: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Mean share of each target's wanted videos that are among the found ones."""
    return float(np.mean([len(set(w) & set(f)) / len(w) for w, f in zip(wanted, found, strict=True)]))


def exact_searches(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], exhaustive: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Exact searches beside those of the 1 % shortlist in the same process."""
    if not targets:
        return {}
    usual = shortlist_of(index, USUAL_SHARE)
    exact = replace(usual, exact=True)
    for settings in (usual, exact):
        search(gallery, index, partitions, targets[0], settings)
    short = [timed(search, gallery, index, partitions, target, usual)[0] for target in targets]
    runs = [timed(search, gallery, index, partitions, target, exact) for target in targets]
    return {
        **latencies("exact", runs),
        "exact_to_shortlist_time": median([spent for spent, _ in runs]) / median(short),
        "exact_is_exhaustive": recall(exhaustive[: len(targets)], [ids_of(result) for _, result in runs]),
        "exact_targets": len(targets),
    }


def metric_of(index: Index) -> np.ndarray:
    """sqrt(-w), float32 [d_v]: times a value, what the score is a distance of. Raises UsageError for a head with w above 0."""
    weight, _ = index.heads.score_row()
    if (weight > 0).any():
        raise UsageError(
            "the head has weights above 0: its score is no distance, and there is no mean of a video to compare with"
        )
    return np.sqrt(-weight)


@torch.inference_mode()
def video_means(gallery: Gallery, index: Index, place: Path) -> np.ndarray:
    """One vector a video in the score's own metric, the mean of its segments' mean values: float32 [V, d_v]."""
    if place.exists():
        return np.load(place)
    rows, length, stride = index.videos, index.settings.segment_length, index.settings.stride
    vectors = np.empty((len(rows), index.head.config.value_width), np.float32)
    cameras = rows["camera_id"].to_pylist()
    for position, table in gallery.iter_videos(rows):
        frames = np.array([len(table)])
        _, values = encode_videos(index.heads, feature_matrix(table), frames, [cameras[position]])
        cut = segment_frames(segment_starts(len(table), length, stride), length, len(table))
        vectors[position] = segment_means(values, cut, index.heads.unit_encodings).mean(axis=0)
    vectors *= metric_of(index)
    np.save(place, vectors)
    return vectors


def nearest_videos(vectors: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Rows int64 [count] of `vectors` [V, d_v] that are nearest to any of the queries [N, d_v], nearest first."""
    distances = np.square(vectors).sum(axis=1)
    distances += (np.square(queries).sum(axis=1) - 2 * vectors @ queries.T).min(axis=1)
    return np.argsort(distances, kind="stable")[:count]
