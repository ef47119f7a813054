"""One partition of an index, open: its share of the shortlist, its full scores, its evidence. No Ray here."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pipeline.bounds import attention_logits, ball_logits, radii, squared_distances, video_bounds
from pipeline.cohort import CohortStatistics, normalised_logits
from pipeline.errors import PipelineError
from pipeline.frame_rows import FrameRows, Reading
from pipeline.index import Index
from pipeline.list_scan import ListScan
from pipeline.partition_files import load_array, load_prefilter
from pipeline.prefilter import PrefilterQuery, is_flat, shortlist, stored_vectors
from pipeline.results import SegmentPair, SegmentView
from pipeline.scoring import (
    ScoreSettings,
    TargetEncoding,
    attention_weights,
    candidate_logits,
    segment_rows,
    video_scores,
)

STAGES = 2  # of bounds: the ball around a segment's mean; its true attention
RADII_SEGMENTS = 65_536  # measured at a time
SHARED = 1.5  # times as many pairs of target and video as were asked for may be scored to do it in one pass
SCORE_PAIRS = 8_000_000  # pairs of segments whose scores are held at a time
READ_BYTES = 128 << 20  # of rows that are read into memory at a time


@dataclass(frozen=True)
class TargetSegments:
    """A target, ready to be searched for: its encoding, and for the evidence the frames of each segment.

    frame_index: int32 [N, T_p], frames of the source; time_s: float32 [N, T_p], seconds. cohort: of the segments' logits, or None
    where the index has no usable cohort.
    """

    encoding: TargetEncoding
    frame_index: np.ndarray
    time_s: np.ndarray
    cohort: CohortStatistics | None = None

    def __len__(self) -> int:
        return len(self.frame_index)


class Partition:
    """The arrays of one partition: memory-mapped where they are scored on a CPU, resident where on a GPU.

    Videos are numbered from 0 within it. copied: whether the rows that are scored are read into memory of their own.
    """

    def __init__(self, index: Index, number: int, device: str = "cpu", *, copied: bool = False) -> None:
        folder = index.partition_location(number)
        videos = index.partition_videos(number)
        self.device = device
        self.length, self.stride = index.settings.segment_length, index.settings.stride
        self.arrays: dict[str, Any] = {name: load_array(folder.join(f"{name}.npy")) for name in ("keys", "values", "band")}
        self.keys, self.values, self.band = (_tensor(array).to(device) for array in self.arrays.values())
        self.copied = copied and device == "cpu" and folder.is_local
        self.row_bytes = sum(array.strides[0] for array in self.arrays.values())
        self.frame_index, self.time_s = load_array(folder.join("frame_index.npy")), load_array(folder.join("time_s.npy"))
        self.cohort_mean, self.cohort_spread = (
            _tensor(load_array(folder.join(f"{n}.npy"))) for n in ("cohort_mean", "cohort_spread")
        )
        self.prefilter = load_prefilter(folder.join("prefilter.faiss"))
        self.scan = ListScan.of(self.prefilter)
        self.frames = np.asarray(videos["sampled_frames"]).astype(np.int64)
        self.first_frame = np.asarray(videos["first_frame"])
        self.segments = np.asarray(videos["segments"])
        self.first_segment = np.asarray(videos["first_segment"])
        _check_lengths(
            folder.uri, self.frames, self.segments, (*self.arrays.values(), self.frame_index, self.time_s), self.cohort_mean
        )
        self.mapped = FrameRows(self.keys, self.values, self.band, self.first_frame)
        self.radius: torch.Tensor | None = None
        self.video_of_segment = np.repeat(np.arange(len(videos), dtype=np.int32), self.segments)

    def reading(self, videos: np.ndarray) -> Reading | None:
        """The rows of these videos, int64 ascending, on their way into memory; None where they are not copied or are too many."""
        if not self.copied or not len(videos) or self.frames[videos].sum() * self.row_bytes > READ_BYTES:
            return None
        return Reading(self.arrays, videos, self.first_frame[videos], self.frames[videos])

    def shortlist(self, query: PrefilterQuery, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(videos, prefilter logits) of the best `count` videos, see `pipeline.prefilter.shortlist`. allowed: bool [V]."""
        return shortlist(self.prefilter, query, self.video_of_segment, count, allowed, self.scan)

    def score(
        self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, rows: FrameRows | None = None
    ) -> np.ndarray:
        """Video scores float64 [m] of the videos int64 [m], each ascending: read in file order and in large pieces.

        rows: theirs, where they are in memory already.
        """
        scores = np.empty(len(videos))
        for part in self._parts(videos, len(target)):
            scores[part] = video_scores(*self.pair_scores(target, videos[part], settings, rows), settings)
        return scores

    def score_many(
        self,
        targets: Sequence[TargetSegments],
        videos: Sequence[np.ndarray],
        settings: ScoreSettings,
        rows: FrameRows | None = None,
    ) -> list[np.ndarray]:
        """`score` of each target and its videos; in one pass over the frames where most ask for the same videos."""
        union = np.unique(np.concatenate(videos))
        if len(targets) == 1 or len(union) * len(targets) > SHARED * sum(map(len, videos)):
            return [self.score(target, mine, settings, rows) for target, mine in zip(targets, videos, strict=True)]
        ends = np.cumsum([len(target) for target in targets])
        scores = np.empty((len(targets), len(union)))
        joined = _joined(targets)
        for part in self._parts(union, int(ends[-1])):
            pairs, offsets = self.pair_scores(joined, union[part], settings, rows)
            for row, (end, target) in enumerate(zip(ends, targets, strict=True)):
                scores[row, part] = video_scores(pairs[end - len(target) : end], offsets, settings)
        return [row[np.searchsorted(union, mine)] for row, mine in zip(scores, videos, strict=True)]

    def bounds(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, stage: int) -> np.ndarray:
        """Upper bounds of the scores float64 [m] of the videos int64 [m], each ascending; stages tighten from 0 to STAGES - 1.

        Infinite where the prefilter does not hold the segments' means.
        """
        if not is_flat(self.prefilter):
            return np.full(len(videos), np.inf)
        bounds = np.empty(len(videos))
        for part in self._parts(videos, len(target) * (1 if stage == 0 else self.length)):
            bounds[part] = self._bounds(target, videos[part], settings, stage)
        return bounds

    def _bounds(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, stage: int) -> np.ndarray:
        start, last, numbers = self._cut(videos)
        rows = torch.from_numpy(numbers)
        means = _tensor(stored_vectors(self.prefilter))[rows]
        encoding = target.encoding.to("cpu")
        if stage == 0:
            logits = ball_logits(encoding, means, self._radii()[rows])
        else:
            frames = segment_rows(torch.from_numpy(start), torch.from_numpy(last), self.length)
            used, of_used = torch.unique(frames, return_inverse=True)
            base = int(used[0])
            table = squared_distances(-self.band[base : int(used[-1]) + 1].cpu(), frames - base)
            logits = attention_logits(encoding, means, self.keys[used].cpu(), table, of_used)
        offsets = np.concatenate([[0], np.cumsum(self.segments[videos])])
        candidate = CohortStatistics(self.cohort_mean[rows], self.cohort_spread[rows])
        of_cohort = settings.normalise == "cohort" and target.cohort is not None
        return video_bounds(logits, offsets, settings, *((target.cohort, candidate) if of_cohort else ()))

    def _radii(self) -> torch.Tensor:
        """Of all segments, computed when they are first asked for."""
        if self.radius is None:
            videos = np.arange(len(self.frames))
            start, last, _ = self._cut(videos)
            means, parts = _tensor(stored_vectors(self.prefilter)), []
            for first in range(0, len(start), RADII_SEGMENTS):
                some = slice(first, first + RADII_SEGMENTS)
                frames = segment_rows(torch.from_numpy(start[some]), torch.from_numpy(last[some]), self.length)
                base = int(frames.min())
                band = -self.band[base : int(frames.max()) + 1].cpu()
                parts.append(radii(squared_distances(band, frames - base), means[some]))
            self.radius = torch.cat(parts)
        return self.radius

    def _parts(self, videos: np.ndarray, rows: int) -> Iterator[slice]:
        """The videos in pieces of about SCORE_PAIRS numbers, of which each of their segments makes `rows`, and READ_BYTES."""
        pairs, size = self.segments[videos] * (rows / SCORE_PAIRS), self.frames[videos] * (self.row_bytes / READ_BYTES)
        used = np.cumsum(np.maximum(pairs, size))
        start = 0
        while start < len(videos):
            taken = used[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(used, taken + 1, side="right")))
            yield slice(start, stop)
            start = stop

    def pair_scores(
        self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings, rows: FrameRows | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [N, K] against all segments of the videos, and where each video's columns begin, int64 [m + 1]."""
        if rows is None:
            reading = self.reading(videos)
            rows = self.mapped if reading is None else reading.rows()
        start, last, segments = self._cut(videos, rows)
        first, final = (torch.from_numpy(numbers).to(self.device) for numbers in (start, last))
        logits = candidate_logits(target.encoding, rows.keys, rows.values, rows.band, first, final, self.length).T
        if settings.normalise == "cohort" and target.cohort is not None:
            numbers = torch.from_numpy(segments)
            candidate = CohortStatistics(self.cohort_mean[numbers], self.cohort_spread[numbers]).to(self.device)
            logits = normalised_logits(logits, target.cohort.to(self.device), candidate)
        offsets = np.concatenate([[0], np.cumsum(self.segments[videos])])
        return logits.sigmoid().cpu().numpy(), offsets

    def evidence(self, target: TargetSegments, video: int, pairs: int, settings: ScoreSettings) -> list[SegmentPair]:
        """The best segment pairs of one video, best first, each candidate segment and each target segment at most once."""
        videos = np.array([video])
        scores, _ = self.pair_scores(target, videos, settings)
        order = np.dstack(np.unravel_index(np.argsort(-scores, axis=None, kind="stable"), scores.shape))[0]
        chosen: list[tuple[int, int]] = []
        for n, k in order.tolist():
            if len(chosen) < pairs and all(n != m and k != j for m, j in chosen):
                chosen.append((n, k))
        start, last, _ = self._cut(videos)
        rows = segment_rows(torch.from_numpy(start), torch.from_numpy(last), self.length)
        first, frames = int(self.first_frame[video]), int(self.frames[video])
        keys = self.keys[first : first + frames].cpu()
        weights = attention_weights(target.encoding.to("cpu"), keys, rows - first).numpy()
        own = target.encoding.attention.cpu().numpy()
        return [
            SegmentPair(
                _view(target.frame_index[n], target.time_s[n], own[n]),
                _view(self.frame_index[rows[k]], self.time_s[rows[k]], weights[n, k]),
                float(scores[n, k]),
            )
            for n, k in chosen
        ]

    def _cut(self, videos: np.ndarray, rows: FrameRows | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First frame, last frame of the video, both as `rows` number them, and number of each segment of the videos; int64 [K].

        The same starts as `pipeline.segments.segment_starts` gives.
        """
        counts = self.segments[videos]
        nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        first = np.repeat((rows or self.mapped).first_of(videos), counts)
        frames = np.repeat(self.frames[videos], counts)
        start = first + np.minimum(nth * self.stride, np.maximum(frames - self.length, 0))
        return start, first + frames - 1, np.repeat(self.first_segment[videos], counts) + nth


def _check_lengths(
    uri: str, frames: np.ndarray, segments: np.ndarray, of_frames: Sequence[np.ndarray], of_segments: torch.Tensor
) -> None:
    """Raises PipelineError where arrays are shorter or longer than their videos need."""
    if any(len(array) != frames.sum() for array in of_frames) or len(of_segments) != segments.sum():
        raise PipelineError(f"the index partition {uri} is damaged: its files do not fit each other; run jobs.index --rebuild")


def _joined(targets: Sequence[TargetSegments]) -> TargetSegments:
    """The segments of several targets as those of one, for scores only."""
    first = targets[0].encoding
    joined = {name: torch.cat([getattr(target.encoding, name) for target in targets]) for name in ("query_vectors", "encodings")}
    encoding = replace(first, **joined, attention=first.attention[:0], centre=joined["encodings"].mean(dim=0))
    cohort = None
    if statistics := [target.cohort for target in targets if target.cohort is not None]:
        cohort = CohortStatistics(torch.cat([one.mean for one in statistics]), torch.cat([one.spread for one in statistics]))
    frames = np.empty((len(joined["encodings"]), 0))
    return TargetSegments(encoding, frames, frames, cohort)


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor over the same memory; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _view(frame_index: np.ndarray, time_s: np.ndarray, attention: np.ndarray) -> SegmentView:
    return SegmentView(tuple(map(int, frame_index)), tuple(map(float, time_s)), tuple(map(float, attention)))
