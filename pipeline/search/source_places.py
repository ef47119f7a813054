"""Where a video is in its sources: which file shows a moment of it, and where in the pictures somebody is."""

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.decoding.requests import ClipRequest, TrackRequest
from pipeline.decoding.video import Blank, Box, Event, Rejected, TrackBoxes
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.detections import BOX
from pipeline.gallery.gallery import Gallery

LONGEST_S = 60.0
PAST_LAST_S = 0.25  # that a clip goes on by itself after the last frame that was looked at
BLANK_S, BLANK_MARGIN = 1.0, 0.15  # before and after, and of a box on each side: where people are between two looks is a guess
OF_RECORDING = ("uri", "frame_rate", "fps", "shard", "ingested_hash")


@dataclass(frozen=True)
class Part:
    """What of a video is in one file. first_s: of the video's time, from which on it is this file; offset_s: of the video's time
    over the file's; frame_rate: of streams without times; blanks: where others are that were forgotten, in the file's time.
    """

    uri: str
    first_s: float
    offset_s: float
    frame_rate: float | None = None
    blanks: tuple[Blank, ...] = ()

    def blanked(self, start: float, end: float) -> tuple[Blank, ...]:
        """What is not shown from one second of the file to another."""
        return tuple(one for one in self.blanks if one[0] <= end and start <= one[1])

    def shows_forgotten(self, box: Box, time_s: float) -> bool:
        """Whether at least half of a box is not shown at a second of the file."""
        x, y, w, h = box
        shares = (
            max(0.0, min(x + w, left + wide) - max(x, left)) * max(0.0, min(y + h, top + tall) - max(y, top))
            for _, _, (left, top, wide, tall) in self.blanked(time_s, time_s)
        )
        return max(shares, default=0.0) >= 0.5 * w * h


@dataclass(frozen=True)
class Places:
    """Where a video is in its sources, in seconds of its own time. first_s, last_s: of whom it shows.

    boxes: (seconds, box in pixels of the picture), ascending; none where whole pictures show the person.
    """

    parts: tuple[Part, ...]
    boxes: tuple[tuple[float, Box], ...]
    first_s: float
    last_s: float

    def span(self, start: float | None, end: float | None) -> tuple[float, float]:
        """A stretch to be shown, by default all of it up to LONGEST_S. Raises UsageError for one that is none or too long."""
        start = self.first_s if start is None else start
        end = min(max(self.last_s, start) + PAST_LAST_S, start + LONGEST_S) if end is None else end
        if not 0 <= start < end:
            raise UsageError(f"a clip ends after it starts, at 0 seconds or later, and not from {start:g} to {end:g}")
        if end - start > LONGEST_S:
            raise UsageError(f"a clip is at most {LONGEST_S:g} seconds long, not {end - start:g}")
        return start, end

    def part(self, time_s: float) -> Part:
        """The file that shows a moment."""
        return next((one for one in reversed(self.parts) if one.first_s <= time_s), self.parts[0])

    def within(self, time_s: float) -> tuple[float, float]:
        """From when to when the file that shows a moment shows the person."""
        part = self.part(time_s)
        goes_on = [one.first_s for one in self.parts if one.first_s > part.first_s]
        return max(self.first_s, part.first_s), min([self.last_s, *goes_on])

    def near(self, start: float, end: float) -> tuple[tuple[float, Box], ...]:
        """The boxes of a stretch with one before and one behind it; the nearest one where there are none."""
        times = [time for time, _ in self.boxes]
        first, last = bisect.bisect_left(times, start), bisect.bisect_right(times, end)
        return self.boxes[max(0, min(first, len(times)) - 1) : last + 1]

    def clip(self, start: float, end: float, crop: bool, small: bool = False) -> ClipRequest:
        """What is asked of the decoder: the file that shows the start, up to its end where the video goes on in another."""
        part = self.part(start)
        boxes = tuple((time - part.offset_s, box) for time, box in (self.near(start, end) if crop else ()))
        start, end = max(0.0, start - part.offset_s), end - part.offset_s
        return ClipRequest(part.uri, start, end, boxes, part.frame_rate, part.blanked(start, end), small)


Answers = Callable[[TrackRequest], Iterable[Event]]
"""Asks a decoder."""


def read_places(gallery: Gallery, row: Mapping[str, Any], answers: Answers) -> Places:
    """Of a video of a gallery. row: of VIDEOS_SCHEMA. Raises PipelineError where its boxes cannot be read any more."""
    frames = gallery.read_video(dict(row))
    times = np.asarray(frames["time_s"], np.float64)
    if row["track"] is not None and row["boxes_uri"] is None:
        return _of_recordings(gallery, row, times, frames["place"].to_pylist() if "place" in frames.schema.names else [])
    boxes: tuple[tuple[float, Box], ...] = ()
    blanks: list[Blank] = []
    if row["track"] is not None:
        frame_index, rate = np.asarray(frames["frame_index"]), row["fps"] or gallery.settings.rate
        boxes = boxes_in_time(answers, row["boxes_uri"], row["track"], frame_index, times, rate)
        for content, track in gallery.snapshot().tombstones.content:
            if content == row["ingested_hash"] and track is not None:
                forgotten = boxes_in_time(answers, row["boxes_uri"], track, frame_index, times, rate)
                blanks += itertools.starmap(_blank, forgotten)
    part = Part(row["uri"], 0.0, 0.0, row["frame_rate"], tuple(sorted(blanks)))
    return Places((part,), boxes, float(times[0]), float(times[-1]))


def boxes_in_time(
    answers: Answers, boxes_uri: str, track: int, frames: np.ndarray, times: np.ndarray, rate: float
) -> tuple[tuple[float, Box], ...]:
    """(seconds, box) of a track of a boxes file, ascending. Raises PipelineError where it cannot be read any more.

    frames: [n], ascending numbers of some frames of the video, and times: [n], their times in seconds; rate: frames a second
    before and after these.
    """
    (event,) = answers(TrackRequest(boxes_uri, track))
    if not isinstance(event, TrackBoxes):
        raise PipelineError(event.message if isinstance(event, Rejected) else "the boxes cannot be read any more")
    of_boxes = _times_of(np.asarray(event.frames), np.asarray(frames, np.float64), times, rate)
    return tuple(zip(of_boxes, event.boxes, strict=True))


def _of_recordings(gallery: Gallery, row: Mapping[str, Any], times: np.ndarray, places: list[dict[str, Any]]) -> Places:
    """Of a person who was followed through recordings. times: float64 [n], of the video, of each of the places."""
    table = gallery.snapshot().recordings
    recordings = {one["source_id"]: one for one in table.select(["source_id", *OF_RECORDING]).to_pylist()}
    parts: list[Part] = []
    boxes: list[tuple[float, Box]] = []
    before = None
    for time, place in zip(times.tolist(), places, strict=True):
        boxes.append((time, (place["x"], place["y"], place["w"], place["h"])))
        if place["recording_id"] != before:
            before = place["recording_id"]
            recording = recordings.get(before)
            blanks = () if recording is None else _blanks_of(gallery, recording)
            recording = recording or row
            at = time if parts else 0.0, time - place["time_s"]
            parts.append(Part(recording["uri"], *at, recording["frame_rate"], blanks))
    return Places(tuple(parts), tuple(boxes), float(times[0]), float(times[-1]))


def _blanks_of(gallery: Gallery, recording: Mapping[str, Any]) -> tuple[Blank, ...]:
    """Where people are in a recording who were forgotten. Raises PipelineError where its detections cannot be read."""
    everywhere = gallery.snapshot().forgotten_boxes
    gone = everywhere.filter(pc.equal(everywhere["ingested_hash"], pa.scalar(recording["ingested_hash"], pa.string())))
    if not len(gone):
        return ()
    looked_at = gallery.read_detections(recording["shard"], ["frame_index", "time_s"])
    known, first = np.unique(np.asarray(looked_at["frame_index"], np.float64), return_index=True)
    times = np.asarray(looked_at["time_s"], np.float64)[first]
    of_boxes = _times_of(np.asarray(gone["frame_index"]), known, times, recording["fps"] or gallery.settings.rate)
    boxes = zip(*(gone[side].to_pylist() for side in BOX), strict=True)
    return tuple(sorted(itertools.starmap(_blank, zip(of_boxes, boxes, strict=True))))


def _times_of(numbers: np.ndarray, known: np.ndarray, times: np.ndarray, rate: float) -> list[float]:
    """Seconds of frames, int [n], from those of known ones, ascending, float64 [m]; outside of these by frames a second."""
    if not len(known):
        return (numbers / rate).tolist()
    outside = np.minimum(numbers - known[0], 0) + np.maximum(numbers - known[-1], 0)
    return (np.interp(numbers, known, times) + outside / rate).tolist()


def _blank(time_s: float, box: Box) -> Blank:
    """What is not shown around where somebody was at a second."""
    x, y, w, h = box
    wider, taller = BLANK_MARGIN * w, BLANK_MARGIN * h
    return time_s - BLANK_S, time_s + BLANK_S, (x - wider, y - taller, w + 2 * wider, h + 2 * taller)
