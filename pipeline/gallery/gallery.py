"""The gallery: Parquet shards of frame features, and the commits that say which of them count.

    gallery.json     what the gallery is made with (backbone, sampling); written once
    videos/*.parquet, frames/*.parquet, rejects/*.parquet      data, in files whose names are never used again
    recordings/, detections/, tracking/      of whole recordings, in files of the same kind (pipeline.gallery.detections)
    commits/*.json   one small file an ingest step; a step happened when its commit is there, wholly or not at all
    index/           index versions (pipeline.index.versions)
    audit/           who searched and deleted, and why (pipeline.gallery.audit)

A gallery's state is the set of its commits, compactions first and then in the order of their names: nothing is ever changed in
place, so a reader, a retry and a kill -9 can only meet files that no commit names. The newest commit that mentions a source
decides on it; a commit may supersede others (compaction) and may forget videos. A commit of corrections says what else is true
of videos that are there: it changes CORRECTABLE columns of rows, never which rows there are or where their frames lie, so
neither a compaction nor another ingest at the same time can be undone by one. docs/decisions.md says why no table format is used.
"""

import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backbone.spec import BackboneSpec
from pipeline.catalog.inputs import SOURCE_STATE
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.detections import FORGOTTEN_BOXES_SCHEMA, RECORDINGS_SCHEMA
from pipeline.gallery.forgotten import REASON, Forgotten
from pipeline.storage.documents import typed
from pipeline.storage.formats import check_format
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location, Reach, inside_checker, resolve
from pipeline.storage.seals import sealed, unsealed

OLDEST_FORMAT, FORMAT = 1, 2  # of gallery.json, which stands for the tables too; 2 where it has roots
OLDEST_COMMIT, COMMIT_FORMAT = 1, 2  # 2 where it has recordings or tracks of some: an older version would compact them away
READ_TRIES = 5
ROW_GROUP_ROWS = 1024  # frames; a video is read without reading its shard

_INGESTED = ["video_id", "ingested_at", "sampled_frames"]  # the same: a video has the same frames

Read = TypeVar("Read")

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
TABLES = {
    "videos": VIDEOS_SCHEMA,
    "rejects": REJECTS_SCHEMA,
    "recordings": RECORDINGS_SCHEMA,
    "forgotten_boxes": FORGOTTEN_BOXES_SCHEMA,
}
CORRECTABLE = ("camera_id", "start_time", "person_id", "seen_from", "seen_to", *(name for name, _ in SOURCE_STATE))


def frames_schema(feature_width: int) -> pa.Schema:
    """Schema of frames/: one row a sampled frame; time_s in seconds from the video's first frame."""
    feature = pa.list_(pa.float16(), feature_width)
    return pa.schema([("video_id", pa.string()), ("frame_index", pa.int32()), ("time_s", pa.float32()), ("feature", feature)])


@dataclass(frozen=True)
class GallerySettings:
    """What every video of a gallery shares, so that its features compare.

    backbone: its spec. rate: sampled frames a second; image_rate: frames a second of folders of images, or None. roots: canonical
    uris that its sources must lie in or below whenever they are opened, links followed; (): anywhere.
    """

    backbone: BackboneSpec
    rate: float
    image_rate: float | None
    roots: tuple[str, ...] = ()

    def differences(self, other: "GallerySettings") -> list[str]:
        """What differs, in words."""
        pairs = [
            ("backbone", self.backbone.identity, other.backbone.identity),
            ("sample rate", self.rate, other.rate),
            ("image rate", self.image_rate, other.image_rate),
        ]
        return [f"{name} {mine} instead of {theirs}" for name, mine, theirs in pairs if mine != theirs]


@dataclass(frozen=True)
class Snapshot:
    """A gallery at one moment.

    videos (VIDEOS_SCHEMA) and rejects (REJECTS_SCHEMA), each sorted by video_id; forgotten: ids of deleted videos, and
    forgotten_uris: of what they were decoded from; tombstones: both, with the hashes of their bytes. commits: names of the live
    ones; seen: of the superseded ones too; files: those that live ones name. recordings: RECORDINGS_SCHEMA, sorted by source_id,
    and tracking: run -> what its newest commit says of following people in it, the newest last (`pipeline.footage.tracks`);
    forgotten_boxes: FORGOTTEN_BOXES_SCHEMA.
    """

    videos: pa.Table
    rejects: pa.Table
    forgotten: frozenset[str]
    forgotten_uris: frozenset[str]
    commits: tuple[str, ...]
    seen: tuple[str, ...]
    files: tuple[str, ...]
    tombstones: Forgotten
    recordings: pa.Table = field(default_factory=RECORDINGS_SCHEMA.empty_table)
    tracking: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    forgotten_boxes: pa.Table = field(default_factory=FORGOTTEN_BOXES_SCHEMA.empty_table)

    def of_recordings(self, videos: pa.Table | None = None) -> pa.ChunkedArray:
        """Which videos (all, or these rows of them) are people who were followed in whole recordings, bool [n]."""
        videos = self.videos if videos is None else videos
        return pc.is_in(videos["source_id"], self.recordings["source_id"].combine_chunks())

    def finished_sources(self, count_rejected: bool = True) -> set[str]:
        """Ids of the catalog rows that need no more work; without count_rejected, none that has a reject.

        What was refused because its storage did not answer ("unavailable") is no video's fault and never finished; what was
        refused because it had been forgotten always is.
        """
        reasons = self.rejects["reason"]
        again = pc.equal(reasons, "unavailable") if count_rejected else pc.not_equal(reasons, REASON)
        unfinished = set(self.rejects.filter(again)["source_id"].to_pylist())
        finished = (table["source_id"].to_pylist() for table in (self.videos, self.rejects, self.recordings))
        return set().union(*finished) - unfinished


class Gallery:
    """An open gallery; cheap to make, holds no data."""

    def __init__(self, location: Location, settings: GallerySettings) -> None:
        self.location = location
        self.settings = settings

    @property
    def feature_width(self) -> int:
        return self.settings.backbone.dim

    def narrowed(self, roots: Sequence[str]) -> tuple[str, ...]:
        """These canonical uris, or the gallery's roots where there are none. Raises UsageError for one outside the gallery's."""
        inside = inside_checker(self.settings.roots) if self.settings.roots else None
        if inside is not None and (outside := [root for root in roots if not inside(root)]):
            raise UsageError(
                f"{outside[0]} lies outside the roots of {self.location.uri} ({', '.join(self.settings.roots)}), which stay as "
                "its first ingest named them; use another gallery"
            )
        return tuple(roots) or self.settings.roots

    def reach(self, *named: str, endpoints: Sequence[str] = ()) -> Reach:
        """Where the uris of its rows may lead: below its roots, and to its own endpoint and those that a command names.

        named: canonical uris in the command's own arguments. endpoints: URLs. Rows and settings name none: they are data.
        """
        found = Reach.of(self.location.uri, *named, endpoints=endpoints)
        return Reach(self.settings.roots, found.endpoints)

    @classmethod
    def open(cls, uri: str | Path) -> "Gallery":
        """Open an existing gallery. Raises UsageError when there is none, PipelineError when gallery.json is unusable."""
        location = resolve(uri)
        if not location.join("gallery.json").exists():
            raise UsageError(f"{location.uri} is not a gallery (it has no gallery.json); make one with jobs.ingest")
        try:
            fields = unsealed(location.join("gallery.json").read_bytes())
            check_format(f"the gallery {location.uri}", fields["format"], OLDEST_FORMAT, FORMAT, "ingest its videos anew")
            settings = typed(GallerySettings, fields, complete=False)
        except (ValueError, KeyError) as error:
            raise PipelineError(f"{location.join('gallery.json').uri} is damaged: {error}") from error
        return cls(location, settings)

    @classmethod
    def open_or_create(cls, uri: str | Path, settings: GallerySettings) -> "Gallery":
        """Open the gallery, or make it.

        Raises UsageError when one is there that was made with other settings. Its roots are those of its first ingest and stay;
        roots that lie within them are no other ones, and hold for whoever gave them only.
        """
        location = resolve(uri)
        if not location.join("gallery.json").exists():
            if location.info().is_file:
                raise UsageError(f"{location.uri} is a file; a gallery is a folder or a bucket prefix")
            if location.list(recursive=True):
                raise UsageError(f"{location.uri} is not empty and not a gallery; name a new folder")
            number = FORMAT if settings.roots else OLDEST_FORMAT
            fields = {"format": number, "created_at": datetime.now(UTC).isoformat(), **asdict(settings)}
            location.join("gallery.json").write_atomically(sealed(fields, indent=1), exclusive=True)
        made = cls.open(uri).settings
        if differences := settings.differences(made):
            raise UsageError(f"{location.uri} was made with other settings: {'; '.join(differences)}; use another gallery")
        opened = cls(location, replace(settings, roots=made.roots))
        opened.narrowed(settings.roots)
        return opened  # these name the backbone's file where it lies now

    def snapshot(self) -> Snapshot:
        """The gallery now. Raises PipelineError naming the file when a committed file is missing or damaged."""
        return self._while_compacted(self._snapshot)

    def _snapshot(self) -> Snapshot:
        commits = self._commits()
        superseded = {name for commit in commits.values() for name in commit.get("supersedes", ())}
        live = {name: commit for name, commit in commits.items() if name not in superseded}
        forgotten = Forgotten.of(live.values())
        corrections = {name: commit for name, commit in live.items() if commit.get("kind") == "correct"}
        others = {name: commit for name, commit in live.items() if name not in corrections}
        read = {kind: self._read_all(others, kind, schema) for kind, schema in TABLES.items()}
        videos, rejects, _ = _latest_of_each_source([read["videos"], read["rejects"], _followed(others.values())])
        recordings, _ = _latest_of_each_source([read["recordings"], read["rejects"]])
        videos = _corrected(videos, self._read_all(corrections, "videos", VIDEOS_SCHEMA))
        gone = np.asarray(pc.is_in(videos["video_id"], pa.array(sorted(forgotten.ids), pa.string())))
        gone = gone | forgotten.covered(videos)  # by bytes too: an ingest may have committed in the same moment
        records: dict[str, dict[str, Any] | None] = {}
        for commit in others.values():
            for run, record in _tracked(commit)["runs"].items():
                records.pop(run, None)  # so that the newest is the last
                records[run] = record
        return Snapshot(
            videos=videos.filter(pa.array(~gone)).sort_by("video_id"),
            rejects=rejects.sort_by("video_id"),
            forgotten=forgotten.ids,
            forgotten_uris=forgotten.uris,
            commits=tuple(sorted(live)),
            seen=tuple(sorted(commits)),
            files=tuple(name for commit in live.values() for name in files_of(commit)),
            tombstones=forgotten,
            recordings=recordings.filter(pa.array(~forgotten.covered_recordings(recordings))).sort_by("source_id"),
            forgotten_boxes=read["forgotten_boxes"].select(FORGOTTEN_BOXES_SCHEMA.names),
            tracking={run: record for run, record in records.items() if record is not None},
        )

    def forgotten(self, known: Collection[str] = ()) -> frozenset[str]:
        """Ids of the videos that were deleted: they are in no result from the moment of the commit on.

        known: names of commits that need not be read, because the caller was made from them.
        """
        return self.tombstones(known).ids

    def tombstones(self, known: Collection[str] = ()) -> Forgotten:
        """All that is known of the videos that were deleted; known: see `forgotten`."""
        if known and set(known).issuperset(self.commit_names()):
            return Forgotten()
        return Forgotten.of(self._while_compacted(lambda: self._commits(leave_out=known)).values())

    def has_changes_since(self, known: Collection[str]) -> bool:
        """Whether any commit brought, took away or corrected videos but the known ones and compactions of only these.

        known: names of commits. A reject counts: a source that cannot be used any more takes its videos with it.
        """
        known = set(known)
        commits = self._while_compacted(lambda: self._commits(leave_out=known))
        changed = (one for one in commits.values() if one["videos"] or one["rejects"] or _tracked(one)["sources"])
        return any(not known.issuperset(commit.get("supersedes") or [""]) for commit in changed)

    def _while_compacted(self, read: Callable[[], Read]) -> Read:
        """What `read` gives; again from the start when a compaction took files away between listing and reading."""
        for _ in range(READ_TRIES - 1):
            before = self.commit_names()
            try:
                return read()
            except PipelineError:
                if before == self.commit_names():
                    raise
        return read()

    def commit_names(self) -> list[str]:
        """Names of all commits, oldest first."""
        return [Path(name).stem for name in self.location.join("commits").names() if name.endswith(".json")]

    def commit(
        self,
        videos: pa.Table | None = None,
        rejects: pa.Table | None = None,
        recordings: pa.Table | None = None,
        forgotten_boxes: pa.Table | None = None,
        **fields: Any,
    ) -> str:
        """Make videos, rejects and recordings part of the gallery in one step; the shards they name are already written.

        fields: kind ("ingest", "correct", "compact", "forget", "track"), supersedes (names of commits), those of
        `Forgotten.fields`, and tracked: {"sources": ids of recordings of which the videos are all tracks that begin in them,
        "runs": see `Snapshot.tracking`, None for one that is no more}.
        The videos of kind "correct" are rows of a snapshot with other values in CORRECTABLE columns. Returns the commit's name.
        """
        unique = uuid.uuid4().hex
        commit: dict[str, Any] = {"kind": "ingest", "videos": [], "rejects": [], "sha256": {}, **fields}
        if recordings is not None or "tracked" in fields:
            commit |= {"format": COMMIT_FORMAT}
        tables = {"videos": videos, "rejects": rejects, "recordings": recordings, "forgotten_boxes": forgotten_boxes}
        for kind, table in tables.items():
            if table is not None and len(table):
                name = f"{kind}/{unique}.parquet"
                content = _table_bytes(table)
                self.location.join(name).write_atomically(content)
                commit[kind] = [name]
                commit["sha256"][name] = sha256(content)
        commit |= {
            "committed_at": datetime.now(UTC).isoformat(),
            "video_rows": 0 if videos is None else len(videos),
            "reject_rows": 0 if rejects is None else len(rejects),
        }
        commit_name = f"{time.time_ns():020d}-{unique[:8]}"  # of now, all the rest is written: order is that of completion
        self.location.join("commits", f"{commit_name}.json").write_atomically(sealed(commit))
        return commit_name

    def write_shard(self, table: pa.Table) -> str:
        """Write frames (frames_schema, a video's rows contiguous) as one shard and return its name.

        The shard counts once a commit's videos name it. Its name is its own: two writers of the same rows (a task that is run
        again, a job submitted twice) must not share a file that a compaction may delete for one of them.
        """
        return self.write_tables("frames", table.schema, [table])

    def write_tables(self, kind: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> str:
        """Write tables, as they come, as one file of "frames" or "detections" and return its name; see `write_shard`.

        What `tables` raises passes through, and nothing is written.
        """
        name = f"{uuid.uuid4().hex}.parquet"
        names = [name for name in ("video_id", "recording_id", "place.recording_id") if name.split(".")[0] in schema.names]
        how: dict[str, Any] = {"compression": "zstd", "use_dictionary": names, "write_page_checksum": True}

        def write(sink: Any) -> None:
            with pq.ParquetWriter(sink, schema, **how) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)

        self.location.join(kind, name).write_atomically(write)
        return name

    def read_detections(self, shard: str, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of a file of detections/. Raises PipelineError."""
        location = self.location.join("detections", shard)
        try:
            with location.open_input() as source:
                return pq.ParquetFile(source, page_checksum_verification=True).read(None if columns is None else list(columns))
        except (OSError, pa.ArrowException, ValueError) as error:
            again = "jobs.ingest --update takes their recording in again"
            raise PipelineError(f"the detections {location.uri} cannot be read: {error}; {again}") from error

    def read_shard(self, shard: str, first_row: int, rows: int) -> pa.Table:
        """Rows [first_row, first_row + rows) of a shard, reading only the row groups they lie in. Raises PipelineError."""
        location = self.location.join("frames", shard)
        try:
            with location.open_input() as source:
                # A row group in one request where requests are slow, and none so small that pyarrow does not try it again.
                file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=not location.is_local)
                ends = np.cumsum([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)])
                first, last = np.searchsorted(ends, [first_row, first_row + rows - 1], side="right")
                groups = np.arange(first, last + 1)
                start = int(ends[groups[0] - 1]) if groups[0] else 0
                return file.read_row_groups(groups.tolist()).slice(first_row - start, rows)
        except (OSError, pa.ArrowException, IndexError, ValueError) as error:
            raise PipelineError(f"the shard {location.uri} cannot be read: {error}") from error

    def read_video(self, row: dict[str, Any]) -> pa.Table:
        """The frames of one video (a row of Snapshot.videos), in time order.

        Raises PipelineError on a damaged shard and for features that are not finite numbers.
        """
        try:
            table = self.read_shard(row["shard"], row["first_row"], row["sampled_frames"])
        except PipelineError as error:
            moved = self._moved(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA), error)
            return self.read_video(moved.to_pylist()[0])
        if len(table) != row["sampled_frames"] or pc.any(pc.not_equal(table["video_id"], row["video_id"])).as_py():
            raise PipelineError(f"the shard {row['shard']} of {self.location.uri} does not hold {row['video_id']} as recorded")
        self._check_features(table, row["shard"])
        return table

    def _check_features(self, frames: pa.Table, shard: str) -> None:
        """Raises PipelineError for the first video with a feature that is not a finite number: it would spread to others."""
        finite = np.isfinite(feature_matrix(frames)).all(axis=1)
        if not finite.all():
            video_id = frames["video_id"][int(finite.argmin())].as_py()
            uri = self.location.join("frames", shard).uri
            fault = f"the features of the video {video_id!r} in the shard {uri} are not all finite numbers"
            raise PipelineError(f"{fault}; take it out with jobs.forget")

    def _moved(self, videos: pa.Table, error: PipelineError) -> pa.Table:
        """Rows of a shard that cannot be read, as they stand after a compaction. Raises `error` when they have not moved."""
        now = self.snapshot().videos
        places = pc.index_in(videos["video_id"], value_set=now["video_id"].combine_chunks())
        if places.null_count or pc.any(pc.equal(now["shard"].take(places), videos["shard"])).as_py():
            raise error
        moved = now.take(places)
        if moved.select(_INGESTED) != videos.select(_INGESTED):
            raise PipelineError(
                f"videos of {self.location.uri} were ingested anew and compacted meanwhile; run it again"
            ) from error
        return moved

    def iter_features(self, videos: pa.Table, *, checked: bool = True) -> Iterator[tuple[np.ndarray, pa.Table]]:
        """Frames of many videos, shard by shard in file order.

        videos: rows of Snapshot.videos. Yields (positions, frames): positions int64 [v] of rows in `videos`, and their
        frames one video after another in that order. Memory: one shard. What a compaction has moved since is found again.
        Raises PipelineError on a damaged shard and, if checked, for features that are not finite numbers, naming their video.
        """
        encoded = videos["shard"].combine_chunks().dictionary_encode()
        shards, shard_of = encoded.dictionary.to_pylist(), np.asarray(encoded.indices)
        first_rows, counts = (np.asarray(videos[name]) for name in ("first_row", "sampled_frames"))
        in_order = np.lexsort((first_rows, shard_of))
        bounds = np.searchsorted(shard_of[in_order], np.arange(len(shards) + 1))
        for shard, number in sorted(zip(shards, range(len(shards)), strict=True)):
            positions = in_order[bounds[number] : bounds[number + 1]]
            start = int(first_rows[positions[0]])
            stop = int((first_rows[positions] + counts[positions]).max())
            try:
                table = self.read_shard(shard, start, stop - start)
            except PipelineError as error:
                moved = self._moved(videos.take(pa.array(positions)), error)
                yield from ((positions[places], frames) for places, frames in self.iter_features(moved, checked=checked))
                continue
            rows = np.concatenate([np.arange(first_rows[p], first_rows[p] + counts[p]) - start for p in positions])
            if len(rows) != len(table):
                table = table.take(pa.array(rows))
            if checked:
                self._check_features(table, shard)
            yield positions, table

    def iter_videos(self, videos: pa.Table, *, checked: bool = True) -> Iterator[tuple[int, pa.Table]]:
        """`iter_features` video by video: (row in `videos`, its frames)."""
        counts = videos["sampled_frames"].to_pylist()
        for positions, frames in self.iter_features(videos, checked=checked):
            start = 0
            for position in positions.tolist():
                yield position, frames.slice(start, counts[position])
                start += counts[position]

    def _commits(self, leave_out: Collection[str] = ()) -> dict[str, dict[str, Any]]:
        commits = {}
        for file in self.location.join("commits").list():
            if file.name.endswith(".json") and Path(file.name).stem not in leave_out:
                try:
                    commit = unsealed(file.read_bytes())
                    number = commit.get("format", 1)
                    check_format(f"the commit {file.uri}", number, OLDEST_COMMIT, COMMIT_FORMAT, "ingest its videos anew")
                    if not all(isinstance(commit[kind], list) for kind in ("videos", "rejects")):
                        raise ValueError("it does not list its tables")
                    commits[Path(file.name).stem] = commit
                except (ValueError, KeyError, TypeError) as error:
                    raise PipelineError(f"the commit {file.uri} is damaged: {error}") from error

        # A compaction says what was so when it began: whatever it does not supersede is newer, and so is what began later.
        def order(item: tuple[str, dict[str, Any]]) -> tuple[bool, str, str]:
            compaction = item[1].get("kind") == "compact"
            return not compaction, max(item[1].get("supersedes", ()), default="") if compaction else "", item[0]

        return dict(sorted(commits.items(), key=order))

    def _read_all(self, commits: dict[str, dict[str, Any]], kind: str, schema: pa.Schema) -> pa.Table:
        tables = []
        for order, commit in enumerate(commits.values()):
            for name in commit.get(kind, ()):
                location = self.location.join(name)
                try:
                    content = location.read_bytes()
                    expected = commit.get("sha256", {}).get(name)  # commits of the first version have none
                    if expected is not None and sha256(content) != expected:
                        raise ValueError("its checksum differs")
                    table = pq.read_table(pa.BufferReader(content), schema=schema)
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise PipelineError(f"{location.uri} is committed but cannot be read: {error}") from error
                tables.append(table.append_column("commit", pa.array(np.full(len(table), order, np.int64))))
        return pa.concat_tables(tables) if tables else schema.append(pa.field("commit", pa.int64())).empty_table()


def _table_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


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


def files_of(commit: Mapping[str, Any]) -> list[str]:
    """The files that a commit names itself: its tables, and how far following people is."""
    tables = [name for kind in TABLES for name in commit.get(kind, ())]
    return tables + [run["state"] for run in _tracked(commit)["runs"].values() if run is not None]


def _tracked(commit: Mapping[str, Any]) -> dict[str, Any]:
    return commit.get("tracked") or {"sources": [], "runs": {}}


def _followed(commits: Collection[Mapping[str, Any]]) -> pa.Table:
    """source_id and commit of recordings whose tracks a commit replaces, whether or not there are any."""
    rows = [{"source_id": one, "commit": order} for order, commit in enumerate(commits) for one in _tracked(commit)["sources"]]
    return pa.Table.from_pylist(rows, pa.schema([("source_id", pa.string()), ("commit", pa.int64())]))


def _latest_of_each_source(tables: list[pa.Table]) -> list[pa.Table]:
    """Keep, for each source, only what the newest commit says that mentions it in any of the tables; drop the column `commit`."""
    mentions = pa.concat_tables([table.select(["source_id", "commit"]) for table in tables])
    pairs = mentions.group_by(["source_id", "commit"]).aggregate([])
    if len(pairs) > len(pc.unique(pairs["source_id"])):
        newest = pairs.group_by("source_id").aggregate([("commit", "max")]).rename_columns(["source_id", "commit"])
        tables = [_semi_joined(table, newest) for table in tables]
    return [table.drop_columns("commit") for table in tables]


def _corrected(videos: pa.Table, corrections: pa.Table) -> pa.Table:
    """The videos (VIDEOS_SCHEMA) with the newest correction of each; one of an earlier ingest of the same video says nothing.

    corrections: VIDEOS_SCHEMA and the column `commit`, oldest first.
    """
    if len(corrections) == 0:
        return videos
    keyed, corrections_keyed = (
        pa.table(
            {"id": table["video_id"], "at": pc.fill_null(table["ingested_at"].cast(pa.int64()), -1), "row": np.arange(len(table))}
        )
        for table in (videos, corrections)
    )
    newest = corrections_keyed.group_by(["id", "at"]).aggregate([("row", "max")])
    row = keyed.join(newest, ["id", "at"], join_type="left outer").sort_by("row")["row_max"]
    for name in CORRECTABLE:
        column = pc.if_else(pc.is_valid(row), corrections[name].take(row), videos[name])
        videos = videos.set_column(videos.schema.get_field_index(name), VIDEOS_SCHEMA.field(name), column)
    return videos


def _semi_joined(table: pa.Table, newest: pa.Table) -> pa.Table:
    """The rows whose source_id and commit stand in `newest`. pyarrow joins no table that has a column of lists."""
    keys = table.select(["source_id", "commit"]).append_column("row", pa.array(np.arange(len(table))))
    return table.take(keys.join(newest, ["source_id", "commit"], join_type="left semi")["row"])


def gallery_version(gallery: Gallery) -> str:
    """Names the set of a gallery's commits: how many there are, and a hash of their names."""
    names = gallery.commit_names()
    return f"{len(names)}:{sha256(' '.join(names))[:16]}"
