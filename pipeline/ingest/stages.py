"""Stages 2 to 4 of an ingest (`pipeline.ingest.run`): chunks of frames are decoded, embedded and written to shards.

Each stage maps tables to tables, and times itself. What flows between them is a row per chunk (kind "chunk"), per candidate that
is refused ("reject"), and per source at its end ("end": how many of both there were, and what is known of the source by then).
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import telemetry
from pipeline.backbone.runtime import load_backbone
from pipeline.backbone.spec import BackboneSpec
from pipeline.catalog.inputs import candidate_id
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected, VideoInfo
from pipeline.errors import PipelineError
from pipeline.gallery.forgotten import MESSAGE, REASON, Forgotten, covers
from pipeline.gallery.gallery import Gallery, frames_table
from pipeline.ingest.progress import FramesTold
from pipeline.ingest.source_changes import STILL_CHANGING, is_changing

CHUNKS_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("source_id", pa.string()),
        ("video_id", pa.string()),
        ("track", pa.int64()),
        ("chunk", pa.int32()),
        ("chunks", pa.int32()),
        ("rejects", pa.int32()),
        ("fatal", pa.bool_()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_hash", pa.string()),
        ("passed_over", pa.int32()),
        ("remarks", pa.list_(pa.string())),
        ("frame_index", pa.list_(pa.int32())),
        ("time_s", pa.list_(pa.float32())),
        ("frames", pa.large_binary()),
    ]
)
# The same rows with the frames' features: float16 bytes [n, D].
EMBEDDED_SCHEMA = pa.schema([*(f for f in CHUNKS_SCHEMA if f.name != "frames"), pa.field("feature", pa.large_binary())])
# The same rows once their frames are in a shard; first_s, last_s: times of a chunk's first and last frame, in seconds.
WRITTEN_SCHEMA = pa.schema(
    [
        *(f for f in CHUNKS_SCHEMA if f.name not in ("frame_index", "time_s", "frames")),
        pa.field("shard", pa.string()),
        pa.field("first_row", pa.int64()),
        pa.field("rows", pa.int32()),
        pa.field("first_s", pa.float64()),
        pa.field("last_s", pa.float64()),
    ]
)
BAD_FEATURES = "the backbone gives frame features that are not finite numbers"
SECONDS = "coattention_ingest_seconds"  # the metric
TABLE_BYTES = 4 << 20  # of rows and features that are handed on at a time
ROW_BYTES = 1000  # about, beside its features
AHEAD = 3  # rows that are decoded ahead: a chunk, the end of its video, and the first chunk of the next one
Row = dict[str, Any]  # of CHUNKS_SCHEMA, without what is null; `frames` as uint8 [n, height, width, 3], RGB


class DecodeSources:
    """Stage 2: catalog rows -> CHUNKS_SCHEMA, frames as uint8 bytes [n, height, width, 3]. forgotten: what is not taken in."""

    def __init__(self, sampling: Sampling, forgotten: Forgotten) -> None:
        self.decoder = Decoder(sampling)
        self.forgotten = forgotten.content

    def __call__(self, sources: pa.Table) -> Iterator[pa.Table]:
        yield from map(_with_frames, self.rows(sources))

    def rows(self, sources: pa.Table) -> Generator[Row, None, None]:
        """The rows of a block of sources, one after another. Raises PipelineError where the decoder itself is at fault."""
        rows = (row for source in sources.to_pylist() for row in decode_source(self.decoder, source, self.forgotten))
        yield from telemetry.timed_items(rows, SECONDS, stage="decode")


def decode_source(
    decoder: Decoder, source: dict[str, Any], forgotten: frozenset[tuple[str, int | None]] = frozenset()
) -> Iterator[Row]:
    """The rows of one source; the last one is its end.

    source: a row of the catalog. forgotten: `Forgotten.content`, of which no chunk comes. Raises PipelineError where the decoder
    itself is at fault.
    """
    source_id, uri = source["source_id"], source["uri"]
    if source.get("reject_reason") is not None:
        yield _refused(source_id, source["reject_reason"], source["reject_message"])
        return
    info: VideoInfo | None = None
    fatal: Rejected | None = None
    chunks = rejects = 0
    refused: set[int] = set()
    for event in decoder.events(uri, source["boxes_uri"], source["frame_rate"]):
        if isinstance(event, VideoInfo):
            info = event
        elif isinstance(event, Chunk) and covers(forgotten, event.source_hash, event.track):
            if event.track is None or (event.source_hash, None) in forgotten:
                yield _refused(source_id, REASON, MESSAGE)
                return
            if event.track not in refused:
                refused.add(event.track)
                rejects += 1
                yield _reject(source_id, event.track, REASON, MESSAGE)
        elif isinstance(event, Chunk):
            chunks += 1
            yield {
                "kind": "chunk",
                "source_id": source_id,
                "video_id": _video_id(source_id, event.track),
                "track": event.track,
                "chunk": event.number,
                "frame_index": event.frame_index.tolist(),
                "time_s": event.time_s.tolist(),
                "frames": event.frames,
            }
        elif isinstance(event, Rejected) and event.track is None:
            fatal = event  # no event follows; a decoder that is not read to the end would be made anew
        elif isinstance(event, Rejected) and event.track not in refused:
            rejects += 1
            yield _reject(source_id, event.track, event.reason, event.message)
    if is_changing(source):
        yield _refused(source_id, STILL_CHANGING, f"{uri} changes while it is read")
    elif fatal is not None:
        yield _refused(source_id, fatal.reason, fatal.message)
    elif info is None:
        raise PipelineError(f"{uri}: its decoder ended without a word")
    else:
        yield {"kind": "end", "source_id": source_id, "chunks": chunks, "rejects": rejects, "fatal": False, **vars(info)}


def _reject(source_id: str, track: int | None, reason: str, message: str) -> Row:
    """One candidate that is refused, whatever came of it before."""
    row = {"kind": "reject", "source_id": source_id, "video_id": _video_id(source_id, track), "track": track}
    return row | {"reason": reason, "message": message}


def _refused(source_id: str, reason: str, message: str) -> Row:
    """The end of a source that is refused as a whole, whatever came before."""
    return {"kind": "end", "source_id": source_id, "video_id": source_id, "fatal": True, "reason": reason, "message": message}


def _video_id(source_id: str, track: int | None) -> str:
    return source_id if track is None else candidate_id(source_id, track)


def _with_frames(row: Row) -> pa.Table:
    """One row as a table of CHUNKS_SCHEMA; its frames are the array's own memory."""
    frames = row.pop("frames", None)
    table = pa.Table.from_pylist([row], schema=CHUNKS_SCHEMA.remove(CHUNKS_SCHEMA.get_field_index("frames")))
    if frames is None:
        return table.append_column("frames", pa.nulls(1, pa.large_binary()))
    parts = [None, pa.py_buffer(np.array([0, frames.nbytes], np.int64)), pa.py_buffer(np.ascontiguousarray(frames))]
    return table.append_column("frames", pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, parts))


class EmbedChunks:
    """Stage 3: CHUNKS_SCHEMA -> EMBEDDED_SCHEMA.

    threads: of the CPU, for the network. counter: an actor that is told, at most once a second, of frames embedded.
    """

    def __init__(self, spec: BackboneSpec, threads: int, counter: Any, device: str = "auto") -> None:
        self.backbone = load_backbone(spec, threads, device)
        self.told = FramesTold(counter)

    def __call__(self, chunks: pa.Table) -> pa.Table:
        shape = (-1, self.backbone.spec.height, self.backbone.spec.width, 3)
        frames = [np.frombuffer(buffer.as_buffer() or b"", np.uint8).reshape(shape) for buffer in chunks["frames"]]
        features = np.split(self.embed(np.concatenate(frames)), np.cumsum([len(array) for array in frames])[:-1])
        return with_features(list(zip(chunks.drop_columns("frames").to_pylist(), features, strict=True)))

    def embed(self, frames: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3] -> float16 [n, dim]."""
        with telemetry.timed(SECONDS, stage="embed"):
            features = self.backbone.embed(frames)
        self.told.add(len(frames))
        return features


def with_features(embedded: Sequence[tuple[Row, np.ndarray]]) -> pa.Table:
    """EMBEDDED_SCHEMA of rows and their features, float16 [n, dim]; not finite, they are why a video cannot be used."""
    rows = []
    for row, features in embedded:
        bad = {} if np.isfinite(features).all() else {"reason": "bad_features", "message": BAD_FEATURES}
        rows.append(row | bad | {"feature": features.tobytes()})
    return pa.Table.from_pylist(rows, schema=EMBEDDED_SCHEMA)


class DecodeAndEmbed:
    """Stages 2 and 3 in one process, where both run on CPUs: catalog rows -> EMBEDDED_SCHEMA.

    Frames go from the decoder to the network and nowhere else. The next chunks are decoded while one is embedded.
    """

    def __init__(self, sampling: Sampling, forgotten: Forgotten, spec: BackboneSpec, threads: int, counter: Any) -> None:
        self.decode, self.embed = DecodeSources(sampling, forgotten), EmbedChunks(spec, threads, counter, "cpu")
        self.thread = ThreadPoolExecutor(1)  # one for all calls: the decoder's child dies with the thread that started it

    def __call__(self, sources: pa.Table) -> Iterator[pa.Table]:
        rows = self.decode.rows(sources)
        nothing = np.empty((0, self.embed.backbone.spec.dim), np.float16)
        finished: list[tuple[Row, np.ndarray]] = []
        size = 0
        try:
            following = deque(self.thread.submit(next, rows, None) for _ in range(AHEAD))
            while (row := following.popleft().result()) is not None:
                following.append(self.thread.submit(next, rows, None))
                frames = row.pop("frames", None)
                finished.append((row, nothing if frames is None else self.embed.embed(frames)))
                size += ROW_BYTES + finished[-1][1].nbytes
                if size >= TABLE_BYTES:
                    yield with_features(finished)
                    finished, size = [], 0
            if finished:
                yield with_features(finished)
        finally:
            self.thread.submit(rows.close)  # there, and before the next call: what is left half read closes its decoder


class WriteShards:
    """Stage 4: EMBEDDED_SCHEMA -> WRITTEN_SCHEMA; a call writes one shard."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery

    def __call__(self, chunks: pa.Table) -> pa.Table:
        with telemetry.timed(SECONDS, stage="write"):
            return write_chunks(chunks, self.gallery)


def write_chunks(chunks: pa.Table, gallery: Gallery) -> pa.Table:
    """Write the chunks' features as one shard, a video's chunks in order: EMBEDDED_SCHEMA -> WRITTEN_SCHEMA.

    Raises StorageError where the gallery cannot be written.
    """
    chunks = chunks.sort_by([("kind", "ascending"), ("video_id", "ascending"), ("chunk", "ascending")])
    written, rest = (chunks.filter(is_kind(chunks["kind"], "chunk")) for is_kind in (pc.equal, pc.not_equal))
    lengths = np.asarray(pc.list_value_length(written["frame_index"]))
    index, times = (np.asarray(pc.list_flatten(written[name])) for name in ("frame_index", "time_s"))
    shard = None
    if len(written):
        features = np.concatenate([np.frombuffer(feature, np.float16) for feature in written["feature"].to_pylist()])
        features = features.reshape(-1, gallery.feature_width)
        shard = gallery.write_shard(frames_table(written["video_id"].to_pylist(), lengths.tolist(), index, times, features))
    first, end = np.cumsum(lengths) - lengths, np.cumsum(lengths)
    places = {"shard": [shard] * len(written), "first_row": first, "rows": lengths}
    places |= {"first_s": times[first], "last_s": times[end - 1]}
    for name, values in places.items():
        written = written.append_column(name, pa.array(values, WRITTEN_SCHEMA.field(name).type))
    return pa.concat_tables([written, rest], promote_options="default").select(WRITTEN_SCHEMA.names).cast(WRITTEN_SCHEMA)
