"""Making index versions: drawing what their partitions share, building those that are not there, publishing the manifest.

What a version consists of is in pipeline.index.versions.
"""

import json
import shutil
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline import telemetry
from pipeline.cluster import Cluster
from pipeline.coattention.calibration import Calibration, save_calibration
from pipeline.coattention.cameras import CameraHeads, CameraStatistics, can_measure_cameras
from pipeline.coattention.cohort import Cohort
from pipeline.coattention.gallery_calibration import LEAST_VIDEOS, GalleryCalibration
from pipeline.coattention.head import head_hash, save_head, untrained_head
from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery, Position
from pipeline.index.drafts import (
    PREFIX,
    Draft,
    builds,
    delete_draft,
    find_draft,
    leased,
    new_build,
    record_finished,
    write_draft,
)
from pipeline.index.partition_store import (
    FRAMES_OF,
    VIDEOS,
    PartitionWork,
    as_indexed,
    build_partitions,
    plan_partitions,
    read_videos,
    with_finished,
)
from pipeline.index.prefilter import FLAT_SEGMENTS, PrefilterMetric, compressed_index, described
from pipeline.index.samples import count_segments, sample_cameras, sample_cohort, sample_features, sample_means, sample_query
from pipeline.index.version_files import FORMAT, partition_store
from pipeline.index.versions import PREFILTER, QUERY, WORTH, Index, open_index
from pipeline.settings import IndexSettings
from pipeline.storage.local_paths import new_folder
from pipeline.storage.location import Location
from pipeline.storage.seals import sealed


@dataclass(frozen=True)
class _Shared:
    """What the partitions of a version share. cameras: None where they are not told apart. query: see `Index`. cohort_ids: the
    video of each of the cohort's segments; drawn: how many videos the gallery and the cohort had when the cohort (and an
    untrained head) were drawn. prefilter: see `PartitionWork`. worth: what scores are worth in the gallery, None where that was
    not measured.
    """

    head: Coattention
    untrained: bool
    calibration: Calibration | None
    cameras: CameraStatistics | None
    query: np.ndarray | None
    cohort: Cohort
    cohort_ids: pa.Array
    drawn: dict[str, int]
    prefilter: np.ndarray | None
    worth: GalleryCalibration | None = None

    @property
    def heads(self) -> CameraHeads:
        return CameraHeads(self.head, self.cameras)


def build_index(
    gallery: Gallery,
    settings: IndexSettings | None = None,
    head: Coattention | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    calibration: Calibration | None = None,
    *,
    base: Index | None = None,
    workers: int | None = None,
    address: Cluster | str | None = None,
    measure: Callable[[Gallery, Index], GalleryCalibration] | None = None,
) -> Index:
    """Make a new index version of all videos in the gallery and publish it.

    head: the trained head, or None for the one that needs no training, made from a sample of the gallery. calibration: its own.
    base: an index of the same settings and head (see `extensible_index`), of which head, cohort and what has not changed are
    kept, see `plan_partitions`; without it everything is made anew. workers, address: see `build_partitions`. progress is told
    videos done and in all. measure: `pipeline.search.worth.measure_worth`, which says what scores are worth in the gallery; None
    leaves that open. An index made of `base` takes over what is known of it, unless that was learned from too few videos.

    What an earlier build of the same settings, head and base had finished when it was killed or failed is kept, and what it had
    drawn (`pipeline.index.drafts`); what this one has finished when it fails stays for the next. Raises PipelineError for an
    empty gallery, a damaged shard, a head of another width, or when videos were forgotten while it was built.
    """
    settings = settings or IndexSettings()
    snapshot = gallery.snapshot()
    if len(snapshot.videos) == 0:
        raise PipelineError(f"{gallery.location.uri} has no videos yet; run jobs.ingest first")
    planned = _plan(gallery, snapshot.videos, settings, head, base)
    build = new_build()
    with leased(gallery, build, [entry["id"] for entry in planned.entries if entry is not None]):
        shared = _shared(gallery, snapshot.videos, settings, head, calibration, planned, base)
        _begin(gallery, build, shared, settings, snapshot.videos, planned, base)
        entries = _built(gallery, build, shared, settings, planned, progress, workers, address)
        if measure is not None and (shared.worth is None or shared.worth.videos < LEAST_VIDEOS):
            with telemetry.timed("coattention_index_seconds", stage="measure"):
                shared = replace(shared, worth=measure(gallery, _unpublished(gallery, shared, settings, entries)))
        with telemetry.timed("coattention_index_seconds", stage="publish"):
            version = _publish(gallery, shared, settings, entries, snapshot.position, planned.ids, build)
    return open_index(gallery, version)


@dataclass(frozen=True)
class _Planned:
    """The partitions of a version, in order. entries: of those that are there, None for the others; tables: rows of each.

    draft: of an earlier build, of which some are.
    """

    entries: list[dict[str, Any] | None]
    tables: list[pa.Table]
    draft: Draft | None

    @property
    def first(self) -> list[int]:
        """The row of each partition's first video in the version."""
        return np.cumsum([0, *map(len, self.tables[:-1])]).tolist()

    @property
    def ids(self) -> pa.ChunkedArray:
        """Of all videos."""
        return pa.concat_tables([rows.select(["video_id"]) for rows in self.tables])["video_id"]

    @property
    def waiting(self) -> list[int]:
        """Numbers of the partitions that are to be built."""
        return [number for number, entry in enumerate(self.entries) if entry is None]


def _plan(gallery: Gallery, videos: pa.Table, settings: IndexSettings, head: Coattention | None, base: Index | None) -> _Planned:
    """What a version of these videos (of a snapshot) keeps of `base`, and of a draft, and what is to be built."""
    old = base.manifest["partitions"] if base is not None else []
    plan = plan_partitions(videos, settings.partition_videos, base and base.videos, old)
    draft = find_draft(gallery, settings, head, base, len(videos)) if plan.fresh else None
    finished, there = (draft.finished, draft.videos) if draft is not None else ([], videos.slice(0, 0))
    parts = with_finished(plan.fresh, settings.partition_videos, finished, there)
    kept = [base.partition_videos(number) for number in plan.kept] if base is not None else []
    entries = [*(old[number] for number in plan.kept), *(entry for _, entry in parts)]
    return _Planned(entries, [*kept, *(rows for rows, _ in parts)], draft)


def _shared(
    gallery: Gallery,
    videos: pa.Table,
    settings: IndexSettings,
    head: Coattention | None,
    calibration: Calibration | None,
    planned: _Planned,
    base: Index | None,
) -> _Shared:
    """What partitions share: that of a draft, of the base, or drawn anew from the videos (of a snapshot)."""
    earlier = planned.draft.index if planned.draft is not None else base
    if earlier is None:
        with telemetry.timed("coattention_index_seconds", stage="draw"):
            return _draw(gallery, pa.concat_tables(planned.tables), settings, head, calibration)
    replaced = earlier.videos["video_id"].filter(pa.array(~as_indexed(videos, earlier.videos, FRAMES_OF)))
    there = pc.is_in(earlier.cohort_ids, videos["video_id"].combine_chunks())
    alive = pc.and_not(there, pc.is_in(earlier.cohort_ids, replaced.combine_chunks()))
    shared = _carry(earlier, alive, planned.ids, calibration)
    if shared.query is None and planned.waiting:
        raise PipelineError("an index of an earlier format cannot be added to; build it again with jobs.index --rebuild")
    return shared


def _begin(
    gallery: Gallery,
    build: str,
    shared: _Shared,
    settings: IndexSettings,
    videos: pa.Table,
    planned: _Planned,
    base: Index | None,
) -> None:
    """Write a draft, which takes the place of the one that is gone on with."""
    kept = {part["id"] for part in base.manifest["partitions"]} if base is not None else set()
    finished = [entry for entry in planned.entries if entry is not None and entry["id"] not in kept]
    files = _publish_shared(gallery, shared, builds(gallery).join(build))
    of_cohort = videos.filter(pc.is_in(videos["video_id"], shared.cohort_ids))
    write_draft(gallery, build, _fields(gallery, shared, settings, finished) | {"files": files}, of_cohort, base)
    if planned.draft is not None:
        delete_draft(gallery, planned.draft.build)


def _built(
    gallery: Gallery,
    build: str,
    shared: _Shared,
    settings: IndexSettings,
    planned: _Planned,
    progress: Callable[[int, int], None],
    workers: int | None,
    address: Cluster | str | None,
) -> list[dict[str, Any]]:
    """The entries of all partitions, once those are built that are not there."""
    query = np.empty(0, np.float32) if shared.query is None else shared.query  # by the first nothing is built
    cut = settings.segment_length, settings.stride
    work = PartitionWork(gallery, shared.heads, *cut, query, shared.cohort, shared.prefilter, build[:PREFIX])
    entries, first, waiting = dict(enumerate(planned.entries)), planned.first, planned.waiting
    done, total = sum(len(rows) for rows, entry in zip(planned.tables, planned.entries, strict=True) if entry), len(planned.ids)
    if planned.draft is not None:
        progress(done, total)
    rows = [planned.tables[number] for number in waiting]
    for place, entry in build_partitions(work, rows, [first[number] for number in waiting], workers, address):
        record_finished(gallery, build, entry)
        entries[waiting[place]] = entry
        done += entry["videos"]
        progress(done, total)
    return [{**entry, "first_video": first[number]} for number, entry in entries.items() if entry is not None]


def _fields(gallery: Gallery, shared: _Shared, settings: IndexSettings, partitions: list[dict[str, Any]]) -> dict[str, Any]:
    """What a manifest says of a version, but for its name, its files and the commits that it was made of."""
    metric = PrefilterMetric(*shared.heads.score_row())
    prefilter = metric.empty_index() if shared.prefilter is None else faiss.deserialize_index(shared.prefilter)
    return {
        "format": FORMAT,
        "settings": asdict(settings),
        "backbone": gallery.settings.backbone.identity,
        "head": head_hash(shared.head),
        "untrained": shared.untrained,
        "prefilter": described(prefilter),
        **{total: sum(part[total] for part in partitions) for total in ("videos", "frames", "segments")},
        "drawn": shared.drawn,
        "partitions": partitions,
    }


def _unpublished(gallery: Gallery, shared: _Shared, settings: IndexSettings, entries: list[dict[str, Any]]) -> Index:
    """An index of partitions that are there, as far as scores need one."""
    manifest = _fields(gallery, shared, settings, entries) | {"commits": 0, "files": {}}
    store = partition_store(gallery)
    videos = pa.concat_tables([read_videos(store.join(one["id"])) for one in entries], promote_options="default")
    nowhere = gallery.location.join("index")
    of_scores = shared.head, shared.cohort, shared.calibration, shared.cameras, shared.query
    return Index(nowhere, store, manifest, videos, *of_scores)


def _draw(
    gallery: Gallery, videos: pa.Table, settings: IndexSettings, head: Coattention | None, calibration: Calibration | None
) -> _Shared:
    """Head and cohort of an index that is built anew of `videos`."""
    untrained = head is None
    length, stride = settings.segment_length, settings.stride
    head = head if head is not None else untrained_head(sample_features(gallery, videos), segment_length=length)
    if head.config.feature_width != gallery.feature_width:
        widths = f"{head.config.feature_width}, the gallery's backbone gives {gallery.feature_width}"
        raise PipelineError(
            f"the head takes frame features of width {widths}; use a head made for {gallery.settings.backbone.name}"
        )
    query = sample_query(gallery, videos, head, length, stride)
    cameras = None
    if settings.cameras == "auto" and can_measure_cameras(head):
        cameras = sample_cameras(gallery, videos, head, query)
    heads = CameraHeads(head, cameras)
    cohort = sample_cohort(gallery, videos, heads, length, stride)
    drawn = {"gallery_videos": len(videos), "cohort_videos": len(torch.unique(cohort.video))}
    cohort_ids = videos["video_id"].take(pa.array(cohort.video.numpy())).combine_chunks()
    prefilter, segments = None, count_segments(videos, length, stride)
    if settings.prefilter == "compressed" or (settings.prefilter == "auto" and segments > FLAT_SEGMENTS):
        means = sample_means(gallery, videos, heads, length, stride)
        prefilter = faiss.serialize_index(compressed_index(PrefilterMetric(*heads.score_row()), means, segments))
    return _Shared(head, untrained, calibration, cameras, query, cohort, cohort_ids, drawn, prefilter)


def _carry(base: Index, alive: pa.Array, ids: pa.ChunkedArray, calibration: Calibration | None) -> _Shared:
    """Head and cohort of an older index for one of the videos `ids`, without the cohort's segments that are not `alive`.

    What was measured by them in the partitions that are kept stays: means and spreads over hundreds of videos, none's features.
    """
    cohort_ids = base.cohort_ids.filter(alive)
    videos = pc.unique(cohort_ids)
    rows = pc.index_in(videos, value_set=ids.combine_chunks())
    absent = pa.array(-2 - np.arange(len(videos)), pa.int64())  # -1 is a target that is not in the gallery
    video = pc.if_else(pc.is_valid(rows), rows.cast(pa.int64()), absent).take(pc.index_in(cohort_ids, value_set=videos))
    means = base.cohort.means[torch.from_numpy(np.array(alive, bool))]
    cohort = Cohort(means, torch.from_numpy(np.array(video, np.int64)))
    prefilter = None
    if PREFILTER in base.manifest["files"]:
        prefilter = np.frombuffer(base.location.join(PREFILTER).read_bytes(), np.uint8)
    kept = base.cameras, base.query, cohort, cohort_ids, base.manifest["drawn"], prefilter, base.gallery_calibration
    return _Shared(base.head, base.untrained, calibration, *kept)


def _publish_shared(gallery: Gallery, shared: _Shared, location: Location) -> dict[str, dict[str, Any]]:
    """Write what the partitions share below a version's location; returns file name -> size in bytes and sha256."""
    with new_folder(location.join("cohort")) as (folder, of_cohort):
        np.save(folder / "means.npy", shared.cohort.means.numpy())
        np.save(folder / "video.npy", shared.cohort.video.numpy())
        if shared.query is not None:
            np.save(folder / Path(QUERY).name, shared.query)
        (folder / "video_id.json").write_text(json.dumps(shared.cohort_ids.to_pylist()))
    with new_folder(location.join("head")) as (folder, of_head):
        save_head(shared.head, folder, {"untrained": shared.untrained}, gallery.settings.backbone.identity)
        if shared.calibration is not None:
            save_calibration(shared.calibration, folder)
    folders = {"cohort": of_cohort, "head": of_head}
    if shared.cameras is not None:
        with new_folder(location.join("cameras")) as (folder, folders["cameras"]):
            np.save(folder / "means.npy", shared.cameras.means)
            np.save(folder / "maps.npy", shared.cameras.maps)
            (folder / "names.json").write_text(json.dumps(shared.cameras.names))
    if shared.worth is not None:
        with new_folder(location.join("worth")) as (folder, folders["worth"]):
            (folder / Path(WORTH).name).write_text(shared.worth.to_json())
    if shared.prefilter is not None:
        with new_folder(location.join("prefilter")) as (folder, folders["prefilter"]):
            (folder / Path(PREFILTER).name).write_bytes(shared.prefilter.tobytes())
    return {f"{name}/{file}": entry for name, files in folders.items() for file, entry in files.items()}


def _publish(
    gallery: Gallery,
    shared: _Shared,
    settings: IndexSettings,
    partitions: list[dict[str, Any]],
    commits: Position,
    ids: pa.ChunkedArray,
    build: str | None = None,
) -> str:
    """Publish a version of partitions that are there; returns its name. ids: of its videos, to look for forgotten ones. build: by
    which build.
    """
    version = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}"
    location = gallery.location.join("index", version)
    try:
        files = _publish_shared(gallery, shared, location)
        manifest = {
            **_fields(gallery, shared, settings, partitions),
            "version": version,
            "created_at": datetime.now(UTC).isoformat(),
            "build": build,
            "commits": commits,
            "files": files,
        }
        location.join("manifest.json").write_atomically(sealed(manifest, indent=1))
        _check_not_overtaken(gallery, partitions, pa.chunked_array([*ids.chunks, shared.cohort_ids], pa.string()))
    except BaseException:
        _withdraw(location)
        raise
    return version


def _check_not_overtaken(gallery: Gallery, partitions: list[dict[str, Any]], ids: pa.ChunkedArray) -> None:
    """Raise PipelineError if videos were forgotten or partitions removed meanwhile: no compaction would find it afterwards."""
    forgotten = pa.array(sorted(gallery.forgotten()), pa.string())
    overtaken = ""
    if pc.any(pc.is_in(ids, forgotten)).as_py():
        overtaken = "videos were forgotten while the index was built"
    elif not all(partition_store(gallery).join(part["id"], VIDEOS).exists() for part in partitions):
        overtaken = "a compaction removed partitions while the index was built"
    if overtaken:
        raise PipelineError(f"{overtaken}; run jobs.index again")


def _withdraw(location: Location) -> None:
    """Remove a version's files, its manifest first: without it there is no version."""
    location.join("manifest.json").delete()
    for file in location.list(recursive=True):
        file.delete()
    if location.is_local:
        shutil.rmtree(location.path, ignore_errors=True)


def publish_without(gallery: Gallery, index: Index, video_ids: pa.Array) -> str | None:
    """Publish a version of an index without the partitions and the cohort's segments that hold any of the videos.

    Returns its name, None where no partition is left. The other videos of these partitions are missing until the next build.
    """
    gone = np.asarray(pc.is_in(index.videos["video_id"], video_ids))
    partitions: list[dict[str, Any]] = []
    tables = []
    first = 0
    for number, part in enumerate(index.manifest["partitions"]):
        if not gone[part["first_video"] : part["first_video"] + part["videos"]].any():
            partitions.append({**part, "first_video": first})
            tables.append(index.partition_videos(number).select(["video_id"]))
            first += part["videos"]
    if not partitions:
        return None
    ids = pa.concat_tables(tables)["video_id"]
    shared = _carry(index, pc.invert(pc.is_in(index.cohort_ids, video_ids)), ids, index.calibration)
    return _publish(gallery, shared, index.settings, partitions, 0, ids)
