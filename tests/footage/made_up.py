"""Detections of made-up people who walk through made-up recordings: what following needs, without pictures."""

import itertools
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.gallery.detections import RECORDINGS_SCHEMA, detections_schema, detections_table
from pipeline.gallery.gallery import Gallery, GallerySettings
from tests.conftest import toy_spec

DIM = 8
RATE = 5.0
START = datetime(2026, 3, 1, 8, tzinfo=UTC)


def footage_gallery(folder: Path) -> Gallery:
    return Gallery.open_or_create(folder, GallerySettings(toy_spec(DIM), RATE, None))


def walk(people: int = 6, seconds: float = 60.0, seed: int = 0) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
    """(time in s, boxes [m, 4], scores [m], features [m, DIM]) of each frame that is looked at; people come and go."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(people, DIM))
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    comes = rng.uniform(0, seconds * 0.6, people)
    stays = rng.uniform(seconds * 0.1, seconds * 0.6, people)
    from_left, lane = rng.uniform(0, 600, people), rng.uniform(50, 400, people)
    pace = rng.uniform(-20, 20, people)
    frames = []
    for number in range(int(seconds * RATE)):
        now = number / RATE
        here = np.flatnonzero((comes <= now) & (now < comes + stays) & (rng.random(people) > 0.1))
        boxes = np.column_stack([from_left[here] + pace[here] * (now - comes[here]), lane[here], *np.full((2, len(here)), 40)])
        boxes[:, 3] *= 2.5
        features = looks[here] + 0.1 * rng.normal(size=(len(here), DIM))
        scores = rng.uniform(0.5, 0.95, len(here))
        order = np.argsort(-scores)
        frames.append((now, boxes[order].astype(np.float32), scores[order].astype(np.float32), features[order]))
    return frames


def write_recordings(
    gallery: Gallery,
    frames: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]],
    cuts: Iterable[float],
    camera: str = "gate",
    start: datetime = START,
    only: Iterable[int] | None = None,
    commit: bool = True,
) -> list[dict]:
    """Cut a walk into recordings at these seconds and commit them (or those of some numbers); their rows."""
    edges = [0.0, *cuts, frames[-1][0] + 1 / RATE]
    rows = []
    for number, (begins, ends) in enumerate(itertools.pairwise(edges)):
        if only is not None and number not in only:
            continue
        name = f"{camera}-{begins:g}"
        inside = [frame for frame in frames if begins <= frame[0] < ends]
        sizes = [len(frame[2]) for frame in inside]
        index = np.repeat(np.arange(len(inside), dtype=np.int32), sizes)
        times = np.repeat(np.array([frame[0] - begins for frame in inside], np.float32), sizes)
        boxes, scores, features = (np.concatenate([frame[place] for frame in inside]) for place in (1, 2, 3))
        table = detections_table(name, index, times, boxes, scores, features.astype(np.float16))
        row = {
            "source_id": name,
            "uri": f"/recordings/{name}.mp4",
            "camera_id": camera,
            "start_time": start + timedelta(seconds=begins),
            "start_from": "name",
            "clock_offset": 0.0,
            "fps": RATE,
            "source_frames": len(inside),
            "width": 640,
            "height": 480,
            "last_s": inside[-1][0] - begins,
            "looked_at": len(inside),
            "detections": len(table),
            "shard": gallery.write_tables("detections", detections_schema(DIM), [table]),
            "detector": "made-up@0",
            "backbone": gallery.settings.backbone.identity,
            "ingested_hash": f"file:{name}",
            "passed_over": 0,
            "remarks": [],
            "ingested_at": datetime.now(UTC),
        }
        rows.append(row)
    if commit:
        commit_recordings(gallery, rows)
    return rows


def commit_recordings(gallery: Gallery, rows: list[dict]) -> None:
    gallery.commit(recordings=pa.Table.from_pylist(rows, schema=RECORDINGS_SCHEMA), kind="detect")


def candidates(gallery: Gallery) -> dict[str, tuple]:
    """All that two galleries of the same recordings must have in common of each candidate, its frames included."""
    found = {}
    for row in gallery.snapshot().videos.to_pylist():
        frames = gallery.read_video(row)
        said = tuple(row[name] for name in ("uri", "camera_id", "start_time", "seen_from", "seen_to", "sampled_frames", "track"))
        found[row["video_id"]] = (*said, frames.drop_columns("video_id").to_pylist())
    return found


def people_seen(gallery: Gallery) -> dict[str, list[tuple[datetime, bytes]]]:
    """When and with which feature each candidate is seen: what does not depend on how recordings are cut into files."""
    found = {}
    for row in gallery.snapshot().videos.to_pylist():
        frames = gallery.read_video(row).to_pylist()
        at = [row["start_time"] + timedelta(seconds=round(frame["time_s"], 3)) for frame in frames]
        found[row["video_id"]] = [(time, np.float16(frame["feature"]).tobytes()) for time, frame in zip(at, frames, strict=True)]
    return found
