"""One partition of an index, open: its share of the shortlist, its full scores, its evidence. No Ray here."""

from dataclasses import dataclass

import numpy as np
import torch

from pipeline.cohort import CohortStatistics, normalised_logits
from pipeline.index import Index
from pipeline.partition_files import load_array, load_prefilter
from pipeline.prefilter import shortlist
from pipeline.results import SegmentPair, SegmentView
from pipeline.scoring import (
    ScoreSettings,
    TargetEncoding,
    attention_weights,
    pair_logits,
    video_scores,
)
from pipeline.segments import segment_frames

SCORE_FRAMES = 65_536  # candidate frames scored at a time


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


class Partition:
    """The arrays of one partition. Videos are numbered from 0 within it."""

    def __init__(self, index: Index, number: int, device: str = "cpu") -> None:
        folder = index.location.join(f"p{number:04d}")
        videos = index.partition_videos(number)
        self.device = device
        self.length = index.settings.segment_length
        self.keys, self.values = load_array(folder.join("keys.npy")), load_array(folder.join("values.npy"))
        self.frame_index, self.time_s = load_array(folder.join("frame_index.npy")), load_array(folder.join("time_s.npy"))
        self.segment_start = load_array(folder.join("segment_start.npy"))
        self.cohort_mean, self.cohort_spread = (load_array(folder.join(f"{n}.npy")) for n in ("cohort_mean", "cohort_spread"))
        self.prefilter = load_prefilter(folder.join("prefilter.faiss"))
        self.frames = np.asarray(videos["sampled_frames"]).astype(np.int64)
        self.first_frame = np.asarray(videos["first_frame"])
        self.segments = np.asarray(videos["segments"])
        self.first_segment = np.asarray(videos["first_segment"])
        self.video_of_segment = np.repeat(np.arange(len(videos)), self.segments)

    def shortlist(self, target: TargetSegments, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """(videos, prefilter logits) of the best `count` videos, see `pipeline.prefilter.shortlist`. allowed: bool [V]."""
        return shortlist(self.prefilter, target.encoding, self.video_of_segment, count, allowed)

    def score(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings) -> np.ndarray:
        """Video scores float64 [m] of the videos int64 [m], each ascending: read in file order and in large pieces."""
        scores = np.empty(len(videos))
        ends = np.cumsum(self.frames[videos])
        start = 0
        while start < len(videos):
            taken = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, taken + SCORE_FRAMES, side="right")))
            pairs, offsets = self._pair_scores(target, videos[start:stop], settings)
            scores[start:stop] = video_scores(pairs, offsets, settings)
            start = stop
        return scores

    def evidence(self, target: TargetSegments, video: int, pairs: int, settings: ScoreSettings) -> list[SegmentPair]:
        """The best segment pairs of one video, best first, each candidate segment and each target segment at most once."""
        scores, _ = self._pair_scores(target, np.array([video]), settings)
        order = np.dstack(np.unravel_index(np.argsort(-scores, axis=None, kind="stable"), scores.shape))[0]
        chosen: list[tuple[int, int]] = []
        for n, k in order.tolist():
            if len(chosen) < pairs and all(n != m and k != j for m, j in chosen):
                chosen.append((n, k))
        rows = self._segment_rows(video)
        first = int(self.first_frame[video])
        keys = torch.from_numpy(np.array(self.keys[first : first + int(self.frames[video])]))
        weights = attention_weights(target.encoding.to("cpu"), keys, torch.from_numpy(rows - first)).numpy()
        own = target.encoding.attention.cpu().numpy()
        return [
            SegmentPair(
                _view(target.frame_index[n], target.time_s[n], own[n]),
                _view(self.frame_index[rows[k]], self.time_s[rows[k]], weights[n, k]),
                float(scores[n, k]),
            )
            for n, k in chosen
        ]

    def _pair_scores(self, target: TargetSegments, videos: np.ndarray, settings: ScoreSettings) -> tuple[np.ndarray, np.ndarray]:
        """Scores float32 [N, K] against all segments of the videos, and where each video's columns begin, int64 [m + 1]."""
        counts = self.frames[videos]
        moved = np.cumsum(counts) - counts - self.first_frame[videos]  # from a row of the file to a row of what is read
        segments = np.concatenate([self._segment_rows(v) + shift for v, shift in zip(videos, moved, strict=True)])
        keys, values = (self._read(array, videos).to(self.device) for array in (self.keys, self.values))
        encoding = target.encoding.to(self.device)
        logits = pair_logits(encoding, keys, values, torch.from_numpy(segments).to(self.device))
        if settings.normalise == "cohort" and target.cohort is not None:
            spans = list(zip(self.first_segment[videos], self.segments[videos], strict=True))
            mean, spread = (
                torch.from_numpy(np.concatenate([array[first : first + n] for first, n in spans])).to(self.device)
                for array in (self.cohort_mean, self.cohort_spread)
            )
            logits = normalised_logits(logits, target.cohort.to(self.device), CohortStatistics(mean, spread))
        return logits.sigmoid_().cpu().numpy(), np.concatenate([[0], np.cumsum(self.segments[videos])])

    def _segment_rows(self, video: int) -> np.ndarray:
        """Rows of the partition's arrays that make up each segment of a video, int64 [K, T]."""
        first = int(self.first_segment[video])
        starts = self.segment_start[first : first + int(self.segments[video])] - self.first_frame[video]
        return segment_frames(starts, self.length, int(self.frames[video])) + self.first_frame[video]

    def _read(self, array: np.ndarray, videos: np.ndarray) -> torch.Tensor:
        pieces = [array[f : f + n] for f, n in zip(self.first_frame[videos], self.frames[videos], strict=True)]
        return torch.from_numpy(np.concatenate(pieces))


def _view(frame_index: np.ndarray, time_s: np.ndarray, attention: np.ndarray) -> SegmentView:
    return SegmentView(tuple(map(int, frame_index)), tuple(map(float, time_s)), tuple(map(float, attention)))
