"""A head on labelled videos it has not learnt from: rank-1 and mAP, beside mean pooling + cosine on the same videos."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.coattention.cohort import Cohort, cohort_statistics, normalised_logits
from pipeline.coattention.network import Coattention
from pipeline.evaluation.baselines import cosine_scores
from pipeline.evaluation.metrics import RankingQuality, query_figures, ranking_quality
from pipeline.scoring.scores import encode_target, pair_logits
from pipeline.scoring.video_scores import video_scores
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import ScoreSettings
from pipeline.training.features import FeatureSet, matched_people

COHORT_SEGMENTS = 2048  # that scores are normalised by


def conditions(videos: FeatureSet) -> dict[str, FeatureSet]:
    """The set's clean and hidden versions, each ranked among themselves; a side without any pair that counts is left out."""
    sides = {"clean": np.flatnonzero(~videos.hidden_version), "hidden": np.flatnonzero(videos.hidden_version)}
    taken = {name: videos.take(side) for name, side in sides.items()}
    return {name: side for name, side in taken.items() if len(matched_people(side))}


def coattention_scores(
    head: Coattention,
    videos: FeatureSet,
    segment_length: int,
    most_segments: int,
    ratio: float,
    normalise: bool = True,
) -> NDArray[np.float32]:
    """Video scores float32 [V, V], every video as target of every other: the mean of the top share of pair scores.

    Videos are cut with a stride of half a segment and keep at most `most_segments` evenly spaced ones. Scores are normalised by
    the videos themselves as cohort, as a search does, where there are enough of them and `normalise` does not forbid it.
    """
    device = head.feature_mean.device
    cut = [_segments(int(frames), segment_length, most_segments) for frames in videos.frames]
    segments = np.concatenate([rows + first for rows, first in zip(cut, videos.first_frame, strict=True)])  # [S, T]
    offsets = np.cumsum([0] + [len(rows) for rows in cut])
    frames = torch.from_numpy(videos.features).to(device)
    with torch.no_grad():
        parts = frames.split(8192)
        keys, values = torch.cat([head.keys(part) for part in parts]), torch.cat([head.values(part) for part in parts])
    rows = torch.from_numpy(segments).to(device)
    owner = torch.from_numpy(np.repeat(np.arange(len(videos)), np.diff(offsets))).to(device)
    with torch.no_grad():
        means = torch.cat([values[part].mean(dim=1) for part in rows.split(1024)])
    sample = torch.arange(0, len(rows), max(1, len(rows) // COHORT_SEGMENTS), device=device)
    cohort = Cohort(means[sample], owner[sample])
    row = tuple(part.detach() for part in head.score_row())
    normalise = normalise and cohort.usable
    candidate = cohort_statistics(cohort, means, owner, *row) if normalise else None
    scores = np.empty((len(videos), len(videos)), np.float32)
    for at in range(0, len(videos), 16):
        first, last = int(offsets[at]), int(offsets[min(at + 16, len(videos))])
        target = encode_target(head, frames[rows[first:last]])
        logits = pair_logits(target, keys, values, rows)  # [n, S]
        if candidate is not None:
            own_side = cohort_statistics(cohort, target.encodings, owner[first:last], *row)
            logits = normalised_logits(logits, own_side, candidate)
        table = logits.sigmoid().cpu().numpy()
        for video in range(at, min(at + 16, len(videos))):
            own = table[offsets[video] - first : offsets[video + 1] - first]
            scores[video] = video_scores(own, offsets, ScoreSettings(ratio))
    return scores


def _segments(frames: int, length: int, most: int) -> NDArray[np.int64]:
    starts = segment_starts(frames, length, max(1, length // 2))
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(int)]
    return segment_frames(starts, length, frames)


def mean_scores(videos: FeatureSet) -> NDArray[np.float64]:
    """The baseline: cosine of mean frame features, float64 [V, V]."""
    means = [videos.of_video(video).mean(axis=0, dtype=np.float64) for video in range(len(videos))]
    return cosine_scores(means, means)


def quality(scores: NDArray[np.floating], videos: FeatureSet) -> RankingQuality:
    """Quality of scores [V, V], each row a query; pairs that do not count are left out, equal scores rank by position."""
    positions = np.arange(len(videos))
    counts = videos.counts(positions[:, None], positions[None])
    return ranking_quality(query_figures(scores, counts, videos.person[:, None] == videos.person[None]), (1,))
