"""Catalog -> gallery with Ray Data, in five stages: list, decode, embed, write, commit (`_run`), for ROUND_SOURCES at a time.

Chunks of frames stream through them under Ray Data's backpressure, so memory does not grow with the number of videos. Only stage
5 changes the gallery, in one atomic step at a time: whatever is killed, what is not committed is simply done again.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import Catalog, read_catalog
from pipeline.cluster import Cluster, connected, words_of
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.source_notes import SourceNotes, source_notes
from pipeline.ingest.commit import REJECTS_NAMED, Committer
from pipeline.ingest.gallery_sampling import gallery_sampling
from pipeline.ingest.listing import missing_sources, source_blocks
from pipeline.ingest.progress import FrameCounter, IngestProgress, polled
from pipeline.ingest.scenes import whole_scenes
from pipeline.ingest.source_changes import find_changes, too_young, with_states
from pipeline.ingest.stages import DecodeAndEmbed, DecodeSources, EmbedChunks, WriteShards
from pipeline.storage.faults import StorageError
from pipeline.storage.many_rows import holding, release_memory, steps

ROUND_SOURCES = 100_000  # what this process knows of; the next round begins with the nodes that the cluster has then
CPUS_PER_WRITER = 16
BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}  # what a stage is given at a time: whole blocks
BLOCK_BYTES = 32 << 20  # of decoded frames in one block of the stream
SCENES_NAMED = 5


@dataclass(frozen=True)
class Workers:
    """How the work is spread. None: from the cluster's CPUs and GPUs, and from the number of inputs.

    decoders: decoding actors; None without GPUs: embedders decode for themselves. embedders: embedding actors, one per GPU, else
    per CPU: networks of one thread each embed more than one of many threads, which wait for each other at every layer. threads:
    CPU threads of one embedder. shard_chunks: chunks (videos, when none is long) that one shard holds and one commit makes
    durable. Two numbers of actors: at least and at most so many, as there is work and room; what they reserve is reckoned for the
    first, so that more come with more nodes. Raises UsageError for a number below 1, and a second one below the first.
    """

    decoders: int | tuple[int, int] | None = None
    embedders: int | tuple[int, int] | None = None
    threads: int | None = None
    shard_chunks: int | None = None

    def __post_init__(self) -> None:
        for name in ("decoders", "embedders", "threads", "shard_chunks"):
            if (number := getattr(self, name)) is None:
                continue
            least, most = _range(number)
            if least < 1:
                raise UsageError(f"{name.replace('_', ' ')} must be at least 1, not {least}")
            if most < least:
                raise UsageError(f"{name.replace('_', ' ')} cannot be at least {least} and at most {most}")

    def on(self, cpus: int, gpus: int) -> tuple[int, int, int]:
        """(decoders, embedders, threads) on a cluster of this many CPUs and GPUs, the least; no decoders: embedders decode."""
        embedders = _range(self.embedders)[0] if self.embedders else gpus or max(1, cpus)
        decoders = _range(self.decoders)[0] if self.decoders else (max(1, cpus // 2) if gpus else 0)
        return decoders, embedders, self.threads or max(1, min(4, cpus // embedders))


def _range(actors: int | tuple[int, int]) -> tuple[int, int]:
    return actors if isinstance(actors, tuple) else (actors, actors)


@dataclass
class IngestSummary:
    """What an ingest did. sources are catalog rows; candidates are what became searchable.

    already: sources that were dealt with before. changed: uris of those whose files, boxes or frame rate are others by now, and
    updated: how many of these were taken in again; corrected: videos that got another camera, start time or label; left: sources
    for the next ingest, since their files still change. reasons: reject reason -> candidates, of this run, and rejects: rows of
    the first few (uri, video_id, reason, message). refused, usable:
    sources that stand in rejects/ and in videos/ now. unaccounted: sources that were lost (a block of the stream failed); running
    ingest again takes them up. not_read: what of the input belongs to no source, in words. notes: on the sources that stand in
    videos/ now. scenes: how many of these have no boxes and look like whole scenes; such_scenes: uris of some of them.
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
    rejects: list[dict[str, Any]] = field(default_factory=list)
    unaccounted: int = 0
    not_read: str = ""
    notes: SourceNotes = field(default_factory=SourceNotes)
    scenes: int = 0
    such_scenes: tuple[str, ...] = ()
    startup_s: float = 0.0
    seconds: float = 0.0

    @property
    def rejected(self) -> int:
        """Candidates that were rejected, of this run."""
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
    person: str | None = None,
) -> IngestSummary:
    """Bring every source of the catalog into the gallery that is not in it yet, and correct what the catalog says of the others.

    Sources that have changed since they were ingested (`pipeline.ingest.source_changes`) are named, and with update taken in
    again: in one step their new videos stand for the old ones. Rejected ones that changed are always tried again. A source whose
    files change between their listing and the end of its decoding, or did in the last quiet_period seconds, is left for the next
    ingest.

    progress is called about once a second, from this thread. address: see `pipeline.cluster.connected`; Ray is started only if
    there is something to do. source: what the inputs are called in the audit log, which is told that an ingest begins and how far
    the gallery is by then; None tells it nothing. person: who ingests, where a service has made sure of that; the record then
    names the account that the service runs under beside. Sources are opened below the roots of the sampling or the catalog, which
    lie within the gallery's, else below the gallery's, and at the endpoints of any of the three. Raises UsageError for roots
    outside the gallery's, and PipelineError for what no video is to blame for: storage that refuses, a backbone that does not
    load.
    """
    began = time.monotonic()
    endpoints = {*sampling.endpoints, *catalog.reach.endpoints, *gallery.reach().endpoints}
    roots = gallery.narrowed(sampling.roots or catalog.reach.roots)
    sampling = replace(sampling, roots=roots, endpoints=tuple(sorted(endpoints)))
    table, snapshot = with_states(catalog.table), gallery.snapshot()
    changes = find_changes(table, gallery, snapshot)
    again = changes.again | (changes.changed if update else frozenset())
    missing, already = missing_sources(table, snapshot, retry_rejected, again)
    changed = table.filter(pc.is_in(table["source_id"], pa.array(sorted(changes.changed), pa.string())))
    summary = IngestSummary(
        sources=len(table), already=already, not_read=catalog.not_read(), changed=tuple(changed["uri"].to_pylist())
    )
    if quiet_period:
        young = too_young(missing, quiet_period)
        missing, summary.left = missing.filter(pc.invert(young)), pc.sum(young).as_py() or 0
    if source is not None and (len(missing) or changes.corrected):
        begins = {"source": source, "inputs": len(table), "already": already, "not_read": summary.not_read}
        who = {} if person is None else on_behalf_of(person)
        append_record(gallery, "ingest", {**who, **begins, "corrected": changes.corrected})
    if len(changes.corrections):
        gallery.commit(changes.corrections, REJECTS_SCHEMA.empty_table(), kind="correct")
        summary.corrected = changes.corrected
    had_videos = snapshot.videos.select(["source_id"])
    del snapshot
    if len(missing):
        with connected(address):
            state = IngestProgress(total=len(missing))
            counter = ray.remote(num_cpus=0, max_restarts=-1)(FrameCounter).remote()
            for part in steps(missing, ROUND_SOURCES):
                replaced = frozenset(holding(had_videos, source_id=part["source_id"].combine_chunks())["source_id"].to_pylist())
                _run(part, replaced, gallery, sampling, workers or Workers(), summary, state, counter, progress, began)
                release_memory()
            summary.startup_s, summary.seconds = state.startup_s, time.monotonic() - began
    snapshot = gallery.snapshot()
    usable = []
    for part in steps(catalog.table):
        ids = part["source_id"].combine_chunks()
        held, refused = (
            pc.unique(holding(known.select(["source_id"]), source_id=ids)["source_id"])
            for known in (snapshot.videos, snapshot.rejects)
        )
        summary.refused += len(refused)
        usable.append(held)
    summary.usable = sum(map(len, usable))
    summary.notes = source_notes(snapshot.videos, pa.concat_arrays(usable))
    summary.scenes, summary.such_scenes = whole_scenes(snapshot.videos, SCENES_NAMED, pa.concat_arrays(usable))
    return summary


def _run(
    missing: pa.Table,
    replaced: frozenset[str],
    gallery: Gallery,
    sampling: Sampling,
    workers: Workers,
    summary: IngestSummary,
    state: IngestProgress,
    counter: Any,
    progress: Callable[[IngestProgress], None],
    began: float,
) -> None:
    """The five stages, over some of the missing rows of a catalog. replaced: ids of those that have videos in the gallery."""
    decoders, embedders, threads, actors = _cluster(workers)
    committer = Committer(gallery, missing, replaced)
    sources, network = (sampling, committer.forgotten), (gallery.settings.backbone, threads, counter)

    # 1. List: the rows that the gallery does not have yet, in small blocks. In this process: they are listed already. Not by
    #    from_arrow, which first starts workers for a task per block that counts its rows.
    blocks = source_blocks(missing, decoders or embedders)
    rows = ray.data.from_blocks(blocks)

    if decoders:
        # 2. Decode: rows -> chunks of frames. Actors, since each keeps its decoder's child from block to block; on CPUs, several
        #    per GPU, whose network embeds faster than one decoder decodes.
        chunks = rows.map_batches(DecodeSources, fn_constructor_args=sources, **BLOCKS, **actors("decode", len(blocks)))

        # 3. Embed: frames -> float16 features. Actors, since each keeps a network loaded; a GPU each where the cluster has them.
        features = chunks.map_batches(EmbedChunks, fn_constructor_args=network, **BLOCKS, **actors("embed", len(blocks)))
    else:
        # 2 and 3 on CPUs: the same actors do both, since passing frames from one process to another through Ray costs a third of
        # what embedding them does.
        both = (*sources, *network)
        features = rows.map_batches(DecodeAndEmbed, fn_constructor_args=both, **BLOCKS, **actors("embed", len(blocks)))

    # 4. Write: features -> one Parquet shard per batch, of a name that no other writer gives. Few actors, since writing takes a
    #    fortieth of what embedding does; no tasks, which would start a process each: Ray ends idle ones at once.
    size = 2 * (workers.shard_chunks or min(512, max(16, state.total // 20)))  # a video is a chunk and an end
    written = {"batch_size": size, "batch_format": "pyarrow"}
    shards = features.map_batches(WriteShards, fn_constructor_args=(gallery,), **written, **actors("write"))

    # 5. Commit: a source, when all of its chunks are in shards. In this process alone, so that commits come one after another.
    _commit(polled(shards.iter_batches(**BLOCKS, prefetch_batches=0), counter, state, progress, began), committer, state)

    summary.left += len(committer.left)
    summary.updated += len(replaced & committer.committed)
    summary.unaccounted += len(missing) - committer.done
    summary.candidates, summary.frames = summary.candidates + committer.candidates, summary.frames + committer.frames
    summary.reasons = dict(Counter(summary.reasons) + committer.reasons)
    summary.rejects = [*summary.rejects, *committer.rejects][:REJECTS_NAMED]
    state.frames = max(state.frames, summary.frames)
    progress(state)


def _cluster(workers: Workers) -> tuple[int, int, int, Callable[..., dict[str, Any]]]:
    """(decoders, embedders, threads, actors) on the cluster that is joined.

    actors: the arguments of a stage ("decode", "embed", "write") that say how many actors it has, no more than are of use, and
    what each reserves.
    """
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `progress` and our errors say it better
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    decoders, embedders, threads = workers.on(cpus, gpus)
    writers = max(1, cpus // CPUS_PER_WRITER)
    decode, embed, write = _cpu_shares(decoders, embedders, cpus, writers)
    stages = {
        "decode": (_range(workers.decoders or decoders), decode, 0),
        "embed": (_range(workers.embedders or embedders), embed, 1 if gpus else 0),
        "write": ((writers, writers), write, 0),
    }

    def actors(stage: str, of_use: int | None = None) -> dict[str, Any]:
        bounds, num_cpus, num_gpus = stages[stage]
        least, most = (number if of_use is None else min(number, of_use) for number in bounds)
        pool = ray.data.ActorPoolStrategy(min_size=least, max_size=most)
        return {"compute": pool, "num_cpus": num_cpus, "num_gpus": num_gpus}

    return decoders, embedders, threads, actors


def _commit(tables: Generator[pa.Table, None, None], committer: Committer, state: IngestProgress) -> None:
    """Take in what the writers say of their shards. Raises PipelineError, with how far it came, for Ray and storage that fail."""
    done, rejected = state.done, state.rejected
    try:
        # Closed while Ray is there: a stream that is collected later, at the process's end, joins the cluster again and hangs.
        with contextlib.closing(tables):
            for written in tables:
                committer.add(written)
                state.done, state.rejected = done + committer.done, rejected + committer.reasons.total()
    except (ray.exceptions.RayError, StorageError) as error:
        so_far = f"{done + len(committer.committed)} of {state.total} inputs are committed; run the same command again to go on"
        raise PipelineError(f"the ingest stopped: {words_of(error)}; {so_far}") from error


def ingest_videos(
    source: str | Path, gallery: str | Path, backbone: str = DEFAULT, rate: float = 10.0, cluster: Cluster | str | None = None
) -> IngestSummary:
    """`ingest` of a folder, bucket prefix, manifest or video into a gallery, which is made if there is none.

    backbone: by name or path, see `backbone.spec.find_backbone`. rate: sampled frames per second. cluster: which Ray, see
    `pipeline.cluster.connected`. Raises UsageError for inputs that cannot be meant and a gallery of other settings.
    """
    spec = find_backbone(backbone)
    opened = Gallery.open_or_create(gallery, GallerySettings(spec, rate, None))
    return ingest(read_catalog(source), opened, gallery_sampling(opened), address=cluster, source=str(source))


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
