"""Target -> shortlist -> full scores -> leads with evidence, in this process or on Ray actors that own the partitions.

The order of work is the same everywhere: every partition names its best videos by the prefilter, the shortlist is the best of
those, every partition scores its share in full, and the best are asked for their evidence. Query vectors go out, scores come
back; features never travel. A partition's answers do not depend on who holds it, so neither do the leads.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.calibration import posterior, settings_of
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery import Gallery
from pipeline.index import Index
from pipeline.partition import Partition, TargetSegments
from pipeline.results import Lead, SearchResult, SegmentPair, VideoRef
from pipeline.scoring import ScoreSettings, rank_videos
from pipeline.targets import Target

START_SECONDS = 120.0  # for actors to find a place and open their partitions
IN_PROCESS_VIDEOS = 100_000  # up to here, starting Ray costs more than it saves


@dataclass(frozen=True)
class SearchSettings:
    """What is asked for.

    top: leads a target; shortlist: videos scored in full, None for all. cameras: only these; other_cameras: all but the target's
    own. after, before: only videos that start in [after, before), aware datetimes; videos without a start time then do not pass.
    target_length, target_stride: frames of a target's segments, None for the index's own. pairs: segment pairs of evidence a
    lead; evidence: False leaves them out, where only the ranking is of interest. score: see ScoreSettings.
    expected_matches: on how many eligible videos the person is expected, the prior of the probabilities.
    """

    top: int = 20
    shortlist: int | None = 1000
    cameras: tuple[str, ...] = ()
    other_cameras: bool = False
    after: datetime | None = None
    before: datetime | None = None
    target_length: int | None = None
    target_stride: int | None = None
    pairs: int = 3
    evidence: bool = True
    expected_matches: float = 1.0
    score: ScoreSettings = field(default_factory=ScoreSettings)

    def __post_init__(self) -> None:
        if self.top < 1 or self.pairs < 1 or (self.shortlist is not None and self.shortlist < 1):
            raise UsageError("top, pairs and shortlist must be at least 1")
        posterior([0.0], 1, self.expected_matches)  # raises UsageError
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise UsageError(f"the time window is empty: it starts at {self.after} and ends before {self.before}")

    def filters(self) -> tuple[str, ...]:
        """The filters in words."""
        words = [f"camera {', '.join(self.cameras)}"] if self.cameras else []
        words += ["not the target's own camera"] if self.other_cameras else []
        words += [f"from {self.after:%Y-%m-%d %H:%M:%S} UTC"] if self.after else []
        words += [f"before {self.before:%Y-%m-%d %H:%M:%S} UTC"] if self.before else []
        return tuple(words)


class Partitions(Protocol):
    """All partitions of an index, wherever they are. Videos are numbered as in Index.videos."""

    def shortlist(self, target: TargetSegments, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]: ...

    def score(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings) -> np.ndarray: ...

    def evidence(
        self, target: TargetSegments, videos: np.ndarray, pairs: int, settings: ScoreSettings
    ) -> list[list[SegmentPair]]: ...


class LocalPartitions:
    """Some or all partitions, open in this process."""

    def __init__(self, index: Index, numbers: Sequence[int], device: str = "cpu") -> None:
        self.first = np.array([index.manifest["partitions"][n]["first_video"] for n in numbers], np.int64)
        self.count = np.array([index.manifest["partitions"][n]["videos"] for n in numbers], np.int64)
        self.partitions = [Partition(index, n, device) for n in numbers]

    def shortlist(self, target: TargetSegments, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Best videos by the prefilter, a superset of the best `count`: (videos int64 [m], logits float32 [m])."""
        videos, logits = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for partition, first, number in zip(self.partitions, self.first, self.count, strict=True):
            inside = None if allowed is None else allowed[first : first + number]
            found, values = partition.shortlist(target, count, inside)
            videos.append(found + first)
            logits.append(values)
        return np.concatenate(videos), np.concatenate(logits)

    def score(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings) -> np.ndarray:
        """Video scores float64 [m] of the videos int64 [m]; NaN for those that lie in partitions not held here."""
        scores = np.full(len(videos), np.nan)
        for partition, first, number in zip(self.partitions, self.first, self.count, strict=True):
            mine = np.flatnonzero((videos >= first) & (videos < first + number))
            mine = mine[np.argsort(videos[mine], kind="stable")]
            if len(mine):
                scores[mine] = partition.score(target, videos[mine] - first, settings)
        return scores

    def evidence(
        self, target: TargetSegments, videos: np.ndarray, pairs: int, settings: ScoreSettings
    ) -> list[list[SegmentPair]]:
        """The best segment pairs of each video; an empty list for those not held here."""
        found: list[list[SegmentPair]] = [[] for _ in videos]
        for partition, first, number in zip(self.partitions, self.first, self.count, strict=True):
            for i in np.flatnonzero((videos >= first) & (videos < first + number)):
                found[i] = partition.evidence(target, int(videos[i] - first), pairs, settings)
        return found


class ActorPartitions:
    """The partitions spread over Ray actors, GPUs where the cluster has them. Close it to end the actors."""

    def __init__(self, gallery_uri: str, index: Index, actors: int | None = None) -> None:
        import ray

        self.ray = ray
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        partitions = len(index.manifest["partitions"])
        cpus = max(1, int(resources.get("CPU", 1)))
        count = min(actors or gpus or max(1, cpus // 2), partitions, gpus or cpus)
        owner = ray.remote(num_cpus=0 if gpus else 1, num_gpus=1 if gpus else 0, max_restarts=2, max_task_retries=2)(
            _PartitionsActor
        )
        numbers = [list(range(i, partitions, count)) for i in range(count)]
        self.actors = [owner.remote(gallery_uri, index.version, mine) for mine in numbers]
        _, waiting = ray.wait([actor.ready.remote() for actor in self.actors], num_returns=count, timeout=START_SECONDS)
        if waiting:
            self.close()
            raise PipelineError(f"the cluster has no room for {len(waiting)} of {count} search actors; try --actors")

    def close(self) -> None:
        for actor in self.actors:
            self.ray.kill(actor)

    def shortlist(self, target: TargetSegments, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        parts = self._ask("shortlist", target, count, allowed)
        return np.concatenate([videos for videos, _ in parts]), np.concatenate([logits for _, logits in parts])

    def score(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings) -> np.ndarray:
        return np.fmax.reduce(self._ask("score", target, videos, settings))

    def evidence(
        self, target: TargetSegments, videos: np.ndarray, pairs: int, settings: ScoreSettings
    ) -> list[list[SegmentPair]]:
        parts = self._ask("evidence", target, videos, pairs, settings)
        return [next((found for found in of_video if found), []) for of_video in zip(*parts, strict=True)]

    def _ask(self, method: str, target: TargetSegments, *arguments: Any) -> list[Any]:
        shared = self.ray.put(target)
        try:
            return self.ray.get([getattr(actor, method).remote(shared, *arguments) for actor in self.actors])
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PipelineError):
                raise error.cause from error
            raise
        except self.ray.exceptions.RayActorError as error:
            raise PipelineError("a search actor died and did not come back; nothing is lost, search again") from error


class _PartitionsActor:
    """Runs on a Ray actor: opens its partitions once and keeps them warm."""

    def __init__(self, gallery_uri: str, version: str, numbers: list[int]) -> None:
        import torch

        from pipeline.index import open_index

        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.partitions = LocalPartitions(open_index(Gallery.open(gallery_uri), version), numbers, device)

    def ready(self) -> bool:
        """Answers once the partitions are open."""
        return True

    def shortlist(self, target: TargetSegments, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        return self.partitions.shortlist(target, count, allowed)

    def score(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings) -> np.ndarray:
        return self.partitions.score(target, videos, settings)

    def evidence(
        self, target: TargetSegments, videos: np.ndarray, pairs: int, settings: ScoreSettings
    ) -> list[list[SegmentPair]]:
        return self.partitions.evidence(target, videos, pairs, settings)


@contextlib.contextmanager
def opened_partitions(
    gallery: Gallery, index: Index, actors: int | None = None, address: str | None = None
) -> Iterator[Partitions]:
    """The index's partitions, ready to be searched.

    actors: 0 for this process, a number for that many Ray actors, None to decide: Ray when a cluster is named (address,
    RAY_ADDRESS) or the index has more than IN_PROCESS_VIDEOS videos, else this process.
    """
    from pipeline.cluster import cluster_is_named, connected

    everything = range(len(index.manifest["partitions"]))
    if actors is None and not cluster_is_named(address) and len(index.videos) <= IN_PROCESS_VIDEOS:
        actors = 0
    if actors == 0:
        yield LocalPartitions(index, everything)
        return
    with connected(address):
        partitions = ActorPartitions(gallery.location.uri, index, actors)
        try:
            yield partitions
        finally:
            partitions.close()


def search(gallery: Gallery, index: Index, partitions: Partitions, target: Target, settings: SearchSettings) -> SearchResult:
    """The leads for one target, best first; equal scores in the order of video ids.

    The target itself (its id or its uri without a track) and forgotten videos are never among them. Raises UsageError when the
    filters name a camera that the gallery does not have.
    """
    began = time.monotonic()
    segments = target.segmented(index, settings.target_length, settings.target_stride)
    allowed = allowed_videos(gallery, index, target, settings)
    eligible = int(allowed.sum())
    count = eligible if settings.shortlist is None else min(settings.shortlist, eligible)
    found, logits = partitions.shortlist(segments, count, None if eligible == len(allowed) else allowed)
    found = found[rank_videos(logits, _ids(index, found))][:count]
    normalise = settings.score.normalise if segments.cohort is not None else "none"
    score_settings = replace(settings.score, normalise=normalise)
    scores = partitions.score(segments, found, score_settings)
    best = rank_videos(scores, _ids(index, found))[: settings.top]
    evidence = (
        partitions.evidence(segments, found[best], settings.pairs, score_settings) if settings.evidence else [[] for _ in best]
    )
    rows = index.videos.take(pa.array(found[best])).to_pylist()
    cut = (index.settings.segment_length, index.settings.stride, settings.target_length, settings.target_stride)
    words = _why_not_calibrated(index, settings_of(score_settings, *cut))
    probabilities: list[float] | list[None] = [None] * len(best)
    none_probability = None
    if index.calibration is not None and not words:
        probabilities = index.calibration.probabilities(scores[best], eligible, settings.expected_matches).tolist()
        none_probability = index.calibration.none_probability(scores, eligible)
        words = index.calibration.fitted_on.name
    leads = [
        Lead(rank, _video_ref(row), float(scores[i]), probability, int(i) + 1, tuple(pairs))
        for rank, (i, row, probability, pairs) in enumerate(zip(best, rows, probabilities, evidence, strict=True), start=1)
    ]
    return SearchResult(
        target=target.video,
        target_segments=len(segments.frame_index),
        leads=tuple(leads),
        gallery=gallery.location.uri,
        gallery_videos=len(index.videos),
        eligible=eligible,
        shortlisted=count,
        index_version=index.version,
        model=index.model,
        untrained=index.untrained,
        filters=settings.filters(),
        seconds=time.monotonic() - began,
        searched_at=datetime.now(UTC),
        normalise=normalise,
        none_probability=none_probability,
        calibration=words,
    )


def _why_not_calibrated(index: Index, settings: dict[str, Any]) -> str:
    """Why there are no probabilities, in words; empty where there are."""
    if index.calibration is None:
        return "the head has no calibration"
    return index.calibration.mismatch(index.manifest["head"], settings)


def allowed_videos(gallery: Gallery, index: Index, target: Target, settings: SearchSettings) -> np.ndarray:
    """Which videos may become leads: bool [V]."""
    videos = index.videos
    hidden = sorted({target.video.video_id, *gallery.forgotten(known=frozenset(index.manifest["commits"]))})
    allowed = pc.invert(pc.is_in(videos["video_id"], pa.array(hidden, pa.string())))
    if target.video.track is None:
        same_file = pc.and_(pc.equal(videos["uri"], target.video.uri), pc.is_null(videos["track"]))
        allowed = pc.and_(allowed, pc.invert(same_file))
    if settings.cameras:
        known = set(pc.unique(videos["camera_id"]).to_pylist())
        if unknown := [camera for camera in settings.cameras if camera not in known]:
            named = ", ".join(sorted(str(camera) for camera in known if camera is not None)[:10])
            raise UsageError(f"the gallery has no camera {unknown[0]!r}; it has {named or 'videos without camera ids only'}")
        allowed = pc.and_(allowed, pc.is_in(videos["camera_id"], pa.array(settings.cameras, pa.string())))
    if settings.other_cameras:
        if target.video.camera_id is None:
            raise UsageError(f"the camera of {target.video.video_id} is not known, so it cannot be left out")
        allowed = pc.and_(allowed, pc.fill_null(pc.not_equal(videos["camera_id"], target.video.camera_id), True))
    for bound, compare in ((settings.after, pc.greater_equal), (settings.before, pc.less)):
        if bound is not None:
            inside = compare(videos["start_time"], pa.scalar(bound, pa.timestamp("us", tz="UTC")))
            allowed = pc.and_(allowed, pc.fill_null(inside, False))
    return np.asarray(allowed)


def _ids(index: Index, videos: np.ndarray) -> list[str]:
    return index.videos["video_id"].take(pa.array(videos)).to_pylist()


def _video_ref(row: dict[str, Any]) -> VideoRef:
    return VideoRef(**{name: row[name] for name in VideoRef.__dataclass_fields__})
