"""Checking a gallery: every file that is committed is there and holds what its tables say."""

import hashlib

import numpy as np
import pyarrow.compute as pc

from pipeline import audit
from pipeline.errors import PipelineError
from pipeline.gallery import Gallery
from pipeline.index import index_versions, open_index


def verify_gallery(gallery: Gallery) -> list[str]:
    """Faults in words, an empty list when all is well: shards, index versions and the audit log. Reads every file."""
    faults = []
    try:
        videos = gallery.snapshot().videos
    except PipelineError as error:
        return [str(error)]
    for shard in pc.unique(videos["shard"]).to_pylist():
        rows = videos.filter(pc.equal(videos["shard"], shard))
        try:
            for row in rows.to_pylist():
                frames = gallery.read_video(row)
                if np.any(np.diff(np.asarray(frames["frame_index"])) <= 0):
                    faults.append(f"the frames of {row['video_id']} in {shard} are not in time order")
        except PipelineError as error:
            faults.append(str(error))
    for version in index_versions(gallery):
        faults += _index_faults(gallery, version)
    return faults + [f"audit log: {fault}" for fault in audit.verify(gallery)]


def _index_faults(gallery: Gallery, version: str) -> list[str]:
    try:
        index = open_index(gallery, version)
    except PipelineError as error:
        return [str(error)]
    faults = []
    for number, partition in enumerate(index.manifest["partitions"]):
        for name, expected in partition["files"].items():
            file = index.location.join(f"p{number:04d}", name)
            if not file.exists():
                faults.append(f"{file.uri} is missing")
            elif hashlib.sha256(file.read_bytes()).hexdigest() != expected["sha256"]:
                faults.append(f"{file.uri} is damaged: its checksum differs")
    return faults
