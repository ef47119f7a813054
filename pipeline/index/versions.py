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

import functools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.coattention.calibration import Calibration, calibration_version, load_calibration
from pipeline.coattention.cameras import CameraHeads, CameraStatistics
from pipeline.coattention.cohort import Cohort
from pipeline.coattention.gallery_calibration import GalleryCalibration
from pipeline.coattention.head import load_head
from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.cached_files import cached_manifest, local_files
from pipeline.index.heads import head_folder
from pipeline.index.partition_files import NEW_ARRAYS, array_fault, load_array
from pipeline.index.partition_store import VIDEOS, read_videos
from pipeline.index.prefilter import FLAT_SEGMENTS
from pipeline.index.version_files import drop_cached, index_versions, partition_store, read_manifest
from pipeline.settings import IndexSettings
from pipeline.storage.documents import parsed, typed
from pipeline.storage.location import Location

WITH_CAMERAS = 4  # the format that began to have statistics of cameras, and the visibility of segments
OPENED_AT_ONCE = 8  # tables of partitions
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
        of_uri = np.asarray(pc.indices_nonzero(pc.equal(self.videos["uri"], video.uri))).astype(np.int64)
        others = np.setdiff1d(of_uri, own)
        if len(others):
            others = others[np.asarray(pc.is_null(self.videos["track"]))[others]]
        return np.concatenate([own, others])

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
        found, ids = np.empty(len(rows), object), self.videos["video_id"]
        for places, part, inside in self._by_partition(rows):
            entry = self.manifest["partitions"][part]
            found[places] = ids.slice(entry["first_video"], entry["videos"]).take(inside).to_pylist()
        return found.tolist()

    def rows(self, numbers: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """Rows of `videos` as dictionaries."""
        found = np.empty(len(numbers), object)
        for places, part, inside in self._by_partition(numbers):
            found[places] = self.partition_videos(part).take(inside).to_pylist()
        return found.tolist()

    def _by_partition(self, rows: Sequence[int] | np.ndarray) -> Iterator[tuple[np.ndarray, int, pa.Array]]:
        """(places among the rows, a partition, which of its videos they are) of each partition that holds some.

        What is taken from a column of all, pyarrow first joins its chunks for.
        """
        wanted, firsts = np.asarray(rows, np.int64), [part["first_video"] for part in self.manifest["partitions"]]
        of = np.searchsorted(firsts, wanted, side="right") - 1
        for part in np.unique(of).tolist():
            (places,) = np.nonzero(of == part)
            yield places, part, pa.array(wanted[places] - firsts[part])

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
        if any(f"{name}.npy" not in part["files"] for part in self.manifest["partitions"] for name in NEW_ARRAYS):
            return "some of it was built by an earlier version, and lacks what videos are found better with now"
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
    drop_cached(gallery, versions)
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


def is_compressed(index: Index) -> bool:
    """Whether its newest partitions have a compressed prefilter."""
    return PREFILTER in index.manifest["files"]
