"""What co-attention is compared with: one vector a video, by cosine of features and by the head's own metric."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pipeline.coattention.cameras import camera_statistics
from pipeline.coattention.cohort import NEAREST
from pipeline.evaluation.judged_pairs import JudgedPairs
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.versions import Index

COSINE, METRIC = "mean + cosine", "mean + learned metric"
NORMALISED = ", normalised"  # after the name of a baseline with cohort normalisation

Floats = NDArray[np.float64]


def video_means(gallery: Gallery, index: Index) -> tuple[Floats, Floats]:
    """Mean frame feature [V, D] and mean value under the index's head [V, d_v] of every video, float64.

    Where the index tells cameras apart both are, and of unit length.
    """
    features = np.empty((len(index.videos), gallery.feature_width))
    values = np.empty((len(index.videos), index.head.config.value_width))
    cameras = index.videos["camera_id"].to_pylist()
    for position, table in gallery.iter_videos(index.videos):
        of_frames = feature_matrix(table)
        features[position] = of_frames.mean(axis=0, dtype=np.float64)
        with torch.inference_mode():
            of_head = index.heads.of(cameras[position]).values(torch.from_numpy(np.array(of_frames)))
        values[position] = of_head.double().mean(dim=0).numpy()
    if index.cameras is None:
        return features, values
    return without_cameras(_unit(features), cameras), _unit(values)


def without_cameras(means: Floats, cameras: Sequence[str | None]) -> Floats:
    """Features of videos [V, D] changed as `pipeline.coattention.cameras` changes values, by statistics of all; unit vectors."""
    statistics = camera_statistics(means, cameras)
    rows = np.array([statistics.row(camera) for camera in cameras])
    changed = np.empty_like(means)
    for row in np.unique(rows):
        mean, by = (part[row].astype(np.float64) for part in (statistics.means, statistics.maps))
        changed[rows == row] = (means[rows == row] - mean) @ by
    return _unit(changed)


def _unit(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def cosine_scores(queries: ArrayLike, candidates: ArrayLike) -> Floats:
    """Cosine of mean frame features, float64 [q, g]; queries [q, D], candidates [g, D]."""
    left, right = (np.asarray(part, np.float64) for part in (queries, candidates))
    lengths = [np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (left, right)]
    return (left / lengths[0]) @ (right / lengths[1]).T


def metric_scores(queries: ArrayLike, candidates: ArrayLike, weight: ArrayLike) -> Floats:
    """sum_d w_d (q_d - g_d)^2 of mean values, float64 [q, g]: the head's logit of one mean against another, less its bias.

    queries [q, d_v], candidates [g, d_v], weight [d_v] of any sign.
    """
    weight = np.asarray(weight, np.float64)
    left, right = (np.asarray(part, np.float64) for part in (queries, candidates))
    centre = right.mean(axis=0)  # keeps the terms of the opened square small
    left, right = left - centre, right - centre
    return (left**2 @ weight)[:, None] + right**2 @ weight - 2 * (left * weight) @ right.T


def cohort_normalised(scores: ArrayLike, query_cohort: ArrayLike, gallery_cohort: ArrayLike, share: float = NEAREST) -> Floats:
    """Scores of whole videos as `coattention.cohort` normalises those of segments: ((s - mu_q) / sd_q + (s - mu_g) / sd_g) / 2.

    scores [q, g]; query_cohort [q, C], gallery_cohort [g, C]: scores of each side against a cohort of videos, NaN where a video
    meets itself. mu and sd are taken over the nearest `share` of the cohort. A side without spread there is only centred.
    """
    scores = np.asarray(scores, np.float64)
    (query_mean, query_spread), (gallery_mean, gallery_spread) = (
        _nearest(np.asarray(cohort, np.float64), share) for cohort in (query_cohort, gallery_cohort)
    )
    return ((scores - query_mean[:, None]) / query_spread[:, None] + (scores - gallery_mean) / gallery_spread) / 2


def _nearest(cohort: Floats, share: float) -> tuple[Floats, Floats]:
    """Mean and standard deviation [n] of the best share of each row of a cohort's scores [n, C]."""
    descending = -np.sort(-cohort, axis=1)  # NaN comes last
    count = np.ceil(share * (~np.isnan(cohort)).sum(axis=1, keepdims=True))
    chosen = np.arange(cohort.shape[1]) < np.maximum(count, 1)
    total = np.maximum((chosen & ~np.isnan(descending)).sum(axis=1), 1)
    mean = np.where(chosen, np.nan_to_num(descending), 0.0).sum(axis=1) / total
    spread = np.sqrt(np.where(chosen, np.nan_to_num(descending - mean[:, None]) ** 2, 0.0).sum(axis=1) / total)
    return mean, np.where(spread > 1e-12, spread, 1.0)


def baseline_scores(gallery: Gallery, index: Index, pairs: JudgedPairs) -> Iterator[tuple[str, Floats]]:
    """(name, scores [Q, G]) of the baselines, each plain and, where the index has a usable cohort, normalised by its videos."""
    features, values = video_means(gallery, index)
    weight, _ = index.heads.score_row()
    cohort = np.unique(index.cohort.video.numpy())  # rows of Index.videos
    scored: dict[str, tuple[Floats, Callable[[Floats, Floats], Floats]]] = {
        COSINE: (features, cosine_scores),
        METRIC: (values, lambda queries, candidates: metric_scores(queries, candidates, weight)),
    }
    for name, (means, score) in scored.items():
        scores = score(means[pairs.query_rows], means[pairs.gallery_rows])
        yield name, scores
        if index.cohort.usable:
            of_queries, of_gallery = (_against(means, rows, cohort, score) for rows in (pairs.query_rows, pairs.gallery_rows))
            yield name + NORMALISED, cohort_normalised(scores, of_queries, of_gallery)


def _against(
    means: Floats, rows: NDArray[np.int64], cohort: NDArray[np.int64], score: Callable[[Floats, Floats], Floats]
) -> Floats:
    return np.where(rows[:, None] == cohort, np.nan, score(means[rows], means[cohort]))
