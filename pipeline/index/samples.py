"""What the partitions of an index share and a sample of the gallery decides: an untrained head, the cohort, FAISS's training."""

import hashlib
import heapq
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.coattention.cohort import Cohort
from pipeline.coattention.network import Coattention
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.partition_files import encode_frames, segment_means
from pipeline.segments import segment_frames, segment_starts

SAMPLE_VIDEOS, SAMPLE_FRAMES = 512, 40  # what an untrained head is made from: videos, and frames of each
COHORT_VIDEOS, COHORT_SEGMENTS = 512, 4  # what scores are normalised by: videos, and segments of each
TRAIN_SEGMENTS = 160_000  # what a compressed prefilter is trained on


def sample_features(gallery: Gallery, videos: pa.Table) -> np.ndarray:
    """Frame features float16 [n, D] of a sample of videos, the same for the same videos however they lie in shards.

    Up to SAMPLE_VIDEOS videos, chosen by hashes of their ids, and up to SAMPLE_FRAMES evenly spaced frames of each: a long video
    shows one person, and must not drown the others.
    """
    chosen = videos.take(_sample(videos, SAMPLE_VIDEOS))
    parts: dict[str, np.ndarray] = {}
    for positions, table in gallery.iter_features(chosen):
        features, start = feature_matrix(table), 0
        for position in positions:
            count = chosen["sampled_frames"][int(position)].as_py()
            rows = start + np.unique(np.linspace(0, count - 1, min(count, SAMPLE_FRAMES)).astype(int))
            parts[chosen["video_id"][int(position)].as_py()] = features[rows]
            start += count
    return np.concatenate([parts[video_id] for video_id in sorted(parts)])


@torch.no_grad()
def sample_cohort(gallery: Gallery, videos: pa.Table, head: Coattention, length: int, stride: int) -> Cohort:
    """Mean values of up to COHORT_SEGMENTS evenly spaced segments of COHORT_VIDEOS videos, in the order of their ids' hashes.

    length, stride: of segments, in frames. `Cohort.video` numbers the rows of `videos`.
    """
    rows = _sample(videos, COHORT_VIDEOS)
    chosen = videos.take(rows)
    parts: dict[int, torch.Tensor] = {}
    for positions, table in gallery.iter_features(chosen):
        features, first = feature_matrix(table), 0
        for position in positions:
            frames = chosen["sampled_frames"][int(position)].as_py()
            starts = segment_starts(frames, length, stride)
            starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(len(starts), COHORT_SEGMENTS)).round().astype(int))]
            _, values = encode_frames(head, features[first : first + frames])
            parts[int(position)] = torch.from_numpy(segment_means(values, segment_frames(starts, length, frames)))
            first += frames
    order = sorted(parts)
    owner = torch.cat([torch.full((len(parts[position]),), rows[position]) for position in order])
    return Cohort(torch.cat([parts[position] for position in order]), owner)


@torch.no_grad()
def sample_means(gallery: Gallery, videos: pa.Table, head: Coattention, length: int, stride: int) -> np.ndarray:
    """Mean values float32 [n, d_v] of all segments of some shards' videos, about TRAIN_SEGMENTS where there are as many.

    Whole shards, since others would be read in full for a few videos each; in the order of hashes of their first video's id.
    """
    shards = videos.group_by("shard").aggregate([("video_id", "min")])
    first = shards["video_id_min"].to_pylist()
    parts: list[np.ndarray] = []
    for i in hash_order(first, len(first)):
        rows = videos.filter(pc.equal(videos["shard"], shards["shard"][i]))
        for positions, table in gallery.iter_features(rows):
            counts = np.asarray(rows["sampled_frames"]).astype(np.int64)[positions]
            begin = np.cumsum(counts) - counts
            cuts = [
                segment_frames(segment_starts(int(n), length, stride), length, int(n)) + b
                for n, b in zip(counts, begin, strict=True)
            ]
            parts.append(segment_means(encode_frames(head, feature_matrix(table))[1], np.concatenate(cuts)))
        if sum(map(len, parts)) >= TRAIN_SEGMENTS:
            break
    return np.concatenate(parts)


def count_segments(videos: pa.Table, length: int, stride: int) -> int:
    """Segments that videos are cut into, see `pipeline.segments.segment_starts`."""
    frames = np.asarray(videos["sampled_frames"]).astype(np.int64)
    return int((1 + -(-np.maximum(frames - length, 0) // stride)).sum())


def _sample(videos: pa.Table, count: int) -> list[int]:
    """Rows of up to `count` videos, chosen by hashes of their ids."""
    return hash_order(videos["video_id"].to_pylist(), count)


def hash_order(ids: Sequence[str], count: int) -> list[int]:
    """Positions of up to `count` ids by the hash of each: the same sample of the same ids wherever they are counted."""
    return heapq.nsmallest(count, range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
