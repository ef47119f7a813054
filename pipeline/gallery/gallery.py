"""The gallery: Parquet shards of frame features, and the commits that say which of them count.

    gallery.json     what the gallery is made with (backbone, sampling); the first ingest decides on it
    frames/*.parquet            features, in files whose names are never used again; they count once a commit names them
    recordings/, detections/, tracking/      of whole recordings, in files of the same kind (pipeline.gallery.detections)
    commits/, checkpoints/      the log: what happened, step by step and in one order (pipeline.gallery.log)
    videos/, rejects/, ...      tables of the log that are too long for its own documents
    index/           index versions (pipeline.index.versions)
    audit/           who searched and deleted, and why (pipeline.gallery.audit)

Nothing is changed in place, so a reader, a retry and a kill -9 can only meet files that no commit names. What holds after a
commit follows from those before it and itself (pipeline.gallery.state): it may bring videos, correct CORRECTABLE columns of rows
that are there, forget some, or say where a compaction has put them.
"""

import contextlib
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.backbone.spec import BackboneSpec
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.entries import mentions_of_tracks
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.log import Log
from pipeline.gallery.state import Snapshot, folded
from pipeline.gallery.tables import REJECTS_SCHEMA, VIDEOS_SCHEMA, feature_matrix, frames_schema, frames_table
from pipeline.storage.documents import typed
from pipeline.storage.faults import StorageError
from pipeline.storage.formats import check_format
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location, resolve
from pipeline.storage.reach import Reach, inside_checker
from pipeline.storage.seals import sealed, unsealed

__all__ = ["REJECTS_SCHEMA", "VIDEOS_SCHEMA", "Gallery", "GallerySettings", "Position", "Snapshot", "feature_matrix"]
__all__ += ["frames_schema", "frames_table", "gallery_version"]

OLDEST_FORMAT, FORMAT = 1, 3  # of gallery.json, which stands for the tables too; 2 where it has roots, 3: its commits are a log
ROW_GROUP_ROWS = 1024  # frames; a video is read without reading its shard

_INGESTED = ["video_id", "ingested_at", "sampled_frames"]  # the same: a video has the same frames

Position = int | Collection[str]  # in the log; names of commits where older versions alone wrote


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


class Gallery:
    """An open gallery; cheap to make, holds no data."""

    def __init__(self, location: Location, settings: GallerySettings, format_: int = FORMAT) -> None:
        self.location = location
        self.settings = settings
        self.format = format_
        self.log = Log(location)

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
    def open(cls, uri: str | Path) -> Self:
        """Open an existing gallery. Raises UsageError when there is none, PipelineError when gallery.json is unusable."""
        location = resolve(uri)
        try:
            fields = unsealed(location.join("gallery.json").read_bytes())
            check_format(f"the gallery {location.uri}", fields["format"], OLDEST_FORMAT, FORMAT, "ingest its videos anew")
            settings = typed(GallerySettings, fields, complete=False)
        except (ValueError, KeyError) as error:
            raise PipelineError(f"{location.join('gallery.json').uri} is damaged: {error}") from error
        except StorageError as error:
            if location.join("gallery.json").exists():
                raise
            raise UsageError(f"{location.uri} is not a gallery (it has no gallery.json); make one with jobs.ingest") from error
        return cls(location, settings, fields["format"])

    @classmethod
    def open_or_create(cls, uri: str | Path, settings: GallerySettings) -> Self:
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
            fields = {"format": FORMAT, "created_at": datetime.now(UTC).isoformat(), **asdict(settings)}
            location.join("gallery.json").create(sealed(fields, indent=1))  # of two first ingests one decides
        found = cls.open(uri)
        made = found.settings
        if differences := settings.differences(made):
            raise UsageError(f"{location.uri} was made with other settings: {'; '.join(differences)}; use another gallery")
        opened = cls(location, replace(settings, roots=made.roots), found.format)
        opened.narrowed(settings.roots)
        return opened  # these name the backbone's file where it lies now

    def snapshot(self) -> Snapshot:
        """The gallery now. Raises PipelineError naming the file when a committed file is missing or damaged."""
        return folded(*self.log.read())

    def forgotten(self, known: Position = 0) -> frozenset[str]:
        """Ids of the videos that were deleted: they are in no result from the moment of the commit on.

        known: position up to which commits need not be read, because the caller was made from them (`Snapshot.position`).
        """
        return self.tombstones(known).ids

    def tombstones(self, known: Position = 0) -> Forgotten:
        """All that is known of the videos that were deleted; known: see `forgotten`."""
        return self.news(known)[0]

    def news(self, known: Position) -> tuple[Forgotten, frozenset[str]]:
        """What was forgotten after a position, and the data files that compactions said they delete; perhaps earlier ones."""
        entries = self.log.since(known, ["forgotten"])
        tables = [entry.tables["forgotten"] for entry in entries if "forgotten" in entry.tables]
        retired = frozenset(file for entry in entries for file in entry.document.get("retired", ()))
        return Forgotten.in_table(pa.concat_tables(tables)) if tables else Forgotten(), retired

    def has_changes_since(self, known: Position) -> bool:
        """Whether any commit after a position brought, took away or corrected videos.

        A reject counts: a source that cannot be used any more takes its videos with it. Deletions and compactions do not.
        """
        number = known if isinstance(known, int) else 0
        return not self.log.is_newest(known) and any(entry.changed > number for entry in self.log.since(known, []))

    def position(self) -> Position:
        """How far the log is, as `Snapshot.position` says it."""
        return self.log.head() or tuple(self.log.old_names()) or 0

    def commit(
        self,
        videos: pa.Table | None = None,
        rejects: pa.Table | None = None,
        recordings: pa.Table | None = None,
        forgotten_boxes: pa.Table | None = None,
        *,
        kind: str = "ingest",
        tracked: Mapping[str, Any] | None = None,
        moves: pa.Table | None = None,
        forgotten: Forgotten | None = None,
        checked: Position | None = None,
        **fields: Any,
    ) -> int:
        """Make videos, rejects and recordings part of the gallery in one step; the shards they name are already written.

        kind: "ingest", "correct" (videos are rows of a snapshot with other values in CORRECTABLE columns), "compact", "forget",
        "detect" or "track". tracked: {"sources": ids of recordings of which the videos are all tracks that begin in them, "runs":
        see `Snapshot.tracking`, None for one that is no more}. moves: MOVES_SCHEMA. checked: position of the snapshot from which
        shards were taken that the rows name, see `Log.append`. fields: files that become `stale` or `settled` (see `Snapshot`),
        that are about to be deleted ("retired") and that were ("deleted"). Returns the commit's number.
        """
        self._upgrade()
        tables = {"rejects": rejects, "recordings": recordings, "forgotten_boxes": forgotten_boxes, "moves": moves}
        tables["corrections" if kind == "correct" else "videos"] = videos
        tables["mentions"] = mentions_of_tracks(tracked["sources"]) if tracked else None
        tables["forgotten"] = forgotten.table() if forgotten else None
        document = {"kind": kind, **fields} | ({"runs": tracked["runs"]} if tracked else {})
        said = {name: table for name, table in tables.items() if table is not None and len(table)}
        return self.log.append(document, said, checked if isinstance(checked, int) else None)

    def adopt(self) -> bool:
        """Take into the log what older versions wrote; returns whether there was any that is not in it."""
        self._upgrade()
        return self.log.adopt()

    def _upgrade(self) -> None:
        """Let older versions, which would miss what the log holds, not open the gallery any more."""
        if self.format < FORMAT:
            location = self.location.join("gallery.json")
            location.write_atomically(sealed({**unsealed(location.read_bytes()), "format": FORMAT}, indent=1))
            self.format = FORMAT

    def write_shard(self, table: pa.Table) -> str:
        """Write frames (frames_schema, a video's rows contiguous) as one shard and return its name.

        The shard counts once a commit's videos name it. Its name is its own: two writers of the same rows (a task that is run
        again, a job submitted twice) must not share a file that a compaction may delete for one of them.
        """
        return self.write_tables("frames", table.schema, [table])

    def write_tables(self, kind: str, schema: pa.Schema, tables: Iterable[pa.Table], name: str | None = None) -> str:
        """Write tables, as they come, as one file of "frames" or "detections" and return its name; see `write_shard`.

        name: None for a new one. What `tables` raises passes through, and nothing is written.
        """
        name = name or f"{uuid.uuid4().hex}.parquet"
        names = [name for name in ("video_id", "recording_id", "place.recording_id") if name.split(".")[0] in schema.names]
        how: dict[str, Any] = {"compression": "zstd", "use_dictionary": names, "write_page_checksum": True}

        def write(sink: Any) -> None:
            with pq.ParquetWriter(sink, schema, **how) as writer:
                for table in tables:
                    writer.write_table(table, row_group_size=ROW_GROUP_ROWS)

        self.location.join(kind, name).write_atomically(write)
        return name

    def read_detections(self, shard: str, columns: Sequence[str] | None = None, group: int | None = None) -> pa.Table:
        """All rows of a file of detections/, or those of one row group. Raises PipelineError."""
        names = None if columns is None else list(columns)
        with self._detections(shard) as file:
            return file.read(names) if group is None else file.read_row_group(group, names)

    def detection_groups(self, shard: str) -> np.ndarray:
        """Where each row group of a file of detections/ ends, int64. Raises PipelineError."""
        with self._detections(shard) as file:
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            return np.cumsum(np.array(counts, np.int64))

    @contextlib.contextmanager
    def _detections(self, shard: str) -> Iterator[pq.ParquetFile]:
        location = self.location.join("detections", shard)
        try:
            with location.open_input() as source:
                yield pq.ParquetFile(source, page_checksum_verification=True)
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

    def shard_rows(self, shard: str) -> int:
        """How many rows a shard has, whether they count or not. Raises PipelineError."""
        location = self.location.join("frames", shard)
        try:
            with location.open_input() as source:
                return int(pq.ParquetFile(source).metadata.num_rows)
        except (OSError, pa.ArrowException, ValueError) as error:
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

    def frames(self, videos: pa.Table | None = None) -> pa.RecordBatchReader:
        """The frames that count, for pandas (`read_pandas`), pyarrow and DuckDB, which finds a reader by its variable's name.
        frames/ itself holds those of killed and replaced ingests too, until a compaction.

        videos: rows of Snapshot.videos, by default all. Rows are as in `frames_schema`, features as float32: DuckDB takes no
        float16 from Arrow. Memory: one shard. What `iter_features` raises comes while it is read.
        """
        videos = self.snapshot().videos if videos is None else videos
        schema = frames_schema(self.feature_width, pa.float32())
        tables = (frames.select(schema.names).cast(schema) for _, frames in self.iter_features(videos))
        return pa.RecordBatchReader.from_batches(schema, (batch for table in tables for batch in table.to_batches()))

    def iter_videos(self, videos: pa.Table, *, checked: bool = True) -> Iterator[tuple[int, pa.Table]]:
        """`iter_features` video by video: (row in `videos`, its frames)."""
        counts = videos["sampled_frames"].to_pylist()
        for positions, frames in self.iter_features(videos, checked=checked):
            start = 0
            for position in positions.tolist():
                yield position, frames.slice(start, counts[position])
                start += counts[position]


def gallery_version(gallery: Gallery) -> str:
    """Names a state of a gallery: the number of its newest commit; while older versions alone wrote it, how many commits there
    are, and a hash of their names.
    """
    position = gallery.position()
    return str(position) if isinstance(position, int) else f"{len(position)}:{sha256(' '.join(position))[:16]}"
