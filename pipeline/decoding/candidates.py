"""The candidates of a source: they take its sampled frames one by one, and give chunks of crops.

Methods that yield make a chunk only when it is asked for: the memory that it is written to may hold the chunk before until then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.decoding.boxes import Tracks, boxes_remarks, cropped
from pipeline.decoding.reading import Frame
from pipeline.decoding.sampling import Sampling, looks_like_a_scene, resize
from pipeline.decoding.video import Chunk, Event, Rejected
from pipeline.errors import VideoError

FramesMemory = Callable[[int, int, int], np.ndarray]
"""Gives memory for n frames of one chunk by (n, height, width): uint8 [n, height, width, 3], written before it is asked for
again.
"""


@dataclass
class Candidate:
    """Collects one candidate's crops and hands them on a chunk at a time.

    track: its id in the boxes file, None for the whole frame. source_hash: of the source. memory: where the frames
    of its chunks are put; None: each chunk has its own. count: its frames so far.
    """

    track: int | None
    sampling: Sampling
    source_hash: str | None = None
    memory: FramesMemory | None = None
    number: int = 0
    count: int = 0
    indices: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    crops: list[np.ndarray] = field(default_factory=list)

    def is_full(self) -> bool:
        """Whether it has as many frames as a candidate may have."""
        return self.count == self.sampling.max_frames

    def add(self, frame: Frame, crop: np.ndarray) -> Chunk | None:
        """Take a frame's crop, uint8 [h, w, 3]; returns the chunk before it where that is complete.

        A complete chunk is kept back until another frame comes: until then it might be the last one.
        """
        complete = self._chunk(last=False) if len(self.crops) == self.sampling.chunk else None
        self.indices.append(frame.number)
        self.times.append(frame.time_s)
        self.crops.append(resize(crop, self.sampling.height, self.sampling.width))
        self.count += 1
        return complete

    def end(self) -> Chunk:
        """The last chunk, of a candidate that has frames."""
        return self._chunk(last=True)

    def only(self, frame: Frame, crop: np.ndarray) -> Chunk:
        """The chunk of a candidate of one frame."""
        self.add(frame, crop)
        return self.end()

    def _chunk(self, last: bool) -> Chunk:
        index, times = np.array(self.indices, np.int32), np.array(self.times, np.float32)
        shape = len(self.crops), self.sampling.height, self.sampling.width
        frames = np.stack(self.crops, out=None if self.memory is None else self.memory(*shape))
        chunk = Chunk(self.track, self.number, last, index, times, frames, self.source_hash)
        self.number += 1
        self.indices, self.times, self.crops = [], [], []
        return chunk


class WholeFrame:
    """The whole frame as the only candidate. uri: what messages call its source."""

    remarks: tuple[str, ...] = ()

    def __init__(self, uri: str, candidate: Candidate) -> None:
        self.uri, self.candidate = uri, candidate

    def wants(self, number: int) -> bool:
        """Whether the frame of this number shows a candidate."""
        return True

    def add(self, frame: Frame, picture: np.ndarray) -> Iterator[Event]:
        """Take a sampled frame, uint8 [height, width, 3]; the events that come of it. Raises VideoError."""
        height, width = picture.shape[:2]
        if not self.candidate.sampling.scenes and looks_like_a_scene(height, width):
            raise VideoError("scene", f"{self.uri} looks like a whole scene, {width} x {height} pixels, not like one person")
        if self.candidate.is_full():
            raise VideoError("too_large", _too_many(self.uri, self.candidate.sampling))
        if (chunk := self.candidate.add(frame, picture)) is not None:
            yield chunk

    def end(self) -> Iterator[Event]:
        """The events that remain once all frames were taken."""
        yield self.candidate.end()


class TrackedPeople:
    """The tracks of a boxes file as candidates. Each is handed on whole as soon as its last box has been passed.

    begin: makes the candidate of a track. remarks: sentences on the boxes file.
    """

    def __init__(self, tracks: Tracks, sampling: Sampling, begin: Callable[[int], Candidate]) -> None:
        self.sampling = sampling
        self.remarks = tuple(boxes_remarks(tracks))
        self.boxes: dict[int, list[tuple[int, np.ndarray]]] = {}  # by frame
        for track, (frames, boxes) in tracks.items():
            for number, box in zip(frames.tolist(), boxes, strict=True):
                self.boxes.setdefault(number, []).append((track, box))
        self.running = {track: begin(track) for track in tracks}
        ends = sorted((int(frames[-1]), track) for track, (frames, _) in tracks.items())
        self.ends = ends[::-1]  # the next to end is the last
        self.outside: dict[int, str] = {}  # tracks with boxes in sampled frames, none of them inside

    def wants(self, number: int) -> bool:
        """Whether the frame of this number shows a candidate."""
        return number in self.boxes

    def add(self, frame: Frame, picture: np.ndarray) -> Iterator[Event]:
        """Take a sampled frame, uint8 [height, width, 3]; the events that come of it."""
        height, width = picture.shape[:2]
        for track, box in self.boxes.get(frame.number, ()):
            candidate = self.running.get(track)
            crop = cropped(picture, box, self.sampling.min_box)
            if candidate is None:  # refused already
                continue
            if crop is None:
                self.outside[track] = f"no box of track {track} lies inside the {width} x {height} frame"
            elif candidate.is_full():
                del self.running[track]
                yield Rejected(track, "too_large", _too_many(f"track {track}", self.sampling))
            elif (chunk := candidate.add(frame, crop)) is not None:
                yield chunk
        while self.ends and self.ends[-1][0] <= frame.number:
            yield from self._ended(self.ends.pop()[1])

    def end(self) -> Iterator[Event]:
        """The events that remain once all frames were taken."""
        while self.ends:
            yield from self._ended(self.ends.pop()[1])

    def _ended(self, track: int) -> Iterator[Event]:
        candidate = self.running.pop(track, None)
        if candidate is None:
            return
        if candidate.count:
            yield candidate.end()
        elif track in self.outside:
            yield Rejected(track, "boxes_outside_frame", self.outside[track])
        else:
            yield Rejected(track, "no_frames", f"no sampled frame of the video has a box of track {track}")


def _too_many(subject: str, sampling: Sampling) -> str:
    limit = f"{sampling.max_frames} frames at {sampling.rate:g} a second, which is the limit (--max-frames)"
    return f"{subject} has more than {limit}: lower the rate, cut it, or raise the limit"
