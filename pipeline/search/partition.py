"""One partition of an index, open: its share of the shortlist, its full scores, its evidence. No Ray here."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.coattention.cohort import CohortStatistics
from pipeline.errors import PipelineError
from pipeline.index.cached_files import PartialFile, at_once, cached_folder, local_files
from pipeline.index.list_scan import ListScan
from pipeline.index.partition_files import NEW_ARRAYS, OF_PARTS, array_fault, array_shapes, load_array, load_prefilter
from pipeline.index.prefilter import PrefilterQuery, shortlist
from pipeline.index.versions import Index
from pipeline.scoring.candidates import Candidates, TargetSegments, counted_up
from pipeline.scoring.frame_rows import FileRows, FrameRows, RowFiles
from pipeline.scoring.scores import attention_weights, segment_rows
from pipeline.scoring.whole import WholeVideos
from pipeline.search.results import SegmentPair, SegmentView
from pipeline.settings import ScoreSettings
from pipeline.stopping import Between, going_on
from pipeline.storage.location import Location

WHOLE = ("encodings", "mean", "spread")
OF_ROWS = ("keys", "values", "band")
OF_FRAMES = (*OF_ROWS, "frame_index", "time_s")  # arrays with a row a frame
MISFIT = "its files do not fit each other"


class Partition:
    """The arrays of one partition: memory-mapped where they are scored on a CPU, resident where on a GPU.

    Videos are numbered from 0 within it. files: of the arrays, to be read from; None on a GPU. Of an index in an object store the
    files are cached (`pipeline.index.cached_files`), those with rows of frames as far as they are needed.
    """

    def __init__(self, index: Index, number: int, device: str = "cpu") -> None:
        folder = index.partition_location(number)
        videos = index.partition_videos(number)
        self.device = device
        self.length, self.stride = index.settings.segment_length, index.settings.stride
        part, config = index.manifest["partitions"][number], index.head.config
        shapes = array_shapes(config, part["frames"], part["segments"], len(videos), self.length)
        missing = [name for name in NEW_ARRAYS if f"{name}.npy" not in part["files"] or not index.has_whole_videos]
        self.partial = {} if folder.is_local or device != "cpu" else _partial_files(folder, part["files"])
        folder = local_files(folder, {name: entry for name, entry in part["files"].items() if name[:-4] not in self.partial})
        places = {name: folder.join(f"{name}.npy") for name in shapes if name not in missing}
        places |= {name: file.here for name, file in self.partial.items()}
        arrays = {name: load_array(place) for name, place in places.items()}
        for name, array in arrays.items():
            if wrong := array_fault(array, *shapes[name]):
                raise PipelineError(f"the index partition {folder.uri} is damaged: {name} {wrong}; run jobs.index --rebuild")
        self.arrays: dict[str, Any] = {name: arrays[name] for name in ("keys", "values", "band")}
        self.keys, self.values, self.band = (_tensor(array).to(device) for array in self.arrays.values())
        self.files = RowFiles(self.arrays) if device == "cpu" else None
        self.frame_index, self.time_s = arrays["frame_index"], arrays["time_s"]
        self.of_frames: dict[str, Any] = {name: arrays[name] for name in OF_FRAMES}
        self.cohort_mean, self.cohort_spread = _tensor(arrays["cohort_mean"]), _tensor(arrays["cohort_spread"])
        self.visibility = np.asarray(arrays.get("visibility", np.ones(part["segments"], np.float32)))
        self.whole: WholeVideos | None = None
        self.parts: WholeVideos | None = None  # of the same videos
        if index.has_whole_videos:
            # Plain views: to take from a mapped array as such costs several microseconds more, thousands of times a search.
            self.whole = WholeVideos(*(np.asarray(arrays[f"video_{name}"]) for name in WHOLE))
            there = OF_PARTS[0] in arrays
            self.parts = WholeVideos(*(np.asarray(arrays[name]) for name in OF_PARTS)) if there else self.whole.as_parts()
        self.prefilter = load_prefilter(folder.join("prefilter.faiss"))
        self.scan = ListScan.of(self.prefilter)
        self.frames = np.asarray(videos["sampled_frames"]).astype(np.int64)
        self.first_frame = np.asarray(videos["first_frame"])
        self.segments = np.asarray(videos["segments"])
        self.first_segment = np.asarray(videos["first_segment"])
        if (self.frames.sum(), self.segments.sum()) != (part["frames"], part["segments"]):
            raise PipelineError(f"the index partition {folder.uri} is damaged: {MISFIT}; run jobs.index --rebuild")
        self.rows = FrameRows(self.keys, self.values, self.band)
        self.video_of_segment = np.repeat(np.arange(len(videos), dtype=np.int32), self.segments)

    def fetch(self, videos: np.ndarray, names: Sequence[str] = OF_ROWS) -> None:
        """Have the rows of the videos, int64 [m], on this machine: those of an index in a store may not be there yet."""
        for name in names if self.partial else ():
            array = self.of_frames[name]
            first = array.offset + self.first_frame[videos] * array.strides[0]
            self.partial[name].need(first, first + self.frames[videos] * array.strides[0])

    def candidates(self, videos: np.ndarray, *, in_files: bool = False) -> Candidates:
        """The videos, int64 [m] ascending, as they are scored: in the partition's own rows, or in files where it has any.

        `fetch` them before.
        """
        segments = self._segments_of(videos)
        numbers = torch.from_numpy(segments)
        return Candidates(
            FileRows([self.files], np.zeros(len(videos), np.int64)) if in_files and self.files is not None else self.rows,
            self.first_frame[videos],
            self.frames[videos],
            self.segments[videos],
            CohortStatistics(self.cohort_mean[numbers], self.cohort_spread[numbers]),
            self.visibility[segments],
            self.length,
            self.stride,
            None if self.whole is None else self.whole[videos],
            None if self.parts is None else self.parts[videos],
        )

    def _segments_of(self, videos: np.ndarray) -> np.ndarray:
        """Numbers of the videos' segments within the partition, int64 [K]."""
        return counted_up(self.first_segment[videos], self.segments[videos])

    def shortlist(
        self, query: PrefilterQuery, count: int, allowed: np.ndarray | None, least: float = -math.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        """(videos, prefilter logits) of the best `count` videos, see `pipeline.index.prefilter.shortlist`. allowed: bool [V]."""
        return shortlist(self.prefilter, query, self.video_of_segment, count, allowed, self.scan, least)

    def evidence(
        self,
        target: TargetSegments,
        videos: np.ndarray,
        pairs: int,
        settings: ScoreSettings,
        between: Between = going_on,
    ) -> list[list[SegmentPair]]:
        """The best segment pairs of each of the videos, int64 [m] ascending: see `Candidates.best_pairs`."""
        self.fetch(videos, OF_FRAMES)
        candidates = self.candidates(videos)
        best = candidates.best_pairs(target, settings, pairs, between)
        of_target = [n for chosen in best for n, _, _ in chosen]
        of_videos = [first + k for first, chosen in zip(candidates.offsets.tolist(), best, strict=False) for _, k, _ in chosen]
        start, last = candidates.cut()
        rows = segment_rows(start[of_videos], last[of_videos], self.length)  # [pairs of all videos, T]
        shown = target.encoding.to(self.device).only(of_target)
        weights, own = attention_weights(shown, self.keys, self.values, rows).cpu().numpy(), shown.attention.cpu().numpy()
        sides = zip(
            map(_view, target.frame_index[of_target], target.time_s[of_target], own),
            map(_view, self.frame_index[rows.numpy()], self.time_s[rows.numpy()], weights),
            strict=True,
        )
        return [[SegmentPair(*next(sides), score) for _, _, score in chosen] for chosen in best]


def _partial_files(folder: Location, files: Mapping[str, Any]) -> dict[str, PartialFile]:
    """The files of OF_FRAMES, by these names."""
    found: dict[str, PartialFile] = {}

    def open_one(name: str) -> None:
        found[name] = PartialFile(folder.join(f"{name}.npy"), files[f"{name}.npy"], cached_folder(folder))

    at_once(open_one, OF_FRAMES)
    return found


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The array as a tensor over the same memory; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def _view(frame_index: np.ndarray, time_s: np.ndarray, attention: np.ndarray) -> SegmentView:
    return SegmentView(tuple(map(int, frame_index)), tuple(map(float, time_s)), tuple(map(float, attention)))
