"""Candidate videos, their rows at hand or in files, and the scores of targets against them. No Ray here."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pipeline.coattention.cohort import CohortStatistics, normalised_logits
from pipeline.coattention.logits import sigmoid
from pipeline.scoring import pair_kernel
from pipeline.scoring.frame_rows import FileRows, FrameRows
from pipeline.scoring.scores import TargetEncoding, candidate_logits, file_logits, scores_of
from pipeline.scoring.video_scores import OF_TARGET, SHARPNESS, video_scores, visible_logits
from pipeline.scoring.whole import WholeVideos, nearest_part
from pipeline.scoring.whole import joined as joined_videos
from pipeline.settings import ScoreSettings
from pipeline.stopping import Between, going_on, stoppable

SHARED = 1.5  # times as many pairs of target and video as were asked for may be scored to do it in one pass
SCORE_PAIRS = 8_000_000  # pairs of segments whose scores are held at a time


@dataclass(frozen=True)
class TargetSegments:
    """A target, ready to be searched for: its encoding, and for the evidence the frames of each segment.

    frame_index: int32 [N, T_p], frames of the source; time_s: float32 [N, T_p], seconds. visibility: of its segments, float32
    [N]. cohort: of the segments' logits, or None where the index has no usable cohort. whole: the target as one video, measured
    where there is a cohort; None for an index of an earlier format.
    """

    encoding: TargetEncoding
    frame_index: np.ndarray
    time_s: np.ndarray
    visibility: np.ndarray
    cohort: CohortStatistics | None = None
    whole: WholeVideos | None = None

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def for_prefilter(self) -> TargetEncoding:
        """The encodings that candidates are looked for by: the whole target, and each segment at the price of what hides it.

        The price is its weight in the score (`video_scores.visible_logits`), as a logit.
        """
        if self.whole is None:
            return self.encoding
        encodings = torch.cat([torch.from_numpy(self.whole.encodings.astype(np.float32)), self.encoding.encodings.cpu()])
        prices = torch.from_numpy(np.append([0], -OF_TARGET / SHARPNESS * np.log(self.visibility)).astype(np.float32))
        return replace(self.encoding, encodings=encodings, prices=prices)


@dataclass(frozen=True)
class Candidates:
    """Videos and where their frames lie in `rows`, each video's in one piece.

    first, frames, segments: int64 [m], a video's first row, rows and segments, ascending by `first` (in each file). cohort,
    visibility: of all their segments in order, [K]. length, stride: frames of a segment, and between segments. whole, parts: the
    m videos and their parts, None in an index of an earlier format.
    """

    rows: FrameRows | FileRows
    first: np.ndarray
    frames: np.ndarray
    segments: np.ndarray
    cohort: CohortStatistics
    visibility: np.ndarray
    length: int
    stride: int
    whole: WholeVideos | None = None
    parts: WholeVideos | None = None

    @property
    def offsets(self) -> np.ndarray:
        """Where each video's segments begin, int64 [m + 1]."""
        return np.concatenate([[0], np.cumsum(self.segments)])

    def cut(self) -> tuple[Tensor, Tensor]:
        """The first row of each segment and the last one of its video, int64 [K]; the starts of `segments.segment_starts`."""
        nth = counted_up(np.zeros(len(self.segments), np.int64), self.segments)
        first, frames = np.repeat(self.first, self.segments), np.repeat(self.frames, self.segments)
        start = first + np.minimum(nth * self.stride, np.maximum(frames - self.length, 0))
        return torch.from_numpy(start), torch.from_numpy(first + frames - 1)

    def pair_logits(self, target: TargetSegments, settings: ScoreSettings) -> Tensor:
        """Logits float32 [N, K] against all segments."""
        if isinstance(self.rows, FileRows):
            lie = self.rows, self.first, self.frames, self.segments
            logits = file_logits(target.encoding, *lie, self.length, self.stride)
        else:
            keys, values, band = self.rows.keys, self.rows.values, self.rows.band
            first, final = (rows.to(keys.device) for rows in self.cut())
            logits = candidate_logits(target.encoding, keys, values, band, first, final, self.length)
        logits = logits.T
        if settings.normalise == "cohort" and target.cohort is not None:
            logits = normalised_logits(logits, target.cohort.to(logits.device), self.cohort.to(logits.device))
        return logits

    def best_pairs(
        self, target: TargetSegments, settings: ScoreSettings, count: int, between: Between = going_on
    ) -> list[list[tuple[int, int, float]]]:
        """Up to `count` pairs of each video, best first: (target segment, segment of the video, score).

        Each segment of either side is in one of them at most. Where all pairs count, the better and the more visible are best.
        """
        found = []
        for some in stoppable(self._parts(len(target)), between):
            part = self._part(some)
            logits = part.pair_logits(target, settings)
            scores = worth = scores_of(logits)  # [N, K]
            if settings.all_pairs:
                visible = OF_TARGET * np.log(target.visibility)[:, None] + np.log(part.visibility)
                worth = logits.cpu().numpy() + visible / SHARPNESS
            for begin, end in pairwise(part.offsets.tolist()):
                left = worth[:, begin:end].copy()
                chosen: list[tuple[int, int, float]] = []
                while len(chosen) < min(count, *left.shape):
                    n, k = divmod(int(left.argmax()), end - begin)
                    chosen.append((n, k, float(scores[n, begin + k])))
                    left[n], left[:, k] = -np.inf, -np.inf
                found.append(chosen)
        return found

    def scores(self, targets: Sequence[TargetSegments], settings: ScoreSettings, between: Between = going_on) -> np.ndarray:
        """Video scores float64 [n, m] of each target, in one pass over the frames. between: called before each piece of it."""
        scores = np.empty((len(targets), len(self.first)))
        ends = np.cumsum([len(target) for target in targets])
        joined = targets[0] if len(targets) == 1 else _joined(targets)
        for some in stoppable(self._parts(int(ends[-1])), between):
            part = self._part(some)
            logits = part.pair_logits(joined, settings)
            pairs = logits.cpu().numpy() if settings.all_pairs else scores_of(logits)
            for row, (end, target) in enumerate(zip(ends, targets, strict=True)):
                mine = pairs[end - len(target) : end]
                if settings.all_pairs:
                    scores[row, some] = part._of_all_pairs(target, mine, settings)
                else:
                    scores[row, some] = video_scores(mine, part.offsets, settings)
        return scores

    def _of_all_pairs(self, target: TargetSegments, pairs: np.ndarray, settings: ScoreSettings) -> np.ndarray:
        """Video scores float64 [m] of one target from its logits [N, K], and from how alike it is as a whole: either will do."""
        logits = visible_logits(pairs, self.offsets, target.visibility, self.visibility)
        normalised = settings.normalise == "cohort" and target.cohort is not None
        if normalised and target.whole is not None and self.whole is not None and self.parts is not None:
            weight, bias = target.encoding.weight.cpu().numpy(), float(target.encoding.bias)
            logits = np.logaddexp(logits, nearest_part(target.whole, self.whole, self.parts, weight, bias))
        return sigmoid(logits)

    def _parts(self, target_segments: int) -> Iterator[slice]:
        """The videos in pieces of about SCORE_PAIRS pairs of segments."""
        used = np.cumsum(self.segments * (target_segments / SCORE_PAIRS))
        start = 0
        while start < len(used):
            taken = used[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(used, taken + 1, side="right")))
            yield slice(start, stop)
            start = stop

    def _part(self, some: slice) -> "Candidates":
        if some == slice(0, len(self.first)):
            return self
        begin, end = self.offsets[[some.start, some.stop]]
        cohort = CohortStatistics(self.cohort.mean[begin:end], self.cohort.spread[begin:end])
        rows = replace(self.rows, owner=self.rows.owner[some]) if isinstance(self.rows, FileRows) else self.rows
        first, frames, segments = (part[some] for part in (self.first, self.frames, self.segments))
        whole, parts = (None if one is None else one[some] for one in (self.whole, self.parts))
        lie = (rows, first, frames, segments)
        return Candidates(*lie, cohort, self.visibility[begin:end], self.length, self.stride, whole, parts)


def together(parts: Sequence[Candidates]) -> Candidates:
    """Candidates whose rows all lie in files, as one."""
    if len(parts) == 1:
        return parts[0]
    names = ("first", "frames", "segments", "visibility")
    first, frames, segments, visibility = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    cohort = CohortStatistics(torch.cat([part.cohort.mean for part in parts]), torch.cat([part.cohort.spread for part in parts]))
    owner = np.repeat(np.arange(len(parts)), [len(part.first) for part in parts])
    rows = FileRows([files for part in parts if isinstance(part.rows, FileRows) for files in part.rows.files], owner)
    kinds = ([getattr(part, name) for part in parts if getattr(part, name) is not None] for name in ("whole", "parts"))
    videos = (joined_videos(kind) if kind else None for kind in kinds)
    return Candidates(rows, first, frames, segments, cohort, visibility, parts[0].length, parts[0].stride, *videos)


def score_many(
    targets: Sequence[TargetSegments],
    videos: Sequence[np.ndarray],
    candidates: Callable[[np.ndarray], Candidates],
    settings: ScoreSettings,
    between: Between = going_on,
) -> list[np.ndarray]:
    """Scores float64 of each target and its videos, int64 and ascending; in one pass where most ask for the same videos.

    candidates: what videos, ascending, are scored as. between: called before each piece. A target's scores are the same, bit by
    bit, whatever the others are: the kernel computes each pair for itself. torch's products do not, so without the kernel each
    target is scored alone.
    """
    union = ascending_union(videos)
    alone = len(targets) == 1 or len(union) * len(targets) > SHARED * sum(map(len, videos))
    if alone or not joinable(targets):
        asked = zip(targets, videos, strict=True)
        return [candidates(mine).scores([one], settings, between)[0] if len(mine) else np.empty(0) for one, mine in asked]
    scores = candidates(union).scores(targets, settings, between)
    return [row[np.searchsorted(union, mine)] for row, mine in zip(scores, videos, strict=True)]


def ascending_union(numbers: Sequence[np.ndarray]) -> np.ndarray:
    """All numbers of these arrays, each ascending, once and ascending."""
    if len(numbers) == 1:
        return numbers[0]
    every = np.sort(np.concatenate(numbers))
    return every[np.diff(every, prepend=every[:1] - 1) > 0]


def counted_up(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """first[0], first[0] + 1, ... counts[0] of them, then from first[1] on: int64."""
    return np.arange(counts.sum()) + np.repeat(first - (np.cumsum(counts) - counts), counts)


def joinable(targets: Sequence[TargetSegments]) -> bool:
    """Whether targets may be scored as one without a change of a bit: by the kernel, and around one centre."""
    first = targets[0].encoding.centre
    return pair_kernel.available() and all(torch.equal(t.encoding.centre, first) for t in targets)


def _joined(targets: Sequence[TargetSegments]) -> TargetSegments:
    """The segments of several targets as those of one, for scores only; they share a centre."""
    first = targets[0].encoding
    queries, encodings = (
        torch.cat([getattr(target.encoding, name) for target in targets]) for name in ("query_vectors", "encodings")
    )
    encoding = replace(first, query_vectors=queries, encodings=encodings, attention=first.attention[:0])
    cohort = None
    if statistics := [target.cohort for target in targets if target.cohort is not None]:
        cohort = CohortStatistics(torch.cat([one.mean for one in statistics]), torch.cat([one.spread for one in statistics]))
    frames = np.empty((len(encodings), 0))
    return TargetSegments(encoding, frames, frames, np.concatenate([target.visibility for target in targets]), cohort)
