"""Recordings -> a gallery's detections with Ray Data, in three stages: list, detect, commit (`_run`); then tracks (`tracks`).

A recording is committed with all of its detections or not at all, so whatever is killed, what is not committed is simply done
again; following people afterwards needs the committed detections alone. A long one is done a stretch at a time, by any worker,
and of it only the stretches are done again that were not finished (`detect`).
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cluster import Cluster, connected, words_of
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError, UsageError
from pipeline.footage.commit import Committer
from pipeline.footage.detect import DetectPeople, DetectSettings
from pipeline.footage.detector import load_detector
from pipeline.footage.moved import with_moved
from pipeline.footage.recordings import Plan, corrected_by
from pipeline.footage.summary import FootageSummary
from pipeline.footage.tracker import TrackingSettings
from pipeline.footage.tracks import track
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.detections import RECORDINGS_SCHEMA
from pipeline.gallery.gallery import Gallery, Snapshot
from pipeline.gallery.source_notes import source_notes
from pipeline.ingest.listing import missing_sources
from pipeline.ingest.progress import FrameCounter, IngestProgress, polled
from pipeline.ingest.source_changes import STATE, changed_files, rejects_to_try_again, too_young, with_states
from pipeline.storage.faults import StorageError
from pipeline.storage.reach import Reach

RECORDINGS_PER_BLOCK = 1  # a recording, or a stretch of it, is minutes of work
CHUNK_MINUTES = 5.0  # of the stretches of a long recording


def ingest_footage(
    plan: Plan,
    gallery: Gallery,
    sampling: Sampling,
    detector: str,
    tracking: TrackingSettings | None = None,
    workers: int | None = None,
    progress: Callable[[IngestProgress], None] = lambda _: None,
    address: Cluster | str | None = None,
    source: str | None = None,
    *,
    retry_rejected: bool = False,
    update: bool = False,
    quiet_period: float = 0.0,
    chunk_minutes: float = CHUNK_MINUTES,
    person: str | None = None,
) -> FootageSummary:
    """Find the people in every recording of a plan that the gallery does not have yet, and follow them.

    sampling: its rate is the gallery's. detector: by name or path. tracking: see `tracks.track`. workers: recordings that are
    read at once, None: one per CPU. source: what the inputs are called in the audit log; None tells it nothing. update,
    retry_rejected, quiet_period, person: see `pipeline.ingest.run.ingest`. chunk_minutes: of the stretches in which a long
    recording is read; what is found does not depend on it. Raises UsageError for another detector than the gallery's, and
    PipelineError for what no recording is to blame for.

    Files that were written anew with the same bytes have not changed; with update, recordings whose detections cannot be read are
    taken in again too.
    """
    began = time.monotonic()
    if not 0 < chunk_minutes < math.inf:
        raise UsageError(f"chunks of {chunk_minutes:g} minutes cannot be meant")
    endpoints = {*sampling.endpoints, *plan.reach.endpoints, *gallery.reach().endpoints}
    roots = gallery.narrowed(sampling.roots or plan.reach.roots)
    sampling = replace(sampling, roots=roots, endpoints=tuple(sorted(endpoints)))
    snapshot = gallery.snapshot()
    moved = with_moved(with_states(plan.table), snapshot, Reach(sampling.roots, sampling.endpoints))
    table = moved.table
    identity = load_detector(detector, device="cpu").identity
    if other := set(snapshot.recordings["detector"].to_pylist()) - {identity}:
        raise UsageError(
            f"{gallery.location.uri} was made with the detector {min(other)}, not with {identity}; use another gallery"
        )
    clips = snapshot.videos.filter(pc.invert(snapshot.of_recordings()))["source_id"].combine_chunks()
    if both := pc.sum(pc.is_in(table["source_id"], clips)).as_py():
        said = f"{both} of these files are in {gallery.location.uri} as videos of one person each"
        raise UsageError(f"{said}: they were ingested without a detector; use another gallery")
    summary = FootageSummary(recordings=len(table), unnamed=plan.unnamed, unfilmed=plan.unfilmed)
    summary.offsets = tuple(one for one in table["clock_offset"].to_pylist() if one)
    changed, again, corrections, summary.corrected = _compared(table, snapshot, moved.source_ids)
    summary.moved = len(moved.source_ids)
    if update:
        changed |= _damaged(table, gallery, snapshot)
    stays = table.filter(pc.invert(pc.is_in(table["source_id"], pa.array(sorted(moved.source_ids), pa.string()))))
    missing, already = missing_sources(stays, snapshot, retry_rejected, again | (changed if update else frozenset()))
    summary.already = already + summary.moved
    summary.changed = tuple(table.filter(pc.is_in(table["source_id"], pa.array(sorted(changed), pa.string())))["uri"].to_pylist())
    if quiet_period:
        young = too_young(missing, quiet_period)
        missing, summary.left = missing.filter(pc.invert(young)), pc.sum(young).as_py() or 0
    if source is not None and (len(missing) or summary.corrected or summary.moved):
        begins = {"source": source, "inputs": len(table), "already": summary.already, "not_read": plan.not_read()}
        who = {} if person is None else on_behalf_of(person)
        append_record(
            gallery, "ingest", {**who, **begins, "corrected": summary.corrected, "moved": summary.moved, "detector": identity}
        )
    if len(corrections):
        corrections = pa.concat_tables([corrections, moved.copies])
        gallery.commit(moved.videos(snapshot), recordings=corrections, kind="correct", checked=snapshot.position)
    with contextlib.ExitStack() as stack:
        if len(missing):
            stack.enter_context(connected(address))
            _run(missing, gallery, sampling, detector, workers, 60 * chunk_minutes, snapshot, summary, progress, began)
            summary.updated = len(changed) if update else 0
        followed = track(gallery, tracking, address)
    summary.runs, summary.candidates, summary.irregularities = followed.runs, followed.candidates, followed.irregularities
    summary.notes = source_notes(gallery.snapshot().recordings, table["source_id"].combine_chunks())
    summary.seconds = time.monotonic() - began
    return summary


def _run(
    missing: pa.Table,
    gallery: Gallery,
    sampling: Sampling,
    detector: str,
    workers: int | None,
    divide_s: float,
    snapshot: Snapshot,
    summary: FootageSummary,
    progress: Callable[[IngestProgress], None],
    began: float,
) -> None:
    """The three stages, over the missing rows of a plan; then over the stretches of those that are long, then over those that
    turned out to be no good in stretches.
    """
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # `progress` and our errors say it better
    ray.data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    cpus, gpus = int(resources.get("CPU", 1)), int(resources.get("GPU", 0))
    # On CPUs an actor reads one recording at a time with networks of one thread. A GPU's actor reads several at once, since its
    # networks are faster than one decoder: the decoders' children take the CPUs, and pictures stay in the actor.
    at_once = max(1, (workers or cpus) // gpus) if gpus else 1
    settings = DetectSettings(detector, 1, "cuda" if gpus else "cpu", at_once)
    counter = ray.remote(num_cpus=0, max_restarts=-1)(FrameCounter).remote()
    committer = Committer(missing, gallery, snapshot, summary, divide_s)
    state = IngestProgress(total=0)
    while len(table := committer.asked()):
        # 1. List: a block is what an actor takes at a time. In this process: they are listed already. Not by from_arrow, which
        #    first starts workers for a task per block that counts its rows.
        size = at_once * RECORDINGS_PER_BLOCK
        blocks = [table.slice(start, size) for start in range(0, len(table), size)]
        state.total += len(table)

        # 2. Detect: what is asked -> rows of recordings or stretches, whose detections are in the gallery by then. Actors, since
        #    each keeps its networks and its decoder's child.
        actors = max(1, min(gpus or workers or cpus, len(table)))
        dataset = ray.data.from_blocks(blocks).map_batches(
            DetectPeople,
            fn_constructor_args=(gallery, sampling, settings, snapshot.tombstones, snapshot.forgotten_boxes, counter),
            batch_size=None,
            batch_format="pyarrow",
            # One at a time: the actor that is up first would else take a second recording, and others wait for work at the end.
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1),
            num_cpus=min(1.0, cpus / actors) * (0.9 if not gpus else 0.5),
            num_gpus=1 if gpus else 0,
        )

        # 3. Commit: recordings that are done, every few seconds. In this process alone, so that commits come one after another.
        stream = dataset.iter_batches(batch_format="pyarrow", batch_size=None, prefetch_batches=0)
        try:
            with contextlib.closing(polled(stream, counter, state, progress, began)) as tables:
                for detected in tables:
                    committer.add(detected)
                    state.done, state.rejected = committer.answers, summary.reasons.total()
            committer.flush()
        except (ray.exceptions.RayError, StorageError) as error:
            with contextlib.suppress(PipelineError):
                committer.flush()
            done = f"{summary.done} of {len(missing)} recordings are committed; run the same command again to go on"
            sentence = f"the ingest stopped: {words_of(error)}; {done}"
            if isinstance(error, StorageError):  # who watches tries again
                raise StorageError(sentence, getattr(error, "kind", "other")) from error
            raise PipelineError(sentence) from error
    progress(state)
    summary.startup_s = state.startup_s
    summary.unaccounted = len(missing) - committer.taken


def _compared(
    table: pa.Table, snapshot: Snapshot, moved: Collection[str] = ()
) -> tuple[frozenset[str], frozenset[str], pa.Table, int]:
    """Ids of recordings whose files are others now than when they were read, and of rejected ones of which that is so; rows
    (RECORDINGS_SCHEMA) of recordings as plan and files say they should be, and of how many the plan says another camera or start.
    moved: ids of those that lie elsewhere now.
    """
    known = snapshot.recordings
    place = pc.index_in(table["source_id"], value_set=known["source_id"].combine_chunks())
    changed, same = changed_files(table, known.append_column("boxes_uri", pa.nulls(len(known), pa.string())))
    again = rejects_to_try_again(table.filter(pc.is_null(place)), snapshot.rejects)
    rows, corrected = [], 0
    for planned, at in zip(table.to_pylist(), place.to_pylist(), strict=True):
        if at is None:
            continue
        row = known.slice(at, 1).to_pylist()[0]
        said = _said(planned, row)
        corrected += bool(said)
        said |= {name: planned[name] for name in STATE} if planned["source_id"] in {*same, *moved} else {}
        said |= {"uri": planned["uri"]} if planned["source_id"] in moved else {}
        if said:
            rows.append(row | said)
    return changed, again, pa.Table.from_pylist(rows, schema=RECORDINGS_SCHEMA), corrected


def _said(planned: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """What a plan says otherwise of a recording (RECORDINGS_SCHEMA) than the gallery. What it leaves open corrects nothing."""
    names = ("camera_id", "start_time", "start_from", "clock_offset") if planned["start_time"] is not None else ("camera_id",)
    said = {name: planned[name] for name in names if planned[name] not in (None, row[name])}
    ahead = planned["clock_offset"] - (row["clock_offset"] or 0.0)
    if planned["start_time"] is None and row["start_from"] == "file" and planned["camera_id"] is not None and ahead:
        start = corrected_by(row["start_time"], ahead)  # the file's own time, by another clock
        said |= {"start_time": start, "clock_offset": planned["clock_offset"]} if start is not None else {}
    return said


def _damaged(table: pa.Table, gallery: Gallery, snapshot: Snapshot) -> frozenset[str]:
    """Ids of recordings of a plan whose detections cannot be read."""
    damaged = set()
    for row in snapshot.recordings.filter(
        pc.is_in(snapshot.recordings["source_id"], table["source_id"].combine_chunks())
    ).to_pylist():
        try:
            gallery.read_detections(row["shard"])
        except PipelineError:
            damaged.add(row["source_id"])
    return frozenset(damaged)
