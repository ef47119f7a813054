"""Index versions: what a search needs of a gallery, cut into partitions of memory-mapped arrays that versions share.

index/<version>/manifest.json   written last: a version is there when its manifest is, complete and never changed again
                head/           the co-attention head (model.safetensors, model.json, calibration.json if it has one)
                cohort/         what scores are normalised by: means.npy float32 [C, d_v]; video.npy int64 [C], row in this
                                version's videos (below -1: not among them); video_id.json, their ids; and query.npy
                                float32 [d_k], the mean query vector of these segments
                worth/          calibration.json: what scores are worth in this gallery; absent where that was not measured
                cameras/        what is taken off by camera: names.json; means.npy float16 [C + 1, d_v]; maps.npy float16
                                [C + 1, d_v, d_v]; absent where cameras are not told apart
                prefilter/      trained.faiss, which those of the partitions are copies of; absent where they are flat
index/partitions/<id>/          named by the manifests of one or more versions
                videos.arrow    one row a video: its gallery row, first frame and segment within the partition
                ...             keys, values and the rest, see `pipeline.index.partition_files`

The videos of a version are numbered through its partitions in the order of its manifest.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import fs as pafs

from pipeline.backbone.spec import same_backbone
from pipeline.coattention.calibration import FILE as CALIBRATION
from pipeline.coattention.calibration import Calibration, calibration_version, load_calibration
from pipeline.coattention.cameras import CameraHeads, CameraStatistics
from pipeline.coattention.cohort import Cohort
from pipeline.coattention.gallery_calibration import GalleryCalibration
from pipeline.coattention.head import DESCRIPTION, TENSORS, head_hash, load_head, read_description, shipped_head
from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.cached_files import cached_manifest, drop_gone, local_files
from pipeline.index.partition_files import array_fault, load_array
from pipeline.index.partition_store import (
    VIDEOS,
    as_indexed,
    partition_store,
    plan_partitions,
    read_videos,
)
from pipeline.index.prefilter import FLAT_SEGMENTS
from pipeline.settings import IndexSettings
from pipeline.storage.documents import parsed, typed
from pipeline.storage.faults import explained
from pipeline.storage.formats import check_format
from pipeline.storage.local_paths import local_folder
from pipeline.storage.location import Location, resolve
from pipeline.storage.seals import unsealed

OLDEST_FORMAT, FORMAT = 3, 4
WITH_CAMERAS = 4  # the format that began to have statistics of cameras, and the visibility of segments
OPENED_AT_ONCE = 8  # tables of partitions
NO_VERSIONS = ("partitions", "builds")  # the other folders of index/
PREFILTER = "prefilter/trained.faiss"
WORTH = "worth/calibration.json"
QUERY = "cohort/query.npy"
MOST_GROWTH = 4  # times as many videos as its cohort was drawn from: an index should then be built anew
VIDEOS_OF_A_CAMERA = 20  # from which on a camera without statistics should have its own
MOST_NEW_CAMERAS = 0.25  # of the videos, of cameras that an index has no statistics of: it should then be built anew
LEAST_COHORT = 0.75  # of the cohort's videos still there, or else
FLOAT16 = np.dtype(np.float16)
NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Index:
    """An open index version. store: where the partitions of all versions lie; manifest: what it is made of; videos: one row a
    video, partitions in order, of which a column is read when it is used; head: its model; cameras: what is taken off by camera,
    None where they are not told apart; query: float32 [d_k], that says how visible people are (`coattention.visibility`), None
    in one of an earlier format; cohort: what scores are normalised by; calibration: what they are worth, None where the head has
    none; gallery_calibration: what they are worth in this gallery, None where that was not measured.
    """

    location: Location
    store: Location
    manifest: dict[str, Any]
    videos: pa.Table
    head: Coattention
    cohort: Cohort
    calibration: Calibration | None = None
    cameras: CameraStatistics | None = None
    query: np.ndarray | None = None
    gallery_calibration: GalleryCalibration | None = None

    @property
    def version(self) -> str:
        return self.manifest["version"]

    @property
    def settings(self) -> IndexSettings:
        return index_settings(self.manifest)

    @functools.cached_property
    def heads(self) -> CameraHeads:
        """The head under every camera, as the index was made with it."""
        return CameraHeads(self.head, self.cameras)

    @property
    def has_whole_videos(self) -> bool:
        """Whether its videos have encodings as wholes, and visible segments: not in an earlier format."""
        return self.query is not None

    @property
    def untrained(self) -> bool:
        return bool(self.manifest["untrained"])

    @property
    def calibration_version(self) -> str | None:
        """Name and content hash of what probabilities rest on, None where there is nothing."""
        if self.gallery_calibration is not None:
            return calibration_version("this gallery", self.gallery_calibration)
        return None if self.calibration is None else calibration_version(self.calibration.fitted_on.name, self.calibration)

    @property
    def model(self) -> str:
        """Backbone and head, by name and content hash."""
        return f"{self.manifest['backbone']}+head@{self.manifest['head'][:16]}"

    @property
    def cohort_ids(self) -> pa.Array:
        """The video of each of the cohort's segments."""
        return pa.array(json.loads(self.location.join("cohort", "video_id.json").read_bytes()), pa.string())

    def position(self, video_id: str) -> int:
        """Row of a video in `videos`, -1 where it is not indexed."""
        return pc.index(self.videos["video_id"], video_id).as_py()

    def rows_of(self, video: VideoRef) -> np.ndarray:
        """Rows int64 of `videos` that are a video: of its id first and, for a whole source, of its uri under other ids."""
        row = self.position(video.video_id)
        own = np.array([row] if row >= 0 else [], np.int64)
        if video.track is not None:
            return own
        whole = np.asarray(pc.equal(self.videos["uri"], video.uri))
        if whole.any():
            whole = whole & np.asarray(pc.is_null(self.videos["track"]))
        return np.concatenate([own, np.setdiff1d(np.flatnonzero(whole), own)])

    def row_of_copy(self, content: str | None) -> int:
        """The first row that is a whole source of these bytes (`VideoRef.ingested_hash`), -1 where there is none."""
        if content is None or "ingested_hash" not in self.videos.schema.names:
            return -1
        same = pc.and_(pc.equal(self.videos["ingested_hash"], content), pc.is_null(self.videos["track"]))
        return pc.index(same, True).as_py()

    def camera_of(self, video: VideoRef, content: str | None, own: np.ndarray | None = None) -> str | None:
        """The camera of a target: its own, or that of the indexed video that it is, or that it is a copy of; None where unknown.

        content: as in `row_of_copy`; own: `rows_of` the video, where they are known.
        """
        if video.camera_id is not None:
            return video.camera_id
        own = self.rows_of(video) if own is None else own
        row = int(own[0]) if len(own) else self.row_of_copy(content)
        if row < 0 and content is not None and "ingested_hash" in self.videos.schema.names:  # a recording of which it has tracks
            row = pc.index(self.videos["ingested_hash"], content).as_py()
        return None if row < 0 else self.videos["camera_id"][row].as_py()

    def ids(self, rows: np.ndarray) -> list[str]:
        """The video ids of rows, int64, of `videos`."""
        return self.videos["video_id"].take(pa.array(rows)).to_pylist()

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Rows of `videos` as dictionaries. A partition at a time: pyarrow joins all chunks of a column to take from it."""
        wanted, firsts = np.asarray(numbers, np.int64), [part["first_video"] for part in self.manifest["partitions"]]
        of = np.searchsorted(firsts, wanted, side="right") - 1
        found: dict[int, dict[str, Any]] = {}
        for part in np.unique(of).tolist():
            (mine,) = np.nonzero(of == part)
            taken = self.partition_videos(part).take(pa.array(wanted[mine] - firsts[part]))
            found |= zip(mine.tolist(), taken.to_pylist(), strict=True)
        return [found[place] for place in range(len(wanted))]

    def partition_videos(self, partition: int) -> pa.Table:
        """The rows of `videos` that lie in one partition."""
        part = self.manifest["partitions"][partition]
        return self.videos.slice(part["first_video"], part["videos"])

    def partition_location(self, partition: int) -> Location:
        """The folder of a partition's files."""
        return self.store.join(self.manifest["partitions"][partition]["id"])

    def partitions_matching(
        self, cameras: Sequence[str] = (), after: datetime | None = None, before: datetime | None = None
    ) -> list[int]:
        """Numbers of the partitions that may hold a video of these cameras (none named: any) and of this time.

        after, before: aware datetimes or None; somebody is seen at some instant of [after, before). Told from the manifest; no
        partition is opened.
        """
        return [
            number
            for number, part in enumerate(self.manifest["partitions"])
            if (not cameras or part["cameras"] is None or not set(cameras).isdisjoint(part["cameras"]))
            and (after is None or _latest(part) >= after)
            and (before is None or _earliest(part) < before)
        ]

    def rebuild_advice(self) -> str | None:
        """Why all of it should be built anew, in words; None where it need not be."""
        drawn = self.manifest["drawn"]
        if self.manifest["videos"] >= MOST_GROWTH * drawn["gallery_videos"]:
            return f"the gallery has grown from {drawn['gallery_videos']} to {self.manifest['videos']} videos"
        if len(torch.unique(self.cohort.video)) < LEAST_COHORT * drawn["cohort_videos"]:
            return f"more than {1 - LEAST_COHORT:.0%} of the videos that scores are normalised by were forgotten or replaced"
        if self.cameras is not None and self._of_new_cameras() > MOST_NEW_CAMERAS * self.manifest["videos"]:
            return f"more than {MOST_NEW_CAMERAS:.0%} of the videos are of cameras that had few videos or none when it was built"
        flat = not is_compressed(self)
        if flat and self.settings.prefilter == "auto" and self.manifest["segments"] > MOST_GROWTH * FLAT_SEGMENTS:
            return "the index has grown so large that its prefilter should be a compressed one"
        return None

    def _of_new_cameras(self) -> int:
        """How many videos are of cameras that have enough of them for statistics of their own, and have none."""
        counts = pc.value_counts(self.videos["camera_id"].drop_null()).to_pylist()
        known = set() if self.cameras is None else set(self.cameras.names)
        return sum(one["counts"] for one in counts if one["values"] not in known and one["counts"] >= VIDEOS_OF_A_CAMERA)


def index_settings(manifest: dict[str, Any]) -> IndexSettings:
    """The settings of an index version; one of an older format did not tell cameras apart."""
    old = {"cameras": "ignore"} if manifest["format"] < WITH_CAMERAS else {}
    return IndexSettings(**old | manifest["settings"])


def extensible_index(gallery: Gallery, settings: IndexSettings, head: Coattention | None = None) -> Index | None:
    """The newest index version if one of these arguments can be made of it by adding and removing videos, else None.

    An index of so few videos that nothing can be normalised by them is not worth keeping.
    """
    index = _newest_of(gallery, settings, head)
    return index if index is not None and index.cohort.usable else None


def current_index(
    gallery: Gallery, settings: IndexSettings, head: Coattention | None = None, calibration: Calibration | None = None
) -> Index | None:
    """The newest index version if building one with these arguments would bring nothing new, else None."""
    index = _newest_of(gallery, settings, head)
    return index if index is not None and index.calibration == calibration and is_complete(gallery, index) else None


def _newest_of(gallery: Gallery, settings: IndexSettings, head: Coattention | None) -> Index | None:
    if not index_versions(gallery):
        return None
    try:
        index = open_index(gallery)
    except PipelineError:  # damaged: building again is what mends it
        return None
    same_head = index.untrained if head is None else index.manifest["head"] == head_hash(head)
    return index if same_head and index.settings == settings and index.query is not None else None


def is_complete(gallery: Gallery, index: Index) -> bool:
    """Whether an index holds the gallery's videos, all and no others; reads the gallery only if there were commits since."""
    if gallery.log.is_newest(index.manifest["commits"]):
        return True
    videos = gallery.snapshot().videos
    if len(videos) == 0:
        return False
    plan = plan_partitions(videos, index.settings.partition_videos, index.videos, index.manifest["partitions"])
    return not plan.fresh and len(plan.kept) == len(index.manifest["partitions"])


def open_index(gallery: Gallery, version: str | None = None) -> Index:
    """Open an index version, by default the newest. Raises UsageError when there is none, PipelineError when it is damaged.

    Of the partitions only their tables of videos are read, and checked.
    """
    versions = index_versions(gallery)
    if not versions:
        raise UsageError(f"{gallery.location.uri} has no index yet; run jobs.index first")
    version = version or versions[-1]
    if version not in versions:
        raise UsageError(f"{gallery.location.uri} has no index version {version!r}; it has {', '.join(versions[-5:])}")
    location, store = gallery.location.join("index", version), partition_store(gallery)
    _drop_gone(gallery, versions)
    manifest = read_manifest(gallery, version, cached_manifest)
    try:
        with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
            tables = list(pool.map(functools.partial(_partition_table, store), manifest["partitions"]))
            videos = pa.concat_tables(tables, promote_options="default")  # partitions of older versions have fewer columns
    except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise PipelineError(f"the index {location.uri} is damaged: {error}; build it again with jobs.index") from error
    return read_index(local_files(location, manifest["files"]), store, manifest, videos)


def read_index(location: Location, store: Location, manifest: dict[str, Any], videos: pa.Table) -> Index:
    """An index of these videos, with what the partitions of a version share below `location`. Raises PipelineError."""
    with head_folder(location.join("head")) as folder:
        head, calibration = load_head(folder), load_calibration(folder)
    cohort = Cohort(*(torch.from_numpy(np.array(load_array(location.join("cohort", f"{n}.npy")))) for n in ("means", "video")))
    query = read_query(location, manifest, head.config.key_width)
    worth = None
    if WORTH in manifest["files"]:
        worth = GalleryCalibration.from_json(location.join(WORTH).read_bytes(), location.join(WORTH).uri)
    return Index(location, store, manifest, videos, head, cohort, calibration, read_cameras(location, manifest), query, worth)


def read_query(location: Location, manifest: dict[str, Any], width: int) -> np.ndarray | None:
    """What says how visible people are in a version, see `Index`; None in one of an earlier format. width: of the head's keys.

    Raises PipelineError for a damaged one.
    """
    if QUERY not in manifest["files"]:
        return None
    query = np.array(load_array(location.join(QUERY)))
    wrong = array_fault(query, np.float32, (width,)) or ("" if np.isfinite(query).all() else "holds numbers that are not finite")
    if wrong:
        raise PipelineError(f"the index file {location.join(QUERY).uri} {wrong}; run jobs.index --rebuild")
    return query


def read_cameras(location: Location, manifest: dict[str, Any]) -> CameraStatistics | None:
    """The camera statistics of a version, None where it does not tell cameras apart. Raises PipelineError for damaged ones."""
    if "cameras/names.json" not in manifest["files"]:
        return None
    folder = location.join("cameras")
    try:
        names = typed(tuple[str, ...], parsed(folder.join("names.json").read_bytes()))
        means, maps = (load_array(folder.join(f"{name}.npy")) for name in ("means", "maps"))
        shape = (len(names) + 1, *means.shape[1:])
        if (means.ndim, means.shape, maps.shape) != (2, shape, (*shape, *shape[1:])) or {means.dtype, maps.dtype} != {FLOAT16}:
            raise ValueError("its files do not fit each other")
    except ValueError as error:
        raise PipelineError(f"the index {location.uri} is damaged in its cameras: {error}; run jobs.index --rebuild") from error
    return CameraStatistics(names, means, maps)


def _earliest(part: dict[str, Any]) -> datetime:
    """When somebody is first seen in a partition; one without times is after all others. Older ones know when videos start."""
    text = part.get("first_seen", part["first_start"])
    return NEVER if text is None else datetime.fromisoformat(text)


def _latest(part: dict[str, Any]) -> datetime:
    """When somebody is last seen in a partition, or later; one without times is before all others.

    When the last video of an older one starts does not say when its videos end.
    """
    if "last_seen" not in part and part["last_start"] is not None:
        return NEVER
    text = part.get("last_seen")
    return datetime.min.replace(tzinfo=UTC) if text is None else datetime.fromisoformat(text)


def _partition_table(store: Location, part: dict[str, Any]) -> pa.Table:
    location = local_files(store.join(part["id"]), {VIDEOS: part["files"][VIDEOS]})
    try:
        table = read_videos(location, part["files"][VIDEOS]["sha256"])
    except (OSError, ValueError, pa.ArrowException) as error:
        raise PipelineError(f"the index file {location.join(VIDEOS).uri} is damaged: {error}") from error
    if len(table) != part["videos"]:
        raise PipelineError(f"the index file {location.join(VIDEOS).uri} is damaged: it has {len(table)} rows")
    return table


def read_manifest(
    gallery: Gallery,
    version: str,
    read: Callable[[Location], bytes] = lambda location: location.join("manifest.json").read_bytes(),
) -> dict[str, Any]:
    """The manifest of an index version. Raises PipelineError when it is damaged or of another format. read: of its folder."""
    location = gallery.location.join("index", version)
    try:
        manifest = unsealed(read(location))
        remedy = "build it again with jobs.index --rebuild"
        check_format(f"the index {location.uri}", manifest["format"], OLDEST_FORMAT, FORMAT, remedy)
        needed = {"settings", "backbone", "head", "files", "untrained", "commits", "drawn", "partitions"}
        if missing := needed - manifest.keys():
            raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PipelineError(f"the index {location.uri} is damaged: {error}; build it again with jobs.index") from error
    return manifest


def version_files(gallery: Gallery, manifest: dict[str, Any]) -> Iterator[tuple[Location, dict[str, Any]]]:
    """All files of an index version, each with its size in bytes and sha256; those of its partitions last."""
    location, store = gallery.location.join("index", manifest["version"]), partition_store(gallery)
    yield from ((location.join(name), entry) for name, entry in manifest["files"].items())
    for part in manifest["partitions"]:
        yield from ((store.join(part["id"], name), entry) for name, entry in part["files"].items())


def partition_ids(gallery: Gallery, version: str) -> set[str]:
    """Ids of the partitions that a version's manifest names, whatever its format; none where it cannot be read."""
    try:
        return _ids_in(gallery.location.join("index", version, "manifest.json").read_bytes())
    except (PipelineError, ValueError, KeyError, TypeError):
        return set()


def _ids_in(manifest: bytes) -> set[str]:
    return {part["id"] for part in json.loads(manifest)["partitions"]}


def drop_cached(gallery: Gallery) -> None:
    """Remove from this machine's cache what belongs to versions that are gone, and what was forgotten with them."""
    _drop_gone(gallery, index_versions(gallery))


def _drop_gone(gallery: Gallery, versions: Sequence[str]) -> None:
    drop_gone(gallery.location.join("index"), versions, _ids_in)


def is_compressed(index: Index) -> bool:
    """Whether its newest partitions have a compressed prefilter."""
    return PREFILTER in index.manifest["files"]


def holds_any(index: Index, video_ids: pa.Array) -> bool:
    """Whether a partition or the cohort of an index holds features of any of the videos."""
    return any(pc.any(pc.is_in(ids, video_ids)).as_py() for ids in (index.videos["video_id"], index.cohort_ids))


@dataclass(frozen=True)
class Lag:
    """How far an index is behind its gallery. missing: videos of the gallery that it does not hold; outdated: videos that it
    holds otherwise than the gallery: ingested anew, corrected or gone since, without those that were forgotten.
    """

    missing: int = 0
    outdated: int = 0


def index_lag(gallery: Gallery, index: Index) -> Lag:
    """How far an index is behind; reads the videos only if there were commits since."""
    if not gallery.has_changes_since(index.manifest["commits"]):
        return Lag()
    snapshot = gallery.snapshot()
    ids = index.videos["video_id"].combine_chunks()
    held = pc.is_in(snapshot.videos["video_id"], ids)
    forgotten = np.asarray(pc.is_in(ids, pa.array(sorted(snapshot.forgotten), pa.string())))
    outdated = ~as_indexed(snapshot.videos, index.videos) & ~forgotten
    return Lag(len(held) - (pc.sum(held).as_py() or 0), int(outdated.sum()))


def index_versions(gallery: Gallery) -> list[str]:
    """Published versions, oldest first."""
    index = gallery.location.join("index")
    with explained("list", index.uri):
        found = index.filesystem.get_file_info(pafs.FileSelector(index.path, allow_not_found=True))
    names = sorted(info.base_name for info in found if info.type == pafs.FileType.Directory and info.base_name not in NO_VERSIONS)
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        return [
            name for name, there in zip(names, pool.map(functools.partial(_is_published, index), names), strict=True) if there
        ]


def _is_published(index: Location, version: str) -> bool:
    return index.join(version, "manifest.json").exists()


@contextlib.contextmanager
def head_folder(place: str | Path | Location) -> Iterator[Path]:
    """The folder of a head on this machine; of one in an object store a copy, as long as the context is open."""
    location = place if isinstance(place, Location) else resolve(place)
    with local_folder(location, (TENSORS, DESCRIPTION, CALIBRATION)) as folder:
        if not location.is_local and not (folder / DESCRIPTION).exists():
            raise PipelineError(f"{location.uri} is not a head: it holds no {DESCRIPTION}")
        yield folder


def find_head(place: str | None, gallery: Gallery) -> tuple[Coattention | None, Calibration | None]:
    """A trained head and its calibration: of a folder, here or in a bucket, or without one of those that ship, by the gallery's
    backbone.

    (None, None) where none ships for that backbone. Raises PipelineError when the head or its calibration is damaged, belongs to
    another backbone, or the calibration to another head.
    """
    found = shipped_head(gallery.settings.backbone.identity) if place is None else place
    if found is None:
        return None, None
    with head_folder(found) as folder:
        head, calibration = head_for(gallery, folder), load_calibration(folder)
    if calibration is not None and calibration.head != head_hash(head):
        raise PipelineError(f"{found}/{CALIBRATION} belongs to another head; fit it again with jobs.calibrate or remove it")
    return head, calibration


def head_for(gallery: Gallery, folder: Path) -> Coattention:
    """The head in a folder. Raises PipelineError when it is damaged or belongs to another backbone than the gallery's."""
    identity = gallery.settings.backbone.identity
    description = read_description(folder)
    if description.backbone_hash and not same_backbone(description.backbone_hash, identity):
        raise PipelineError(f"the head {folder} belongs to the backbone {description.backbone_hash}; the gallery has {identity}")
    return load_head(folder)
