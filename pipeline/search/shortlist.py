"""Which videos a target may find, and which of those are worth scoring in full: the first half of a search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from pipeline.coattention.cohort import CohortStatistics, cohort_statistics
from pipeline.coattention.visibility import frame_visibility, segment_visibility
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.places import CameraPlace, read_places, with_right_times, wrong_clocks
from pipeline.index.versions import Index, is_compressed
from pipeline.scoring.candidates import TargetSegments
from pipeline.scoring.scores import encode_target
from pipeline.scoring.video_scores import rank_videos
from pipeline.scoring.whole import WholeVideos, video_encodings
from pipeline.search.partitions import Partitions
from pipeline.search.targets import Target
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from pipeline.time_windows import seen, seen_daily, seen_within

OLD_RATIO = 0.05  # the share of an index of an earlier format, which does not know how visible people are


@dataclass(frozen=True)
class Question:
    """A target as it is asked of an index.

    segments: the target cut and encoded. score: how pairs become a score, with the normalisation that the index can do. allowed:
    which videos may become leads, bool [V]; eligible: how many. untimed: how many more there would be if videos without a time
    counted, None where no time is asked for. copy: the row of a copy of the target, which says nothing of others that the target
    does not say; -1 where there is none, and for a target that is in the index itself.
    """

    target: Target
    segments: TargetSegments
    score: ScoreSettings
    allowed: np.ndarray
    eligible: int
    untimed: int | None
    copy: int


@dataclass(frozen=True)
class Shortlist:
    """The videos that are worth scoring, int64, best first; logits: by the prefilter, float32, -inf where it gave none."""

    question: Question
    videos: np.ndarray
    logits: np.ndarray

    def patience(self, settings: SearchSettings) -> int:
        """See `SearchSettings`; all of it is scored where everything is asked for, or the prefilter gave no order."""
        unordered = len(self.logits) > 0 and self.logits[0] == -np.inf
        if settings.exact or settings.patience is None or settings.shortlist is None or unordered:
            return max(len(self.question.allowed), 1)
        return settings.patience

    def with_next(self, place: int, videos: np.ndarray) -> "Shortlist":
        """With these videos, int64 [n], at a place and after it; those that had come later come there now.

        The prefilter's logit of others is not known.
        """
        if not len(videos):
            return self
        known = dict(zip(self.videos.tolist(), self.logits.tolist(), strict=True))
        later = ~np.isin(self.videos[place:], videos)
        logits = np.array([known.get(video, -np.inf) for video in videos.tolist()], np.float32)
        return Shortlist(
            self.question,
            np.concatenate([self.videos[:place], videos, self.videos[place:][later]]),
            np.concatenate([self.logits[:place], logits, self.logits[place:][later]]),
        )


def questions(gallery: Gallery, index: Index, targets: Sequence[Target], settings: SearchSettings) -> list[Question]:
    """Targets as they are asked of an index. Raises UsageError when the filters name a camera that the gallery does not have."""
    times = seen_in_time(index, settings, read_places(gallery)) if settings.filters_times else None  # once for all targets
    return [_question(gallery, index, target, settings, times) for target in targets]


def _question(
    gallery: Gallery, index: Index, target: Target, settings: SearchSettings, times: tuple[np.ndarray, np.ndarray] | None
) -> Question:
    own = index.rows_of(target.video)
    segments = segmented(target, index, settings.target_length, settings.target_stride, own)
    allowed = allowed_videos(gallery, index, target, settings, own)
    untimed = None
    if times is not None:
        inside, without = times
        untimed = int(np.count_nonzero(allowed & without))
        allowed &= inside
    normalise = settings.score.normalise if segments.cohort is not None else "none"
    score = replace(settings.score, normalise=normalise)
    if score.all_pairs and not index.has_whole_videos:
        score = replace(score, ratio=OLD_RATIO)
    itself = len(own) > 0 and index.ids(own[:1]) == [target.video.video_id]
    copy = -1 if itself else index.row_of_copy(target.content)
    return Question(target, segments, score, allowed, int(np.count_nonzero(allowed)), untimed, copy)


def shortlist(index: Index, partitions: Partitions, question: Question, settings: SearchSettings) -> Shortlist:
    """The best videos by the prefilter, equal ones by id where they are not all scored together.

    In an exact search all others that are allowed follow, by number.
    """
    count = question.eligible
    if settings.shortlist is not None:
        count = min(count, max(settings.shortlist, math.ceil(round(settings.shortlist_share * count, 6))))
    if count == question.eligible and is_compressed(index):  # an order of everything would take as long as scores
        return Shortlist(question, np.flatnonzero(question.allowed), np.full(count, -np.inf, np.float32))
    allowed = None if question.eligible == len(question.allowed) else question.allowed
    found, logits = partitions.shortlist(question.segments.for_prefilter, count, allowed)
    order = np.argsort(-logits, kind="stable")
    found, logits = found[order], logits[order]
    patience = Shortlist(question, found, logits).patience(settings)
    cuts = np.array([cut for cut in (count, *range(patience, count, patience)) if cut < len(found)], np.int64)
    equal = np.flatnonzero(np.isin(logits, logits[cuts][logits[cuts] == logits[cuts - 1]]))
    found[equal] = found[equal[rank_videos(logits[equal], index.ids(found[equal]))]]
    found, logits = found[:count], logits[:count]
    if settings.exact:
        others = np.setdiff1d(np.flatnonzero(question.allowed), found)
        found = np.concatenate([found, others])
        logits = np.concatenate([logits, np.full(len(others), -np.inf, np.float32)])
    return Shortlist(question, found, logits)


def segmented(
    target: Target, index: Index, length: int | None = None, stride: int | None = None, own: np.ndarray | None = None
) -> TargetSegments:
    """A target cut into segments of `length` frames, `stride` apart (None: as in the index), encoded, measured by the cohort.

    Its values are those of its camera, as far as that is known. own: `Index.rows_of` the target, where they are known. Raises
    UsageError for sizes that cannot be meant.
    """
    own = index.rows_of(target.video) if own is None else own
    head, frames = index.heads.of(index.camera_of(target.video, target.content, own)), len(target.features)
    length = index.settings.segment_length if length is None else length
    stride = index.settings.stride if stride is None else stride
    IndexSettings(length, stride)  # raises UsageError
    rows = segment_frames(segment_starts(frames, length, stride), length, frames)
    means = index.cohort.means.float()
    centre = (
        means.mean(dim=0) if len(means) else means.new_zeros(means.shape[1])
    )  # near all values, and the same for every target
    lengths = torch.full((len(rows),), min(frames, length))
    of_frames = np.ones(frames, np.float32)
    with torch.inference_mode():
        features = torch.from_numpy(np.array(target.features))
        if index.query is not None:
            of_frames = frame_visibility(head.keys(features).numpy(), index.query, np.array([frames]))
        whole = video_encodings(head.values(features).numpy(), of_frames, np.array([frames]), head.config.unit_encodings)
    encoding = encode_target(head, torch.from_numpy(target.features[rows]), centre, lengths=lengths)
    unmeasured = WholeVideos(whole, *np.full((2, 1), np.nan, np.float32)) if index.has_whole_videos else None
    shown = segment_visibility(of_frames, rows)
    found = TargetSegments(encoding, target.frame_index[rows], target.time_s[rows], shown, whole=unmeasured)
    if not index.cohort.usable:
        return found
    # A copy of a video is not measured against it either, although it finds it.
    video = torch.full((len(rows) + 1,), int(own[0]) if len(own) else index.row_of_copy(target.content))
    encodings = torch.cat([encoding.encodings, torch.from_numpy(whole)])
    measured = cohort_statistics(index.cohort, encodings, video, encoding.weight, encoding.bias)
    of_whole = WholeVideos(whole, measured.mean[-1:].numpy(), measured.spread[-1:].numpy())
    cohort = CohortStatistics(measured.mean[:-1], measured.spread[:-1])
    return replace(found, cohort=cohort, whole=of_whole if index.has_whole_videos else None)


def allowed_videos(
    gallery: Gallery, index: Index, target: Target, settings: SearchSettings, own: np.ndarray | None = None
) -> np.ndarray:
    """Which videos may become leads, whatever their times: bool [V]. own: `Index.rows_of` the target, where they are known."""
    videos = index.videos
    allowed = np.ones(len(videos), np.bool_)
    allowed[index.rows_of(target.video) if own is None else own] = False
    if forgotten := gallery.forgotten(index.manifest["commits"]):
        allowed &= ~np.asarray(pc.is_in(videos["video_id"], pa.array(sorted(forgotten), pa.string())))
    if settings.other_cameras and target.video.camera_id is None:
        raise UsageError(f"the camera of {target.video.video_id} is not known, so it cannot be left out")
    if settings.cameras or settings.other_cameras:
        _check_cameras(index, settings.cameras)
        matching = set(index.partitions_matching(settings.cameras))
        for number, rows in enumerate(_rows(index)):
            allowed[rows] &= _passes(index.partition_videos(number), target, settings) if number in matching else False
    return allowed


def seen_in_time(index: Index, settings: SearchSettings, places: Mapping[str, CameraPlace]) -> tuple[np.ndarray, np.ndarray]:
    """In which videos somebody is seen when the settings ask for, by right clocks, and which have no time: bool [V] each.

    places: what is known of the cameras, see `pipeline.gallery.places`.
    """
    inside, without = (np.zeros(len(index.videos), np.bool_) for _ in range(2))
    matching = set(index.partitions_matching((), settings.after, settings.before))
    if wrong := wrong_clocks(places):
        matching.update(index.partitions_matching(wrong))  # whose times say too little
    for number, rows in enumerate(_rows(index)):
        videos = index.partition_videos(number)
        if number not in matching and not videos["start_time"].null_count:
            continue
        first, last = seen(with_right_times(videos, places))
        without[rows] = np.asarray(pc.is_null(first))
        if number in matching:
            inside[rows] = seen_within(first, last, settings.after, settings.before)
            if settings.between is not None:
                inside[rows] &= seen_daily(first, last, *settings.between, settings.zone)
    return inside, without


def _rows(index: Index) -> list[slice]:
    """Where the videos of each partition stand among all of an index."""
    return [slice(part["first_video"], part["first_video"] + part["videos"]) for part in index.manifest["partitions"]]


def _check_cameras(index: Index, cameras: Sequence[str]) -> None:
    """Raises UsageError for a camera that no indexed video has."""
    named = [part["cameras"] for part in index.manifest["partitions"]]
    if not cameras or (None not in named and set(cameras) <= set().union(*named)):
        return
    known = set(pc.unique(index.videos["camera_id"]).to_pylist())
    if unknown := [camera for camera in cameras if camera not in known]:
        some = ", ".join(sorted(str(camera) for camera in known if camera is not None)[:10])
        raise UsageError(f"the gallery has no camera {unknown[0]!r}; it has {some or 'videos without camera ids only'}")


def _passes(videos: pa.Table, target: Target, settings: SearchSettings) -> np.ndarray:
    """Which of the videos the filters on cameras let through: bool [v]."""
    passes = np.ones(len(videos), np.bool_)
    if settings.cameras:
        passes &= np.asarray(pc.is_in(videos["camera_id"], pa.array(settings.cameras, pa.string())))
    if settings.other_cameras:
        passes &= np.asarray(pc.fill_null(pc.not_equal(videos["camera_id"], target.video.camera_id), True))
    return passes
