"""Detections of one camera -> tracks: which of them, from frame to frame, are one person.

Every track knows where its person should be (a Kalman filter: boxes move and grow steadily) and what the person looks like (a
running mean of frame features of boxes that nobody else covers). The detections of a frame go to the tracks that they fit best in
place and looks together, all at once (the Hungarian method). Where one box turns out to have shown two people, its track ends and
both go on as new ones: a broken track costs a search little, a mixed one a person. A detector is as weakly sure of a post as of
somebody far away: whoever was only seen weakly chooses last, and becomes a track only if they move or are seen surely later.

Nothing is drawn by chance, and the order of a frame's rows does not matter. What is open can be put aside and gone on with
(`Tracker.state`), so that files that continue each other give the tracks of one piece.

After Bewley et al., "Simple Online and Realtime Tracking", ICIP 2016; Wojke et al., "Simple Online and Realtime Tracking with a
Deep Association Metric", ICIP 2017; Zhang et al., "ByteTrack", ECCV 2022, where strong detections choose before weak ones.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.errors import UsageError

DETECTION_NOISE = 0.05  # of a box's height: how far a detector's edges are off
CENTRE_NOISE = 0.5  # of a box's height per second: how much a person's speed in the picture changes within a second
SIDES_NOISE = 0.1  # the same of width and height, which change as people come nearer


@dataclass(frozen=True)
class TrackingSettings:
    """When detections are one person. Times are in seconds; the rest are shares without a unit.

    start_score: the least score of a detection that begins a track. weak_start_score: of one that nothing else covers and that
    begins a track which counts once it has a detection of start_score, or if its person moves by `moved` of the box's height.
    continue_score: of one that continues a track.
    least_cosine: of a detection's feature with the track's. least_overlap: intersection over union of a detection with where the
    track's person should be, both widened on each side by `widening` of the box, and by `widening_per_s` of it for each second
    that the person was not seen. patience_s: how long a person who is not seen is waited for; a track that is shorter is
    waited for as long as it lasts, and for at least `young_patience_s`. memory_s: how fast a track's feature follows new ones.
    covered: a box of which another covers more says nothing about looks. split_cosine, split_covered: a track ends where another
    person appears who looks like it by so much, and of whose box so much lies where the track's should be. duplicate: what
    overlaps by so much (intersection over union) with the detection that continues the track is no other person. longest_s: a
    track ends at this age and goes on as the next one, so that whoever sits there all day takes no more memory.

    Raises UsageError for a number that cannot be meant.
    """

    start_score: float = 0.7
    weak_start_score: float = 0.5
    moved: float = 0.5
    continue_score: float = 0.3
    least_cosine: float = 0.7
    least_overlap: float = 0.1
    widening: float = 0.15
    widening_per_s: float = 0.5
    patience_s: float = 3.0
    young_patience_s: float = 1.0
    memory_s: float = 1.0
    covered: float = 0.5
    split_cosine: float = 0.6
    split_covered: float = 0.7
    duplicate: float = 0.5
    longest_s: float = 3600.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UsageError(f"{name} of tracking is a number from 0, not {value}")
        if self.memory_s == 0:
            raise UsageError("memory_s of tracking is a positive number of seconds")


@dataclass(frozen=True)
class Track:
    """One person, followed. number: counts the tracks of a camera from 0, in the order in which they begin.

    times: float64 [n], seconds, ascending. boxes: float32 [n, 4], x, y, w, h in pixels. scores: float32 [n], NaN where nothing
    was detected and the box is interpolated (`filled`). detections: int64 [n], which of the rows that `Tracker.update` was given,
    counted over all calls; -1 where the box is interpolated.
    """

    number: int
    times: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    detections: np.ndarray

    def filled(self, times: np.ndarray) -> "Track":
        """The track at each of these times, float64 [m], ascending, that lies in it: as detected there, else interpolated.

        For evidence only: where nothing was detected, somebody else may stand before the person.
        """
        times = times[(times >= self.times[0]) & (times <= self.times[-1])]
        place = np.searchsorted(self.times, times)
        seen = self.times[place] == times
        boxes = np.column_stack([np.interp(times, self.times, side) for side in self.boxes.T]).astype(np.float32)
        boxes[seen] = self.boxes[place[seen]]
        scores = np.where(seen, self.scores[place], np.float32(np.nan))
        return Track(self.number, times, boxes, scores, np.where(seen, self.detections[place], -1))


@dataclass
class _Open:
    """A track that may go on. position: float64 [4, 2], centre (x, y), width and height, each with its change per second.

    spread: float64 [2, 2, 2], the covariance of a value and its change, of the centre and of the sides. feature: float64 [D], of
    length 1. rows, times, boxes, scores: of its detections. sure: whether one of them, or of the track that it goes on, had
    start_score.
    """

    number: int
    position: np.ndarray
    spread: np.ndarray
    feature: np.ndarray
    rows: list[int]
    times: list[float]
    boxes: list[np.ndarray]
    scores: list[float]
    sure: bool = False

    def add(self, row: int, time_s: float, box: np.ndarray, score: float) -> None:
        self.rows.append(row)
        self.times.append(time_s)
        self.boxes.append(box)
        self.scores.append(score)

    def finished(self) -> Track:
        scores, rows = np.array(self.scores, np.float32), np.array(self.rows, np.int64)
        return Track(self.number, np.array(self.times, np.float64), np.array(self.boxes, np.float32), scores, rows)


@dataclass(frozen=True)
class _Frame:
    """The detections of a frame that count, best first. rows: int64 [m], as in Track.detections.

    boxes: float64 [m, 4]. scores: float64 [m]. features: float64 [m, D], of length 1. cover: float64 [m], the largest share of a
    box that another one covers.
    """

    time_s: float
    rows: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    features: np.ndarray
    cover: np.ndarray


class Tracker:
    """Follows the people of one camera.

    >>> tracker = Tracker()
    >>> for step in range(5):
    ...     tracker.update(step / 5, np.array([[10.0 + step, 20, 30, 80]]), np.array([0.9]), np.ones((1, 8), np.float16))
    >>> [(track.number, track.times.tolist(), track.detections.tolist()) for track in tracker.finish()]
    [(0, [0.0, 0.2, 0.4, 0.6, 0.8], [0, 1, 2, 3, 4])]
    """

    def __init__(self, settings: TrackingSettings | None = None) -> None:
        self.settings = settings or TrackingSettings()
        self._open: list[_Open] = []
        self._finished: list[Track] = []
        self._time_s = -math.inf
        self._rows = 0  # detections so far
        self._begun = 0  # tracks so far

    def update(self, time_s: float, boxes: np.ndarray, scores: np.ndarray, features: np.ndarray) -> None:
        """Take in the next frame that was looked at, also one in which nobody was found.

        time_s: seconds, later than the frame before. boxes: float [m, 4], x, y, w, h in pixels. scores: float [m]. features:
        float16 [m, D]. Raises ValueError for a frame that is not later, arrays that do not fit each other, and values that are
        not finite.
        """
        if not self._time_s < time_s < math.inf:
            raise ValueError(f"a frame at {time_s} s follows one at {self._time_s} s; frames are tracked in the order of time")
        frame = self._counted(time_s, boxes, scores, features)
        self._time_s, step = time_s, time_s - self._time_s
        for track in self._open:
            if not self._awaited(track):
                self._end(track)
        self._open = [track for track in self._open if self._awaited(track)]
        for track in self._open:
            _predict(track, step)
        strong = frame.scores >= self.settings.start_score
        owners = dict[int, tuple[_Open, np.ndarray, np.ndarray]]()
        sure, others = ([track for track in self._open if track.sure is one] for one in (True, False))
        # Strong detections choose before weak ones, and tracks that are sure before others.
        for found, tracks in ((strong, sure), (~strong, sure)):
            for i, track in self._pairs(frame, np.flatnonzero(found), tracks):
                owners[i] = track, track.position[:, 0].copy(), track.feature
                self._continue(track, frame, i)
                tracks.remove(track)
        left = np.array([i for i in range(len(strong)) if i not in owners], int)
        continued = dict(self._pairs(frame, left, others))
        clear = (frame.scores >= self.settings.weak_start_score) & (frame.cover <= self.settings.least_overlap)
        for i in left.tolist():
            if strong[i]:
                self._split(frame, i, owners)
            if strong[i] or (clear[i] and i not in continued):
                self._begin(frame, i, continued.get(i))
            elif i in continued:
                self._continue(continued[i], frame, i)

    def take_finished(self) -> list[Track]:
        """The tracks that ended since the last call, in the order in which they ended."""
        finished, self._finished = self._finished, []
        return finished

    def finish(self) -> list[Track]:
        """All tracks that were not taken yet: the recording ends here."""
        for track in self._open:
            self._end(track)
        self._open = []
        return self.take_finished()

    def state(self) -> dict[str, np.ndarray]:
        """All that a tracker needs to go on, as arrays of float64 and int64 by name. Raises ValueError before `take_finished`."""
        if self._finished:
            raise ValueError("finished tracks are not part of a tracker's state; take them first")
        tracks = self._open
        dim = len(tracks[0].feature) if tracks else 0
        return {
            "counts": np.array([self._rows, self._begun], np.int64),
            "time_s": np.array([self._time_s], np.float64),
            "numbers": np.array([track.number for track in tracks], np.int64),
            "positions": np.array([track.position for track in tracks], np.float64).reshape(-1, 4, 2),
            "spreads": np.array([track.spread for track in tracks], np.float64).reshape(-1, 2, 2, 2),
            "features": np.array([track.feature for track in tracks], np.float64).reshape(len(tracks), dim),
            "lengths": np.array([len(track.rows) for track in tracks], np.int64),
            "rows": np.array([row for track in tracks for row in track.rows], np.int64),
            "times": np.array([time_s for track in tracks for time_s in track.times], np.float64),
            "boxes": np.array([box for track in tracks for box in track.boxes], np.float64).reshape(-1, 4),
            "scores": np.array([score for track in tracks for score in track.scores], np.float64),
            "sure": np.array([track.sure for track in tracks], np.int64),
        }

    @classmethod
    def from_state(cls, settings: TrackingSettings, state: Mapping[str, np.ndarray]) -> Self:
        """A tracker that goes on exactly where the one stopped that gave this state."""
        tracker = cls(settings)
        tracker._rows, tracker._begun = (int(count) for count in state["counts"])
        tracker._time_s = float(state["time_s"][0])
        stop = 0
        for k, length in enumerate(state["lengths"].tolist()):
            part = slice(stop, stop := stop + length)
            moving = state["positions"][k].copy(), state["spreads"][k].copy(), state["features"][k].copy()
            seen = state["rows"][part].tolist(), state["times"][part].tolist(), list(state["boxes"][part])
            tracker._open.append(
                _Open(int(state["numbers"][k]), *moving, *seen, state["scores"][part].tolist(), bool(state["sure"][k]))
            )
        return tracker

    def _counted(self, time_s: float, boxes: np.ndarray, scores: np.ndarray, features: np.ndarray) -> _Frame:
        """The detections that can continue a track, in an order of their own."""
        boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
        features = np.asarray(features, np.float64)
        if boxes.shape != (len(scores), 4) or scores.ndim != 1 or features.ndim != 2 or len(features) != len(scores):
            shapes = f"{boxes.shape}, {scores.shape} and {features.shape}"
            raise ValueError(f"boxes [m, 4], scores [m] and features [m, D] are wanted, not {shapes}")
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and np.isfinite(features).all()):
            raise ValueError(f"a detection at {time_s} s has a box, a score or a feature that is not finite")
        order = np.lexsort([*features.T[:1], *boxes.T[::-1], -scores])
        order = order[(scores[order] >= self.settings.continue_score) & (boxes[order, 2:] > 0).all(1)]
        rows = self._rows + order
        self._rows += len(scores)
        boxes = boxes[order]
        cover = _shares(boxes, boxes)
        np.fill_diagonal(cover, 0)
        return _Frame(time_s, rows, boxes, scores[order], _unit(features[order]), cover.max(1, initial=0))

    def _awaited(self, track: _Open) -> bool:
        settings, followed = self.settings, track.times[-1] - track.times[0]
        return self._time_s - track.times[-1] <= min(settings.patience_s, max(settings.young_patience_s, followed))

    def _pairs(self, frame: _Frame, found: np.ndarray, tracks: list[_Open]) -> list[tuple[int, _Open]]:
        """Which of the detections `found` continue which of the tracks."""
        if not len(found) or not tracks:
            return []
        settings = self.settings
        cosine = frame.features[found] @ np.stack([track.feature for track in tracks]).T
        unseen_s = np.array([frame.time_s - track.times[-1] for track in tracks])
        expected = np.stack([track.position[:, 0] for track in tracks])
        widening = settings.widening + settings.widening_per_s * unseen_s
        overlap = _overlaps(_centred(frame.boxes[found]), expected, 1 + 2 * widening)
        possible = (cosine >= settings.least_cosine) & (overlap >= settings.least_overlap)
        worst = -1e3  # far below any sum of cosines and overlaps, so that as many as possible are paired
        chosen = linear_sum_assignment(np.where(possible, cosine + overlap, worst), maximize=True)
        return [(int(found[i]), tracks[j]) for i, j in zip(*chosen, strict=True) if possible[i, j]]

    def _continue(self, track: _Open, frame: _Frame, i: int) -> None:
        unseen_s = frame.time_s - track.times[-1]
        if frame.time_s - track.times[0] > self.settings.longest_s:
            self._end(track)
            track.rows, track.times, track.boxes, track.scores = [], [], [], []
            track.number = self._begun
            self._begun += 1
        _correct(track, frame.boxes[i])
        if frame.cover[i] <= self.settings.covered:
            share = 1 - math.exp(-min(unseen_s / self.settings.memory_s, 1))
            track.feature = _unit((1 - share) * track.feature + share * frame.features[i])
        track.add(int(frame.rows[i]), frame.time_s, frame.boxes[i], float(frame.scores[i]))

    def _end(self, track: _Open) -> None:
        """Finish a track, if it counts."""
        made = track.finished()
        centres, height = made.boxes[:, :2] + made.boxes[:, 2:] / 2, made.boxes[:, 3].mean()
        if track.sure or np.linalg.norm(np.ptp(centres, axis=0)) >= self.settings.moved * height:
            self._finished.append(made)

    def _begin(self, frame: _Frame, i: int, before: _Open | None = None) -> None:
        """Begin a track with a detection. before: one that was never sure and that it goes on, under the same number."""
        position = np.column_stack([_centred(frame.boxes[i : i + 1])[0], np.zeros(4)])
        height = frame.boxes[i, 3]
        spread = np.zeros((2, 2, 2))
        spread[:, 0, 0] = (2 * DETECTION_NOISE * height) ** 2
        spread[:, 1, 1] = (np.array([CENTRE_NOISE, SIDES_NOISE]) * height) ** 2
        sure = bool(frame.scores[i] >= self.settings.start_score)
        track = _Open(self._begun, position, spread, frame.features[i], [], [], [], [], sure)
        if before is not None:
            track.number, track.rows, track.times = before.number, before.rows, before.times
            track.boxes, track.scores = before.boxes, before.scores
            self._open.remove(before)
        else:
            self._begun += 1
        track.add(int(frame.rows[i]), frame.time_s, frame.boxes[i], float(frame.scores[i]))
        self._open.append(track)

    def _split(self, frame: _Frame, i: int, owners: dict[int, tuple[_Open, np.ndarray, np.ndarray]]) -> None:
        """End tracks that detection `i`, which continues none, may have been part of; who continued them begins anew.

        owners: of each detection that continues a track: the track, where it was expected, and its feature before.
        """
        settings, box = self.settings, frame.boxes[i : i + 1]
        for other, (track, expected, feature) in list(owners.items()):
            inside = _shares(box, np.concatenate([expected[:2] - expected[2:] / 2, expected[2:]])[None])[0, 0]
            duplicate = _overlaps(_centred(box), _centred(frame.boxes[other : other + 1]), np.ones(1))[0, 0]
            alike = feature @ frame.features[i]
            if inside >= settings.split_covered and alike >= settings.split_cosine and duplicate < settings.duplicate:
                for values in (track.rows, track.times, track.boxes, track.scores):
                    values.pop()
                if track.rows:  # none is left of one that went on as the next in this very frame
                    self._end(track)
                self._open.remove(track)
                self._begin(frame, other)
                del owners[other]


def _predict(track: _Open, step: float) -> None:
    """The Kalman filter's prediction, `step` seconds on: changes stay as they are, less and less surely."""
    height = track.position[3, 0]
    track.position[:, 0] += step * track.position[:, 1]
    track.position[2:, 0] = np.maximum(track.position[2:, 0], 1)
    move = np.array([[1, step], [0, 1]])
    noise = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    strength = (np.array([CENTRE_NOISE, SIDES_NOISE]) * height) ** 2
    track.spread = move @ track.spread @ move.T + strength[:, None, None] * noise


def _correct(track: _Open, box: np.ndarray) -> None:
    """The Kalman filter's correction by a detected box."""
    noise = (DETECTION_NOISE * track.position[3, 0]) ** 2
    gain = track.spread[:, :, 0] / (track.spread[:, :1, 0] + noise)  # [2, 2]: of value and change, of the centre and of the sides
    error = _centred(box[None])[0] - track.position[:, 0]
    track.position += error[:, None] * np.repeat(gain, 2, axis=0)
    track.spread = track.spread - gain[:, :, None] * track.spread[:, None, 0, :]


def _unit(features: np.ndarray) -> np.ndarray:
    """float64 [.., D] of length 1; zeros stay zeros."""
    return features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), np.finfo(np.float64).tiny)


def _centred(boxes: np.ndarray) -> np.ndarray:
    """float64 [m, 4], x, y, w, h -> centre (x, y), w, h."""
    return np.hstack([boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:]])


def _overlaps(one: np.ndarray, other: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 [n, m], of boxes [n, 4] and [m, 4] (centre, w, h) with their sides times scale [m]."""
    sides, other_sides = one[:, None, 2:] * scale[:, None], other[:, 2:] * scale[:, None]
    ends = np.minimum(one[:, None, :2] + sides / 2, other[:, :2] + other_sides / 2)
    starts = np.maximum(one[:, None, :2] - sides / 2, other[:, :2] - other_sides / 2)
    common = np.prod(np.maximum(ends - starts, 0), axis=-1)
    return common / (np.prod(sides, axis=-1) + np.prod(other_sides, axis=-1) - common)


def _shares(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """float64 [n, m], the share of each box [n, 4] that lies in each of the others [m, 4], both x, y, w, h."""
    ends = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], others[:, :2] + others[:, 2:])
    common = np.prod(np.maximum(ends - np.maximum(boxes[:, None, :2], others[:, :2]), 0), axis=-1)
    return common / np.prod(boxes[:, None, 2:], axis=-1)
