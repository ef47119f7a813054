"""What flows through an ingest: pieces of videos, decoded, embedded and written to shards (steps 2 to 4 of pipeline.ingest)."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.backbone import BackboneSpec, load_backbone
from pipeline.catalog import candidate_id
from pipeline.decoder import Decoder
from pipeline.errors import PipelineError
from pipeline.gallery import Gallery, frames_table
from pipeline.sampling import Sampling
from pipeline.video import Piece, Rejected, VideoInfo

# One row a piece (kind "piece"), a refused candidate ("reject"), or the end of a source ("end": how many of both there were).
PIECES_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("source_id", pa.string()),
        ("video_id", pa.string()),
        ("track", pa.int64()),
        ("piece", pa.int32()),
        ("pieces", pa.int32()),
        ("rejects", pa.int32()),
        ("fatal", pa.bool_()),
        ("reason", pa.string()),
        ("message", pa.string()),
        ("fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("source_hash", pa.string()),
        ("frame_index", pa.list_(pa.int32())),
        ("time_s", pa.list_(pa.float32())),
        ("frames", pa.large_binary()),
    ]
)
# The same rows once their frames are in a shard.
WRITTEN_SCHEMA = pa.schema(
    [f for f in PIECES_SCHEMA if f.name not in ("frame_index", "time_s", "frames")]
    + [pa.field("shard", pa.string()), pa.field("first_row", pa.int64()), pa.field("rows", pa.int32())]
)


class DecodeSources:
    """Step 2: catalog rows -> PIECES_SCHEMA, frames as uint8 bytes [n, height, width, 3]."""

    def __init__(self, sampling: Sampling) -> None:
        self.decoder = Decoder(sampling)

    def __call__(self, sources: pa.Table) -> Generator[pa.Table, None, None]:
        for row in sources.to_pylist():
            if row["reject_reason"] is not None:
                yield from _refused(row["source_id"], row["reject_reason"], row["reject_message"])
            else:
                yield from decode_source(self.decoder, row["source_id"], row["uri"], row["boxes_uri"])


def decode_source(decoder: Decoder, source_id: str, uri: str, boxes_uri: str | None) -> Iterator[pa.Table]:
    """One source as rows of PIECES_SCHEMA; the last one is its end."""
    info: VideoInfo | None = None
    fatal: Rejected | None = None
    pieces = rejects = 0
    for event in decoder.events(uri, boxes_uri):
        if isinstance(event, VideoInfo):
            info = event
        elif isinstance(event, Piece):
            if info is None:
                raise PipelineError(f"{uri}: frames came before the video's properties")
            pieces += 1
            yield _row(
                "piece",
                source_id,
                video_id=_video_id(source_id, event.track),
                track=event.track,
                piece=event.number,
                **vars(info),
                frame_index=event.frame_index.tolist(),
                time_s=event.time_s.tolist(),
                frames=event.frames,
            )
        elif isinstance(event, Rejected) and event.track is None:
            fatal = event  # no event follows; a decoder that is not read to the end would be made anew
        elif isinstance(event, Rejected):
            rejects += 1
            video_id = _video_id(source_id, event.track)
            yield _row("reject", source_id, video_id=video_id, track=event.track, reason=event.reason, message=event.message)
    if fatal is not None:
        yield from _refused(source_id, fatal.reason, fatal.message)
    else:
        yield _row("end", source_id, pieces=pieces, rejects=rejects, fatal=False)


def _refused(source_id: str, reason: str, message: str) -> Iterator[pa.Table]:
    """The end of a source that is refused as a whole, whatever came before."""
    yield _row("end", source_id, video_id=source_id, fatal=True, reason=reason, message=message)


def _row(kind: str, source_id: str, frames: np.ndarray | None = None, **values: Any) -> pa.Table:
    """One row; its frames are the array's own memory."""
    schema = PIECES_SCHEMA.remove(PIECES_SCHEMA.get_field_index("frames"))
    table = pa.Table.from_pylist([{"kind": kind, "source_id": source_id, **values}], schema=schema)
    if frames is None:
        return table.append_column("frames", pa.nulls(1, pa.large_binary()))
    parts = [None, pa.py_buffer(np.array([0, frames.nbytes], np.int64)), pa.py_buffer(np.ascontiguousarray(frames))]
    return table.append_column("frames", pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, parts))


def _video_id(source_id: str, track: int | None) -> str:
    return source_id if track is None else candidate_id(source_id, track)


class EmbedPieces:
    """Step 3: PIECES_SCHEMA -> the same with `feature` bytes (float16 [n, D]) in the place of `frames`."""

    def __init__(self, spec: BackboneSpec, threads: int, counter: Any, device: str = "auto") -> None:
        self.backbone = load_backbone(spec, threads, device)
        self.counter = counter

    def __call__(self, pieces: pa.Table) -> pa.Table:
        spec = self.backbone.spec
        shape = (-1, spec.height, spec.width, 3)
        buffers = [frames.as_buffer() or b"" for frames in pieces["frames"]]
        frames = [np.frombuffer(buffer, np.uint8).reshape(shape) for buffer in buffers]
        lengths = [len(array) for array in frames]
        features = self.backbone.embed(np.concatenate(frames))
        ends = np.cumsum(lengths)
        split = [features[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)]
        if sum(lengths):  # the end of a source has no frames
            self.counter.add.remote(sum(lengths))
        pieces = _mark(pieces, [bool(np.isfinite(features[end - n : end]).all()) for end, n in zip(ends, lengths, strict=True)])
        return pieces.drop_columns("frames").append_column("feature", pa.array(split, pa.large_binary()))


class DecodeAndEmbed:
    """Steps 2 and 3 in one process, where both run on CPUs: frames go from the decoder to the network and nowhere else.

    Catalog rows -> pieces with `feature` as EmbedPieces gives them. The next piece is decoded while one is embedded.
    """

    def __init__(self, decode: DecodeSources, embed: EmbedPieces) -> None:
        self.decode, self.embed = decode, embed
        self.thread = ThreadPoolExecutor(1)  # one for all calls: the decoder's child dies with the thread that started it

    def __call__(self, sources: pa.Table) -> Iterator[pa.Table]:
        pieces = self.decode(sources)
        try:
            following = self.thread.submit(next, pieces, None)
            while (piece := following.result()) is not None:
                following = self.thread.submit(next, pieces, None)
                yield self.embed(piece)
        finally:
            self.thread.submit(pieces.close)  # there, and before the next call: what is left half read closes its decoder


def _mark(pieces: pa.Table, finite: list[bool]) -> pa.Table:
    """Give pieces whose features are not finite numbers the reason why their video cannot be used."""
    if all(finite):
        return pieces
    says = {"reason": "bad_features", "message": "the backbone gives frame features that are not finite numbers"}
    for name, text in says.items():
        old = pieces[name].to_pylist()
        new = pa.array([value if good else text for value, good in zip(old, finite, strict=True)], pa.string())
        pieces = pieces.set_column(pieces.schema.get_field_index(name), name, new)
    return pieces


def write_pieces(pieces: pa.Table, gallery: Gallery) -> pa.Table:
    """Step 4: write the pieces' features as one shard, a video's pieces in order; returns WRITTEN_SCHEMA."""
    pieces = pieces.sort_by([("kind", "ascending"), ("video_id", "ascending"), ("piece", "ascending")])
    real = pieces.filter(pc.equal(pieces["kind"], "piece"))
    rest = pieces.filter(pc.not_equal(pieces["kind"], "piece"))
    lengths = np.asarray(pc.list_value_length(real["frame_index"]))
    shard = None
    if len(real):
        features = np.concatenate([np.frombuffer(feature, np.float16) for feature in real["feature"].to_pylist()])
        frames = frames_table(
            real["video_id"].to_pylist(),
            lengths.tolist(),
            np.asarray(pc.list_flatten(real["frame_index"])),
            np.asarray(pc.list_flatten(real["time_s"])),
            features.reshape(-1, gallery.feature_width),
        )
        shard = gallery.write_shard(frames)
    written = pa.concat_tables([real, rest]).select([n for n in WRITTEN_SCHEMA.names if n not in ("shard", "first_row", "rows")])
    nothing = [None] * len(rest)
    first_rows = (np.cumsum(lengths) - lengths).tolist()
    return (
        written.append_column("shard", pa.array([shard] * len(real) + nothing, pa.string()))
        .append_column("first_row", pa.array([*first_rows, *nothing], pa.int64()))
        .append_column("rows", pa.array([*lengths, *nothing], pa.int32()))
        .cast(WRITTEN_SCHEMA)
    )
