"""The files of one partition of an index: how they are made from a gallery's frame features, and how they are opened.

See `pipeline.index.versions` for what a version consists of.
"""

import contextlib
import errno
import os
import threading
import tokenize
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import faiss
import numpy as np
import pyarrow as pa
import torch

from pipeline.coattention.cameras import CameraHeads
from pipeline.coattention.cohort import Cohort, CohortStatistics, cohort_statistics
from pipeline.coattention.network import CoattentionConfig
from pipeline.coattention.visibility import frame_visibility, segment_visibility
from pipeline.errors import PipelineError, first_line
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index import list_codes
from pipeline.index.prefilter import PrefilterMetric
from pipeline.scoring.frame_rows import TOO_MANY_FILES
from pipeline.scoring.scores import frame_band
from pipeline.scoring.whole import PARTS, of_unit_length, or_whole, video_encodings, video_parts
from pipeline.segments import segment_frames, segment_starts
from pipeline.storage.local_paths import local_file
from pipeline.storage.location import Location

OF_PARTS = ("part_encodings", "part_mean", "part_spread")
NEW_ARRAYS = ("visibility", "video_encodings", "video_mean", "video_spread", *OF_PARTS)  # that earlier partitions have not
ENCODE_ROWS = 8192  # frames that pass through the head at a time
LARGEST_DISTANCE = 65_000.0  # what float16 holds

# NumPy parses a file's header with `ast`, which in Python 3.11 fails now and then (SystemError) where two threads do so at once.
_header_parser = threading.Lock()


def write_partition(
    gallery: Gallery,
    videos: pa.Table,
    heads: CameraHeads,
    segment_length: int,
    stride: int,
    query: np.ndarray,
    cohort: Cohort,
    first_video: int,
    folder: Path,
    prefilter: faiss.Index | None = None,
) -> tuple[pa.Table, dict[str, int]]:
    """Write one partition's files into a local folder; returns its rows of videos.arrow and its counts.

    query: float32 [d_k], that says how visible people are. first_video: row of its first video among all of the index.
    prefilter: a trained, empty index (`pipeline.index.prefilter.compressed_index`) that the partition's segments are added to a
    copy of; None for a flat one.
    Memory: a shard's frame features, and what FAISS keeps.
    """
    frames = np.asarray(videos["sampled_frames"]).astype(np.int64)
    starts = [segment_starts(int(n), segment_length, stride) for n in frames]
    first_frame = np.concatenate([[0], np.cumsum(frames)])
    first_segment = np.concatenate([[0], np.cumsum([len(s) for s in starts])])
    total, segments = int(first_frame[-1]), int(first_segment[-1])
    shapes = array_shapes(heads.head.config, total, segments, len(videos), segment_length)
    metric = PrefilterMetric(*heads.score_row())
    prefilter = metric.empty_index() if prefilter is None else faiss.clone_index(prefilter)
    weight, bias = (part.detach() for part in heads.of(None).score_row())
    cameras = videos["camera_id"].to_pylist()
    done = 0
    with contextlib.ExitStack() as stack:
        arrays = {name: stack.enter_context(_new_array(folder / name, *shape)) for name, shape in shapes.items()}
        for positions, table in gallery.iter_features(videos):  # videos are in shard order, so positions ascend from 0
            if not np.array_equal(positions, np.arange(done, done + len(positions))):
                raise PipelineError("a compaction moved videos while the index was built; run jobs.index again")
            of_videos = frames[positions]
            new_keys, new_values = encode_videos(heads, feature_matrix(table), of_videos, [cameras[p] for p in positions])
            after = np.concatenate([np.arange(n - 1, -1, -1) for n in of_videos])
            distances = frame_band(weight, torch.from_numpy(new_values), torch.from_numpy(after), segment_length)
            if not bool((distances.abs() < LARGEST_DISTANCE).all()):
                raise PipelineError("the head's values lie too far apart to be stored; train it with values of about unit length")
            cuts = [segment_frames(starts[p], segment_length, int(frames[p])) + first_frame[p] for p in positions]
            segment = np.concatenate(cuts) - first_frame[done]  # [S, T], rows of what is new
            means = segment_means(new_values, segment, heads.unit_encodings)
            segments_of = [len(starts[p]) for p in positions]
            owner = torch.from_numpy(np.repeat(positions + first_video, segments_of))
            statistics = cohort_statistics(cohort, torch.from_numpy(means), owner, weight, bias)
            visible = frame_visibility(new_keys, query, of_videos)
            whole = video_encodings(new_values, visible, of_videos, heads.unit_encodings)
            shown = segment_visibility(visible, segment)
            encoded = segment_means(new_values, segment, heads.unit_encodings, visible)
            sought = or_whole(encoded, shown, whole[np.repeat(np.arange(len(positions)), segments_of)])
            list_codes.add(prefilter, metric.stored(sought))
            numbers = torch.from_numpy(positions + first_video)
            of_whole = cohort_statistics(cohort, torch.from_numpy(whole), numbers, weight, bias)
            parts = np.stack([whole] * PARTS, axis=1)
            if heads.unit_encodings:
                parts = video_parts(new_values, visible, of_videos, whole)
            of_parts = _of_parts(parts, whole, of_whole, cohort, numbers, weight, bias)
            new = {
                "keys": new_keys,
                "values": new_values,
                "band": distances.numpy(),
                "frame_index": np.asarray(table["frame_index"]),
                "time_s": np.asarray(table["time_s"]),
                "cohort_mean": statistics.mean.numpy(),
                "cohort_spread": statistics.spread.numpy(),
                "visibility": shown,
                "video_encodings": whole,
                "video_mean": of_whole.mean.numpy(),
                "video_spread": of_whole.spread.numpy(),
                "part_encodings": parts,
                "part_mean": of_parts.mean.numpy(),
                "part_spread": of_parts.spread.numpy(),
            }
            for name, rows in new.items():
                arrays[name].write(np.ascontiguousarray(rows, shapes[name][0]).data)
            done += len(positions)
    if done != len(videos):
        raise PipelineError(f"{len(videos) - done} videos of {gallery.location.uri} have no frames; the gallery is damaged")
    with (folder / "prefilter.faiss").open("wb") as file:  # FAISS's own writer says nothing of what fails when it closes the file
        faiss.write_index(prefilter, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]
    table = videos.append_column("first_frame", pa.array(first_frame[:-1])).append_column(
        "first_segment", pa.array(first_segment[:-1])
    )
    table = table.append_column("segments", pa.array(np.diff(first_segment)))
    return table, {"frames": total, "segments": segments}


def _of_parts(
    parts: np.ndarray,
    whole: np.ndarray,
    of_whole: CohortStatistics,
    cohort: Cohort,
    videos: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> CohortStatistics:
    """Cohort statistics [V, PARTS] of the parts of videos; those of most are the whole's, and are not computed again."""
    mean, spread = (part[:, None].repeat(1, PARTS) for part in (of_whole.mean, of_whole.spread))
    parted = torch.from_numpy(np.flatnonzero((parts != whole[:, None]).any(axis=(1, 2))))
    if len(parted):
        encodings = torch.from_numpy(parts)[parted].flatten(0, 1)
        found = cohort_statistics(cohort, encodings, videos[parted].repeat_interleave(PARTS), weight, bias)
        mean[parted], spread[parted] = found.mean.reshape(-1, PARTS), found.spread.reshape(-1, PARTS)
    return CohortStatistics(mean, spread)


def array_shapes(
    config: CoattentionConfig, frames: int, segments: int, videos: int, segment_length: int
) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Type and shape of each of a partition's arrays, by name. config: of the head."""
    return {
        "keys": (np.float16, (frames, config.key_width)),
        "values": (np.float16, (frames, config.value_width)),
        "band": (np.float16, (frames, segment_length - 1)),
        "frame_index": (np.int32, (frames,)),
        "time_s": (np.float32, (frames,)),
        "cohort_mean": (np.float32, (segments,)),
        "cohort_spread": (np.float32, (segments,)),
        "visibility": (np.float32, (segments,)),
        "video_encodings": (np.float16, (videos, config.value_width)),
        "video_mean": (np.float32, (videos,)),
        "video_spread": (np.float32, (videos,)),
        "part_encodings": (np.float16, (videos, PARTS, config.value_width)),
        "part_mean": (np.float32, (videos, PARTS)),
        "part_spread": (np.float32, (videos, PARTS)),
    }


def _new_array(path: Path, dtype: type, shape: tuple[int, ...]) -> BinaryIO:
    """A new .npy file that awaits its rows; no memory map, since on a full disk writing to one ends the process (SIGBUS)."""
    file = path.with_suffix(".npy").open("xb")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file


@torch.inference_mode()
def encode_videos(
    heads: CameraHeads, features: np.ndarray, frames: np.ndarray, cameras: Sequence[str | None]
) -> tuple[np.ndarray, np.ndarray]:
    """Keys and values of the frames of videos, float16 [n, d_k] and [n, d_v].

    features: [n, D], a video's after another's; frames: integers [V], how many each has; cameras: [V], the camera of each.
    """
    config = heads.head.config
    keys, values = (np.empty((len(features), width), np.float16) for width in (config.key_width, config.value_width))
    owner = np.repeat(np.unique(["" if name is None else name for name in cameras], return_inverse=True)[1], frames)
    names = dict(zip(owner[np.cumsum(frames) - 1].tolist(), cameras, strict=True))
    for number, camera in names.items():
        head, rows = heads.of(camera), np.flatnonzero(owner == number)
        for start in range(0, len(rows), ENCODE_ROWS):
            part = rows[start : start + ENCODE_ROWS]
            block = torch.from_numpy(np.array(features[part]))
            keys[part], values[part] = head.keys(block).half().numpy(), head.values(block).half().numpy()
    return keys, values


def segment_means(values: np.ndarray, frames: np.ndarray, unit: bool = False, visibility: np.ndarray | None = None) -> np.ndarray:
    """Encodings of segments whatever the target, float32 [S, d_v]: means of the values of their distinct frames.

    values: [n, d_v]; frames: integers [S, T], ascending, the last one repeated where a video is shorter. unit: as unit vectors.
    visibility: float32 [n], of the frames, by which they are weighed then.
    """
    blocks = []
    for start in range(0, len(frames), 4096):
        numbers = frames[start : start + 4096]
        real = np.ones(numbers.shape, np.float32)
        real[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
        real = real if visibility is None else np.maximum(real * visibility[numbers], np.finfo(np.float32).tiny)
        means = np.einsum("st,std->sd", real, values[numbers].astype(np.float32)) / real.sum(axis=1, keepdims=True)
        blocks.append(of_unit_length(means) if unit else means)
    return np.concatenate(blocks)


def array_fault(array: np.ndarray, kind: type, shape: tuple[int, ...]) -> str:
    """How an array differs from what is expected (`array_shapes`), "" where it does not."""
    if array.dtype == kind and array.shape == shape and array.flags.c_contiguous:
        return ""
    order = "" if array.flags.c_contiguous else ", columns first,"
    return f"holds {array.dtype} {list(array.shape)}{order} instead of {np.dtype(kind)} {list(shape)}"


def load_array(location: Location) -> np.ndarray:
    """A .npy file, memory-mapped: from where it lies, or from a copy of an object on the local disk. Raises PipelineError."""
    try:
        with local_file(location) as path, _header_parser:
            return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, tokenize.TokenError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise PipelineError(TOO_MANY_FILES) from error
        raise PipelineError(f"the index file {location.uri} is damaged: {error}") from error


def load_prefilter(location: Location) -> faiss.Index:
    """A FAISS index, memory-mapped as `load_array` does, without tables that FAISS would compute. Raises PipelineError."""
    flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE
    try:
        with local_file(location) as path:
            return faiss.read_index(str(path), flags)
    except (RuntimeError, OSError, MemoryError) as error:  # a damaged size asks for any amount of memory
        if os.strerror(errno.EMFILE) in str(error) or os.strerror(errno.ENFILE) in str(error):  # FAISS gives no number
            raise PipelineError(TOO_MANY_FILES) from error
        raise PipelineError(f"the index file {location.uri} is damaged: {first_line(error)}") from error
