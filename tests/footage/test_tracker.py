"""Tracks are people: across crossings, gaps and files, and whatever the order of a frame's rows."""

import doctest
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

import pipeline.footage.tracker
from pipeline.errors import UsageError
from pipeline.footage.tracker import Track, Tracker, TrackingSettings

DIM = 32


class Scene(NamedTuple):
    """Frames as a tracker is given them, and of each row who it is (-1: nobody)."""

    frames: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]
    people: np.ndarray


def scene(
    walks: list[tuple[float, float, float, float, float]],
    seconds: float = 10.0,
    rate: float = 5.0,
    seed: int = 0,
    hidden: dict[int, tuple[float, float]] | None = None,
    false_alarms: float = 0.0,
    alike: float = 0.0,
) -> Scene:
    """People who walk steadily, detected with noise.

    walks: from (x, y) with (dx, dy) per second, seen from a time on. hidden: of whom nothing is seen from when to when.
    false_alarms: how many a frame, on average. alike: the share of everybody's looks that is common to all.
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=DIM)
    looks = [np.sqrt(alike) * common + np.sqrt(1 - alike) * rng.normal(size=DIM) for _ in walks]
    frames, people = [], []
    for step in range(round(seconds * rate)):
        time_s = step / rate
        rows = []
        for person, (x, y, dx, dy, since) in enumerate(walks):
            start, stop = (hidden or {}).get(person, (np.inf, np.inf))
            if time_s >= since and not start <= time_s < stop:
                box = np.array([x + dx * time_s, y + dy * time_s, 40, 100]) + rng.normal(0, [2, 2, 1, 2])
                rows.append((person, box, rng.uniform(0.75, 0.95), looks[person] + 0.3 * rng.normal(size=DIM)))
        for _ in range(rng.poisson(false_alarms)):
            box = np.array([*rng.uniform(0, 600, 2), 40, 100])
            rows.append((-1, box, rng.uniform(0.4, 0.8), rng.normal(size=DIM)))
        people += [row[0] for row in rows]
        boxes = np.array([row[1] for row in rows], np.float32).reshape(-1, 4)
        features = np.array([row[3] for row in rows], np.float16).reshape(-1, DIM)
        frames.append((time_s, boxes, np.array([row[2] for row in rows], np.float32), features))
    return Scene(frames, np.array(people))


def track(
    frames: list[tuple[float, np.ndarray, np.ndarray, np.ndarray]], settings: TrackingSettings | None = None
) -> list[Track]:
    tracker = Tracker(settings)
    for frame in frames:
        tracker.update(*frame)
    return sorted(tracker.finish(), key=lambda one: one.number)


def who(tracks: list[Track], made: Scene, least: int = 4) -> list[set[int]]:
    """The people of each track of at least so many detections."""
    return [set(made.people[one.detections].tolist()) for one in tracks if len(one.times) >= least]


def same(one: list[Track], other: list[Track]) -> bool:
    """Whether two lists of tracks are equal to the last bit."""
    return [[np.asarray(value).tobytes() for value in vars(track).values()] for track in one] == [
        [np.asarray(value).tobytes() for value in vars(track).values()] for track in other
    ]


CROSSING = [(0.0, 100.0, 60.0, 0.0, 0.0), (600.0, 110.0, -60.0, 0.0, 0.0), (100.0, 300.0, 30.0, 5.0, 1.0)]


@pytest.mark.parametrize("rate", [12.5, 10.0, 5.0, 10 / 3])
@pytest.mark.parametrize("seed", range(3))
def test_people_who_cross_stay_themselves(rate: float, seed: int) -> None:
    made = scene(CROSSING, rate=rate, seed=seed)
    assert who(track(made.frames), made) == [{0}, {1}, {2}]


@pytest.mark.parametrize("seed", range(3))
def test_a_person_hidden_for_less_than_the_patience_is_the_same_and_for_longer_a_new_one(seed: int) -> None:
    for seconds, expected in ((2.0, [{0}, {1}, {2}]), (4.0, [{0}, {1}, {2}, {0}])):
        made = scene(CROSSING, seed=seed, hidden={0: (4.0, 4.0 + seconds)})
        assert who(track(made.frames), made) == expected


def test_patience_is_in_seconds_whatever_the_rate() -> None:
    for rate in (2.5, 5.0, 10.0, 25.0):
        made = scene(CROSSING[:1], rate=rate, hidden={0: (4.0, 6.4)})
        assert len(track(made.frames)) == 1
        assert len(track(made.frames, TrackingSettings(patience_s=2.0))) == 2


def test_somebody_seen_once_is_not_waited_for_as_long_as_who_was_followed() -> None:
    made = scene(CROSSING[:1], hidden={0: (0.2, 2.0)})
    assert [len(one.times) for one in track(made.frames)] == [1, 40]
    made = scene(CROSSING[:1], hidden={0: (2.4, 4.2)})
    assert [len(one.times) for one in track(made.frames)] == [41]


def test_somebody_else_who_comes_where_a_person_was_is_a_new_track() -> None:
    made = scene([(100.0, 100.0, 20.0, 0.0, 0.0), (100.0, 100.0, 20.0, 0.0, 5.0)], hidden={0: (5.0, 99.0)})
    assert who(track(made.frames), made) == [{0}, {1}]


def test_false_alarms_become_no_long_tracks() -> None:
    made = scene(CROSSING, false_alarms=3.0, seed=4)
    assert who(track(made.frames), made, least=8) == [{0}, {1}, {2}]


@pytest.mark.filterwarnings("error")
def test_people_of_no_looks_are_followed_by_place_where_looks_do_not_count() -> None:
    made = scene(CROSSING[2:])
    frames = [(time_s, boxes, scores, features * 0) for time_s, boxes, scores, features in made.frames]
    assert [len(one.times) for one in track(frames, TrackingSettings(least_cosine=0.0))] == [45]
    assert [len(one.times) for one in track(frames)] == [1] * 45


def test_weak_detections_continue_tracks_and_begin_none() -> None:
    made = scene(CROSSING[:2])
    weak = [(time_s, boxes, scores * 0 + 0.45, features) for time_s, boxes, scores, features in made.frames]
    assert track(weak) == []
    mixed = [made.frames[i] if i % 3 == 0 else weak[i] for i in range(len(weak))]
    assert [len(one.times) for one in track(mixed)] == [50, 50]
    weaker = [(time_s, boxes, scores * 0 + 0.2, features) for time_s, boxes, scores, features in made.frames]
    mixed = [made.frames[i] if i % 3 == 0 else weaker[i] for i in range(len(weak))]
    assert [len(one.times) for one in track(mixed)] == [17, 17]


def standing(scores: list[float], pace: float = 0.0) -> list[tuple[float, np.ndarray, np.ndarray, np.ndarray]]:
    """Somebody alone, 80 pixels high, who goes `pace` pixels a frame."""
    looks = np.random.default_rng(0).normal(size=(1, DIM))
    return [(k / 5, np.array([[50 + pace * k, 20.0, 30, 80]]), np.array([score]), looks) for k, score in enumerate(scores)]


def test_who_is_seen_weakly_is_a_track_if_they_move_and_a_post_is_none() -> None:
    assert track(standing([0.6] * 50)) == []
    assert [len(one.times) for one in track(standing([0.6] * 50, pace=2))] == [50]
    assert track(standing([0.6] * 10, pace=2)) == []  # a quarter of the height


def test_who_is_seen_surely_later_has_been_there_from_the_first_weak_detection_on() -> None:
    (one,) = track(standing([0.6] * 10 + [0.9] + [0.6] * 10))
    assert one.number == 0 and one.detections.tolist() == list(range(21))


def test_who_is_sure_is_followed_as_if_nobody_weak_were_there() -> None:
    """But for what is put before a track's beginning: weak detections take nothing from tracks that are sure."""
    for seed in range(5):
        made = scene(CROSSING, false_alarms=3.0, seed=seed)
        alone = {tuple(one.detections.tolist()) for one in track(made.frames, TrackingSettings(weak_start_score=0.7))}
        beside = [tuple(one.detections.tolist()) for one in track(made.frames)]
        assert alone and all(any(one == other[len(other) - len(one) :] for other in beside) for one in alone)


def test_a_sure_track_that_is_cut_stays_sure() -> None:
    found = track(standing([0.9] + [0.6] * 49), TrackingSettings(longest_s=4.0))
    assert sum(len(one.times) for one in found) == 50 and len(found) == 3


@pytest.mark.parametrize("nearer", [False, True])
def test_a_box_that_turns_out_to_show_two_people_ends_its_track(nearer: bool) -> None:
    """Two people behind each other, in one box; then each has a box, and it cannot be said whose the track was."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, DIM))
    both = first + 0.9 * second
    frames = []
    for step in range(20):
        x = 10.0 * step
        if step < 10:
            boxes, features = [[x, 50, 60, 100]], [both]
        else:
            boxes, features = [[x - 2 * (step - 9), 50, 35, 100], [x + 25 + 2 * (step - 9), 50, 35, 100]], [first, second]
        scores = np.array([0.9, 0.95 if nearer else 0.85])[: len(boxes)]
        frames.append((step / 5, np.array(boxes), scores, np.array(features, np.float16)))
    assert [(len(one.times), float(one.times[0])) for one in track(frames)] == [(10, 0.0), (10, 2.0), (10, 2.0)]
    kept = track(frames, TrackingSettings(split_cosine=1.1))
    assert [len(one.times) for one in kept] == [20, 10]


def test_the_order_of_a_frame_s_rows_changes_nothing_but_their_numbers() -> None:
    made = scene([*CROSSING, (300.0, 120.0, 5.0, 0.0, 0.0)], false_alarms=2.0, alike=0.5, seed=2)
    expected, rng = track(made.frames), np.random.default_rng(3)
    for _ in range(3):
        numbers, frames = [], []
        for time_s, *columns in made.frames:
            order = rng.permutation(len(columns[0]))
            numbers.append(sum(map(len, numbers)) + order)
            frames.append((time_s, *(column[order] for column in columns)))
        back = np.concatenate(numbers)
        assert same([replace(one, detections=back[one.detections]) for one in track(frames)], expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_run_cut_anywhere_gives_the_tracks_of_one_piece(seed: int) -> None:
    made = scene([*CROSSING, (300.0, 120.0, 5.0, 0.0, 4.0)], hidden={0: (4.0, 5.4)}, false_alarms=1.5, alike=0.5, seed=seed)
    settings = TrackingSettings(longest_s=3.3)
    whole = Tracker(settings)
    for frame in made.frames:
        whole.update(*frame)
    expected = whole.finish()
    tracker, found = Tracker(settings), list[Track]()
    cuts = np.random.default_rng(seed).random(len(made.frames)) < 0.3
    for frame, cut in zip(made.frames, cuts, strict=True):
        tracker.update(*frame)
        if cut:
            found += tracker.take_finished()
            state = {name: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape) for name, a in tracker.state().items()}
            assert {array.dtype.name for array in state.values()} == {"float64", "int64"}
            tracker = Tracker.from_state(settings, state)
    assert same([*found, *tracker.finish()], expected) and len(expected) > 8


def test_whoever_stays_becomes_one_track_after_another() -> None:
    made = scene([(100.0, 100.0, 0.0, 0.0, 0.0), *CROSSING[:2]], alike=0.3)
    found = track(made.frames, TrackingSettings(longest_s=4.0))
    assert {tuple(people) for people in who(found, made, least=1)} == {(0,), (1,), (2,)}
    of_one = [one for one in found if 0 in made.people[one.detections]]
    assert [(one.times[0], one.times[-1]) for one in of_one] == [(0.0, 4.0), (4.2, 8.2), (8.4, 9.8)]
    assert sorted(row for one in found for row in one.detections) == list(range(len(made.people)))


def test_a_state_may_be_of_nobody() -> None:
    tracker = Tracker.from_state(TrackingSettings(), Tracker().state())
    made = scene(CROSSING)
    for frame in made.frames:
        tracker.update(*frame)
    assert same(tracker.finish(), track(made.frames))


def test_a_state_is_taken_after_the_finished_tracks() -> None:
    tracker = Tracker()
    for frame in scene(CROSSING, hidden={0: (2.0, 9.0)}).frames:
        tracker.update(*frame)
    with pytest.raises(ValueError, match="take them first"):
        tracker.state()
    assert len(tracker.take_finished()) == 1 and tracker.take_finished() == []
    assert len(tracker.state()["numbers"]) == len(tracker.finish()) == 3


def test_frames_of_nobody_let_tracks_end() -> None:
    made = scene(CROSSING[:1], seconds=2.0)
    tracker = Tracker()
    for frame in made.frames:
        tracker.update(*frame)
    nobody = np.empty((0, 4)), np.empty(0), np.empty((0, 0))
    tracker.update(3.0, *nobody)
    assert tracker.take_finished() == []
    tracker.update(7.0, *nobody)
    assert [len(one.times) for one in tracker.take_finished()] == [10]


def test_what_is_filled_in_says_so() -> None:
    boxes = np.array([[0, 0, 10, 20], [30, 60, 16, 26]], np.float32)
    one = Track(3, np.array([1.0, 4.0]), boxes, np.array([0.9, 0.8], np.float32), np.array([7, 9]))
    filled = one.filled(np.array([0.5, 1.0, 2.0, 3.0, 4.0, 5.0]))
    assert filled.times.tolist() == [1, 2, 3, 4] and filled.detections.tolist() == [7, -1, -1, 9]
    np.testing.assert_allclose(filled.boxes, [[0, 0, 10, 20], [10, 20, 12, 22], [20, 40, 14, 24], [30, 60, 16, 26]])
    assert np.isnan(filled.scores).tolist() == [False, True, True, False] and filled.boxes.dtype == np.float32


def test_boxes_are_kept_as_they_were_detected() -> None:
    made = scene(CROSSING, seed=1)
    rows = np.concatenate([boxes for _, boxes, _, _ in made.frames])
    scores = np.concatenate([scores for _, _, scores, _ in made.frames])
    for one in track(made.frames):
        assert np.array_equal(one.boxes, rows[one.detections]) and np.array_equal(one.scores, scores[one.detections])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ((0.0, np.ones((1, 4)), np.ones(1), np.ones((1, 3))), "frames are tracked in the order of time"),
        ((np.nan, np.ones((1, 4)), np.ones(1), np.ones((1, 3))), "frames are tracked in the order of time"),
        ((1.0, np.ones((2, 4)), np.ones(1), np.ones((1, 3))), r"are wanted, not \(2, 4\), \(1,\) and \(1, 3\)"),
        ((1.0, np.ones((1, 4)), np.ones(1), np.ones((2, 3))), r"are wanted, not \(1, 4\), \(1,\) and \(2, 3\)"),
        ((1.0, np.full((1, 4), np.nan), np.ones(1), np.ones((1, 3))), "at 1.0 s has a box, a score or a feature that is not"),
        ((1.0, np.ones((1, 4)), np.ones(1), np.full((1, 3), np.inf, np.float16)), "is not finite"),
    ],
)
def test_what_cannot_be_tracked_is_refused(frame: tuple[float, np.ndarray, np.ndarray, np.ndarray], words: str) -> None:
    tracker = Tracker()
    tracker.update(0.0, np.ones((1, 4)), np.ones(1), np.ones((1, 3)))
    with pytest.raises(ValueError, match=words):
        tracker.update(*frame)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for change, words in (
        ({"patience_s": -1.0}, "patience_s of tracking is a number from 0, not -1"),
        ({"memory_s": 0.0}, "memory"),
    ):
        with pytest.raises(UsageError, match=words):
            TrackingSettings(**change)


def test_the_example_is_right() -> None:
    results = doctest.testmod(pipeline.footage.tracker)
    assert results.attempted and not results.failed
