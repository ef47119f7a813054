"""Index versions: what a search needs of a gallery, cut into partitions of memory-mapped arrays.

index/<version>/manifest.json   written last: a version is there when its manifest is, complete and never changed again
                head/           the co-attention head (model.safetensors, model.json, calibration.json if it has one)
                videos.parquet  one row a video: its gallery row, partition, first frame and segment
                cohort/         means.npy float32 [C, d_v], video.npy int64 [C] (row of videos.parquet): what scores are
                                normalised by
                p0000/          keys.npy, values.npy float16 [F, d]; frame_index.npy, time_s.npy [F];
                                segment_start.npy int64 [S] (frame within the partition), cohort_mean.npy and
                                cohort_spread.npy float32 [S], prefilter.faiss
"""

import hashlib
import json
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline.backbone import same_backbone
from pipeline.calibration import FILE as CALIBRATION
from pipeline.calibration import Calibration, load_calibration, save_calibration
from pipeline.coattention import Coattention
from pipeline.cohort import Cohort
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import Gallery, feature_matrix
from pipeline.head import DESCRIPTION, TENSORS, head_hash, load_head, read_description, save_head, untrained_head
from pipeline.partition_files import encode_frames, load_array, score_row, segment_means, write_partition
from pipeline.prefilter import PrefilterMetric
from pipeline.segments import segment_frames, segment_starts
from pipeline.storage import Location
from pipeline.weights import shipped_head

FORMAT = 2
SAMPLE_VIDEOS, SAMPLE_FRAMES = 512, 40  # what an untrained head is made from: videos, and frames of each
COHORT_VIDEOS, COHORT_SEGMENTS = 512, 4  # what scores are normalised by: videos, and segments of each
LONGEST_SEGMENT = 1024  # frames; longer ones are a mistake and would not fit into memory


@dataclass(frozen=True)
class IndexSettings:
    """segment_length: T, frames a segment; stride: frames between segments; partition_videos: videos a partition."""

    segment_length: int = 8
    stride: int = 4
    partition_videos: int = 20_000

    def __post_init__(self) -> None:
        segment_starts(1, self.segment_length, self.stride)  # raises UsageError for sizes below 1
        if self.segment_length > LONGEST_SEGMENT:
            raise UsageError(f"a segment has at most {LONGEST_SEGMENT} frames, not {self.segment_length}")
        if self.partition_videos < 1:
            raise UsageError(f"a partition holds at least 1 video, not {self.partition_videos}")


@dataclass(frozen=True)
class Index:
    """An open index version. manifest: what it is made of; videos: one row a video, partitions in order; head: its model;
    cohort: what scores are normalised by; calibration: what they are worth, None where the head has none.
    """

    location: Location
    manifest: dict[str, Any]
    videos: pa.Table
    head: Coattention
    cohort: Cohort
    calibration: Calibration | None = None

    @property
    def version(self) -> str:
        return self.manifest["version"]

    @property
    def settings(self) -> IndexSettings:
        return IndexSettings(**self.manifest["settings"])

    @property
    def untrained(self) -> bool:
        return bool(self.manifest["untrained"])

    @property
    def model(self) -> str:
        """Backbone and head, by name and content hash."""
        return f"{self.manifest['backbone']}+head@{self.manifest['head'][:16]}"

    def position(self, video_id: str) -> int:
        """Row of a video in `videos`, -1 where it is not indexed."""
        return pc.index(self.videos["video_id"], video_id).as_py()

    def partition_videos(self, partition: int) -> pa.Table:
        """The rows of `videos` that lie in one partition."""
        part = self.manifest["partitions"][partition]
        return self.videos.slice(part["first_video"], part["videos"])


def build_index(
    gallery: Gallery,
    settings: IndexSettings | None = None,
    head: Coattention | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    calibration: Calibration | None = None,
) -> Index:
    """Make a new index version of all videos in the gallery and publish it.

    head: the trained head, or None for the one that needs no training, made from a sample of the gallery. calibration: its own.
    progress is told videos done and in all. Raises PipelineError for an empty gallery, a damaged shard, a head of another width.
    """
    settings = settings or IndexSettings()
    snapshot = gallery.snapshot()
    if len(snapshot.videos) == 0:
        raise PipelineError(f"{gallery.location.uri} has no videos yet; run jobs.ingest first")
    untrained = head is None
    head = (
        head
        if head is not None
        else untrained_head(sample_features(gallery, snapshot.videos), segment_length=settings.segment_length)
    )
    if head.config.feature_width != gallery.feature_width:
        widths = f"{head.config.feature_width}, the gallery's backbone gives {gallery.feature_width}"
        raise PipelineError(
            f"the head takes frame features of width {widths}; use a head made for {gallery.settings.backbone.name}"
        )
    version = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}"
    location = gallery.location.join("index", version)
    videos = snapshot.videos.sort_by([("shard", "ascending"), ("first_row", "ascending")])
    cohort = _sample_cohort(gallery, videos, head, settings)
    files: dict[str, dict[str, Any]] = {}
    partitions: list[dict[str, Any]] = []
    tables: list[pa.Table] = []
    for start in range(0, len(videos), settings.partition_videos):
        rows = videos.slice(start, settings.partition_videos)
        with tempfile.TemporaryDirectory() as folder:
            table, counts = write_partition(
                gallery, rows, head, settings.segment_length, settings.stride, cohort, start, Path(folder)
            )
            files |= _publish_files(Path(folder), location, f"p{len(partitions):04d}")
        partitions.append({"first_video": start, "videos": len(rows), **counts})
        tables.append(table)
        progress(start + len(rows), len(videos))
    indexed = pa.concat_tables(tables)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "means.npy"), cohort.means.numpy())
        np.save(Path(folder, "video.npy"), cohort.video.numpy())
        files |= _publish_files(Path(folder), location, "cohort")
    with tempfile.TemporaryDirectory() as folder:
        save_head(head, folder, {"untrained": untrained}, gallery.settings.backbone.identity)
        if calibration is not None:
            save_calibration(calibration, folder)
        files |= _publish_files(Path(folder), location, "head")
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(indexed, Path(folder, "videos.parquet"), compression="zstd")
        files |= _publish_files(Path(folder), location)
    manifest = {
        "format": FORMAT,
        "version": version,
        "created_at": datetime.now(UTC).isoformat(),
        "settings": asdict(settings),
        "backbone": gallery.settings.backbone.identity,
        "head": head_hash(head),
        "untrained": untrained,
        "prefilter": "exact L2" if PrefilterMetric(*score_row(head)).is_distance else "exact inner product",
        "videos": len(indexed),
        "frames": sum(part["frames"] for part in partitions),
        "segments": sum(part["segments"] for part in partitions),
        "commits": list(snapshot.commits),
        "shards": sorted(set(indexed["shard"].to_pylist())),
        "partitions": partitions,
        "files": files,
    }
    location.join("manifest.json").write_atomically(json.dumps(manifest, indent=1).encode())
    _refuse_forgotten(gallery, location, indexed)
    return Index(location, manifest, indexed, head, cohort, calibration)


def _refuse_forgotten(gallery: Gallery, location: Location, videos: pa.Table) -> None:
    """Take the version back if videos were forgotten while it was built: no compaction would find it afterwards."""
    if gallery.forgotten() & set(videos["video_id"].to_pylist()):
        location.join("manifest.json").delete()
        for file in location.list(recursive=True):
            file.delete()
        raise PipelineError("videos were forgotten while the index was built; run jobs.index again")


def current_index(
    gallery: Gallery, settings: IndexSettings, head: Coattention | None = None, calibration: Calibration | None = None
) -> Index | None:
    """The newest index version if building one with these arguments would give the same again, else None."""
    if not index_versions(gallery):
        return None
    try:
        index = open_index(gallery)
    except PipelineError:  # damaged: building again is what mends it
        return None
    same_head = index.untrained if head is None else index.manifest["head"] == head_hash(head)
    same_head = same_head and index.calibration == calibration
    same_videos = videos_not_in(gallery, index) == 0 and not gallery.forgotten() & set(index.videos["video_id"].to_pylist())
    return index if same_head and same_videos and index.settings == settings else None


def open_index(gallery: Gallery, version: str | None = None) -> Index:
    """Open an index version, by default the newest. Raises UsageError when there is none, PipelineError when it is damaged."""
    versions = index_versions(gallery)
    if not versions:
        raise UsageError(f"{gallery.location.uri} has no index yet; run jobs.index first")
    version = version or versions[-1]
    if version not in versions:
        raise UsageError(f"{gallery.location.uri} has no index version {version!r}; it has {', '.join(versions[-5:])}")
    location = gallery.location.join("index", version)
    try:
        manifest = json.loads(location.join("manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            raise PipelineError(
                f"{location.uri} has index format {manifest['format']}; this version reads {FORMAT}: build it again"
            )
        if missing := {"settings", "backbone", "head", "files", "untrained", "commits", "partitions"} - manifest.keys():
            raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
        with location.join("videos.parquet").open_input() as source:
            videos = pq.read_table(source)
    except (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException) as error:
        raise PipelineError(f"the index {location.uri} is damaged: {error}; build it again with jobs.index") from error
    with tempfile.TemporaryDirectory() as folder:
        for name in (TENSORS, DESCRIPTION, CALIBRATION):
            if f"head/{name}" in manifest["files"]:
                Path(folder, name).write_bytes(location.join("head", name).read_bytes())
        head, calibration = load_head(folder), load_calibration(folder)
    cohort = Cohort(*(torch.from_numpy(np.array(load_array(location.join("cohort", f"{n}.npy")))) for n in ("means", "video")))
    return Index(location, manifest, videos, head, cohort, calibration)


def videos_not_in(gallery: Gallery, index: Index) -> int:
    """How many videos of the gallery an index does not hold yet; reads the videos only if there were commits since."""
    if set(gallery.commit_names()) <= set(index.manifest["commits"]):
        return 0
    return len(set(gallery.snapshot().videos["video_id"].to_pylist()) - set(index.videos["video_id"].to_pylist()))


def index_versions(gallery: Gallery) -> list[str]:
    """Published versions, oldest first."""
    files = gallery.location.join("index").list(recursive=True)
    return sorted(file.path.split("/")[-2] for file in files if file.name == "manifest.json")


def find_head(path: str | None, gallery: Gallery) -> tuple[Coattention | None, Calibration | None]:
    """A trained head and its calibration: of a folder, or without one of those that ship, by the gallery's backbone.

    (None, None) where none ships for that backbone. Raises PipelineError when the head or its calibration is damaged, belongs to
    another backbone, or the calibration to another head.
    """
    folder = shipped_head(gallery.settings.backbone.identity) if path is None else Path(path)
    if folder is None:
        return None, None
    head, calibration = head_for(gallery, folder), load_calibration(folder)
    if calibration is not None and calibration.head != head_hash(head):
        raise PipelineError(f"{folder / CALIBRATION} belongs to another head; fit it again with jobs.calibrate or remove it")
    return head, calibration


def head_for(gallery: Gallery, folder: Path) -> Coattention:
    """The head in a folder. Raises PipelineError when it is damaged or belongs to another backbone than the gallery's."""
    identity = gallery.settings.backbone.identity
    description = read_description(folder)
    if description.backbone_hash and not same_backbone(description.backbone_hash, identity):
        raise PipelineError(f"the head {folder} belongs to the backbone {description.backbone_hash}; the gallery has {identity}")
    return load_head(folder)


def sample_features(gallery: Gallery, videos: pa.Table) -> np.ndarray:
    """Frame features float16 [n, D] of a sample of videos, the same for the same videos however they lie in shards.

    Up to SAMPLE_VIDEOS videos, chosen by hashes of their ids, and up to SAMPLE_FRAMES evenly spaced frames of each: a long video
    shows one person, and must not drown the others.
    """
    chosen = videos.take(_sample(videos, SAMPLE_VIDEOS))
    parts: dict[str, np.ndarray] = {}
    for positions, table in gallery.iter_features(chosen):
        features, start = feature_matrix(table), 0
        for position in positions:
            count = chosen["sampled_frames"][int(position)].as_py()
            rows = start + np.unique(np.linspace(0, count - 1, min(count, SAMPLE_FRAMES)).astype(int))
            parts[chosen["video_id"][int(position)].as_py()] = features[rows]
            start += count
    return np.concatenate([parts[video_id] for video_id in sorted(parts)])


def _sample(videos: pa.Table, count: int) -> list[int]:
    """Rows of up to `count` videos, chosen by hashes of their ids."""
    ids = videos["video_id"].to_pylist()
    return sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())[:count]


@torch.no_grad()
def _sample_cohort(gallery: Gallery, videos: pa.Table, head: Coattention, settings: IndexSettings) -> Cohort:
    """Mean values of up to COHORT_SEGMENTS evenly spaced segments of COHORT_VIDEOS videos, in the order of their ids' hashes."""
    rows = _sample(videos, COHORT_VIDEOS)
    chosen = videos.take(rows)
    parts: dict[int, torch.Tensor] = {}
    for positions, table in gallery.iter_features(chosen):
        features, first = feature_matrix(table), 0
        for position in positions:
            frames = chosen["sampled_frames"][int(position)].as_py()
            starts = segment_starts(frames, settings.segment_length, settings.stride)
            starts = starts[np.unique(np.linspace(0, len(starts) - 1, min(len(starts), COHORT_SEGMENTS)).round().astype(int))]
            cut = segment_frames(starts, settings.segment_length, frames)
            _, values = encode_frames(head, features[first : first + frames])
            parts[int(position)] = torch.from_numpy(segment_means(values, cut))
            first += frames
    order = sorted(parts)
    owner = torch.cat([torch.full((len(parts[position]),), rows[position]) for position in order])
    return Cohort(torch.cat([parts[position] for position in order]), owner)


def _publish_files(folder: Path, version: Location, below: str = "") -> dict[str, dict[str, Any]]:
    """Copy a folder's files to where the index lies; returns path within the version -> size in bytes and sha256."""
    files = {}
    for path in sorted(folder.iterdir()):
        digest = hashlib.sha256()

        def copy(sink: Any, path: Path = path, digest: Any = digest) -> None:
            with path.open("rb") as source:
                while block := source.read(16 << 20):
                    digest.update(block)
                    sink.write(block)

        name = f"{below}/{path.name}" if below else path.name
        version.join(name).write_atomically(copy)
        files[name] = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    return files
