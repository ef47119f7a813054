"""Recordings -> a gallery's detections with Ray Data, in three stages: list, detect, commit (`_run`); then tracks (`tracks`).

A recording is committed with all of its detections or not at all, so whatever is killed, what is not committed is simply done
again; following people afterwards needs the committed detections alone. A long one is done a stretch at a time, by any worker,
and of it only the stretches are done again that were not finished (`detect`).
"""

import contextlib
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import telemetry
from pipeline.catalog.inputs import read_catalog
from pipeline.cluster import Cluster, connected, words_of
from pipeline.decoding.sampling import Sampling
from pipeline.errors import EmptyInputError, PipelineError, UsageError
from pipeline.footage.detect import ASKED, DetectPeople, DetectSettings, joined
from pipeline.footage.detector import load_detector
from pipeline.footage.moved import with_moved
from pipeline.footage.recordings import Clocks, Irregularity, NamePattern, Plan, corrected_by, plan_recordings
from pipeline.footage.tracker import TrackingSettings
from pipeline.footage.tracks import track
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.detections import RECORDINGS_SCHEMA
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, Snapshot
from pipeline.gallery.source_notes import SourceNotes, source_notes
from pipeline.ingest.commit import OUT_OF_REACH, REJECTS_NAMED
from pipeline.ingest.listing import missing_sources
from pipeline.ingest.progress import FrameCounter, IngestProgress, polled
from pipeline.ingest.source_changes import STATE, STILL_CHANGING, changed_files, rejects_to_try_again, too_young, with_states
from pipeline.storage.location import Reach, StorageError

COMMIT_SECONDS = 5.0  # between two commits while recordings are done
RECORDINGS_PER_BLOCK = 1  # a recording, or a stretch of it, is minutes of work
CHUNK_MINUTES = 5.0  # of the stretches of a long recording


@dataclass
class FootageSummary:
    """What an ingest of recordings did.

    recordings: of the plan; already: that were dealt with before; changed: uris whose files are others by now; updated: how many
    of them were taken in again; corrected: recordings that got another camera or start; moved: that lie elsewhere now; left: for
    the next ingest. seconds_read: of recordings; looked_at: frames; detections: people in them; reasons: reject reason ->
    recordings, of this run, and rejects: rows of the first few (uri, video_id, reason, message). in_chunks: recordings that were
    read in so many `chunks`; undivided: uris of long ones that were read as a whole -> why. unnamed: files that the pattern does
    not fit. unfilmed: cameras that have a clock, and no recording. offsets: seconds that clocks are ahead, of the plan's
    recordings whose times are corrected by that. notes: on the plan's recordings, those of before too. runs, candidates: see
    `tracks.TrackingSummary`.
    """

    recordings: int = 0
    already: int = 0
    changed: tuple[str, ...] = ()
    updated: int = 0
    corrected: int = 0
    moved: int = 0
    left: int = 0
    done: int = 0
    seconds_read: float = 0.0
    looked_at: int = 0
    detections: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    in_chunks: int = 0
    chunks: int = 0
    undivided: dict[str, str] = field(default_factory=dict)
    unaccounted: int = 0
    unnamed: tuple[str, ...] = ()
    unfilmed: tuple[str, ...] = ()
    offsets: tuple[float, ...] = ()
    notes: SourceNotes = field(default_factory=SourceNotes)
    runs: int = 0
    candidates: int = 0
    irregularities: Sequence[Irregularity] = ()
    startup_s: float = 0.0
    seconds: float = 0.0


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
    missing, already = missing_sources(stays, gallery, retry_rejected, again | (changed if update else frozenset()))
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
    committer = _Committer(missing, gallery, snapshot, summary, divide_s)
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


@dataclass
class _Stretches:
    """A recording of which stretches are read. row: of DETECTED_SCHEMA, without its detections; drafts: what was found, by the
    number of the stretch: (file, rows).
    """

    row: dict[str, Any]
    drafts: dict[int, tuple[str, int]] = field(default_factory=dict)


class _Committer:
    """Says what is to be read next, and commits recordings that are done, together where they come quickly.

    taken: how many are; answers: rows that came of them and of their stretches.
    """

    def __init__(self, missing: pa.Table, gallery: Gallery, snapshot: Snapshot, summary: FootageSummary, divide_s: float) -> None:
        self.gallery, self.summary = gallery, summary
        self.there = set(snapshot.recordings["source_id"].to_pylist())
        self.missing, self.schema = missing, pa.schema([*missing.schema, *ASKED])
        asks = [pa.array([value] * len(missing), one.type) for value, one in zip((divide_s, None), ASKED, strict=True)]
        self.first: pa.Table | None = pa.table([*missing.columns, *asks], schema=self.schema)
        self.next: list[dict[str, Any]] = []
        self.stretches: dict[str, _Stretches] = {}
        self.waiting: dict[str, dict[str, Any]] = {}
        self.seen: set[str] = set()
        self.answers = 0
        self.committed_at = time.monotonic()

    @property
    def taken(self) -> int:
        return len(self.seen)

    def asked(self) -> pa.Table:
        """What is to be read next, rows of the plan with ASKED: all recordings, then what came of long ones."""
        table, self.first = self.first, None
        rows, self.next = self.next, []
        return table if table is not None else pa.Table.from_pylist(rows, schema=self.schema)

    def add(self, detected: pa.Table) -> None:
        """Take rows of DETECTED_SCHEMA; one that comes twice, of a task that was run again, counts once."""
        for row in detected.to_pylist():
            source_id = row["source_id"]
            self.answers += 1
            if source_id in self.seen:
                continue
            if row["stretch"] is not None:
                self._add_stretch(row)
            elif row["stretches"]:
                if source_id not in self.stretches:
                    self.stretches[source_id] = _Stretches(row)
                    self.next += [self._asks(source_id, stretch) for stretch in row["stretches"]]
            else:
                self._done(row)
        if time.monotonic() - self.committed_at >= COMMIT_SECONDS:
            self.flush()

    def _asks(self, source_id: str, stretch: dict[str, Any] | None) -> dict[str, Any]:
        place = pc.index(self.missing["source_id"], source_id).as_py()
        return self.missing.slice(place, 1).to_pylist()[0] | {"divide_s": None, "stretch": stretch}

    def _add_stretch(self, row: dict[str, Any]) -> None:
        """Take what was found in a stretch. Where it cannot be used, reading the whole recording says what is true of it."""
        source_id, whole = row["source_id"], self.stretches.get(row["source_id"])
        if whole is None:  # it is to be read whole already
            return
        if row["reason"] is not None and self._is_left(row):
            self._discard(self.stretches.pop(source_id))
            self._done(row)
            return
        if row["reason"] is not None:
            self._read_whole(row, row["message"])
            return
        whole.drafts[row["stretch"]["number"]] = row["shard"], row["detections"]
        if len(whole.drafts) == len(whole.row["stretches"]):
            drafts = [whole.drafts[number] for number in sorted(whole.drafts)]
            try:
                shard = joined(self.gallery, (draft for draft, _ in drafts))
            except PipelineError as error:  # another ingest of the same recording ended first, or a compaction
                if isinstance(error, StorageError) and error.kind != "missing":
                    raise
                self._read_whole(row, "what was found in its chunks was taken away meanwhile")
                return
            looked_at = sum(stretch["looked_at"] for stretch in whole.row["stretches"])
            found = {"shard": shard, "detections": sum(count for _, count in drafts), "looked_at": looked_at}
            self._done(whole.row | found)

    def _read_whole(self, row: dict[str, Any], why: str) -> None:
        """Have the recording of a stretch read as a whole after all."""
        self._discard(self.stretches.pop(row["source_id"]))
        self.summary.undivided[row["uri"]] = why
        self.next.append(self._asks(row["source_id"], None))

    def _done(self, row: dict[str, Any]) -> None:
        self.seen.add(row["source_id"])
        self.waiting[row["source_id"]] = row

    def _discard(self, whole: _Stretches) -> None:
        """Delete drafts that nobody needs any more; what cannot be deleted, a compaction takes away."""
        for draft, _ in whole.drafts.values():
            with contextlib.suppress(StorageError):
                self.gallery.location.join("detections", draft).delete()

    def flush(self) -> None:
        """Commit what waits."""
        self.committed_at = time.monotonic()
        rows, self.waiting = list(self.waiting.values()), {}
        left = [row for row in rows if self._is_left(row)]
        rejected = [row for row in rows if row["reason"] is not None and row not in left]
        found = [row for row in rows if row["reason"] is None]
        self.summary.left += len(left)
        if not rejected and not found:
            return
        now = datetime.now(UTC)
        rejects = [row | {"video_id": row["source_id"], "rejected_at": now} for row in rejected]
        with telemetry.timed("coattention_ingest_seconds", stage="commit"):
            self.gallery.commit(
                None,
                pa.Table.from_pylist(rejects, schema=REJECTS_SCHEMA),
                pa.Table.from_pylist(found, schema=RECORDINGS_SCHEMA),
                kind="detect",
            )
        for row in found:
            if (whole := self.stretches.pop(row["source_id"], None)) is not None:
                self._discard(whole)
                self.summary.in_chunks += 1
                self.summary.chunks += len(whole.drafts)
        summary = self.summary
        summary.done += len(rows) - len(left)
        summary.undivided |= {row["uri"]: row["undivided"] for row in found if row["undivided"] is not None}
        summary.reasons.update(row["reason"] for row in rejected)
        summary.rejects = [*summary.rejects, *rejects][:REJECTS_NAMED]
        summary.looked_at += sum(row["looked_at"] for row in found)
        summary.detections += sum(row["detections"] for row in found)
        summary.seconds_read += sum(row["last_s"] for row in found)

    def _is_left(self, row: dict[str, Any]) -> bool:
        return row["reason"] == STILL_CHANGING or (row["reason"] in OUT_OF_REACH and row["source_id"] in self.there)


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


@dataclass(frozen=True)
class Recordings:
    """Where recordings are found, now and later. source, roots, endpoints: see `read_catalog`."""

    source: str
    pattern: NamePattern | None = None
    clocks: Clocks = field(default_factory=Clocks)
    roots: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """What is there now. Raises UsageError as `read_catalog` and `plan_recordings` do."""
        return plan_recordings(read_catalog(self.source, roots=self.roots, endpoints=self.endpoints), self.pattern, self.clocks)


def watch_footage(
    inputs: Recordings,
    gallery: Gallery,
    sampling: Sampling,
    detector: str,
    workers: int | None = None,
    address: Cluster | str | None = None,
    *,
    every_s: float = 60.0,
    rounds: int | None = None,
    told: Callable[[str], None] = lambda _: None,
    **how: Any,
) -> Iterator[FootageSummary]:
    """Take in what is new in a growing folder or prefix, again and again; a summary each time that something was.

    A recording counts as finished once it has not been modified for `how`'s quiet_period, or for every_s where that is not given.
    rounds: how often to look, None: until the caller stops. Ray runs from the first recording on. `how` as for `ingest_footage`.

    An input in which nothing is yet is waited for; so is one that goes away later, and storage that does not answer. told is
    given a sentence when that begins and when it is over. Raises what `Recordings.plan` and `ingest_footage` do: of the input and
    of storage at the first look only.
    """
    how |= {"quiet_period": how.get("quiet_period") or every_s}
    waits, is_first = _Waits(inputs.source, every_s, told), True
    with contextlib.ExitStack() as stack:
        for number in itertools.count(1):
            began = time.monotonic()
            try:
                if (plan := _plan_if_there(inputs, waits, number)) is not None:
                    if is_first:
                        stack.enter_context(connected(address))
                    summary = ingest_footage(plan, gallery, sampling, detector, None, workers, source=inputs.source, **how)
                    waits.end()
                    if summary.done or summary.corrected or summary.moved or is_first:
                        yield summary
                    is_first = False
            except StorageError as error:
                if number == 1:
                    raise
                waits.begin(error)
            if number == rounds:
                return
            time.sleep(max(0.0, every_s - (time.monotonic() - began)))


def _plan_if_there(inputs: Recordings, waits: "_Waits", number: int) -> Plan | None:
    """What is there now; None where that is nothing, or, after the first look, where the input has gone away."""
    try:
        return inputs.plan()
    except UsageError as error:
        if number == 1 and not isinstance(error, EmptyInputError):
            raise
        waits.begin(error)
        return None


class _Waits:
    """Says once what is waited for, and when it is there: not each minute, however long it takes."""

    def __init__(self, source: str, every_s: float, told: Callable[[str], None]) -> None:
        self.source, self.every_s, self.told = source, every_s, told
        self.since: float | None = None
        self.said: set[str] = set()

    def begin(self, error: PipelineError) -> None:
        """Something keeps the next recordings from being taken in. Another kind of obstacle is said too."""
        self.since = time.monotonic() if self.since is None else self.since
        kind = f"{type(error).__name__} {getattr(error, 'kind', '')}"
        if kind not in self.said:
            self.said.add(kind)
            self.told(f"waiting, and looking again every {self.every_s:g} s: {error}")

    def end(self) -> None:
        """Recordings could be listed and taken in."""
        if self.since is not None:
            minutes = (time.monotonic() - self.since) / 60
            self.told(f"going on after {minutes:.1f} minutes: {self.source} has recordings, and all storage answers")
        self.since, self.said = None, set()
