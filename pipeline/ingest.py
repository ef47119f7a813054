"""Catalog -> gallery with Ray Data: decode on CPUs, embed on GPUs or CPUs, write shards, commit.

    1. the catalog's rows that the gallery does not have yet, in small blocks
    2. decode:  rows -> pieces of frames          actors, each with a decoder process of its own
    3. embed:   frames -> float16 features        actors, each with a network; GPUs where the cluster has them
    4. write:   pieces -> one Parquet shard       tasks; the shard's name is the hash of its content
    5. commit:  this process                      a source is committed when all of its pieces are in shards

Frames stream through 2 and 3 under Ray Data's backpressure, so memory does not grow with the number of videos. Only step 5
changes the gallery, in one atomic step at a time: whatever is killed, what is not committed is simply done again.
"""

import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pipeline.backbone import BackboneSpec, load_backbone
from pipeline.catalog import Catalog, candidate_id
from pipeline.cluster import connected
from pipeline.decoder import Decoder
from pipeline.errors import PipelineError
from pipeline.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, feature_matrix, frames_table
from pipeline.video import Piece, Rejected, Sampling, VideoInfo

BLOCK_BYTES = 32 << 20  # of decoded frames in one block of the stream
SOURCES_A_BLOCK = (4, 64)  # few for few videos, so that all workers have some; more for many, so that blocks do not become many

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


@dataclass(frozen=True)
class Workers:
    """How the work is spread. None: from the cluster's CPUs and GPUs.

    decoders: decoding actors. embedders: embedding actors. threads: CPU threads of one embedder. shard_pieces: pieces (videos,
    when none is long) that one shard holds and one commit makes durable.
    """

    decoders: int | None = None
    embedders: int | None = None
    threads: int | None = None
    shard_pieces: int = 128

    def on(self, cpus: int, gpus: int) -> tuple[int, int, int]:
        """(decoders, embedders, threads) on a cluster of this many CPUs and GPUs."""
        embedders = self.embedders or gpus or max(1, cpus // 4)
        return self.decoders or max(1, cpus // 2), embedders, self.threads or max(1, min(4, cpus))


@dataclass
class IngestProgress:
    """How far an ingest is. frames: embedded so far; seconds: since the first video was handed out."""

    total: int
    done: int = 0
    rejected: int = 0
    frames: int = 0
    seconds: float = 0.0


@dataclass
class IngestSummary:
    """What an ingest did. sources are catalog rows; candidates are what became searchable.

    already: sources that the gallery had. reasons: reject reason -> candidates. unaccounted: sources that were lost (a block of
    the stream failed); running ingest again takes them up.
    """

    sources: int
    already: int = 0
    candidates: int = 0
    frames: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    unaccounted: int = 0
    startup_s: float = 0.0
    seconds: float = 0.0

    @property
    def rejected(self) -> int:
        return sum(self.reasons.values())


def ingest(
    catalog: Catalog,
    gallery: Gallery,
    sampling: Sampling,
    workers: Workers | None = None,
    retry_rejected: bool = False,
    progress: Callable[[IngestProgress], None] = lambda _: None,
    address: str | None = None,
) -> IngestSummary:
    """Bring every source of the catalog into the gallery that is not in it yet.

    progress is called about once a second, from this thread. address: see `pipeline.cluster.connected`; Ray is started only if
    there is something to do. Raises PipelineError for what no video is to blame for: storage that refuses, a backbone that does
    not load.
    """
    began = time.monotonic()
    missing, already = missing_sources(catalog.table, gallery, retry_rejected)
    summary = IngestSummary(sources=len(catalog.table), already=already)
    if len(missing):
        with connected(address):
            _run(missing, gallery, sampling, workers or Workers(), summary, progress, began)
    return summary


def _run(
    missing: pa.Table,
    gallery: Gallery,
    sampling: Sampling,
    workers: Workers,
    summary: IngestSummary,
    progress: Callable[[IngestProgress], None],
    began: float,
) -> None:
    counter = ray.remote(num_cpus=0)(_Counter).remote()
    stream = _stream(missing, gallery, sampling, workers, counter)
    committer = _Committer(gallery, missing, summary)
    state = IngestProgress(total=len(missing))
    try:
        for written in _polled(stream, counter, state, progress, summary, began):
            committer.add(written)
            state.done, state.rejected = committer.sources_done, summary.rejected
    except ray.exceptions.RayError as error:
        done = f"{committer.sources_done} of {len(missing)} inputs are committed; run the same command again to go on"
        raise PipelineError(f"the ingest stopped: {_cause(error)}; {done}") from error
    progress(state)
    summary.unaccounted = len(missing) - committer.sources_done
    summary.frames, summary.seconds = committer.frames, time.monotonic() - began


def _cause(error: BaseException) -> str:
    """What a Ray worker's error comes down to. Only its text crosses the processes, so it is read from the traceback in it."""
    text = str(error)
    ours = re.findall(r"^pipeline\.\w+\.\w+Error: (.*)$", text, re.MULTILINE)
    others = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*$", text, re.MULTILINE)
    found = ours or [line for line in others if "UserCodeException" not in line]
    return found[-1] if found else f"{type(error).__name__}: {text.strip().splitlines()[0]}"


def missing_sources(catalog: pa.Table, gallery: Gallery, retry_rejected: bool) -> tuple[pa.Table, int]:
    """The catalog's rows that need work, and how many are finished already.

    Forgotten videos stay forgotten. Raises PipelineError when an id belongs to another uri in the gallery.
    """
    snapshot = gallery.snapshot()
    known = pa.concat_tables([snapshot.videos.select(["source_id", "uri"]), snapshot.rejects.select(["source_id", "uri"])])
    uris = dict(zip(known["source_id"].to_pylist(), known["uri"].to_pylist(), strict=True))
    rows = zip(catalog["source_id"].to_pylist(), catalog["uri"].to_pylist(), strict=True)
    clashes = [f"{i} ({uri}; in the gallery: {uris[i]})" for i, uri in rows if i in uris and uris[i] != uri]
    if clashes:
        named = ", ".join(clashes[:5])
        raise PipelineError(f"{len(clashes)} video ids are taken by other videos in the gallery: {named}; give them other ids")
    finished = snapshot.finished_sources(count_rejected=not retry_rejected)
    wanted = pa.array([source_id not in finished for source_id in catalog["source_id"].to_pylist()], pa.bool_())
    missing = catalog.filter(wanted)
    return missing, len(catalog) - len(missing)


def _stream(missing: pa.Table, gallery: Gallery, sampling: Sampling, workers: Workers, counter: Any) -> Iterator[pa.Table]:
    """Steps 1 to 4; yields tables of WRITTEN_SCHEMA."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `progress` and our errors say it better
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    decoders, embedders, threads = workers.on(int(resources.get("CPU", 1)), gpus)
    few, many = SOURCES_A_BLOCK
    sources = min(many, max(few, len(missing) // 1000))
    blocks = [missing.slice(i, sources) for i in range(0, len(missing), sources)]
    dataset = (
        ray.data.from_arrow(blocks)
        .map_batches(
            DecodeSources,
            fn_constructor_args=(sampling,),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(decoders, len(blocks))),
            num_cpus=0.5,
        )
        .map_batches(
            EmbedPieces,
            fn_constructor_args=(gallery.settings.backbone, threads, counter),
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=embedders),
            num_cpus=1,
            num_gpus=1 if gpus else 0,
        )
        .map_batches(
            write_pieces,
            fn_args=(gallery,),
            batch_size=workers.shard_pieces,
            batch_format="pyarrow",
            num_cpus=0.25,
        )
    )
    return dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)


class DecodeSources:
    """Step 2: catalog rows -> PIECES_SCHEMA, frames as uint8 bytes [n, height, width, 3]."""

    def __init__(self, sampling: Sampling) -> None:
        self.decoder = Decoder(sampling)

    def __call__(self, sources: pa.Table) -> Iterator[pa.Table]:
        for row in sources.to_pylist():
            if row["reject_reason"] is not None:
                yield from _refused(row["source_id"], row["reject_reason"], row["reject_message"])
            else:
                yield from decode_source(self.decoder, row["source_id"], row["uri"], row["boxes_uri"])


def decode_source(decoder: Decoder, source_id: str, uri: str, boxes_uri: str | None) -> Iterator[pa.Table]:
    """One source as rows of PIECES_SCHEMA; the last one is its end."""
    info: VideoInfo | None = None
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
                frames=event.frames.tobytes(),
            )
        elif isinstance(event, Rejected) and event.track is None:
            yield from _refused(source_id, event.reason, event.message)
            return
        elif isinstance(event, Rejected):
            rejects += 1
            refused = {"track": event.track, "reason": event.reason, "message": event.message}
            yield _row("reject", source_id, video_id=_video_id(source_id, event.track), **refused)
    yield _row("end", source_id, pieces=pieces, rejects=rejects, fatal=False)


def _refused(source_id: str, reason: str, message: str) -> Iterator[pa.Table]:
    """The end of a source that is refused as a whole, whatever came before."""
    yield _row("end", source_id, video_id=source_id, fatal=True, reason=reason, message=message)


def _row(kind: str, source_id: str, **values: Any) -> pa.Table:
    return pa.Table.from_pylist([{"kind": kind, "source_id": source_id, **values}], schema=PIECES_SCHEMA)


def _video_id(source_id: str, track: int | None) -> str:
    return source_id if track is None else candidate_id(source_id, track)


class EmbedPieces:
    """Step 3: PIECES_SCHEMA -> the same with `feature` bytes (float16 [n, D]) in the place of `frames`."""

    def __init__(self, spec: BackboneSpec, threads: int, counter: Any) -> None:
        self.backbone = load_backbone(spec, threads)
        self.counter = counter

    def __call__(self, pieces: pa.Table) -> pa.Table:
        spec = self.backbone.spec
        shape = (-1, spec.height, spec.width, 3)
        buffers = [b"" if frames is None else frames for frames in pieces["frames"].to_pylist()]
        frames = [np.frombuffer(buffer, np.uint8).reshape(shape) for buffer in buffers]
        lengths = [len(array) for array in frames]
        features = self.backbone.embed(np.concatenate(frames))
        ends = np.cumsum(lengths)
        split = [features[end - n : end].tobytes() for end, n in zip(ends, lengths, strict=True)]
        self.counter.add.remote(sum(lengths))
        return pieces.drop_columns("frames").append_column("feature", pa.array(split, pa.large_binary()))


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


@dataclass
class _Pending:
    """What has been written of a source that is not complete yet. Keys make a row that comes twice count once."""

    pieces: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    rejects: dict[str, dict[str, Any]] = field(default_factory=dict)
    end: dict[str, Any] | None = None

    def complete(self) -> bool:
        if self.end is None:
            return False
        return self.end["fatal"] or (len(self.pieces) == self.end["pieces"] and len(self.rejects) == self.end["rejects"])


class _Committer:
    """Step 5: gathers written rows until sources are complete, and commits those."""

    def __init__(self, gallery: Gallery, catalog: pa.Table, summary: IngestSummary) -> None:
        self.gallery = gallery
        self.catalog = catalog
        self.position = {source_id: i for i, source_id in enumerate(catalog["source_id"].to_pylist())}
        self.summary = summary
        self.pending: dict[str, _Pending] = defaultdict(_Pending)
        self.sources_done = 0
        self.frames = 0

    def add(self, written: pa.Table) -> None:
        touched: dict[str, _Pending] = {}
        for row in written.to_pylist():
            source = touched[row["source_id"]] = self.pending[row["source_id"]]
            if row["kind"] == "piece":
                source.pieces[row["video_id"], row["piece"]] = row
            elif row["kind"] == "reject":
                source.rejects[row["video_id"]] = row
            else:
                source.end = row
        complete = {source_id: source for source_id, source in touched.items() if source.complete()}
        if complete:
            self._commit(complete)
            for source_id in complete:
                del self.pending[source_id]
            self.sources_done += len(complete)

    def _commit(self, sources: dict[str, _Pending]) -> None:
        videos: list[dict[str, Any]] = []
        rejects: list[dict[str, Any]] = []
        for source_id, source in sources.items():
            if source.end is not None and source.end["fatal"]:
                rejects.append(self._reject_row(source_id, source.end))
                continue
            rejects += [self._reject_row(source_id, row) for row in source.rejects.values()]
            by_video = defaultdict(list)
            for (video_id, _), row in sorted(source.pieces.items()):
                by_video[video_id].append(row)
            videos += [self._video_row(source_id, rows) for rows in by_video.values()]
        self.gallery.commit(
            pa.Table.from_pylist(videos, schema=VIDEOS_SCHEMA), pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA)
        )
        self.summary.candidates += len(videos)
        self.frames += sum(row["sampled_frames"] for row in videos)
        for row in rejects:
            self.summary.reasons[row["reason"]] = self.summary.reasons.get(row["reason"], 0) + 1

    def _video_row(self, source_id: str, pieces: list[dict[str, Any]]) -> dict[str, Any]:
        row = pieces[0]
        shard, first_row = row["shard"], row["first_row"]
        if any(piece["shard"] != shard for piece in pieces):
            shard, first_row = ray.get(join_pieces.remote(self.gallery, pieces)), 0
        source = self._source(source_id)
        # A boxes file holds many people: the source's label, if any, is not each track's.
        person_id = source["person_id"] if row["track"] is None else None
        copied = {name: row[name] for name in ("video_id", "track", "fps", "source_frames", "width", "height")}
        return copied | {
            **{name: source[name] for name in ("uri", "camera_id", "start_time", "boxes_uri")},
            "person_id": person_id,
            "sampled_frames": sum(piece["rows"] for piece in pieces),
            "shard": shard,
            "first_row": first_row,
            "backbone": self.gallery.settings.backbone.identity,
            "ingested_at": datetime.now(UTC),
            "source_id": source_id,
        }

    def _source(self, source_id: str) -> dict[str, Any]:
        return self.catalog.slice(self.position[source_id], 1).to_pylist()[0]

    def _reject_row(self, source_id: str, row: dict[str, Any]) -> dict[str, Any]:
        copied = {name: row[name] for name in ("video_id", "reason", "message")}
        return copied | {"uri": self._source(source_id)["uri"], "source_id": source_id, "rejected_at": datetime.now(UTC)}


@ray.remote(num_cpus=0)
def join_pieces(gallery: Gallery, pieces: list[dict[str, Any]]) -> str:
    """A video whose pieces came to lie in several shards, as one shard of its own; returns the shard's name."""
    tables = [gallery.read_shard(piece["shard"], piece["first_row"], piece["rows"]) for piece in pieces]
    frames = pa.concat_tables(tables)
    index, times = np.asarray(frames["frame_index"]), np.asarray(frames["time_s"])
    return gallery.write_shard(frames_table([pieces[0]["video_id"]], [len(frames)], index, times, feature_matrix(frames)))


class _Counter:
    """Counts embedded frames across the cluster, for the progress line."""

    def __init__(self) -> None:
        self.frames = 0
        self.first: float | None = None

    def add(self, frames: int) -> None:
        self.first = self.first or time.time()
        self.frames += frames

    def read(self) -> tuple[int, float | None]:
        return self.frames, self.first


def _polled(
    stream: Iterator[pa.Table],
    counter: Any,
    state: IngestProgress,
    progress: Callable[[IngestProgress], None],
    summary: IngestSummary,
    began: float,
) -> Iterator[pa.Table]:
    """The stream's tables; while the next one is awaited, progress is told about once a second."""
    from concurrent.futures import ThreadPoolExecutor, wait

    batches = iter(stream)
    with ThreadPoolExecutor(1) as pool:
        while True:
            following = pool.submit(next, batches, None)
            while not wait([following], timeout=1.0).done:
                state.frames, first = ray.get(counter.read.remote())
                if first is not None and summary.startup_s == 0:
                    summary.startup_s = time.monotonic() - began
                state.seconds = time.monotonic() - began - summary.startup_s
                progress(state)
            table = following.result()
            if table is None:
                return
            yield table
