"""Where a video is in its sources: which file shows a moment of it, and where in the pictures somebody is."""

import bisect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.decoding.requests import ClipRequest, TrackRequest
from pipeline.decoding.video import Box, Event, Rejected, TrackBoxes
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.gallery import Gallery

LONGEST_S = 60.0
PAST_LAST_S = 0.25  # that a clip goes on by itself after the last frame that was looked at


@dataclass(frozen=True)
class Part:
    """What of a video is in one file. first_s: of the video's time, from which on it is this file; offset_s: of the video's time
    over the file's; frame_rate: of streams without times.
    """

    uri: str
    first_s: float
    offset_s: float
    frame_rate: float | None = None


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
        return ClipRequest(part.uri, max(0.0, start - part.offset_s), end - part.offset_s, boxes, part.frame_rate, small)


Answers = Callable[[TrackRequest], Iterable[Event]]
"""Asks a decoder."""


def read_places(gallery: Gallery, row: Mapping[str, Any], answers: Answers) -> Places:
    """Of a video of a gallery. row: of VIDEOS_SCHEMA. Raises PipelineError where its boxes cannot be read any more."""
    frames = gallery.read_video(dict(row))
    times = np.asarray(frames["time_s"], np.float64)
    if row["track"] is not None and row["boxes_uri"] is None:
        return _of_recordings(gallery, row, times, frames["place"].to_pylist() if "place" in frames.schema.names else [])
    boxes: tuple[tuple[float, Box], ...] = ()
    if row["track"] is not None:
        rate = row["fps"] or gallery.settings.rate
        boxes = boxes_in_time(answers, row["boxes_uri"], row["track"], np.asarray(frames["frame_index"]), times, rate)
    return Places((Part(row["uri"], 0.0, 0.0, row["frame_rate"]),), boxes, float(times[0]), float(times[-1]))


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
    numbers, known = np.asarray(event.frames, np.float64), np.asarray(frames, np.float64)
    outside = np.minimum(numbers - known[0], 0) + np.maximum(numbers - known[-1], 0)
    of_boxes = np.interp(numbers, known, times) + outside / rate
    return tuple(zip(of_boxes.tolist(), event.boxes, strict=True))


def _of_recordings(gallery: Gallery, row: Mapping[str, Any], times: np.ndarray, places: list[dict[str, Any]]) -> Places:
    """Of a person who was followed through recordings. times: float64 [n], of the video, of each of the places."""
    table = gallery.snapshot().recordings.select(["source_id", "uri", "frame_rate"])
    recordings = {one["source_id"]: one for one in table.to_pylist()}
    parts: list[Part] = []
    boxes: list[tuple[float, Box]] = []
    before = None
    for time, place in zip(times.tolist(), places, strict=True):
        boxes.append((time, (place["x"], place["y"], place["w"], place["h"])))
        if place["recording_id"] != before:
            before = place["recording_id"]
            recording = recordings.get(before, row)
            parts.append(Part(recording["uri"], time if parts else 0.0, time - place["time_s"], recording["frame_rate"]))
    return Places(tuple(parts), tuple(boxes), float(times[0]), float(times[-1]))
