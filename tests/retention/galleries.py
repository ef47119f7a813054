"""What tests of forgetting and compaction ask of a gallery."""

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.gallery.gallery import (
    REJECTS_SCHEMA,
    VIDEOS_SCHEMA,
    Gallery,
    feature_matrix,
)

NO_VIDEOS, NO_REJECTS = VIDEOS_SCHEMA.empty_table(), REJECTS_SCHEMA.empty_table()


OLD = timedelta(hours=24)


def contents(gallery: Gallery) -> dict[str, tuple]:
    """Everything the gallery says of its videos, apart from where their frames lie."""
    rows = gallery.snapshot().videos.to_pylist()
    described = [{name: value for name, value in row.items() if name not in ("shard", "first_row")} for row in rows]
    frames = [gallery.read_video(row) for row in rows]
    return {
        row["video_id"]: (row, feature_matrix(table).tobytes(), table["frame_index"].to_pylist(), table["time_s"].to_pylist())
        for row, table in zip(described, frames, strict=True)
    }


def ids(gallery: Gallery) -> list[str]:
    return gallery.snapshot().videos["video_id"].to_pylist()


def all_files(gallery: Gallery, folder: str = "") -> set[Path]:
    return {path for path in Path(gallery.location.path, folder).rglob("*") if path.is_file()}


def traces(gallery: Gallery, video_id: str, features: np.ndarray) -> list[Path]:
    """Files below frames/, videos/ and index/ that name the video or hold one of its frames' features, read as what they are."""
    found = []
    wanted = {row.tobytes() for row in features}
    for path in sorted(all_files(gallery, "frames") | all_files(gallery, "videos") | all_files(gallery, "index")):
        data = path.read_bytes()
        hit = video_id.encode() in data or any(row in data for row in wanted)
        if data[:4] == b"PAR1":
            table = pq.read_table(path)
            hit = hit or video_id in table["video_id"].to_pylist()
            hit = hit or ("feature" in table.column_names and any(row.tobytes() in wanted for row in feature_matrix(table)))
        if hit:
            found.append(path)
    return found


def reject_row(source_id: str) -> pa.Table:
    row = {
        "uri": f"/videos/{source_id}.mp4",
        "video_id": source_id,
        "source_id": source_id,
        "reason": "empty",
        "message": "is empty",
    }
    return pa.Table.from_pylist([row], schema=REJECTS_SCHEMA)


def make_old(path: Path, age: timedelta) -> None:
    then = time.time() - age.total_seconds()
    os.utime(path, (then, then))


def during_compaction(monkeypatch: pytest.MonkeyPatch, act: object) -> None:
    """Have something happen after a compaction has written a shard and before it commits that."""
    write_shard = Gallery.write_shard

    def write_and_act(gallery: Gallery, frames: pa.Table) -> str:
        shard = write_shard(gallery, frames)
        if sys._getframe(1).f_code.co_name == "_move":
            monkeypatch.setattr(Gallery, "write_shard", write_shard)
            act()
        return shard

    monkeypatch.setattr(Gallery, "write_shard", write_and_act)
