"""What is found in whole recordings, before it is tracks: a row a recording, and a file of detections of each.

    recordings/*.parquet       a row a file of a camera: what it is, and which file holds its detections; named by commits
    detections/*.parquet       a row a person found in a frame that was looked at: where, how surely, and the crop's frame feature
    tracking/*.npz             where following people stands at the end of a run, so that the next recording goes on there
    forgotten_boxes/*.parquet  where people were who were forgotten

Camera, uri, clock and the networks stand in a recording's row and not in each of its detections, which so stay as they are when
a clock is corrected; `recording_id` joins them. docs/recordings.md has a query that other programs understand.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from pipeline.catalog.inputs import SOURCE_STATE

RECORDINGS_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("camera_id", pa.string()),
        ("start_time", pa.timestamp("us", tz="UTC")),  # of its first frame, corrected by the camera's clock; null: not known
        ("start_from", pa.string()),  # one of START_FROM: who says so
        ("clock_offset", pa.float64()),  # seconds that the camera's clock is ahead, taken off start_time
        ("fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("last_s", pa.float64()),  # time of the last frame, in seconds from the recording's start
        ("looked_at", pa.int32()),  # frames
        ("detections", pa.int64()),
        ("shard", pa.string()),  # in detections/
        ("detector", pa.string()),  # identity, as of a backbone
        ("backbone", pa.string()),
        ("ingested_hash", pa.string()),
        ("passed_over", pa.int32()),
        ("remarks", pa.list_(pa.string())),
        ("frame_rate", pa.float64()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
        *SOURCE_STATE,
    ]
)
# Where people were that were forgotten, so that the same bytes do not bring them back: frames of a recording by its hash.
FORGOTTEN_BOXES_SCHEMA = pa.schema(
    [("ingested_hash", pa.string()), ("frame_index", pa.int32()), *((side, pa.float32()) for side in ("x", "y", "w", "h"))]
)
START_FROM = ("manifest", "name", "file")
BOX = ("x", "y", "w", "h")  # float32, pixels of the whole picture
# Of a frame of a track: in which recording it is, as which frame there and when, in seconds from that recording's start.
PLACE = pa.struct(
    [("recording_id", pa.string()), ("frame", pa.int32()), ("time_s", pa.float32()), *((side, pa.float32()) for side in BOX)]
)


def detections_schema(feature_width: int) -> pa.Schema:
    """Of detections/: rows in the order of time, and those of a frame by score, best first. feature: null once nobody needs
    it.
    """
    return pa.schema(
        [
            ("recording_id", pa.string()),
            ("frame_index", pa.int32()),
            ("time_s", pa.float32()),
            *((side, pa.float32()) for side in BOX),
            ("score", pa.float32()),
            ("feature", pa.list_(pa.float16(), feature_width)),
        ]
    )


def detections_table(
    recording_id: str, frame_index: np.ndarray, time_s: np.ndarray, boxes: np.ndarray, scores: np.ndarray, features: np.ndarray
) -> pa.Table:
    """Detections of one recording. frame_index int32 [n], time_s float32 [n], boxes float32 [n, 4], scores float32 [n], features
    float16 [n, D].
    """
    feature = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(features).reshape(-1)), features.shape[1])
    ids = pa.array([recording_id] * len(frame_index), pa.string())
    sides = [pa.array(np.ascontiguousarray(boxes[:, side]), pa.float32()) for side in range(4)]
    columns = [ids, pa.array(frame_index, pa.int32()), pa.array(time_s, pa.float32()), *sides, pa.array(scores, pa.float32())]
    return pa.Table.from_arrays([*columns, feature], schema=detections_schema(features.shape[1]))


def boxes_of(table: pa.Table) -> np.ndarray:
    """The boxes of detections or places, float32 [n, 4], (x, y, w, h)."""
    return np.column_stack([np.asarray(table[side], np.float32) for side in BOX]).reshape(-1, 4)


def frames_of(table: pa.Table) -> Iterator[tuple[int, float, slice]]:
    """(frame index, time in s, rows) of each frame of a recording's detections, in their order."""
    index, times = np.asarray(table["frame_index"]), np.asarray(table["time_s"])
    edges = [*np.flatnonzero(np.diff(index, prepend=-1)).tolist(), len(index)]
    for start, end in itertools.pairwise(edges):
        yield int(index[start]), float(times[start]), slice(start, end)
