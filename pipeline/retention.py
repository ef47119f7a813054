"""Forgetting videos, and compaction: what was forgotten leaves the disk, and small shards become large ones."""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.audit import append_record, check_policy
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import VIDEOS_SCHEMA, Gallery, Snapshot
from pipeline.index import index_versions, open_index
from pipeline.storage import Location

SHARD_FRAMES = 100_000  # of a compacted shard: 256 MB of 1280-wide features
KEEP_INDEXES = 3
OURS = re.compile(r"[0-9a-f]{32}\.parquet|\.writing-[0-9a-f]{32}")  # nothing else is ever deleted from a gallery's folders
VERSION = re.compile(r"\d{8}T\d{12}-[0-9a-f]{6}")
ORPHAN_AGE = timedelta(hours=24)  # a file that no commit names may belong to an ingest that is still running


@dataclass(frozen=True)
class Selection:
    """Videos to forget: those that any of the given criteria chooses. before: aware datetime, by start time."""

    video_ids: tuple[str, ...] = ()
    camera: str | None = None
    before: datetime | None = None
    person: str | None = None

    def of(self, snapshot: Snapshot) -> pa.Table:
        """The rows of Snapshot.videos that are chosen. Raises UsageError for an id that is not there or nothing to choose by."""
        videos = snapshot.videos
        if not (self.video_ids or self.camera or self.before or self.person):
            raise UsageError("say what to forget: a video id, a camera, a time or a person")
        if sum(map(bool, (self.video_ids, self.camera, self.before, self.person))) > 1:
            raise UsageError("choose by ids, by camera, by time or by person, one at a time; nothing was forgotten")
        known = set(videos["video_id"].to_pylist())
        if unknown := [video_id for video_id in self.video_ids if video_id not in known]:
            raise UsageError(f"the gallery has no video {unknown[0]!r}; nothing was forgotten")
        chosen = pc.is_in(videos["video_id"], pa.array(self.video_ids, pa.string()))
        for column, value, compare in (
            ("camera_id", self.camera, pc.equal),
            ("person_id", self.person, pc.equal),
            ("start_time", self.before, pc.less),
        ):
            if value is not None:
                hit = compare(videos[column], pa.scalar(value, videos.schema.field(column).type))
                chosen = pc.or_(chosen, pc.fill_null(hit, False))
        return videos.filter(chosen)


def forget(gallery: Gallery, selection: Selection, reason: str, case: str | None = None) -> list[str]:
    """Forget videos: they are in no result from now on, and never come back by another ingest. Returns their ids.

    The audit log says who and why first. Their features leave the disk with the next compaction.
    """
    if not reason.strip():
        raise UsageError("a reason is needed: it goes into the audit log; nothing was forgotten")
    check_policy(gallery, reason, case)
    snapshot = gallery.snapshot()
    chosen = selection.of(snapshot)
    ids = chosen["video_id"].to_pylist()
    if not ids:
        return []
    append_record(gallery, "forget", {"reason": reason, "case": case, "videos": ids})
    uris = sorted(set(chosen["uri"].to_pylist()))
    gallery.commit(VIDEOS_SCHEMA.empty_table(), snapshot.rejects.slice(0, 0), kind="forget", forgotten=ids, forgotten_uris=uris)
    return ids


@dataclass(frozen=True)
class Compaction:
    """What a compaction did. shards: live shards before and after; deleted: files removed; indexes: versions removed."""

    videos: int
    shards_before: int
    shards_after: int
    deleted: int
    indexes: list[str]


def compact(gallery: Gallery, orphan_age: timedelta = ORPHAN_AGE, keep_indexes: int = KEEP_INDEXES) -> Compaction:
    """Rewrite the live videos into large shards in one commit, then delete what no commit names any more.

    Index versions that hold forgotten videos are deleted too, and all but the newest keep_indexes (0: none for its age). Files
    that were never committed are deleted once they are older than orphan_age. A search that has an old version open fails if its
    files go away; it is safe to search again.
    """
    snapshot = gallery.snapshot()
    videos = snapshot.videos.sort_by([("shard", "ascending"), ("first_row", "ascending")])
    before = len(pc.unique(videos["shard"]))
    rewritten = _rewrite(gallery, videos)
    tombstones = {"forgotten": sorted(snapshot.forgotten), "forgotten_uris": sorted(snapshot.forgotten_uris)}
    append_record(gallery, "compact", {"videos": len(videos), "forgotten": len(snapshot.forgotten)})
    gallery.commit(rewritten, snapshot.rejects, kind="compact", supersedes=list(snapshot.seen), **tombstones)
    deleted = _delete_unreferenced(gallery, orphan_age)
    versions = index_versions(gallery)
    old = versions[:-keep_indexes] if keep_indexes else []
    doomed = [version for version in versions if version in old or _holds_any(gallery, version, snapshot.forgotten)]
    for version in doomed:
        gallery.location.join("index", version, "manifest.json").delete()  # first: from here on the version is not there
    _delete_unpublished(gallery, orphan_age, doomed)
    return Compaction(len(videos), before, len(pc.unique(rewritten["shard"])), deleted, doomed)


def _rewrite(gallery: Gallery, videos: pa.Table) -> pa.Table:
    """The same videos in shards of about SHARD_FRAMES frames."""
    tables: list[pa.Table] = []
    rows = 0
    moved: dict[int, tuple[str, int]] = {}
    members: list[int] = []

    def flush() -> None:
        nonlocal rows
        if tables:
            shard = gallery.write_shard(pa.concat_tables(tables).combine_chunks())
            first = 0
            for position in members:
                moved[position] = (shard, first)
                first += counts[position]
        tables.clear()
        members.clear()
        rows = 0

    counts = videos["sampled_frames"].to_pylist()
    for positions, frames in gallery.iter_features(videos):
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


def _holds_any(gallery: Gallery, version: str, video_ids: frozenset[str]) -> bool:
    if not video_ids:
        return False
    try:
        return bool(video_ids & set(open_index(gallery, version).videos["video_id"].to_pylist()))
    except PipelineError:  # what cannot be read cannot be shown to be clean
        return True


def _delete_unreferenced(gallery: Gallery, orphan_age: timedelta) -> int:
    """Delete superseded commits, and data files that no live commit names: at once if an old commit did, else when old enough.

    Commits are deleted last: what a compaction that was killed has left, the next one finds by them.
    """
    now = gallery.snapshot()
    referenced = {f"frames/{shard}" for shard in pc.unique(now.videos["shard"]).to_pylist()} | set(now.files)
    superseded = sorted(set(gallery.commit_names()) - set(now.commits))
    was_referenced = set().union(*(_files_of(gallery, name) for name in superseded))
    deleted = 0
    for kind in ("frames", "videos", "rejects"):
        folder = gallery.location.join(kind)
        for file in [*folder.list(), *folder.leftovers()]:
            name = f"{kind}/{file.name}"
            if (
                OURS.fullmatch(file.name)
                and name not in referenced
                and (name in was_referenced or _age(file.info()) > orphan_age)
            ):
                file.delete()
                deleted += 1
    for name in superseded:
        gallery.location.join("commits", f"{name}.json").delete()
        deleted += 1
    return deleted


def _files_of(gallery: Gallery, name: str) -> set[str]:
    """Tables that a commit names, and the shards that these name, forgotten videos' included."""
    commit = json.loads(gallery.location.join("commits", f"{name}.json").read_bytes())
    files = {*commit["videos"], *commit["rejects"]}
    for table in commit["videos"]:
        if gallery.location.join(table).exists():
            with gallery.location.join(table).open_input() as source:
                files |= {f"frames/{shard}" for shard in pc.unique(pq.read_table(source, columns=["shard"])["shard"]).to_pylist()}
    return files


def _delete_unpublished(gallery: Gallery, orphan_age: timedelta, doomed: list[str]) -> None:
    """Delete index folders without a manifest: the doomed ones, and those of builds and removals that were killed long ago."""
    index = gallery.location.join("index")
    published = set(index_versions(gallery))
    versions: dict[str, list[Location]] = {}
    for file in [*index.list(recursive=True), *index.leftovers()]:
        version = file.path[len(index.path) + 1 :].split("/")[0]
        if VERSION.fullmatch(version):
            versions.setdefault(version, []).append(file)
    for version, files in versions.items():
        if version in doomed or (version not in published and min(_age(file.info()) for file in files) > orphan_age):
            for file in files:
                file.delete()


def _age(info: Any) -> timedelta:
    return datetime.now(UTC) - info.mtime if info.mtime is not None else timedelta(0)
