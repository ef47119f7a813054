"""Detections of one camera -> tracks: who is in one frame and who in the next are one person.

Every track predicts where its person is (a Kalman filter of constant velocity per side of the box) and keeps what the person looks
like (a running mean of frame features, of boxes that nobody else covers). A frame's detections go to the tracks that they fit best
in place and looks together, all at once (the Hungarian method). Nothing is drawn and nothing depends on the order of a frame's
rows; what is open can be put aside and gone on with (`Tracker.state`), so that files that continue each other give the tracks of
one piece.

After Bewley et al., "Simple Online and Realtime Tracking", ICIP 2016; Wojke et al., "Simple Online and Realtime Tracking with a
Deep Association Metric", ICIP 2017; Zhang et al., "ByteTrack", ECCV 2022 (weak detections continue tracks and begin none).
"""

from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.errors import UsageError


@dataclass(frozen=True)
class TrackingSettings:
    """When detections are one person. Times are in seconds, the rest has no unit.

    start_score: the least score of a detection that begins a track; continue_score: of one that continues one.
    least_cosine: of a detection's feature with the track's. least_overlap: intersection over union of a detection with where the
    track is expected, both widened by `widening` of their sides per second since the track was seen. patience_s: a track that is
    not seen for longer ends.
    """

    start_score: float = 0.6
    continue_score: float = 0.3
    least_cosine: float = 0.7
    least_overlap: float = 0.1
    widening: float = 0.75
    patience_s: float = 3.0
    memory_s: float = 2.0
    covered: float = 0.5


@dataclass(frozen=True)
class Track:
    """One person, followed. number: counts the tracks of a camera from 0 in the order in which they begin.

    times: float64 [n], seconds, ascending. boxes: float32 [n, 4], x, y, w, h in pixels, as detected. scores: float32 [n].
    detections: int64 [n], rows counted over all that `Tracker.update` was given.
    """

    number: int
    times: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    detections: np.ndarray


@dataclass
class _Open:
    number: int
    mean: np.ndarray  # float64 [4, 2]: x and y of the centre, width, height; value and change per second
    spread: np.ndarray  # float64 [2, 2, 2]: covariance of value and change, of the centre and of the sides
    feature: np.ndarray  # float64 [D], of length 1
    seen: float
    rows: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


POSITION_NOISE = 0.05  # of the box's height: a detector's error
MOVE_NOISE = 0.5  # of the box's height per second, in a second


class Tracker:
    def __init__(self, settings: TrackingSettings = TrackingSettings()) -> None:
        self.settings = settings
        self._open: list[_Open] = []
        self._finished: list[Track] = []
        self._time = -np.inf
        self._rows = 0
        self._begun = 0

    def state(self) -> dict[str, np.ndarray]:
        """What is open, as plain arrays by name (float64 and int64), none of which needs pickle; take what is finished first."""
        if self._finished:
            raise UsageError("take the finished tracks before the state")
        tracks = self._open
        dim = len(tracks[0].feature) if tracks else 0
        return {
            "counts": np.array([self._rows, self._begun], np.int64),
            "time": np.array([self._time]),
            "numbers": np.array([t.number for t in tracks], np.int64),
            "seen": np.array([t.seen for t in tracks], np.float64),
            "means": np.array([t.mean for t in tracks], np.float64).reshape(-1, 4, 2),
            "spreads": np.array([t.spread for t in tracks], np.float64).reshape(-1, 2, 2, 2),
            "features": np.array([t.feature for t in tracks], np.float64).reshape(len(tracks), dim),
            "lengths": np.array([len(t.rows) for t in tracks], np.int64),
            "rows": np.array([row for t in tracks for row in t.rows], np.int64),
            "times": np.array([time for t in tracks for time in t.times], np.float64),
            "boxes": np.array([box for t in tracks for box in t.boxes], np.float64).reshape(-1, 4),
            "scores": np.array([score for t in tracks for score in t.scores], np.float64),
        }

    @classmethod
    def from_state(cls, settings: TrackingSettings, state: dict[str, np.ndarray]) -> "Tracker":
        """A tracker that goes on exactly where the one went off that gave `state`."""
        tracker = cls(settings)
        tracker._rows, tracker._begun = (int(count) for count in state["counts"])
        tracker._time = float(state["time"][0])
        ends = np.cumsum(state["lengths"])
        for k, end in enumerate(ends):
            part = slice(int(end - state["lengths"][k]), int(end))
            tracker._open.append(
                _Open(
                    int(state["numbers"][k]),
                    state["means"][k].copy(),
                    state["spreads"][k].copy(),
                    state["features"][k].copy(),
                    float(state["seen"][k]),
                    state["rows"][part].tolist(),
                    state["times"][part].tolist(),
                    list(state["boxes"][part]),
                    state["scores"][part].tolist(),
                )
            )
        return tracker

    def update(self, time_s, boxes, scores, features) -> None:
        s = self.settings
        if not time_s > self._time:
            raise UsageError("time")
        boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
        scores = np.asarray(scores, np.float64)
        features = np.asarray(features, np.float64)
        first = self._rows
        self._rows += len(boxes)
        step = time_s - self._time
        self._time = time_s
        order = np.lexsort([*boxes.T[::-1], -scores])
        order = order[scores[order] >= s.continue_score]
        boxes, scores, features = boxes[order], scores[order], features[order]
        features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        late = [t for t in self._open if time_s - t.seen > s.patience_s]
        for t in late:
            self._finish(t)
        self._open = [t for t in self._open if time_s - t.seen <= s.patience_s]
        for t in self._open:
            _predict(t, step)
        cover = _cover(boxes)
        free = np.ones(len(boxes), bool)
        unseen = list(range(len(self._open)))
        strong = scores >= s.start_score
        for rows in (np.flatnonzero(strong), np.flatnonzero(~strong)):
            pairs = self._match(rows, unseen, boxes, scores, features, time_s)
            for i, j in pairs:
                self._add(self._open[j], boxes[i], scores[i], features[i], first + int(order[i]), time_s, cover[i])
                free[i] = False
            unseen = [j for j in unseen if j not in {j for _, j in pairs}]
        for i in np.flatnonzero(free & strong):
            mean = np.zeros((4, 2))
            mean[:, 0] = _centred(boxes[i])
            h = boxes[i, 3]
            spread = np.zeros((2, 2, 2))
            spread[:, 0, 0] = (2 * POSITION_NOISE * h) ** 2
            spread[:, 1, 1] = (np.array([1.0, 0.1]) * MOVE_NOISE * h) ** 2
            t = _Open(self._begun, mean, spread, features[i].copy(), time_s)
            t.rows.append(first + int(order[i])); t.times.append(time_s); t.boxes.append(boxes[i]); t.scores.append(scores[i])
            self._begun += 1
            self._open.append(t)

    def _match(self, rows, tracks, boxes, scores, features, time_s):
        s = self.settings
        if not len(rows) or not tracks:
            return []
        opened = [self._open[j] for j in tracks]
        cosine = features[rows] @ np.stack([t.feature for t in opened]).T
        wide = np.array([s.widening * (time_s - t.seen) for t in opened])
        expected = np.stack([t.mean[:, 0] for t in opened])
        overlap = _overlaps(np.array([_centred(b) for b in boxes[rows]]), expected, wide)
        good = (cosine >= s.least_cosine) & (overlap >= s.least_overlap)
        cost = np.where(good, -(cosine + overlap), 1e3)
        a, b = linear_sum_assignment(cost)
        return [(int(rows[i]), tracks[j]) for i, j in zip(a, b) if good[i, j]]

    def _add(self, t, box, score, feature, row, time_s, cover):
        s = self.settings
        h = t.mean[3, 0]
        noise = (POSITION_NOISE * h) ** 2
        z = _centred(box) - t.mean[:, 0]
        for k, part in enumerate((slice(0, 2), slice(2, 4))):
            P = t.spread[k]
            gain = P[:, 0] / (P[0, 0] + noise)
            t.mean[part] += z[part, None] * gain
            t.spread[k] = P - np.outer(gain, P[0])
        if cover <= s.covered:
            w = 1 - np.exp(-min(time_s - t.seen, s.memory_s) / s.memory_s)
            f = (1 - w) * t.feature + w * feature
            t.feature = f / np.linalg.norm(f)
        t.seen = time_s
        t.rows.append(row); t.times.append(time_s); t.boxes.append(box); t.scores.append(score)

    def _finish(self, t):
        o = Track(t.number, np.array(t.times), np.array(t.boxes, np.float32), np.array(t.scores, np.float32), np.array(t.rows))
        self._finished.append(o)

    def take_finished(self):
        f, self._finished = self._finished, []
        return f

    def finish(self):
        for t in self._open:
            self._finish(t)
        self._open = []
        return self.take_finished()


def _predict(t, step):
    h = t.mean[3, 0]
    t.mean[:, 0] += step * t.mean[:, 1]
    t.mean[2:, 0] = np.maximum(t.mean[2:, 0], 1)
    F = np.array([[1, step], [0, 1]])
    q = (MOVE_NOISE * h * np.array([1.0, 0.2])) ** 2
    Q = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    for k in range(2):
        t.spread[k] = F @ t.spread[k] @ F.T + q[k] * Q


def _centred(box):
    return np.concatenate([box[:2] + box[2:] / 2, box[2:]])


def _overlaps(one, other, wide):
    grow = 1 + 2 * wide
    s1 = one[:, None, 2:] * grow[None, :, None]
    s2 = other[None, :, 2:] * grow[None, :, None]
    c = np.minimum(one[:, None, :2] + s1 / 2, other[None, :, :2] + s2 / 2) - np.maximum(one[:, None, :2] - s1 / 2, other[None, :, :2] - s2 / 2)
    inter = np.prod(np.maximum(c, 0), -1)
    return inter / (np.prod(s1, -1) + np.prod(s2, -1) - inter)


def _cover(boxes):
    """float [m], the largest share of each box that another box covers."""
    if len(boxes) < 2:
        return np.zeros(len(boxes))
    lo, hi = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    c = np.minimum(hi[:, None], hi[None]) - np.maximum(lo[:, None], lo[None])
    share = np.prod(np.maximum(c, 0), -1) / np.prod(boxes[:, 2:], -1)[:, None]
    np.fill_diagonal(share, 0)
    return share.max(1)
