"""Batches: P people x K tracklets across cameras x S segments, and segments in which another person hides the first.

Everything here is row numbers; features are gathered where the network runs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.training.features import FeatureSet, matched_people
from pipeline.training.settings import TrainingSettings


@dataclass(frozen=True)
class Batch:
    """B = P * K * S segments, tracklet after tracklet.

    rows: int64 [B, T], frames of the set. video: int64 [B], position of the video each segment was cut from. hidden: bool [B, T],
    frames known not to show the segment's person.
    """

    rows: NDArray[np.int64]
    video: NDArray[np.int64]
    hidden: NDArray[np.bool_]


class Sampler:
    """Draws batches from a set; the same generator gives the same batches."""

    def __init__(self, videos: FeatureSet, settings: TrainingSettings) -> None:
        self.videos = videos
        self.settings = settings
        self.people = matched_people(videos)  # a person without a pair teaches nothing
        self.by_person = {int(p): np.flatnonzero(videos.person == p) for p in np.unique(videos.person)}

    def batches(self, random: np.random.Generator, count: int) -> Iterator[Batch]:
        """`count` batches; every person is drawn equally often, up to one."""
        order = np.empty(0, np.int64)
        people = min(self.settings.people, len(self.people))
        for _ in range(count):
            if len(order) < people:
                # What is left of one shuffle comes first, its people moved behind in the next: nobody twice in a batch.
                fresh = random.permutation(self.people)
                order = np.concatenate([order, fresh[~np.isin(fresh, order)], fresh[np.isin(fresh, order)]])
            chosen, order = order[:people], order[people:]
            yield self._batch(chosen, random)

    def _batch(self, people: NDArray[np.int64], random: np.random.Generator) -> Batch:
        tracklets = np.concatenate([self._tracklets(self.by_person[int(person)], random) for person in people])
        video = np.repeat(tracklets, self.settings.segments)  # [B]
        rows = self._segments(video, random)
        hidden = np.zeros(rows.shape, bool) if self.videos.hidden is None else self.videos.hidden[rows]
        donors = np.flatnonzero(~np.isin(self.videos.person, people))
        if len(donors):
            self._mix(rows, hidden, donors, random)
        return Batch(rows, video, hidden)

    def _tracklets(self, own: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """K videos of one person: cameras in turn, so that as many as possible differ; versions of a clip by hidden_share."""
        videos = self.videos
        clips: dict[int, list[int]] = {}
        for video in random.permutation(own):
            clips.setdefault(int(videos.clip[video]), []).append(int(video))
        cameras: dict[int, list[list[int]]] = {}
        for versions in clips.values():
            cameras.setdefault(int(videos.camera[versions[0]]), []).append(versions)
        queues = [cameras[camera] for camera in random.permutation(sorted(cameras))]
        turns = [queue[turn] for turn in range(max(map(len, queues))) for queue in queues if turn < len(queue)]
        chosen = []
        for number in range(self.settings.tracklets):
            versions = turns[number % len(turns)]
            wanted = bool(random.random() < self.settings.hidden_share)
            fitting = [v for v in versions if videos.hidden_version[v] == wanted] or versions
            chosen.append(fitting[0])
        return np.array(chosen, np.int64)

    def _segments(self, video: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
        """Frames int64 [B, T] of one segment a row, a tracklet's spread over it; a short video repeats its last frame."""
        length, segments = self.settings.segment_length, self.settings.segments
        frames = self.videos.frames[video]
        share = (np.tile(np.arange(segments), len(video) // segments) + random.random(len(video))) / segments
        starts = (share * np.maximum(frames - length + 1, 1)).astype(np.int64)  # [B]
        numbers = np.minimum(starts[:, None] + np.arange(length), frames[:, None] - 1)
        return numbers + self.videos.first_frame[video][:, None]

    def _mix(
        self,
        rows: NDArray[np.int64],
        hidden: NDArray[np.bool_],
        donors: NDArray[np.int64],
        random: np.random.Generator,
    ) -> None:
        """Replace a stretch of some segments by frames of people who are not in the batch, and mark it as hidden; in place."""
        length = rows.shape[1]
        low, high = self.settings.mix_stretch
        for segment in np.flatnonzero(random.random(len(rows)) < self.settings.mix_share):
            stretch = round(random.uniform(low, high) * length)
            start = int(random.integers(0, length - stretch + 1))
            donor = int(random.choice(donors))
            frames = int(self.videos.frames[donor])
            first = int(random.integers(0, max(frames - stretch + 1, 1)))
            numbers = np.minimum(first + np.arange(stretch), frames - 1)
            rows[segment, start : start + stretch] = self.videos.first_frame[donor] + numbers
            hidden[segment, start : start + stretch] = True
