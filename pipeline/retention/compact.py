"""Compaction: what was forgotten leaves the disk, and small shards become large ones."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.catalog.inputs import candidate_id
from pipeline.decoding.video import Box
from pipeline.errors import PipelineError
from pipeline.footage.forgotten_people import places_of, write_without
from pipeline.footage.recordings import timeline
from pipeline.gallery.audit import append_record
from pipeline.gallery.detections import RECORDINGS_SCHEMA, boxes_of
from pipeline.gallery.gallery import TABLES, Gallery, Snapshot, files_of
from pipeline.index.build import publish_without
from pipeline.index.drafts import delete_drafts, held_partitions
from pipeline.index.partition_store import delete_partition, partition_store, read_videos
from pipeline.index.versions import drop_cached, holds_any, index_versions, open_index, partition_ids
from pipeline.storage.location import Location, StorageError

SHARD_FRAMES = 100_000  # of a compacted shard: 256 MB of 1280-wide features
KEEP_INDEXES = 3
KEPT_RECORDINGS = 2  # the last of a run, of which detections in no candidate keep their features
OURS = re.compile(
    r"[0-9a-f]{32}\.(?:parquet|npz)|\.writing-[0-9a-f]{32}"
)  # nothing else is ever deleted from a gallery's folders
PARTITION = re.compile(r"[0-9a-f]{32}")
VERSION = re.compile(r"\d{8}T\d{12}-[0-9a-f]{6}")
ORPHAN_AGE = timedelta(hours=24)  # a file that no commit names may belong to an ingest that is still running


@dataclass(frozen=True)
class Compaction:
    """What a compaction did. shards: live shards before and after; deleted: files removed; indexes: versions removed; reduced:
    the version that stands for the newest one, without the partitions that held forgotten videos, None where none was needed.
    """

    videos: int
    shards_before: int
    shards_after: int
    deleted: int
    indexes: list[str]
    reduced: str | None = None


def compact(gallery: Gallery, orphan_age: timedelta = ORPHAN_AGE, keep_indexes: int = KEEP_INDEXES) -> Compaction:
    """Rewrite the live videos into large shards in one commit, then delete what no commit names any more.

    Index versions that hold forgotten videos are deleted too, with the partitions that do, and all but the newest keep_indexes
    (0: none for its age). If the newest is among them, one of its other partitions is published first: searches go on in what
    can be kept, and the next jobs.index builds only the rest. Files that were never committed are deleted once they are older
    than orphan_age. A search that has an old version open fails if its files go away; it is safe to search again.
    """
    snapshot = gallery.snapshot()
    videos = snapshot.videos.sort_by([("shard", "ascending"), ("first_row", "ascending")])
    before = len(pc.unique(videos["shard"]))
    rewritten = _rewrite(gallery, videos)
    footage = _footage(gallery, snapshot)
    append_record(gallery, "compact", {"videos": len(videos), "forgotten": len(snapshot.forgotten)})
    gone = snapshot.tombstones.fields()
    gallery.commit(rewritten, snapshot.rejects, kind="compact", supersedes=list(snapshot.seen), **footage, **gone)
    deleted = _delete_unreferenced(gallery, orphan_age)
    doomed, reduced = _compact_indexes(gallery, snapshot.forgotten, orphan_age, keep_indexes)
    return Compaction(len(videos), before, len(pc.unique(rewritten["shard"])), deleted, doomed, reduced)


def _compact_indexes(
    gallery: Gallery, forgotten: frozenset[str], orphan_age: timedelta, keep_indexes: int
) -> tuple[list[str], str | None]:
    """Delete versions and partitions; returns the names of the versions that went, and of the one that came."""
    gone = pa.array(sorted(forgotten), pa.string())
    versions = index_versions(gallery)
    holding = [version for version in versions if _holds_any(gallery, version, gone)]
    reduced = None
    if versions and versions[-1] in holding:
        with suppress(PipelineError):  # damaged, or overtaken by another forgetting: the next build starts anew
            reduced = publish_without(gallery, open_index(gallery, versions[-1]), gone)
    old = versions[:-keep_indexes] if keep_indexes else []
    doomed = [version for version in versions if version in old or version in holding]
    partitions = set().union(*(partition_ids(gallery, version) for version in doomed))
    for version in doomed:
        gallery.location.join("index", version, "manifest.json").delete()  # first: from here on the version is not there
    _delete_unpublished(gallery, orphan_age, doomed)
    delete_drafts(gallery, gone)
    _delete_partitions(gallery, orphan_age, partitions, gone)
    drop_cached(gallery)
    return doomed, reduced


def _footage(gallery: Gallery, snapshot: Snapshot) -> dict[str, Any]:
    """What a compaction's commit says of recordings: detections that are in no candidate have no features any more.

    Those of each run's last recordings stay as they are: following goes on there. Without recordings nothing is said of any.
    """
    if not len(snapshot.recordings) and not snapshot.tracking and not len(snapshot.forgotten_boxes):
        return {}
    runs, _ = timeline(snapshot.recordings)
    rows = {row["source_id"]: row for row in snapshot.recordings.to_pylist()}
    for run in runs:
        settled = {part.row["source_id"] for part in run.parts[:-KEPT_RECORDINGS]}
        if run.name not in snapshot.tracking or not settled:
            continue
        videos = snapshot.videos
        of_run = pc.and_(snapshot.of_recordings(), pc.starts_with(videos["video_id"], candidate_id(run.name, "")))
        people = places_of(gallery, videos.filter(of_run))
        for source_id in sorted(settled):
            rows[source_id]["shard"] = _only_people(gallery, rows[source_id]["shard"], set(people.get(source_id, ())))
    recordings = pa.Table.from_pylist(list(rows.values()), schema=RECORDINGS_SCHEMA)
    tracked = {"sources": [], "runs": dict(snapshot.tracking)}
    return {"recordings": recordings, "forgotten_boxes": snapshot.forgotten_boxes, "tracked": tracked}


def _only_people(gallery: Gallery, shard: str, people: set[tuple[int, Box]]) -> str:
    """The file of detections with features for these (frame, box) alone: itself, where no other has one."""
    table = gallery.read_detections(shard)
    keys = zip(table["frame_index"].to_pylist(), map(tuple, boxes_of(table).tolist()), strict=True)
    nobody = np.array([key not in people for key in keys], bool)
    if not (nobody & np.asarray(pc.is_valid(table["feature"]))).any():
        return shard
    return write_without(gallery, table, nobody, ["feature"])


def _rewrite(gallery: Gallery, videos: pa.Table) -> pa.Table:
    """The same videos in shards of about SHARD_FRAMES frames."""
    tables: list[pa.Table] = []
    rows = 0
    moved: dict[int, tuple[str, int]] = {}
    members: list[int] = []

    def flush() -> None:
        nonlocal rows
        if tables:
            shard = gallery.write_shard(pa.concat_tables(tables, promote_options="default").combine_chunks())
            first = 0
            for position in members:
                moved[position] = (shard, first)
                first += counts[position]
        tables.clear()
        members.clear()
        rows = 0

    counts = videos["sampled_frames"].to_pylist()
    for positions, frames in gallery.iter_features(videos, checked=False):  # what is damaged can be moved
        tables.append(frames)
        members += [int(position) for position in positions]
        rows += len(frames)
        if rows >= SHARD_FRAMES:
            flush()
    flush()
    shards = pa.array([moved[position][0] for position in range(len(videos))], pa.string())
    first_rows = pa.array([moved[position][1] for position in range(len(videos))], pa.int64())
    table = videos.set_column(videos.schema.get_field_index("shard"), "shard", shards)
    return table.set_column(table.schema.get_field_index("first_row"), "first_row", first_rows)


def _holds_any(gallery: Gallery, version: str, video_ids: pa.Array) -> bool:
    if len(video_ids) == 0:
        return False
    try:
        return holds_any(open_index(gallery, version), video_ids)
    except PipelineError:  # what cannot be read cannot be shown to be clean
        return True


def _delete_unreferenced(gallery: Gallery, orphan_age: timedelta) -> int:
    """Delete superseded commits, and data files that no live commit names: at once if an old commit did, else when old enough.

    Commits are deleted last: what a compaction that was killed has left, the next one finds by them.
    """
    now = gallery.snapshot()
    referenced = {f"frames/{shard}" for shard in pc.unique(now.videos["shard"]).to_pylist()} | set(now.files)
    referenced |= {f"detections/{shard}" for shard in now.recordings["shard"].to_pylist()}
    superseded = sorted(set(now.seen) - set(now.commits))  # not of those there are by now: an ingest goes on committing
    was_referenced = set().union(*(_files_of(gallery, name) for name in superseded))
    deleted = 0
    for kind in ("frames", "detections", "tracking", *TABLES):
        for file, info in gallery.location.join(kind).infos():
            name = f"{kind}/{file.name}"
            if OURS.fullmatch(file.name) and name not in referenced and (name in was_referenced or _age(info) > orphan_age):
                file.delete()
                deleted += 1
    for name in superseded:
        gallery.location.join("commits", f"{name}.json").delete()
        deleted += 1
    return deleted


def _files_of(gallery: Gallery, name: str) -> set[str]:
    """Tables that a commit names, and the shards that these name, forgotten videos' included; of what another compaction has
    deleted meanwhile nothing.
    """
    files: set[str] = set()
    with _unless_gone():
        commit = json.loads(gallery.location.join("commits", f"{name}.json").read_bytes())
        files |= set(files_of(commit))
        for kind, shards in (("videos", "frames"), ("recordings", "detections")):
            for table in commit.get(kind, ()):
                with _unless_gone(), gallery.location.join(table).open_input() as source:
                    named = pc.unique(pq.read_table(source, columns=["shard"])["shard"]).to_pylist()
                files |= {f"{shards}/{shard}" for shard in named}
    return files


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        if error.kind != "missing":
            raise


def _delete_unpublished(gallery: Gallery, orphan_age: timedelta, doomed: list[str]) -> None:
    """Delete version folders without a manifest: the doomed ones, and those of builds and removals that were killed long ago."""
    index = gallery.location.join("index")
    published = set(index_versions(gallery))
    for version, files in _by_folder(index).items():
        if VERSION.fullmatch(version) and (version in doomed or (version not in published and _all_older(files, orphan_age))):
            for file, _ in files:
                file.delete()


def _delete_partitions(gallery: Gallery, orphan_age: timedelta, doomed: set[str], forgotten: pa.Array) -> None:
    """Delete partitions that no version names: those with forgotten videos, and the doomed and old ones that no build holds.

    A build that is still at work on one with forgotten videos takes itself back in the end.
    """
    store = partition_store(gallery)
    folders = _by_folder(store)
    is_held = held_partitions(gallery)  # before versions are read: a build publishes first, and then gives up its lease
    named = set().union(*(partition_ids(gallery, version) for version in index_versions(gallery)))
    for name, files in folders.items():
        if not PARTITION.fullmatch(name) or name in named:
            continue
        unwanted = not is_held(name) and (name in doomed or _all_older(files, orphan_age))
        if unwanted or _names_any(store.join(name), forgotten):
            delete_partition(gallery, name)


def _names_any(partition: Location, video_ids: pa.Array) -> bool:
    try:
        return bool(len(video_ids)) and bool(pc.any(pc.is_in(read_videos(partition)["video_id"], video_ids)).as_py())
    except (PipelineError, OSError, pa.ArrowException):  # not finished yet
        return False


def _by_folder(location: Location) -> dict[str, list[tuple[Location, Any]]]:
    """`Location.infos` of the files below a folder, by the folder right below it that they lie in."""
    folders: dict[str, list[tuple[Location, Any]]] = {}
    for file, info in location.infos(recursive=True):
        folders.setdefault(file.path[len(location.path) + 1 :].split("/")[0], []).append((file, info))
    return folders


def _all_older(files: list[tuple[Location, Any]], age: timedelta) -> bool:
    return min(_age(info) for _, info in files) > age


def _age(info: Any) -> timedelta:
    return datetime.now(UTC) - info.mtime if info.mtime is not None else timedelta(0)
