"""Checking a gallery: every file that is committed is there and holds what its tables say."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import PipelineError
from pipeline.gallery import audit
from pipeline.gallery.gallery import Gallery, feature_matrix
from pipeline.index.faults import manifest_faults, range_faults
from pipeline.index.version_files import index_versions, read_manifest, version_files
from pipeline.index.versions import open_index
from pipeline.storage.hashing import content_hash
from pipeline.storage.location import Location


def verify_gallery(gallery: Gallery) -> list[str]:
    """Faults in words, none when all is well: shards, index versions, the audit log, cases, deletions. Reads every file."""
    faults = []
    try:
        videos = gallery.snapshot().videos
    except PipelineError as error:
        return [str(error)]
    for shard in pc.unique(videos["shard"]).to_pylist():
        rows = videos.filter(pc.equal(videos["shard"], shard))
        if named := _place_faults(rows):
            faults += named
            continue
        try:
            for position, frames in gallery.iter_videos(rows, checked=False):
                faults += _frame_faults(rows.slice(position, 1).to_pylist()[0], frames)
        except PipelineError as error:
            faults.append(str(error))
    for row in gallery.snapshot().recordings.to_pylist():
        faults += _recording_faults(gallery, row)
    checked: dict[tuple[str, str], str | None] = {}
    for version in index_versions(gallery):
        faults += _index_faults(gallery, version, checked)
    if strays := gallery.log.strays():
        faults.append(f"{len(strays)} commits of an older version are not in the log ({strays[0]}); jobs.compact takes them in")
    if missing := gallery.log.missing():
        faults.append(f"the commit {missing[0]} is missing: nothing that was committed after it counts; restore it from a backup")
    of_log = [f"audit log: {fault}" for fault in audit.verify(gallery)]
    for case in audit.cases(gallery):
        faults += [f"case {case}: {fault}" for fault in audit.verify(gallery, chain=f"{audit.CASES}/{case}")]
    return faults + (of_log or _undone_deletions(gallery))


def _undone_deletions(gallery: Gallery) -> list[str]:
    """Videos that the audit log says were forgotten and no commit does: the commit was removed, or never written."""
    deletions = (record for record in audit.read_records(gallery) if record.get("action") in ("forget", "take_forgotten"))
    told = {video for record in deletions for video in record.get("videos", ())}
    if not (missing := sorted(told - gallery.forgotten())):
        return []
    some = ", ".join(map(repr, missing[:5])) + (" and others" if len(missing) > 5 else "")
    return [f"{len(missing)} videos that the audit log calls forgotten are not ({some}); run jobs.forget for them again"]


def _place_faults(videos: pa.Table) -> list[str]:
    """Videos whose place in their shard is no place at all."""
    placed = pc.and_(pc.greater_equal(videos["first_row"], 0), pc.greater(videos["sampled_frames"], 0))
    wrong = videos.filter(pc.invert(pc.fill_null(placed, False)))["video_id"].to_pylist()
    return [f"the row of {video_id} in videos/ names no rows of a shard" for video_id in wrong]


def _frame_faults(row: dict[str, Any], frames: pa.Table) -> list[str]:
    """What is wrong with the frames of a video: not its own, not in time order or not finite."""
    if frames["video_id"].to_pylist() != [row["video_id"]] * row["sampled_frames"]:
        return [f"the shard {row['shard']} does not hold {row['video_id']} as recorded"]
    if np.any(np.diff(np.asarray(frames["frame_index"])) <= 0):
        return [f"the frames of {row['video_id']} in {row['shard']} are not in time order"]
    if not np.isfinite(feature_matrix(frames)).all():
        return [f"the features of {row['video_id']} in {row['shard']} are not all finite numbers"]
    return []


def _recording_faults(gallery: Gallery, row: dict[str, Any]) -> list[str]:
    """What is wrong with the detections of a recording: not its own, not in time order or not finite."""
    try:
        table = gallery.read_detections(row["shard"])
    except PipelineError as error:
        return [str(error)]
    if len(table) != row["detections"] or set(table["recording_id"].to_pylist()) > {row["source_id"]}:
        return [f"detections/{row['shard']} does not hold {row['source_id']} as recorded"]
    if np.any(np.diff(np.asarray(table["frame_index"])) < 0):
        return [f"the detections of {row['source_id']} are not in time order"]
    if not np.isfinite(feature_matrix(table.filter(pc.is_valid(table["feature"])))).all():
        return [f"the features of detections of {row['source_id']} are not all finite numbers"]
    return []


def _index_faults(gallery: Gallery, version: str, checked: dict[tuple[str, str], str | None]) -> list[str]:
    """Faults of one version. checked: (uri, sha256) -> fault of files that were looked at before: partitions are shared."""
    faults, sound = list[str](), True
    try:
        manifest = read_manifest(gallery, version)
        if faults := manifest_faults(manifest, version):
            return faults
        for file, expected in version_files(gallery, manifest):
            key = file.uri, expected["sha256"]
            if key not in checked:
                checked[key] = _file_fault(file, expected["sha256"])
                faults += [fault for fault in (checked[key],) if fault is not None]
            sound = sound and checked[key] is None
        if sound and not (faults := range_faults(gallery, manifest)):  # what fails is not opened
            open_index(gallery, version)
    except PipelineError as error:
        faults.append(str(error))
    return faults


def _file_fault(file: Location, sha256: str) -> str | None:
    if not file.exists():
        return f"{file.uri} is missing"
    return None if content_hash(file) == sha256 else f"{file.uri} is damaged: its checksum differs"
