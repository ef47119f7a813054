"""Compaction: what was forgotten leaves the disk, and small shards become large ones."""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog.inputs import candidate_id
from pipeline.cluster import Cluster, cluster_is_named, connected, worker_errors
from pipeline.decoding.video import Box
from pipeline.errors import PipelineError
from pipeline.footage.forgotten_people import places_of, write_without
from pipeline.footage.recordings import timeline
from pipeline.gallery.audit import append_record
from pipeline.gallery.detections import boxes_of
from pipeline.gallery.gallery import Gallery, Snapshot
from pipeline.gallery.kept_pictures import delete_forgotten_pictures
from pipeline.gallery.log import AT_ONCE
from pipeline.gallery.tables import MOVES_SCHEMA, TABLES
from pipeline.index.build import publish_without
from pipeline.index.drafts import delete_drafts, held_partitions
from pipeline.index.freshness import holds_any
from pipeline.index.partition_store import delete_partition, read_videos
from pipeline.index.version_files import drop_cached, index_versions, partition_ids, partition_store
from pipeline.index.versions import open_index
from pipeline.storage.location import Location

SHARD_FRAMES = 100_000  # of a compacted shard: 256 MB of 1280-wide features
KEEP_INDEXES = 3
KEPT_RECORDINGS = 2  # the last of a run, of which detections in no candidate keep their features
OURS = re.compile(
    r"[0-9a-f]{32}\.(?:parquet|npz)|\.writing-[0-9a-f]{32}"
)  # nothing else is ever deleted from a gallery's folders
STALE = re.compile(r"[a-z_]+/[0-9a-f]{32}\.(?:parquet|npz)|commits/\d{20}-[0-9a-f]{8}\.json")
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


def compact(
    gallery: Gallery,
    orphan_age: timedelta = ORPHAN_AGE,
    keep_indexes: int = KEEP_INDEXES,
    address: Cluster | str | None = None,
) -> Compaction:
    """Make small shards large, rewrite those that hold what does not count any more, then delete what nobody needs.

    Only these shards are read. Each that is finished is committed, so a compaction that was killed is gone on with; one after
    another has nothing to do. The log becomes one checkpoint, and what older commits said is emptied.

    Index versions that hold forgotten videos are deleted too, with the partitions that do, and all but the newest keep_indexes
    (0: none for its age). If the newest is among them, one of its other partitions is published first: searches go on in what
    can be kept, and the next jobs.index builds only the rest. Files that were never committed are deleted once they are older
    than orphan_age. A search that has an old version open fails if its files go away; it is safe to search again.

    address: a cluster (else RAY_ADDRESS) whose tasks rewrite shards, each a CPU's; without one they are rewritten here, one after
    another. Memory: one new shard, in each. Raises PipelineError on a damaged shard.
    """
    gallery.adopt()
    snapshot = gallery.snapshot()
    before = len(pc.unique(snapshot.videos["shard"]))
    append_record(gallery, "compact", {"videos": len(snapshot.videos), "forgotten": len(snapshot.forgotten)})
    _rewrite(gallery, snapshot, address)
    _settle_footage(gallery, snapshot)
    while not gallery.log.is_whole() and not gallery.log.checkpoint(whole=True):
        pass  # another writer's came first
    deleted = _delete_stale(gallery) + _delete_orphans(gallery, orphan_age) + delete_forgotten_pictures(gallery)
    doomed, reduced = _compact_indexes(gallery, snapshot.forgotten, orphan_age, keep_indexes)
    after = len(pc.unique(gallery.snapshot().videos["shard"]))
    return Compaction(len(snapshot.videos), before, after, deleted, doomed, reduced)


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
    drop_cached(gallery, index_versions(gallery))
    return doomed, reduced


def _settle_footage(gallery: Gallery, snapshot: Snapshot) -> None:
    """Take the features off detections that are in no candidate. Those of each run's last recordings stay as they are: following
    goes on there.
    """
    runs, _ = timeline(snapshot.recordings)
    for run in runs:
        rows = {part.row["source_id"]: part.row for part in run.parts[:-KEPT_RECORDINGS]}
        rows = {one: row for one, row in rows.items() if f"detections/{row['shard']}" not in snapshot.settled}
        if run.name not in snapshot.tracking or not rows:
            continue
        videos = snapshot.videos
        of_run = pc.and_(snapshot.of_recordings(), pc.starts_with(videos["video_id"], candidate_id(run.name, "")))
        people = places_of(gallery, videos.filter(of_run))
        for source_id, row in sorted(rows.items()):
            shard = _only_people(gallery, row["shard"], set(people.get(source_id, ())))
            move = {"folder": "detections", "id": source_id, "shard": row["shard"], "to_shard": shard}
            moves = pa.Table.from_pylist([move] if shard != row["shard"] else [], schema=MOVES_SCHEMA)
            gallery.commit(kind="compact", moves=moves, settled=[f"detections/{shard}"])


def _only_people(gallery: Gallery, shard: str, people: set[tuple[int, Box]]) -> str:
    """The file of detections with features for these (frame, box) alone: itself, where no other has one."""
    table = gallery.read_detections(shard)
    keys = zip(table["frame_index"].to_pylist(), map(tuple, boxes_of(table).tolist()), strict=True)
    nobody = np.array([key not in people for key in keys], bool)
    if not (nobody & np.asarray(pc.is_valid(table["feature"]))).any():
        return shard
    return write_without(gallery, table, nobody, ["feature"])


def _rewrite(gallery: Gallery, snapshot: Snapshot, address: Cluster | str | None) -> None:
    """Write the frames of small shards, and of those that hold others too, into shards of about SHARD_FRAMES frames."""
    chosen, settled = _shards_to_rewrite(gallery, snapshot)
    if settled:
        gallery.commit(kind="compact", settled=sorted(f"frames/{shard}" for shard in settled))
    videos = snapshot.videos.filter(pc.is_in(snapshot.videos["shard"], pa.array(sorted(chosen), pa.string())))
    groups = _groups(videos.sort_by([("shard", "ascending"), ("first_row", "ascending")]))
    if len(groups) < 2 or not cluster_is_named(address):
        for group in groups:
            _move(gallery, group)
        return
    import ray

    with (
        connected(address),
        worker_errors("a worker died while it wrote a shard; what is committed stays, run jobs.compact again"),
    ):
        move = ray.remote(num_cpus=1, max_retries=2)(_move)
        ray.get([move.remote(gallery, group) for group in groups])


def _groups(videos: pa.Table) -> list[pa.Table]:
    """Videos (VIDEOS_SCHEMA, by shard) in groups of whole shards, of SHARD_FRAMES frames or little more; the last of less."""
    shards, frames = videos["shard"].to_pylist(), videos["sampled_frames"].to_pylist()
    ends, held = [0], 0
    for row, count in enumerate(frames):
        held += count
        if row + 1 == len(frames) or (held >= SHARD_FRAMES and shards[row + 1] != shards[row]):
            ends.append(row + 1)
            held = 0
    return [videos.slice(start, end - start) for start, end in itertools.pairwise(ends)]


def _move(gallery: Gallery, videos: pa.Table) -> None:
    """Write the frames of videos as one shard, and commit that they are there now. Memory: what it writes."""
    read = list(gallery.iter_features(videos, checked=False))  # what is damaged can be moved
    shard = gallery.write_shard(pa.concat_tables([frames for _, frames in read], promote_options="default").combine_chunks())
    videos = videos.take(pa.array(np.concatenate([positions for positions, _ in read])))
    counts = np.asarray(videos["sampled_frames"], np.int64)
    columns = {
        "folder": ["frames"] * len(videos),
        "id": videos["video_id"],
        "shard": videos["shard"],
        "to_shard": [shard] * len(videos),
        "to_first_row": np.cumsum(counts) - counts,
    }
    gallery.commit(kind="compact", moves=pa.table(columns, schema=MOVES_SCHEMA), settled=[f"frames/{shard}"])


def _shards_to_rewrite(gallery: Gallery, snapshot: Snapshot) -> tuple[set[str], set[str]]:
    """Shards to be written anew, and those that were looked at for the first time and stay."""
    rows = snapshot.videos.group_by("shard").aggregate([("sampled_frames", "sum")])
    live = dict(zip(rows["shard"].to_pylist(), rows["sampled_frames_sum"].to_pylist(), strict=True))
    dirty = {shard for shard in live if f"frames/{shard}" in snapshot.stale}
    new = [shard for shard in live if shard not in dirty and f"frames/{shard}" not in snapshot.settled]
    with ThreadPoolExecutor(AT_ONCE) as pool:  # an ingest that was killed has left rows there of which no commit tells
        dirty |= {shard for shard, held in zip(new, pool.map(gallery.shard_rows, new), strict=True) if held != live[shard]}
    small = {shard for shard in live if shard not in dirty and live[shard] < SHARD_FRAMES // 2}
    chosen = dirty | small if dirty or len(small) > 1 else set()
    return chosen, set(new) - chosen


def _holds_any(gallery: Gallery, version: str, video_ids: pa.Array) -> bool:
    if len(video_ids) == 0:
        return False
    try:
        return holds_any(open_index(gallery, version), video_ids)
    except PipelineError:  # what cannot be read cannot be shown to be clean
        return True


def _delete_stale(gallery: Gallery) -> int:
    """Delete files that hold nothing but what does not count, and the log's history; returns how many went.

    A commit says beforehand which, so that no writer can make one count again, and another one afterwards that they are gone:
    what a compaction that was killed has left, the next one finds by the log.
    """
    now = gallery.snapshot()
    gone = sorted(name for name in now.stale - now.live if STALE.fullmatch(name))
    if not gone and now.emptied == gallery.log.checkpointed():
        return 0
    gallery.commit(kind="compact", retired=gone)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: gallery.location.join(name).delete(), gone))
    emptied = gallery.log.forget_history(now.emptied)
    gallery.commit(kind="compact", deleted=gone, emptied=emptied)
    return len(gone)


def _delete_orphans(gallery: Gallery, orphan_age: timedelta) -> int:
    """Delete old data files that no commit names."""
    now = gallery.snapshot()
    referenced = now.live | now.stale | gallery.log.files()
    deleted = 0
    for kind in ("frames", "detections", "tracking", "commits", "checkpoints", *TABLES):
        for file, info in gallery.location.join(kind).infos():
            if OURS.fullmatch(file.name) and f"{kind}/{file.name}" not in referenced and _age(info) > orphan_age:
                file.delete()
                deleted += 1
    return deleted


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
