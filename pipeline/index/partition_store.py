"""The partitions of a gallery's index versions: which are kept, which are built, in this process or over Ray, and where they lie.

A partition lies in index/partitions/<id>/ and never changes; its id is never used again (it begins with that of its build, the
rest is random), so that a build that was killed, a task that is run again and a compaction cannot meet in one folder. It counts
once the manifest of a version names it; until then a lease keeps it (`pipeline.index.drafts`).
"""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import telemetry
from pipeline.cluster import Cluster, cluster_is_named, connected, worker_errors
from pipeline.coattention.cameras import CameraHeads
from pipeline.coattention.cohort import Cohort
from pipeline.gallery.gallery import Gallery
from pipeline.index.partition_files import write_partition
from pipeline.index.version_files import partition_store
from pipeline.storage.hashing import sha256
from pipeline.storage.local_paths import new_folder
from pipeline.storage.location import Location
from pipeline.time_windows import seen

VIDEOS = "videos.arrow"
MOST_CAMERAS = 1000  # named in a partition's entry; with more, a search looks into every partition
FRAMES_OF = ("ingested_at", "sampled_frames")  # the same: the same ingest, and so the same frames
LOOKED_AT = (*FRAMES_OF, "uri", "camera_id", "start_time", "person_id", "seen_from", "seen_to")
FULL = 0.75  # a partition of which this share is used is left alone


@dataclass(frozen=True)
class Plan:
    """What an index version is put together from. kept: numbers of old partitions; fresh: rows of each that is to be built."""

    kept: list[int]
    fresh: list[pa.Table]


def plan_partitions(
    videos: pa.Table, partition_videos: int, indexed: pa.Table | None = None, old: Sequence[dict[str, Any]] = ()
) -> Plan:
    """Which partitions an index of `videos` (of a snapshot) keeps of an older one, and which it needs besides.

    videos: at least one. indexed, old: videos and partitions of the older index.

    A partition of which a video is gone, was ingested anew or was corrected is given up. When that or new videos make work, so is
    every partition that is less than FULL. The videos of these join the new ones: pooled, they are cut into partitions of
    `partition_videos`, the last one smaller. So an addition encodes the new videos, those that share a partition with one that
    went, and at most FULL * partition_videos others for each partition that was not full (after additions alone, one); and there
    are never more than videos / (FULL * partition_videos) + 1 partitions.

    Whole shards stay together where they can, in the order of their earliest video: partitions then span little time, and a
    search of some hours skips most of them. Within a partition videos are in shard order.
    """
    kept: list[int] = []
    if indexed is not None:
        clean = _unchanged(videos, indexed, old)
        covered = _ids_of(indexed, [old[n] for n in clean])
        if len(covered) < len(videos):
            clean = [n for n in clean if old[n]["videos"] >= FULL * partition_videos]
            covered = _ids_of(indexed, [old[n] for n in clean])
        kept = clean
        videos = videos.filter(pc.invert(pc.is_in(videos["video_id"], covered)))
    return Plan(kept, _cut(_by_time_of_shard(videos), partition_videos))


def _cut(videos: pa.Table, partition_videos: int) -> list[pa.Table]:
    pieces = [videos.slice(start, partition_videos) for start in range(0, len(videos), partition_videos)]
    return [piece.sort_by([("shard", "ascending"), ("first_row", "ascending")]) for piece in pieces]


def with_finished(
    fresh: Sequence[pa.Table], partition_videos: int, finished: Sequence[dict[str, Any]], indexed: pa.Table
) -> list[tuple[pa.Table, dict[str, Any] | None]]:
    """The partitions that a plan wants built, in its order, as (rows, entry): what another build has finished, and the rest.

    fresh: of a plan. finished, indexed: entries and videos of the other build's partitions; rows of those that are kept are of
    `indexed`. None: is to be built. Where nothing has changed since, the partitions are those of the plan.
    """
    if not finished:
        return [(rows, None) for rows in fresh]
    pool = _by_time_of_shard(pa.concat_tables(fresh))
    clean = _unchanged(pool, indexed, finished)
    left = len(pool) - sum(finished[n]["videos"] for n in clean)
    if left % partition_videos:  # a small one would not be the last
        clean = [n for n in clean if finished[n]["videos"] >= FULL * partition_videos]
    covered = _ids_of(indexed, [finished[n] for n in clean])
    rest = pool.filter(pc.invert(pc.is_in(pool["video_id"], covered)))
    parts: list[tuple[pa.Table, dict[str, Any] | None]] = [
        (indexed.slice(finished[n]["first_video"], finished[n]["videos"]), finished[n]) for n in clean
    ]
    parts += [(rows, None) for rows in _cut(rest, partition_videos)]
    ids = pa.concat_tables([rows.select(["video_id"]) for rows, _ in parts])["video_id"]
    places = np.asarray(pc.index_in(ids, value_set=pool["video_id"].combine_chunks()))
    first = np.minimum.reduceat(places, np.cumsum([0, *(len(rows) for rows, _ in parts[:-1])]))
    return [parts[number] for number in np.argsort(first)]


def _unchanged(videos: pa.Table, indexed: pa.Table, old: Sequence[dict[str, Any]]) -> list[int]:
    """Partitions of which every video is in the gallery as it is indexed."""
    same = as_indexed(videos, indexed)
    return [n for n, part in enumerate(old) if same[part["first_video"] : part["first_video"] + part["videos"]].all()]


def as_indexed(videos: pa.Table, indexed: pa.Table, columns: Sequence[str] = LOOKED_AT) -> np.ndarray:
    """Which indexed videos are in the gallery as an index has them: bool, one a row of `indexed`.

    videos: of a snapshot. columns: what is compared. Not so are those that are gone, that were ingested anew (FRAMES_OF), and of
    which something was corrected that a search looks at or tells.
    """
    position = pc.index_in(indexed["video_id"], value_set=videos["video_id"].combine_chunks())
    same = pc.is_valid(position)
    for name in columns:
        if name in indexed.schema.names:  # indexes of older versions have fewer columns
            now, then = videos[name].take(position), indexed[name]
            both_null = pc.and_(pc.is_null(now), pc.is_null(then))
            same = pc.and_(same, pc.or_(both_null, pc.fill_null(pc.equal(now, then), False)))
    return np.array(same, np.bool_)


def _ids_of(indexed: pa.Table, partitions: list[dict[str, Any]]) -> pa.Array:
    ids = [indexed["video_id"].slice(part["first_video"], part["videos"]) for part in partitions]
    return pa.chunked_array([chunk for part in ids for chunk in part.chunks], pa.string()).combine_chunks()


def _by_time_of_shard(videos: pa.Table) -> pa.Table:
    shards = pa.table({"shard": videos["shard"], "seen": seen(videos)[0]}).group_by("shard").aggregate([("seen", "min")])
    shards = shards.sort_by([("seen_min", "ascending"), ("shard", "ascending")])
    rank = pc.index_in(videos["shard"], value_set=shards["shard"].combine_chunks())
    order = pc.sort_indices(
        pa.table({"rank": rank, "first_row": videos["first_row"]}), [("rank", "ascending"), ("first_row", "ascending")]
    )
    return videos.take(order)


@dataclass(frozen=True)
class PartitionWork:
    """All that the partitions of one index version share while they are built.

    length, stride: of segments, in frames. query: see `Index.query`. prefilter: a trained, empty FAISS index,
    serialised uint8; None for flat ones. prefix: what the ids of its partitions begin with.
    """

    gallery: Gallery
    heads: CameraHeads
    length: int
    stride: int
    query: np.ndarray
    cohort: Cohort
    prefilter: np.ndarray | None = None
    prefix: str = ""

    def build(self, videos: pa.Table, first_video: int) -> dict[str, Any]:
        """Write one partition; returns its entry in the manifest. first_video: its first row among all videos of the version.

        The entry: id, first_video, videos, frames, segments; shards, that it was made of; cameras, sorted, None where they are
        more than MOST_CAMERAS; first_start, last_start, of its videos, and first_seen, last_seen, when somebody is seen in them,
        ISO 8601, None where no time is known; files, name -> bytes and sha256.
        """
        with telemetry.timed("coattention_index_seconds", stage="partition"):
            entry = self._write(videos, first_video)
        telemetry.count("coattention_index_videos", entry["videos"])
        return entry

    def _write(self, videos: pa.Table, first_video: int) -> dict[str, Any]:
        name = (self.prefix + uuid.uuid4().hex)[:32]
        trained = None if self.prefilter is None else faiss.deserialize_index(self.prefilter)
        location = partition_store(self.gallery).join(name)
        with new_folder(location) as (folder, files):
            table, counts = write_partition(
                *(self.gallery, videos, self.heads, self.length, self.stride, self.query, self.cohort),
                *(first_video, folder, trained),
            )
            write_videos(table, folder / VIDEOS)
        cameras = sorted(set(pc.unique(videos["camera_id"]).to_pylist()) - {None})
        starts, (first, last) = videos["start_time"], seen(videos)
        span = {
            "first_start": pc.min(starts),
            "last_start": pc.max(starts),
            "first_seen": pc.min(first),
            "last_seen": pc.max(last),
        }
        return {
            "id": name,
            "first_video": first_video,
            "videos": len(videos),
            **counts,
            "shards": sorted(pc.unique(videos["shard"]).to_pylist()),
            "cameras": cameras if len(cameras) <= MOST_CAMERAS else None,
            **{name: value.as_py().isoformat() if value.is_valid else None for name, value in span.items()},
            "files": files,
        }


def build_partitions(
    work: PartitionWork,
    videos: Sequence[pa.Table],
    first: Sequence[int],
    workers: int | None = None,
    address: Cluster | str | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Build partitions one after another, or several at a time over Ray; yields (number in `videos`, entry) as they are done.

    first: row of each one's first video in the version. workers: partitions at a time; over Ray when it is above 1 or a cluster
    is named (address, RAY_ADDRESS), by default then one a CPU of the cluster. Memory: one partition a worker.
    """
    if len(videos) < 2 or not ((workers or 1) > 1 or cluster_is_named(address)):
        for number, rows in enumerate(videos):
            yield number, work.build(rows, first[number])
        return
    import ray

    with connected(address, workers):
        limit = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        build = ray.remote(num_cpus=1, max_retries=2)(_build)
        shared = ray.put(work)
        running: dict[Any, int] = {}
        waiting = list(enumerate(videos))[::-1]
        while waiting or running:
            while waiting and len(running) < limit:
                number, rows = waiting.pop()
                running[build.remote(shared, rows, first[number])] = number
            (done, *_), _ = ray.wait(list(running))
            with worker_errors("a worker died while it built a partition; try with fewer --workers"):
                entry = ray.get(done)
            yield running.pop(done), entry


def _build(work: PartitionWork, videos: pa.Table, first_video: int) -> dict[str, Any]:
    return work.build(videos, first_video)


def write_videos(table: pa.Table, path: Path) -> None:
    """Write rows of an index's videos as one Arrow record batch, to be memory-mapped."""
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_videos(partition: Location, checksum: str | None = None) -> pa.Table:
    """The videos of a partition, mapped from a local disk. checksum: of the file, where a manifest tells it.

    Raises ValueError for another checksum, or for a table whose columns are damaged: nothing checks them when they are used.
    """
    file = partition.join(VIDEOS)
    content = pa.memory_map(file.path).read_buffer() if file.is_local else pa.py_buffer(file.read_bytes())
    if checksum is not None and sha256(content) != checksum:
        raise ValueError("its checksum differs")
    table = pa.ipc.open_file(content).read_all()
    if checksum is None:
        table.validate(full=True)
    return table


def delete_partition(gallery: Gallery, partition: str) -> None:
    """Remove a partition's files, and on a local disk its folder."""
    location = partition_store(gallery).join(partition)
    for file, _ in location.infos():
        file.delete()
    if location.is_local:
        with contextlib.suppress(OSError):  # somebody else's file in it, or already gone
            Path(location.path).rmdir()
