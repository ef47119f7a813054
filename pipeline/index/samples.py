"""What the partitions of an index share and a sample of the gallery decides: an untrained head, the cohort, FAISS's training."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.coattention.cameras import CameraHeads, CameraStatistics, camera_statistics, score_space
from pipeline.coattention.cohort import Cohort
from pipeline.coattention.network import Coattention
from pipeline.coattention.visibility import CAMERA_SLACK, frame_visibility, mean_query
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.partition_files import encode_videos, segment_means
from pipeline.segments import segment_frames, segment_starts
from pipeline.storage.hashing import hash_order

SAMPLE_VIDEOS, SAMPLE_FRAMES = 512, 40  # what an untrained head is made from: videos, and frames of each
COHORT_VIDEOS, COHORT_SEGMENTS = 512, 4  # what scores are normalised by: videos, and segments of each
CAMERA_VIDEOS, ALL_CAMERAS_VIDEOS = 2000, 20_000  # what statistics of cameras are made from: videos of each, and about of all
TRAIN_SEGMENTS = 160_000  # what a compressed prefilter is trained on


def sample_features(gallery: Gallery, videos: pa.Table) -> np.ndarray:
    """Frame features float16 [n, D] of a sample of videos, the same for the same videos however they lie in shards.

    Up to SAMPLE_VIDEOS videos, chosen by hashes of their ids, and up to SAMPLE_FRAMES evenly spaced frames of each: a long video
    shows one person, and must not drown the others.
    """
    chosen = videos.take(hash_order(videos["video_id"].to_pylist(), SAMPLE_VIDEOS))
    parts: dict[str, np.ndarray] = {}
    for position, frames in gallery.iter_videos(chosen):
        parts[chosen["video_id"][position].as_py()] = _spaced(feature_matrix(frames))
    return np.concatenate([parts[video_id] for video_id in sorted(parts)])


def sample_query(gallery: Gallery, videos: pa.Table, head: Coattention, length: int, stride: int) -> np.ndarray:
    """The mean query vector, float32 [d_k], of up to COHORT_SEGMENTS evenly spaced segments of COHORT_VIDEOS videos.

    length, stride: of segments, in frames.
    """
    chosen = videos.take(hash_order(videos["video_id"].to_pylist(), COHORT_VIDEOS))
    parts: dict[int, np.ndarray] = {}
    for position, frames in gallery.iter_videos(chosen):
        cut = segment_frames(_spaced(segment_starts(len(frames), length, stride), COHORT_SEGMENTS), length, len(frames))
        parts[position] = mean_query(head, feature_matrix(frames)[cut]) * len(cut)
    segments = sum(min(count_segments(chosen.slice(n, 1), length, stride), COHORT_SEGMENTS) for n in range(len(chosen)))
    return np.sum([parts[position] for position in sorted(parts)], axis=0) / np.float32(segments)


@torch.no_grad()
def sample_cameras(gallery: Gallery, videos: pa.Table, head: Coattention, query: np.ndarray) -> CameraStatistics:
    """Camera statistics of the videos, from up to CAMERA_VIDEOS of every camera, fewer where cameras are many.

    Chosen by hashes of their ids, and up to SAMPLE_FRAMES evenly spaced frames of each, of which those count that show somebody.
    query: float32 [d_k], that says which do.
    """
    ids, names = videos["video_id"].to_pylist(), videos["camera_id"].to_pylist()
    of_camera: dict[str | None, list[int]] = {}
    for row in hash_order(ids):
        of_camera.setdefault(names[row], []).append(row)
    each = max(1, min(CAMERA_VIDEOS, ALL_CAMERAS_VIDEOS // len(of_camera)))
    rows = sorted(row for of_one in of_camera.values() for row in of_one[:each])
    chosen = videos.take(rows)
    means = np.empty((len(rows), head.config.value_width))
    for position, frames in gallery.iter_videos(chosen):
        features = torch.from_numpy(np.array(_spaced(feature_matrix(frames))))
        visible = frame_visibility(head.keys(features).numpy(), query, np.array([len(features)]), CAMERA_SLACK).astype(float)
        means[position] = visible @ score_space(head, head.values(features)).double().numpy() / visible.sum()
    return camera_statistics(means, [names[row] for row in rows])


def _spaced(rows: np.ndarray, most: int = SAMPLE_FRAMES) -> np.ndarray:
    """Up to `most` evenly spaced rows."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int))]


@torch.no_grad()
def sample_cohort(gallery: Gallery, videos: pa.Table, heads: CameraHeads, length: int, stride: int) -> Cohort:
    """Mean values of up to COHORT_SEGMENTS evenly spaced segments of COHORT_VIDEOS videos, in the order of their ids' hashes.

    length, stride: of segments, in frames. `Cohort.video` numbers the rows of `videos`.
    """
    rows = hash_order(videos["video_id"].to_pylist(), COHORT_VIDEOS)
    chosen = videos.take(rows)
    parts: dict[int, torch.Tensor] = {}
    for position, frames in gallery.iter_videos(chosen):
        starts = _spaced(segment_starts(len(frames), length, stride), COHORT_SEGMENTS)
        camera = chosen["camera_id"][position].as_py()
        _, values = encode_videos(heads, feature_matrix(frames), np.array([len(frames)]), [camera])
        means = segment_means(values, segment_frames(starts, length, len(frames)), heads.unit_encodings)
        parts[position] = torch.from_numpy(means)
    order = sorted(parts)
    owner = torch.cat([torch.full((len(parts[position]),), rows[position]) for position in order])
    return Cohort(torch.cat([parts[position] for position in order]), owner)


@torch.no_grad()
def sample_means(gallery: Gallery, videos: pa.Table, heads: CameraHeads, length: int, stride: int) -> np.ndarray:
    """Mean values float32 [n, d_v] of all segments of some shards' videos, about TRAIN_SEGMENTS where there are as many.

    Whole shards, since others would be read in full for a few videos each; in the order of hashes of their first video's id.
    """
    shards = videos.group_by("shard").aggregate([("video_id", "min")])
    parts: list[np.ndarray] = []
    for i in hash_order(shards["video_id_min"].to_pylist()):
        rows = videos.filter(pc.equal(videos["shard"], shards["shard"][i]))
        cameras = rows["camera_id"].to_pylist()
        for positions, table in gallery.iter_features(rows):
            counts = np.asarray(rows["sampled_frames"]).astype(np.int64)[positions]
            begin = np.cumsum(counts) - counts
            cuts = [
                segment_frames(segment_starts(int(n), length, stride), length, int(n)) + b
                for n, b in zip(counts, begin, strict=True)
            ]
            _, values = encode_videos(heads, feature_matrix(table), counts, [cameras[position] for position in positions])
            parts.append(segment_means(values, np.concatenate(cuts), heads.unit_encodings))
        if sum(map(len, parts)) >= TRAIN_SEGMENTS:
            break
    return np.concatenate(parts)


def count_segments(videos: pa.Table, length: int, stride: int) -> int:
    """Segments that videos are cut into, see `pipeline.segments.segment_starts`."""
    frames = np.asarray(videos["sampled_frames"]).astype(np.int64)
    return int((1 + -(-np.maximum(frames - length, 0) // stride)).sum())
