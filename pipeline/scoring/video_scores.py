"""What the scores of its pairs of segments make of a video, and the ranking of videos [0054].

By default all pairs count, in a soft maximum in which those of hidden segments hardly do (`visible_logits`); the application's
best share of them, and all above a threshold, are `video_scores`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.errors import PipelineError
from pipeline.settings import ScoreSettings

USUAL = ScoreSettings(ratio=0.2)  # the application's share
SHARPNESS = 2.0  # of the soft maximum over pairs: 0 would be their mean, infinity the best of them
OF_TARGET = 2.0  # power of the visibility of a target's segment: what hides it may hide any number of strangers just so
LARGEST_POWER = 80.0  # e to it is still a float32


def visible_logits(
    logits: NDArray[np.float32], offsets: NDArray[np.int64], of_target: NDArray[np.float32], of_candidates: NDArray[np.float32]
) -> NDArray[np.float64]:
    """The logit of each video from all its pairs, float64 [V]: a soft maximum in which hidden segments hardly count.

        log( sum_nj w_nj exp(SHARPNESS s_nj) / sum_nj w_nj ) / SHARPNESS,   w_nj = u_n^OF_TARGET u_j

    logits: s, [N, K_total]; offsets as in `video_scores`; of_target [N], of_candidates [K_total]: u, the visibility of segments
    (`pipeline.coattention.visibility`), above 0. A video's logit does not depend on its neighbours in the call. Raises
    PipelineError for NaN.
    """
    powers = SHARPNESS * np.ascontiguousarray(logits.T)  # [K_total, N]
    np.exp(np.clip(powers, -LARGEST_POWER, LARGEST_POWER, out=powers), out=powers)
    weighted = powers.astype(np.float64)  # before any sum, so that no buffer's end decides on the order of additions
    shown = of_target.astype(np.float64) ** OF_TARGET
    weighted *= shown
    by_segment = weighted.sum(axis=1) / shown.sum()  # [K_total]
    visible = of_candidates.astype(np.float64)
    found = np.add.reduceat(by_segment * visible, offsets[:-1]) / np.add.reduceat(visible, offsets[:-1])
    if np.isnan(found).any():
        raise PipelineError("pair scores hold NaN: the frame features or the head that made them are damaged")
    return np.log(found) / SHARPNESS


def video_score(scores: ArrayLike, settings: ScoreSettings = USUAL) -> float:
    """The score of one video from the best of its pair scores, an array of any shape ([0054], claim 9).

    Raises ValueError for an array without numbers, PipelineError for NaN.
    """
    flat = np.asarray(scores).reshape(1, -1)
    return float(video_scores(flat, np.array([0, flat.shape[1]]), settings)[0])


def video_scores(scores: ArrayLike, offsets: ArrayLike, settings: ScoreSettings = USUAL) -> NDArray[np.float64]:
    """The score of each video from the pair scores of many: `video_score` of each, float64 [V] ([0054], claim 9).

    settings: with a share or a threshold. scores: [N, K_total], the segments of video v in columns offsets[v]:offsets[v + 1];
    offsets: integers [V + 1], from 0 to K_total. A video's scores are added in ascending order, so its score depends neither on
    its neighbours in the call nor on the order of its segments. Raises ValueError for offsets that do not fit or a video without
    scores, PipelineError for NaN.
    """
    scores, offsets = np.asarray(scores), np.asarray(offsets)
    if scores.ndim != 2 or offsets.ndim != 1 or not len(offsets) or offsets[0] != 0 or offsets[-1] != scores.shape[1]:
        raise ValueError(f"offsets must run from 0 to the {scores.shape[-1]} columns of scores [N, K_total]")
    if np.isnan(scores).any():
        raise PipelineError("pair scores hold NaN: the frame features or the head that made them are damaged")
    counts = np.diff(offsets)
    if (counts < 1).any() or (len(counts) and not len(scores)):
        raise ValueError("every video needs at least one pair score")
    result = np.empty(len(counts))
    for count in np.unique(counts):  # videos of equal length form one rectangular table
        videos = np.flatnonzero(counts == count)  # [V_count]
        columns = offsets[videos, None] + np.arange(count)  # [V_count, count]
        table = scores[:, columns].swapaxes(0, 1).reshape(len(videos), -1)  # [V_count, N * count]
        result[videos] = _aggregate(table, settings)
    return result


def _aggregate(table: NDArray[np.floating], settings: ScoreSettings) -> NDArray[np.float64]:
    """Video scores [V] of a table [V, pairs]."""
    pairs = table.shape[1]
    if settings.ratio is None and settings.threshold is None:
        raise ValueError("the best pairs are those of a share or above a threshold; visible_logits takes all")
    # Rounded before ceil: 0.07 * 100 is a little above 7 in binary, and would count 8.
    top = pairs if settings.threshold is not None else max(1, math.ceil(round((settings.ratio or 1) * pairs, 6)))
    if top < pairs:
        table = np.partition(table, pairs - top, axis=1)[:, pairs - top :]
    chosen = np.sort(table.astype(np.float64), axis=1)  # [V, top], ascending, so that every order adds up to the same
    if settings.threshold is None:
        total, number = chosen.sum(axis=1), np.full(len(chosen), top)
    else:
        counted = chosen >= settings.threshold
        total, number = np.where(counted, chosen, 0.0).sum(axis=1), np.maximum(counted.sum(axis=1), 1)
    return total if settings.aggregate == "sum" else total / number


def rank_videos(scores: ArrayLike, video_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.int64]:
    """Positions of the videos from best to worst, int64 [V]: score descending [0054], equal ones by video_id ascending.

    scores: [V]; video_ids: [V]. Raises ValueError for unequal lengths, PipelineError for NaN.
    """
    scores, ids = np.asarray(scores, dtype=np.float64), np.asarray(video_ids, dtype=np.str_)
    if scores.ndim != 1 or scores.shape != ids.shape:
        raise ValueError(f"{scores.shape} scores do not belong to {ids.shape} video ids")
    if np.isnan(scores).any():
        raise PipelineError("video scores hold NaN and cannot be ranked")
    return np.lexsort((ids, -scores))
