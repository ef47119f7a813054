"""Whether the numbers and arrays of an index version stay within its files: what a checksum does not say of a forged one.

Checksums and seals have no key: who writes an index can make them fit. A search takes rows of mapped files by the numbers in its
tables, in C too, so each is compared here with what the videos' own frame counts give.
"""

import re
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from pipeline.coattention.cameras import CameraHeads
from pipeline.coattention.head import load_head
from pipeline.coattention.network import CoattentionConfig
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.heads import head_folder
from pipeline.index.partition_files import NEW_ARRAYS, array_fault, array_shapes, load_array, load_prefilter
from pipeline.index.partition_store import VIDEOS, read_videos
from pipeline.index.prefilter import PrefilterMetric, is_flat
from pipeline.index.version_files import partition_store
from pipeline.index.versions import index_settings, read_cameras, read_query
from pipeline.segments import segment_starts
from pipeline.settings import IndexSettings

_PARTITION = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"[A-Za-z0-9_]+(\.[a-z]+)+")  # of a partition; of a version it lies one folder below


def manifest_faults(manifest: dict[str, Any], version: str) -> list[str]:
    """What of a manifest (`pipeline.index.version_files.read_manifest`) leads out of the index or does not add up, in words.

    No other file is read.
    """
    name = f"the manifest of the index {version}"
    try:
        parts = manifest["partitions"]
        files = [file for part in parts for file in part["files"]]
        files += [file.removeprefix(f"{folder}/") for file in manifest["files"] for folder in (file.split("/")[0],)]
        if manifest["version"] != version or not all(_PARTITION.fullmatch(part["id"]) for part in parts):
            return [f"{name} names another version or a partition of no index"]
        if strange := [file for file in files if not _FILE.fullmatch(file)]:
            return [f"{name} names the file {strange[0]!r}, which belongs to no index"]
        counts = np.array([[part[key] for key in ("first_video", "videos", "frames", "segments")] for part in parts])
        if counts.dtype != np.int64 or counts.ndim != 2 or (counts[:, 1:] < 1).any():
            return [f"{name} counts partitions in other than whole numbers"]
        sums = dict(zip(("videos", "frames", "segments"), counts[:, 1:].sum(axis=0).tolist(), strict=True))
        if not np.array_equal(counts[:, 0], _first(counts[:, 1])) or any(manifest[key] != total for key, total in sums.items()):
            return [f"{name} does not add up: its partitions do not follow each other"]
        index_settings(manifest)
    except (KeyError, TypeError, ValueError, AttributeError, PipelineError) as error:
        return [f"{name} is damaged: {type(error).__name__}: {error}"]
    return []


def range_faults(gallery: Gallery, manifest: dict[str, Any]) -> list[str]:
    """Faults in the tables and arrays of a version whose manifest and checksums are sound, in words."""
    faults = []
    location = gallery.location.join("index", manifest["version"])
    try:
        with head_folder(location.join("head")) as folder:
            head = load_head(folder)
        cameras = read_cameras(location, manifest)
        width = head.config.value_width
        if cameras is not None and cameras.means.shape[1] != width:
            return [f"the camera statistics of the index {manifest['version']} are not of {width} numbers"]
        empty = PrefilterMetric(*CameraHeads(head, cameras).score_row()).empty_index()
        means, video = (load_array(location.join("cohort", f"{name}.npy")) for name in ("means", "video"))
        wrong = array_fault(means, np.float32, (len(video), head.config.value_width)) or array_fault(
            video, np.int64, (len(means),)
        )
        if wrong or (np.asarray(video) >= manifest["videos"]).any():
            faults.append(f"the cohort of the index {manifest['version']} {wrong or 'names videos that are not there'}")
        read_query(location, manifest, head.config.key_width)
        for part in manifest["partitions"]:
            faults += _partition_faults(gallery, part, index_settings(manifest), head.config, empty)
    except (PipelineError, ValueError, LookupError, TypeError, RuntimeError, OSError, pa.ArrowException) as error:
        faults.append(f"the index {manifest['version']} cannot be read: {error}")
    return faults


def _partition_faults(
    gallery: Gallery, part: dict[str, Any], settings: IndexSettings, config: CoattentionConfig, empty: faiss.Index
) -> list[str]:
    folder = partition_store(gallery).join(part["id"])
    table = read_videos(folder, part["files"][VIDEOS]["sha256"])
    table.validate(full=True)
    places = {name: table[name] for name in ("sampled_frames", "first_frame", "first_segment", "segments")}
    for name, column in places.items():
        if not pa.types.is_integer(column.type) or column.null_count:
            return [f"the index file {folder.join(VIDEOS).uri} has a {name} that is no whole number"]
    frames, first_frame, first_segment, segments = (np.asarray(column).astype(np.int64) for column in places.values())
    if len(table) != part["videos"] or (frames < 1).any() or int(frames.sum()) != part["frames"]:
        return [f"the index file {folder.join(VIDEOS).uri} has other videos or frames than its manifest says"]
    faults = []
    sizes = part["frames"], part["segments"], part["videos"]
    for name, (kind, shape) in array_shapes(config, *sizes, settings.segment_length).items():
        file = folder.join(f"{name}.npy")
        if file.name not in part["files"] and name in NEW_ARRAYS:  # of an earlier format
            continue
        array = load_array(file)
        wrong = array_fault(array, kind, shape)
        if name == "visibility" and not wrong and not ((array > 0) & (array <= 1)).all():
            wrong = "holds numbers that are not above 0 and at most 1"
        if wrong:
            faults.append(f"the index file {file.uri} {wrong}")
    if faults:  # before anything is as large as the table says
        return faults
    due = np.array([len(segment_starts(int(n), settings.segment_length, settings.stride)) for n in frames])
    expected = {"first_frame": (first_frame, _first(frames)), "segments": (segments, due)}
    expected["first_segment"] = (first_segment, _first(due))
    for name, (held, right) in expected.items():
        if not np.array_equal(held, right):
            row = int(np.flatnonzero(held != right)[0])
            return [f"the index file {folder.join(VIDEOS).uri} says {name} {held[row]} for video {row}, which is {right[row]}"]
    if int(due.sum()) != part["segments"]:
        return [f"the index file {folder.join(VIDEOS).uri} has other segments than its manifest says"]
    file = folder.join("prefilter.faiss")
    wrong = _prefilter_fault(load_prefilter(file), part["segments"], empty)
    return [f"the index file {file.uri} {wrong}"] if wrong else []


def _prefilter_fault(index: faiss.Index, segments: int, empty: faiss.Index) -> str:
    """What is wrong with a partition's prefilter, "" for nothing. empty: a flat one of the head's metric."""
    if (index.d, index.metric_type, index.ntotal) != (empty.d, empty.metric_type, segments):
        return f"holds {index.ntotal} vectors of {index.d} numbers instead of {segments} of {empty.d}, or in another metric"
    if is_flat(index):
        return "" if isinstance(faiss.downcast_index(index), faiss.IndexFlat) else "is of a kind that no index has"
    inverted: Any = faiss.downcast_index(index)  # FAISS types the base class only
    lists = inverted.invlists
    ids = [faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(lists.nlist) if lists.list_size(n)]
    held = np.sort(np.concatenate([np.empty(0, np.int64), *ids]))
    return "" if np.array_equal(held, np.arange(segments)) else "names segments that are not there"


def _first(counts: np.ndarray) -> np.ndarray:
    """Where each of these many begins when they follow each other, int64 [n]."""
    return np.cumsum(counts) - counts
