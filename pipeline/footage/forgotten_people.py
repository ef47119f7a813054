"""Forgetting people whom recordings show: their detections are blanked, and the same bytes do not bring them back.

A detection that is forgotten keeps its row, so that those of others keep their places, and nothing else: when it was, but neither
where nor who. The file that held it is replaced in one commit and leaves the disk with the next compaction.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.decoding.video import Box
from pipeline.gallery.detections import BOX, FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA, boxes_of
from pipeline.gallery.gallery import Gallery

SAME_BOX = 0.5  # intersection over union of a detection with a forgotten one in the same frame, from which on it is that one
Places = Mapping[str, Iterable[tuple[int, Box]]]
"""Recording id -> (frame, box) of detections."""


def places_of(gallery: Gallery, videos: pa.Table) -> dict[str, list[tuple[int, Box]]]:
    """Where the people of candidates of recordings (rows of Snapshot.videos) are."""
    found: dict[str, list[tuple[int, Box]]] = defaultdict(list)
    for _, frames in gallery.iter_features(videos, checked=False):
        for place in frames["place"].to_pylist():
            found[place["recording_id"]].append((place["frame"], _box(place)))
    return found


def blanked(gallery: Gallery, recordings: pa.Table, places: Places) -> tuple[pa.Table, pa.Table]:
    """What a commit says of detections that are forgotten: those of these recordings (RECORDINGS_SCHEMA) that have some, with new
    files, and FORGOTTEN_BOXES_SCHEMA. A copy of a recording (`recordings.timeline` leaves it out) loses the same.
    """
    rows: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    ids = pa.array(sorted(places), pa.string())
    shown = recordings.filter(pc.is_in(recordings["source_id"], ids))
    for row in shown.to_pylist():
        wanted = set(places[row["source_id"]])
        table = gallery.read_detections(row["shard"])
        keys = zip(table["frame_index"].to_pylist(), map(tuple, boxes_of(table).tolist()), strict=True)
        gone = np.array([key in wanted for key in keys], bool)
        rows.append(row | {"shard": write_without(gallery, table, gone, (*BOX, "score", "feature"))})
        boxes += [
            {"ingested_hash": row["ingested_hash"], "frame_index": frame, **dict(zip(BOX, box, strict=True))}
            for frame, box in sorted(wanted)
        ]
    table_of_boxes = pa.Table.from_pylist(boxes, schema=FORGOTTEN_BOXES_SCHEMA)
    forgotten, starts = ForgottenBoxes(table_of_boxes), {(row["ingested_hash"], row["start_time"]) for row in shown.to_pylist()}
    for row in recordings.filter(pc.invert(pc.is_in(recordings["source_id"], ids))).to_pylist():
        if row["ingested_hash"] is not None and (row["ingested_hash"], row["start_time"]) in starts:
            table = gallery.read_detections(row["shard"])
            pairs = zip(table["frame_index"].to_pylist(), boxes_of(table), strict=True)
            gone = np.array([forgotten.hold(row["ingested_hash"], frame, box) for frame, box in pairs], bool)
            rows.append(row | {"shard": write_without(gallery, table, gone, (*BOX, "score", "feature"))})
    return pa.Table.from_pylist(rows, schema=RECORDINGS_SCHEMA), table_of_boxes


def write_without(gallery: Gallery, table: pa.Table, gone: np.ndarray, names: Iterable[str]) -> str:
    """Write detections anew, these columns null in the rows of `gone`, bool [n]; returns the file's name."""
    for name in names:
        field = table.schema.field(name)
        column = table[name].combine_chunks()
        kept = pc.if_else(pa.array(~gone), pa.array(np.arange(len(table))), None)
        table = table.set_column(table.schema.get_field_index(name), field, column.take(kept))
    return gallery.write_tables("detections", table.schema, [table])


class ForgottenBoxes:
    """Tells detections of people who were forgotten, by the hash of their recording. table: FORGOTTEN_BOXES_SCHEMA."""

    def __init__(self, table: pa.Table) -> None:
        self._boxes: dict[tuple[str, int], list[Box]] = defaultdict(list)
        for row in table.to_pylist():
            self._boxes[row["ingested_hash"], row["frame_index"]].append(_box(row))

    def of(self, source_hash: str | None) -> list[tuple[int, list[Box]]]:
        """Those of a recording, by frame."""
        return sorted((frame, sorted(boxes)) for (one, frame), boxes in self._boxes.items() if one == source_hash)

    def hold(self, source_hash: str | None, frame: int, box: np.ndarray) -> bool:
        """Whether a detection, its box float [4], is one of theirs."""
        others = self._boxes.get((source_hash or "", frame), ())
        return any(_overlap(box, np.array(other)) >= SAME_BOX for other in others)


def _box(row: Mapping[str, Any]) -> Box:
    return row["x"], row["y"], row["w"], row["h"]


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes, (x, y, w, h)."""
    corner = np.maximum(one[:2], other[:2])
    inner = np.prod(np.maximum(np.minimum(one[:2] + one[2:], other[:2] + other[2:]) - corner, 0))
    return float(inner / (np.prod(one[2:]) + np.prod(other[2:]) - inner))
