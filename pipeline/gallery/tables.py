"""What the tables of a gallery hold: their schemas, and arrays of frame features to and from a table."""

import numpy as np
import pyarrow as pa

from pipeline.catalog.inputs import SOURCE_STATE
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA
from pipeline.gallery.forgotten import FORGOTTEN_SCHEMA

VIDEOS_SCHEMA = pa.schema(
    [
        ("video_id", pa.string()),
        ("uri", pa.string()),
        ("camera_id", pa.string()),
        ("start_time", pa.timestamp("us", tz="UTC")),
        ("fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("person_id", pa.string()),
        ("sampled_frames", pa.int32()),
        ("shard", pa.string()),
        ("first_row", pa.int64()),
        ("backbone", pa.string()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
        ("source_id", pa.string()),
        ("track", pa.int64()),
        ("boxes_uri", pa.string()),
        # Null in galleries of older versions, each since another one:
        ("ingested_hash", pa.string()),  # see VideoInfo.source_hash
        ("seen_from", pa.timestamp("us", tz="UTC")),  # start_time + time of the candidate's first sampled frame
        ("seen_to", pa.timestamp("us", tz="UTC")),  # and of its last one; null without a start_time
        ("passed_over", pa.int32()),  # packets or images of the source that could not be decoded
        ("remarks", pa.list_(pa.string())),  # what was guessed or mended in reading the source, in words
        *SOURCE_STATE,
        ("frame_rate", pa.float64()),  # of a recording without times, as the manifest gave it
    ]
)
REJECTS_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("video_id", pa.string()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("source_id", pa.string()),
        ("rejected_at", pa.timestamp("us", tz="UTC")),
        # Null in galleries of older versions:
        *SOURCE_STATE,
        ("boxes_uri", pa.string()),
        ("frame_rate", pa.float64()),
    ]
)
# Rows that lie elsewhere since a compaction: of videos/ (folder "frames") or recordings/ ("detections"), while they name `shard`.
MOVES_SCHEMA = pa.schema(
    [
        ("folder", pa.string()),
        ("id", pa.string()),  # video_id, or a recording's source_id
        ("shard", pa.string()),
        ("to_shard", pa.string()),
        ("to_first_row", pa.int64()),  # null in detections
    ]
)
# Sources of which older commits say nothing any more in a table, "videos" or "recordings", though there may be no row of them.
MENTIONS_SCHEMA = pa.schema([("source_id", pa.string()), ("table", pa.string())])
# What a commit can hold. corrections: other values of CORRECTABLE columns in rows that are there.
TABLES = {
    "videos": VIDEOS_SCHEMA,
    "rejects": REJECTS_SCHEMA,
    "recordings": RECORDINGS_SCHEMA,
    "corrections": VIDEOS_SCHEMA,
    "mentions": MENTIONS_SCHEMA,
    "moves": MOVES_SCHEMA,
    "forgotten": FORGOTTEN_SCHEMA,
    "forgotten_boxes": FORGOTTEN_BOXES_SCHEMA,
}
CORRECTABLE = ("uri", "camera_id", "start_time", "person_id", "seen_from", "seen_to", *(name for name, _ in SOURCE_STATE))


def frames_schema(feature_width: int, number: pa.DataType = pa.float16()) -> pa.Schema:  # noqa: B008 - it cannot be changed
    """Schema of frames/: one row a sampled frame; time_s in seconds from the video's first frame. number: type of features."""
    feature = pa.list_(number, feature_width)
    return pa.schema([("video_id", pa.string()), ("frame_index", pa.int32()), ("time_s", pa.float32()), ("feature", feature)])


def feature_matrix(frames: pa.Table) -> np.ndarray:
    """The feature column as a matrix: float16 [rows, feature_width]."""
    column = frames["feature"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    width = column.type.list_size
    return column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def frames_table(
    video_ids: list[str], lengths: list[int], frame_index: np.ndarray, time_s: np.ndarray, features: np.ndarray
) -> pa.Table:
    """Frames of several videos, one after another, as a table of `frames_schema`.

    lengths: frames of each video. frame_index int32 [n], time_s float32 [n], features float16 [n, D]; n = sum(lengths).
    """
    ids = pa.array(np.repeat(np.array(video_ids, dtype=object), lengths), pa.string())
    feature = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(features).reshape(-1)), features.shape[1])
    columns = [ids, pa.array(frame_index, pa.int32()), pa.array(time_s, pa.float32()), feature]
    return pa.Table.from_arrays(columns, schema=frames_schema(features.shape[1]))
