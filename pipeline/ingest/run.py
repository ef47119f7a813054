"""Catalog -> gallery with Ray Data: decode on CPUs, embed on GPUs or CPUs, write shards, commit.

    1. the catalog's rows that the gallery does not have yet, in small blocks
    2. decode:  rows -> pieces of frames          actors, each with a decoder process of its own
    3. embed:   frames -> float16 features        actors, each with a network; GPUs where the cluster has them
    4. write:   pieces -> one Parquet shard       actors; no two writers ever give a shard the same name
    5. commit:  this process                      a source is committed when all of its pieces are in shards

Steps 2 to 4 are in pipeline.ingest.pieces, step 5 is in pipeline.ingest.commit. Without GPUs, 2 and 3 share their actors, since
passing frames from one process to another through Ray costs a third of what embedding them does. Pieces stream under Ray Data's
backpressure, so memory does not grow with the number of videos. Only step 5 changes the gallery, in one atomic step at a time:
whatever is killed, what is not committed is simply done again.
"""

import contextlib
import logging
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pipeline import telemetry
from pipeline.backbone.spec import DEFAULT, BackboneSpec, find_backbone
from pipeline.catalog.inputs import Catalog, read_catalog
from pipeline.cluster import Cluster, connected
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import append_record
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.source_notes import SourceNotes, source_notes
from pipeline.ingest.commit import Committer
from pipeline.ingest.pieces import DecodeAndEmbed, DecodeSources, EmbedPieces, Row, write_pieces
from pipeline.ingest.source_changes import find_changes, too_young, with_states
from pipeline.storage.location import StorageError

LOGGER = logging.getLogger("coattention.ingest")
CPUS_A_WRITER = 16
BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}  # what a stage is given at a time: whole blocks
BLOCK_BYTES = 32 << 20  # of decoded frames in one block of the stream
SOURCES_A_BLOCK = 64  # at most; fewer where there are few videos, so that every worker has
BLOCKS_A_WORKER = 32  # or more, and the last one at work keeps the others waiting for a thirty-second of the time at most


@dataclass(frozen=True)
class Workers:
    """How the work is spread. None: from the cluster's CPUs and GPUs, and from the number of inputs.

    decoders: decoding actors; None without GPUs: embedders decode for themselves. embedders: embedding actors, one a GPU or else
    one a CPU: networks of one thread each embed more than one network of many threads, which wait for each other at every layer.
    threads: CPU threads of one embedder.
    shard_pieces: pieces (videos, when none is long) that one shard holds and one commit makes durable.
    """

    decoders: int | None = None
    embedders: int | None = None
    threads: int | None = None
    shard_pieces: int | None = None

    def __post_init__(self) -> None:
        for name in ("decoders", "embedders", "threads", "shard_pieces"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {number}")

    def on(self, cpus: int, gpus: int) -> tuple[int, int, int]:
        """(decoders, embedders, threads) on a cluster of this many CPUs and GPUs; 0 decoders: embedders decode for themselves."""
        embedders = self.embedders or gpus or max(1, cpus)
        decoders = self.decoders or (max(1, cpus // 2) if gpus else 0)
        return decoders, embedders, self.threads or max(1, min(4, cpus // embedders))


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

    already: sources that were dealt with before. changed: uris of those whose files, boxes or frame rate are others by now, and
    updated: how many of these were taken in again; corrected: videos that got another camera, start time or label; left: sources
    for the next ingest, since their files still change. reasons: reject reason -> candidates, of this run. refused, usable:
    sources that stand in rejects/ and in videos/ now. unaccounted: sources that were lost (a block of the stream failed); running
    ingest again takes them up. not_read: what of the input belongs to no source, in words. notes: on the sources that stand in
    videos/ now.
    """

    sources: int
    already: int = 0
    changed: tuple[str, ...] = ()
    updated: int = 0
    corrected: int = 0
    left: int = 0
    refused: int = 0
    usable: int = 0
    candidates: int = 0
    frames: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    unaccounted: int = 0
    not_read: str = ""
    notes: SourceNotes = field(default_factory=SourceNotes)
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
    address: Cluster | str | None = None,
    source: str | None = None,
    *,
    update: bool = False,
    quiet_period: float = 0.0,
) -> IngestSummary:
    """Bring every source of the catalog into the gallery that is not in it yet, and correct what the catalog says of the others.

    Sources that have changed since they were ingested (`pipeline.ingest.source_changes`) are named, and with update taken in
    again: in one step their new videos stand for the old ones. Rejected ones that changed are always tried again. A source whose
    files change between their listing and the end of its decoding, or did in the last quiet_period seconds, is left for the next
    ingest.

    progress is called about once a second, from this thread. address: see `pipeline.cluster.connected`; Ray is started only if
    there is something to do. source: what the inputs are called in the audit log, which is told that an ingest begins and how far
    the gallery is by then; None tells it nothing. Sources are opened below the roots of the sampling or the catalog, which lie
    within the gallery's, else below the gallery's, and at the endpoints of any of the three. Raises UsageError for roots outside
    the gallery's, and PipelineError for what no video is to blame for: storage that refuses, a backbone that does not load.
    """
    began = time.monotonic()
    endpoints = {*sampling.endpoints, *catalog.reach.endpoints, *gallery.reach().endpoints}
    roots = gallery.narrowed(sampling.roots or catalog.reach.roots)
    sampling = replace(sampling, roots=roots, endpoints=tuple(sorted(endpoints)))
    table, snapshot = with_states(catalog.table), gallery.snapshot()
    changes = find_changes(table, gallery, snapshot)
    again = changes.again | (changes.changed if update else frozenset())
    missing, already = missing_sources(table, gallery, retry_rejected, again)
    changed = table.filter(pc.is_in(table["source_id"], pa.array(sorted(changes.changed), pa.string())))
    summary = IngestSummary(
        sources=len(table), already=already, not_read=catalog.not_read(), changed=tuple(changed["uri"].to_pylist())
    )
    if quiet_period:
        young = too_young(missing, quiet_period)
        missing, summary.left = missing.filter(pc.invert(young)), pc.sum(young).as_py() or 0
    if source is not None and (len(missing) or changes.corrected):
        begins = {"source": source, "inputs": len(table), "already": already, "not_read": summary.not_read}
        append_record(gallery, "ingest", begins | {"corrected": changes.corrected})
    if len(changes.corrections):
        gallery.commit(changes.corrections, REJECTS_SCHEMA.empty_table(), kind="correct")
        summary.corrected = changes.corrected
    if len(missing):
        with connected(address):
            replaced = frozenset(snapshot.videos["source_id"].to_pylist())
            _run(missing, replaced, gallery, sampling, workers or Workers(), summary, progress, began)
    snapshot = gallery.snapshot()
    ids = set(catalog.table["source_id"].to_pylist())
    summary.refused = len(ids & set(snapshot.rejects["source_id"].to_pylist()))
    summary.usable = len(ids & set(snapshot.videos["source_id"].to_pylist()))
    summary.notes = source_notes(snapshot.videos, catalog.table["source_id"].combine_chunks())
    return summary


def _run(
    missing: pa.Table,
    replaced: frozenset[str],
    gallery: Gallery,
    sampling: Sampling,
    workers: Workers,
    summary: IngestSummary,
    progress: Callable[[IngestProgress], None],
    began: float,
) -> None:
    counter = ray.remote(num_cpus=0, max_restarts=-1)(_Counter).remote()
    committer = Committer(gallery, missing, replaced)
    stream = _stream(missing, gallery, sampling, workers, counter, committer.forgotten)
    state = IngestProgress(total=len(missing))
    tell = _Telling()
    try:
        # Closed while Ray is there: a stream that is collected later, at the process's end, joins the cluster again and hangs.
        with contextlib.closing(_polled(stream, counter, state, progress, summary, began)) as tables:
            for written in tables:
                with telemetry.timed("coattention_ingest_seconds", stage="commit"):
                    committer.add(written)
                tell.of(written, committer)
                state.done, state.rejected = len(committer.committed) + len(committer.left), sum(committer.reasons.values())
    except (ray.exceptions.RayError, StorageError) as error:
        done = f"{len(committer.committed)} of {len(missing)} inputs are committed; run the same command again to go on"
        cause = str(error) if isinstance(error, StorageError) else _cause(error)
        raise PipelineError(f"the ingest stopped: {cause}; {done}") from error
    state.frames = max(state.frames, committer.frames)
    progress(state)
    summary.left += len(committer.left)
    summary.updated = len(replaced & committer.committed)
    summary.unaccounted = len(missing) - len(committer.committed) - len(committer.left)
    summary.candidates, summary.frames, summary.reasons = committer.candidates, committer.frames, committer.reasons
    summary.seconds = time.monotonic() - began


def _cause(error: BaseException) -> str:
    """What a Ray worker's error comes down to. Only its text crosses the processes, so it is read from the traceback in it."""
    text = str(error)
    ours = re.findall(r"^pipeline(?:\.\w+)+\.\w+Error: (.*)$", text, re.MULTILINE)
    others = re.findall(r"^(?:\w+\.)*\w+(?:Error|Exception): .*$", text, re.MULTILINE)
    found = ours or [line for line in others if "UserCodeException" not in line]
    return found[-1] if found else f"{type(error).__name__}: {text.strip().splitlines()[0]}"


def ingest_videos(
    source: str | Path, gallery: str | Path, backbone: str = DEFAULT, rate: float = 10.0, cluster: Cluster | str | None = None
) -> IngestSummary:
    """`ingest` of a folder, bucket prefix, manifest or video into a gallery, which is made if there is none.

    backbone: by name or path, see `backbone.spec.find_backbone`. rate: sampled frames a second. cluster: which Ray, see
    `pipeline.cluster.connected`. Raises UsageError for inputs that cannot be meant and a gallery of other settings.
    """
    spec = find_backbone(backbone)
    opened = Gallery.open_or_create(gallery, GallerySettings(spec, rate, None))
    sampling = Sampling(rate=rate, height=spec.height, width=spec.width)
    return ingest(read_catalog(source), opened, sampling, address=cluster, source=str(source))


def missing_sources(
    catalog: pa.Table, gallery: Gallery, retry_rejected: bool, again: frozenset[str] = frozenset()
) -> tuple[pa.Table, int]:
    """The catalog's rows that need work, and how many are finished already. again: ids of finished ones that need it anew.

    What was forgotten, under whatever id, stays forgotten. Raises PipelineError when ids and uris are paired otherwise than in
    the gallery.
    """
    snapshot = gallery.snapshot()
    known = pa.concat_tables([snapshot.videos.select(["source_id", "uri"]), snapshot.rejects.select(["source_id", "uri"])])
    uris = dict(zip(known["source_id"].to_pylist(), known["uri"].to_pylist(), strict=True))
    ids = {uri: source_id for source_id, uri in uris.items()}
    rows = list(zip(catalog["source_id"].to_pylist(), catalog["uri"].to_pylist(), strict=True))
    _refuse("ids belong to other videos of the gallery", [f"{i} ({uris[i]})" for i, uri in rows if uris.get(i, uri) != uri])
    _refuse("videos are in the gallery under other ids", [f"{uri} ({ids[uri]})" for i, uri in rows if ids.get(uri, i) != i])
    forgotten = [i for i, uri in rows if i in snapshot.forgotten and uri not in snapshot.forgotten_uris]
    _refuse("ids belonged to videos that were forgotten", forgotten)
    finished = snapshot.finished_sources(count_rejected=not retry_rejected) - again
    wanted = pa.array([i not in finished and uri not in snapshot.forgotten_uris for i, uri in rows], pa.bool_())
    missing = catalog.filter(wanted)
    return missing, len(catalog) - len(missing)


def _refuse(what: str, clashes: list[str]) -> None:
    if clashes:
        raise PipelineError(f"{len(clashes)} {what}: {', '.join(clashes[:5])}; one video has one id, and one id one video")


def _cpu_shares(decoders: int, embedders: int, cpus: int, writers: int = 1) -> tuple[float, float, float]:
    """CPUs that one decoder, one embedder and one writer reserve: less than they like where there are few CPUs.

    Reservations that do not fit would leave one stage waiting for ever. Embedders use more than they reserve: with one a CPU,
    what is left is spread over the nodes, and a writer must fit on one of them.
    """
    liked = (0.25, 0.5, 0.25)
    needed = decoders * liked[0] + embedders * liked[1] + writers * liked[2]
    fitting = min(1.0, cpus / needed)
    decode, embed, write = (max(0.001, int(1000 * share * fitting) / 1000) for share in liked)
    return decode, embed, write


def _stream(
    missing: pa.Table, gallery: Gallery, sampling: Sampling, workers: Workers, counter: Any, forgotten: Forgotten
) -> Iterator[pa.Table]:
    """Steps 1 to 4; yields tables of WRITTEN_SCHEMA."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `progress` and our errors say it better
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    resources = ray.cluster_resources()
    gpus = int(resources.get("GPU", 0))
    cpus = int(resources.get("CPU", 1))
    decoders, embedders, threads = workers.on(cpus, gpus)
    writers = max(1, cpus // CPUS_A_WRITER)
    decode_cpus, embed_cpus, write_cpus = _cpu_shares(decoders, embedders, cpus, writers)
    sources = max(1, min(SOURCES_A_BLOCK, len(missing) // ((decoders or embedders) * BLOCKS_A_WORKER)))
    blocks = [missing.slice(i, sources) for i in range(0, len(missing), sources)]
    network = (gallery.settings.backbone, threads, counter)
    embed = {
        "compute": ray.data.ActorPoolStrategy(size=min(embedders, len(blocks))),
        "num_cpus": embed_cpus,
        "num_gpus": 1 if gpus else 0,
    }
    dataset = ray.data.from_arrow(blocks)
    if decoders:
        pool = ray.data.ActorPoolStrategy(size=min(decoders, len(blocks)))
        decode = {"fn_constructor_args": (sampling, forgotten), "compute": pool, "num_cpus": decode_cpus}
        dataset = dataset.map_batches(_TimedDecode, **BLOCKS, **decode)
        dataset = dataset.map_batches(_TimedEmbed, fn_constructor_args=network, **BLOCKS, **embed)
    else:
        dataset = dataset.map_batches(
            _TimedDecodeAndEmbed, fn_constructor_args=(sampling, forgotten, *network), **BLOCKS, **embed
        )
    dataset = dataset.map_batches(
        _TimedWrite,
        fn_constructor_args=(gallery,),
        batch_size=2 * (workers.shard_pieces or min(512, max(16, len(missing) // 20))),  # a video is a piece and an end
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=writers),  # tasks would start a process each: Ray ends idle ones at once
        num_cpus=write_cpus,
    )
    return dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)


class _TimedDecode(DecodeSources):
    def rows(self, sources: pa.Table) -> Generator[Row, None, None]:
        yield from telemetry.timed_items(super().rows(sources), "coattention_ingest_seconds", stage="decode")


class _TimedEmbed(EmbedPieces):
    def embed(self, frames: np.ndarray) -> np.ndarray:
        with telemetry.timed("coattention_ingest_seconds", stage="embed"):
            return super().embed(frames)


class _TimedDecodeAndEmbed(DecodeAndEmbed):
    def __init__(self, sampling: Sampling, forgotten: Forgotten, spec: BackboneSpec, threads: int, counter: Any) -> None:
        super().__init__(_TimedDecode(sampling, forgotten), _TimedEmbed(spec, threads, counter, "cpu"))


class _TimedWrite:
    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery

    def __call__(self, pieces: pa.Table) -> pa.Table:
        with telemetry.timed("coattention_ingest_seconds", stage="write"):
            return write_pieces(pieces, self.gallery)


class _Telling:
    """Metrics and log lines of what the committer has done since it was last asked."""

    def __init__(self) -> None:
        self.candidates = self.frames = self.sources = 0
        self.reasons: dict[str, int] = {}

    def of(self, written: pa.Table, committer: Committer) -> None:
        telemetry.count("coattention_ingest_videos", committer.candidates - self.candidates)
        telemetry.count("coattention_ingest_frames", committer.frames - self.frames)
        for reason, count in committer.reasons.items():
            telemetry.count("coattention_ingest_rejects", count - self.reasons.get(reason, 0), reason=reason)
        for row in written.filter(pc.is_valid(written["reason"])).to_pylist():
            fields = {name: row[name] for name in ("source_id", "video_id", "reason")}
            what = "left for the next ingest" if row["source_id"] in committer.left else "rejected"
            LOGGER.warning("%s: %s", what, row["message"], extra=fields)
        if len(committer.committed) > self.sources:
            fields = {"videos": committer.candidates, "frames": committer.frames, "rejected": sum(committer.reasons.values())}
            LOGGER.info("committed", extra={"sources": len(committer.committed), **fields})
        self.candidates, self.frames, self.sources = committer.candidates, committer.frames, len(committer.committed)
        self.reasons = dict(committer.reasons)


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
    stream: Iterable[pa.Table],
    counter: Any,
    state: IngestProgress,
    progress: Callable[[IngestProgress], None],
    summary: IngestSummary,
    began: float,
) -> Generator[pa.Table, None, None]:
    """The stream's tables; while the next one is awaited, progress is told about once a second."""
    from concurrent.futures import ThreadPoolExecutor, wait

    batches: Any = iter(stream)  # a generator
    with contextlib.closing(batches), ThreadPoolExecutor(1) as pool:
        while True:
            following = pool.submit(next, batches, None)
            while not wait([following], timeout=1.0).done:
                with contextlib.suppress(ray.exceptions.RayError):  # no work is lost with the counter and its node
                    state.frames, first = ray.get(counter.read.remote(), timeout=10.0)
                    if first is not None and summary.startup_s == 0:
                        summary.startup_s = time.monotonic() - began
                state.seconds = time.monotonic() - began - summary.startup_s
                progress(state)
            table = following.result()
            if table is None:
                return
            yield table
