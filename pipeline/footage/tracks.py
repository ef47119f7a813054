"""Detections -> tracks -> candidates: people are followed through each run of a camera, and a track becomes a video of the
gallery.

A run is followed in the order of time, in one process, from its committed detections alone: the same recordings give the same
tracks under the same ids, however they were spread over workers and whatever was killed meanwhile. At the end of a run the tracks
that are open are put aside with the commit; when the next file continues it, following goes on there. Otherwise (other settings,
a recording that came late, a corrected clock) a run is followed anew, without decoding anything, and its tracks replace the old
ones in the same commit.

A candidate `CAMERA/START#N` is the Nth track that begins in the run, cut into `CAMERA/START#N-2` and so on where it lasts long.
It stands under the recording that it begins in (`source_id`, `uri`, `start_time`): times count from that one's start and frames
from its first, on through those that follow. `place` in frames/ says where each frame is.
"""

import io
import uuid
import zipfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.inputs import candidate_id
from pipeline.decoding.video import Box
from pipeline.errors import PipelineError
from pipeline.footage.forgotten_people import blanked
from pipeline.footage.recordings import Irregularity, Run, timeline
from pipeline.footage.stored_detections import RunDetections
from pipeline.footage.tracker import Track, Tracker, TrackingSettings
from pipeline.gallery.audit import append_record
from pipeline.gallery.detections import BOX, PLACE, boxes_of, frames_of
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery, Snapshot, frames_table
from pipeline.storage.documents import typed
from pipeline.storage.hashing import json_sha256, sha256

FOLLOWING = (
    2  # how people are followed; raise it when the same detections would give other tracks, so that runs are followed anew
)
SHORTEST_S = 1.0  # of a track that becomes a candidate
LONGEST_S = 300.0  # of a candidate: who stays longer becomes several
SHARD_ROWS = 20_000  # frames of a shard
TASK_DETECTIONS = 100_000  # that one task follows, in as many runs as hold them
PRUNED = 10_000  # detections after which those of tracks that have ended are let go


@dataclass(frozen=True)
class Record:
    """How far a run is followed, as a commit says it. parts: recordings, from the run's first; chain: a hash of these; state: the
    file of the open tracks. skipped: numbers that no track has, since they were of people who had been forgotten when the run was
    begun.
    """

    parts: int
    chain: str
    state: str
    state_sha256: str
    settings: dict[str, float]
    skipped: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """A run to follow. record: what to go on from, None from the start."""

    run: Run
    record: Record | None = None


@dataclass
class TrackingSummary:
    """What following did. runs, followed: in all, and of these anew or further; candidates: that there are now."""

    runs: int = 0
    followed: int = 0
    candidates: int = 0
    irregularities: Sequence[Irregularity] = field(default_factory=tuple)


def track(
    gallery: Gallery,
    settings: TrackingSettings | None = None,
    address: Any = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    record: bool = False,
) -> TrackingSummary:
    """Follow people through all recordings of a gallery that are not followed so yet, and commit their tracks.

    settings: None for those that the gallery was last followed with. address: see `pipeline.cluster.connected`; Ray is started
    only if there is something to do. progress is told runs done and in all. record: tell the audit log that people are followed
    anew, before anything is changed. Raises PipelineError for what is damaged.
    """
    snapshot = gallery.snapshot()
    settings = settings or last_settings(snapshot)
    runs, odd = timeline(snapshot.recordings)
    works = [work for run in runs if (work := pending(run, settings, snapshot.tracking)) is not None]
    gone = dict.fromkeys(snapshot.tracking.keys() - {run.name for run in runs})
    if works and record:
        append_record(gallery, "track", {"settings": asdict(settings), "runs": len(works)})
    orphans = sorted(_footage_sources(snapshot) - {part.row["source_id"] for run in runs for part in run.parts})
    if gone or orphans:
        gallery.commit(kind="track", tracked={"sources": orphans, "runs": gone})
    done = len(runs) - len(works)
    progress(done, len(runs))
    groups = grouped(works)
    for group, (videos, tracked, places) in _followed(gallery, groups, settings, snapshot, address):
        gone_on = blanked(gallery, snapshot.recordings, places) if places else (None, None)  # forgotten people
        gallery.commit(videos, None, *gone_on, kind="track", tracked=tracked)
        done += len(group)
        progress(done, len(runs))
    return TrackingSummary(len(runs), len(works), pc.sum(gallery.snapshot().of_recordings()).as_py() or 0, odd)


def _followed(
    gallery: Gallery, groups: Sequence[Sequence[Work]], settings: TrackingSettings, snapshot: Snapshot, address: Any
) -> Iterator[tuple[Sequence[Work], "Followed"]]:
    """Groups and what `follow_all` gives of them, as they are done: one group here, several in tasks of Ray."""
    if len(groups) < 2:
        yield from ((group, follow_all(gallery, group, settings, *_known(snapshot, group))) for group in groups)
        return
    import ray

    from pipeline.cluster import connected, words_of

    with connected(address):
        following = ray.remote(num_cpus=1)(follow_all)
        tasks = {following.remote(gallery, group, settings, *_known(snapshot, group)): group for group in groups}
        try:
            while tasks:
                (ready,), _ = ray.wait(list(tasks))
                yield tasks.pop(ready), ray.get(ready)
        except ray.exceptions.RayError as error:
            told = "what is committed stays, run jobs.track to go on"
            raise PipelineError(f"following people stopped: {words_of(error)}; {told}") from error


def last_settings(snapshot: Snapshot) -> TrackingSettings:
    """Those of the gallery's newest tracks, else the usual ones."""
    records = list(snapshot.tracking.values())
    return typed(TrackingSettings, records[-1]["settings"], complete=False) if records else TrackingSettings()


def _footage_sources(snapshot: Snapshot) -> set[str]:
    return set(snapshot.videos.filter(snapshot.of_recordings())["source_id"].to_pylist())


def pending(run: Run, settings: TrackingSettings, tracking: Mapping[str, dict[str, Any]]) -> Work | None:
    """What there is to do for a run: nothing (None), the recordings that were not followed yet, or all."""
    try:
        record = typed(Record, tracking[run.name])
    except (KeyError, ValueError):
        return Work(run)
    if record.parts > len(run.parts) or record.chain != chain(run, record.parts, settings):
        return Work(run)
    return None if record.parts == len(run.parts) else Work(run, record)


def chain(run: Run, parts: int, settings: TrackingSettings) -> str:
    """A hash of what following the first so many recordings of a run depends on."""
    names = ("source_id", "ingested_hash", "detector", "backbone", "detections")
    of_parts = [[part.begins_s, *(part.row[name] for name in names)] for part in run.parts[:parts]]
    return json_sha256([FOLLOWING, asdict(settings), SHORTEST_S, LONGEST_S, run.name, of_parts])[:32]


def grouped(works: Sequence[Work]) -> list[list[Work]]:
    """The works in groups, each for one task."""
    groups: list[list[Work]] = []
    held = 0
    for work in works:
        first = work.record.parts if work.record is not None else 0
        size = sum(int(part.row["detections"] or 0) for part in work.run.parts[first:])
        if not groups or held + size > TASK_DETECTIONS:
            groups.append([])
            held = 0
        groups[-1].append(work)
        held += size
    return groups


def _known(snapshot: Snapshot, works: Sequence[Work]) -> tuple[pa.Table, frozenset[str]]:
    """Candidates that begin in recordings of runs that are only gone on with (those of finished tracks stay as they are), and the
    ids of these runs that were forgotten.
    """
    names = tuple(f"{work.run.name}#" for work in works)
    parts = [part for work in works if work.record is not None for part in work.run.parts[: work.record.parts]]
    ids = pa.array(sorted(str(part.row["source_id"]) for part in parts), pa.string())
    videos = snapshot.videos
    there = videos.filter(pc.and_(snapshot.of_recordings(), pc.is_in(videos["source_id"], ids)))
    return there, frozenset(one for one in snapshot.forgotten if one.startswith(names))


class Followed(NamedTuple):
    """What `follow_all` gives. videos: all candidates (VIDEOS_SCHEMA) of the recordings that a commit is to replace them of;
    tracked: what it says of that; forgotten: where people are who were forgotten and have gone on since, see `Places`.
    """

    videos: pa.Table
    tracked: dict[str, Any]
    forgotten: dict[str, list[tuple[int, Box]]]


def follow_all(
    gallery: Gallery, works: Sequence[Work], settings: TrackingSettings, there: pa.Table, forgotten: Collection[str] = ()
) -> Followed:
    """Follow runs, one after another, and write their candidates' frames. there, forgotten: see `_known`."""
    writer = _Writer(gallery, frozenset(map(_numbered, forgotten)))
    sources: set[str] = set()
    records: dict[str, Any] = {}
    reused: list[dict[str, Any]] = []
    for work in works:
        gone = {number for run, number in writer.forgotten if run == work.run.name}
        followed = _Following(gallery, work, settings, gone)
        for made in followed.tracks():
            writer.add(work.run, made, followed)
        records[work.run.name] = asdict(followed.record())
        anew = {str(part.row["source_id"]) for part in work.run.parts[followed.first :]}
        begun = writer.begun[work.run.name]
        sources |= anew | begun
        before = begun - anew
        stays = pc.and_(
            pc.is_in(there["source_id"], pa.array(sorted(before), pa.string())),
            pc.invert(pc.is_in(there["track"], pa.array(sorted(followed.resumed), pa.int64()))),
        )
        reused += there.filter(stays).to_pylist() if before else []
    writer.flush()
    videos = pa.Table.from_pylist(writer.rows + reused, schema=VIDEOS_SCHEMA)
    return Followed(videos, {"sources": sorted(sources), "runs": records}, dict(writer.gone))


def _numbered(video_id: str) -> tuple[str, int]:
    """The run and number of a candidate's id, (run, -1) of what is none."""
    run, _, number = video_id.rpartition("#")
    number = number.partition("-")[0]
    return run, int(number) if number.isdecimal() else -1


class _Following:
    """One run while it is followed. first: the first of its recordings that is read; resumed: numbers of the tracks gone on
    with.
    """

    def __init__(self, gallery: Gallery, work: Work, settings: TrackingSettings, forgotten: Collection[int]) -> None:
        self.gallery, self.run, self.settings = gallery, work.run, settings
        self.tracker, self.first = Tracker(settings), 0
        self.skipped = sorted(forgotten)
        self.rows: dict[int, tuple[int, int]] = {}  # the tracker's row -> (place of the recording in the run, row of it)
        self.resumed: set[int] = set()
        self.detections = RunDetections(gallery, work.run)
        self.state: dict[str, np.ndarray] = {}
        self.given = 0  # rows that the tracker was given
        if work.record is not None and (state := _read_state(gallery, work.record)) is not None:
            self.first, self.skipped = work.record.parts, work.record.skipped
            places = state.pop("places")
            self.tracker, self.given = Tracker.from_state(settings, state), int(state["counts"][0])
            self.rows = {int(row): (int(part), int(place)) for row, (part, place) in zip(state["rows"], places, strict=True)}
            self.resumed = set(map(self.number, state["numbers"].tolist()))

    def number(self, begun: int) -> int:
        """The number of the track that began as this one, from 0."""
        for skipped in self.skipped:
            begun += skipped <= begun
        return begun

    def tracks(self) -> Iterator[Track]:
        """Tracks as they end, and at last those that are open."""
        given = self.given
        for part in range(self.first, len(self.run.parts)):
            table = self.detections.places(part)
            boxes, scores = boxes_of(table), np.asarray(table["score"])
            begins, pruned = self._shown_until(part), given
            for _, time_s, rows in frames_of(table):
                now = self.run.parts[part].begins_s + time_s
                if now <= begins:
                    continue
                features, usable = self.detections.features(part, np.arange(rows.start, rows.stop))
                chosen = np.flatnonzero(usable) + rows.start
                if not len(chosen):
                    continue
                self.rows.update((given + place, (part, int(row))) for place, row in enumerate(chosen))
                given += len(chosen)
                self.tracker.update(now, boxes[chosen], scores[chosen], features[usable])
                if given - pruned >= PRUNED:
                    yield from self._ended()
                    pruned = given
            yield from self._ended()
        self.state = self.tracker.state()
        yield from Tracker.from_state(self.settings, self.state).finish()

    def _ended(self) -> Iterator[Track]:
        """The tracks that ended; then which detections they were of is let go."""
        yield from self.tracker.take_finished()
        self.state = self.tracker.state()
        self.rows = {row: self.rows[row] for row in self.state["rows"].tolist()}

    def _shown_until(self, part: int) -> float:
        """What the recordings before this one show already, in seconds from the run's start: two may overlap."""
        last = ((one.begins_s + (one.row["last_s"] or 0.0), one.row["fps"] or 1.0) for one in self.run.parts[:part])
        return max((seconds + 0.5 / fps for seconds, fps in last), default=-np.inf)

    def record(self) -> Record:
        """How far the run is followed, its state written. After `tracks`."""
        places = np.array([self.rows[row] for row in self.state["rows"].tolist()], np.int64).reshape(-1, 2)
        sink = io.BytesIO()
        np.savez_compressed(sink, **self.state, places=places)  # type: ignore[arg-type]
        content, name = sink.getvalue(), f"tracking/{uuid.uuid4().hex}.npz"
        self.gallery.location.join(name).write_atomically(content)
        parts = len(self.run.parts)
        return Record(parts, chain(self.run, parts, self.settings), name, sha256(content), asdict(self.settings), self.skipped)


def _read_state(gallery: Gallery, record: Record) -> dict[str, np.ndarray] | None:
    """The arrays of open tracks; None where the file is damaged or gone: the run is followed from its start then."""
    try:
        content = gallery.location.join(record.state).read_bytes()
        if sha256(content) != record.state_sha256:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (PipelineError, OSError, ValueError, zipfile.BadZipFile):
        return None


class _Writer:
    """Gathers candidates' frames into shards. rows: of VIDEOS_SCHEMA; begun: run -> recordings that candidates of it begin in."""

    def __init__(self, gallery: Gallery, forgotten: frozenset[tuple[str, int]]) -> None:
        self.gallery, self.forgotten = gallery, forgotten
        self.gone: dict[str, list[tuple[int, Box]]] = defaultdict(list)
        self.rows: list[dict[str, Any]] = []
        self.begun: dict[str, set[str]] = defaultdict(set)
        self._waiting: list[tuple[dict[str, Any], pa.Table]] = []
        self._held = 0

    def add(self, run: Run, made: Track, followed: _Following) -> None:
        """Take a track: its candidates, if it lasts."""
        places = [followed.rows[row] for row in made.detections.tolist()]
        track_number = followed.number(made.number)
        if (run.name, track_number) in self.forgotten:
            for part, place in places:
                table = followed.detections.places(part).slice(place, 1)
                box: Box = tuple(boxes_of(table)[0].tolist())
                self.gone[run.parts[part].row["source_id"]].append((table["frame_index"][0].as_py(), box))
            return
        for number, rows in enumerate(pieces(made.times), start=1):
            video_id = candidate_id(run.name, track_number if number == 1 else f"{track_number}-{number}")
            row, frames = _candidate(video_id, run, made, rows, places[rows], followed)
            self.begun[run.name].add(row["source_id"])
            self._waiting.append((row, frames))
            self._held += len(frames)
            if self._held >= SHARD_ROWS:
                self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard."""
        if not self._waiting:
            return
        shard, first = self.gallery.write_shard(pa.concat_tables([frames for _, frames in self._waiting]).combine_chunks()), 0
        for row, frames in self._waiting:
            self.rows.append(row | {"shard": shard, "first_row": first})
            first += len(frames)
        self._waiting, self._held = [], 0


def pieces(times: np.ndarray) -> list[slice]:
    """The candidates of a track with these times, float64 [n], seconds ascending: none below SHORTEST_S, several above
    LONGEST_S.
    """
    if times[-1] - times[0] < SHORTEST_S:
        return []
    number = ((times - times[0]) // LONGEST_S).astype(int)
    starts = [0, *(np.flatnonzero(np.diff(number)) + 1).tolist()]
    starts = [start for start in starts if start == 0 or times[-1] - times[start] >= SHORTEST_S]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], len(times)], strict=True)]


def _candidate(
    video_id: str, run: Run, made: Track, rows: slice, places: Sequence[tuple[int, int]], followed: _Following
) -> tuple[dict[str, Any], pa.Table]:
    """A candidate's row, without where its frames are, and its frames: `frames_schema` and `place`."""
    first_part = run.parts[places[0][0]]
    of_first: Mapping[str, Any] = first_part.row
    parts = np.array([part for part, _ in places])
    tables, features, before = [], [], 0
    for number in range(parts[0], parts[-1] + 1):
        chosen = [row for part, row in places if part == number]
        if chosen:
            taken = followed.detections.places(number).take(pa.array(chosen))
            ids = pa.array([run.parts[number].row["source_id"]] * len(chosen), pa.string())
            numbered = pa.array(np.asarray(taken["frame_index"]).astype(np.int64) + before)
            tables.append(taken.append_column("recording_id", ids).append_column("number", numbered))
            features.append(followed.detections.features(number, np.array(chosen))[0])
        before += int(run.parts[number].row["source_frames"] or 0)
    taken = pa.concat_tables(tables).combine_chunks()
    times = made.times[rows] - first_part.begins_s
    frames = frames_table([video_id], [len(taken)], np.asarray(taken["number"]), times, np.concatenate(features))
    columns = [taken[name].combine_chunks() for name in ("recording_id", "frame_index", "time_s", *BOX)]
    place = pa.StructArray.from_arrays([_plain(column) for column in columns], fields=list(PLACE))
    frames = frames.append_column(pa.field("place", PLACE), place)
    start = of_first["start_time"]
    row = {
        **{name: of_first[name] for name in ("uri", "start_time", "fps", "source_frames", "width", "height", "frame_rate")},
        **{name: of_first[name] for name in ("source_size", "source_mtime", "source_id", "ingested_hash")},
        "video_id": video_id,
        "camera_id": run.camera,
        "seen_from": start + timedelta(seconds=float(times[0])) if start is not None else None,
        "seen_to": start + timedelta(seconds=float(times[-1])) if start is not None else None,
        "sampled_frames": len(taken),
        "backbone": of_first["backbone"],
        "ingested_at": datetime.now(UTC),
        "track": followed.number(made.number),
        "passed_over": 0,
        "remarks": [],
        **dict.fromkeys(("person_id", "boxes_uri", "boxes_size", "boxes_mtime")),
    }
    return row, frames


def _plain(column: Any) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
