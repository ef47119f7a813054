"""The arithmetic of benchmarks.tracking: which boxes are compared, and how pure tracks are."""

import numpy as np
import pytest

from benchmarks.tracking import compared, overlaps, purity_and_mixed, varied
from pipeline.footage.tracker import Track, TrackingSettings


def track(number: int, times: list[float], x: float) -> Track:
    boxes = np.array([[x, 0, 10, 20]] * len(times), np.float32)
    return Track(number, np.array(times), boxes, np.ones(len(times), np.float32), np.arange(len(times)))


def test_all_frames_count_gaps_are_filled_and_what_is_not_scored_is_left_out() -> None:
    times = np.arange(5) / 10
    rows = [(frame, 1, 0, 0, 10, 20, 1) for frame in range(1, 6)] + [(frame, 2, 50, 0, 10, 20, 0) for frame in range(1, 6)]
    tracks = [track(4, [0.0, 0.4], 1.0), track(7, [0.0, 0.2], 50.0), track(9, [0.2, 0.3], 90.0)]
    data, boxes_of = compared(tracks, np.array(rows, float), times)
    assert boxes_of.tolist() == [[5], [0]]  # track 7 is of somebody who is not scored
    assert (data["num_gt_dets"], data["num_tracker_dets"], data["num_gt_ids"], data["num_tracker_ids"]) == (5, 7, 1, 2)
    assert [ids.tolist() for ids in data["tracker_ids"]] == [[0], [0], [0, 1], [0, 1], [0]]
    assert data["similarity_scores"][2][0].tolist() == [pytest.approx(180 / 220), 0]


def test_overlap_is_intersection_over_union() -> None:
    one, other = np.array([[0.0, 0, 10, 20]]), np.array([[5.0, 10, 10, 20], [20, 0, 5, 5], [0, 0, 10, 20]])
    np.testing.assert_allclose(overlaps(one, other), [[50 / 350, 0, 1]])


def test_a_track_is_mixed_from_three_boxes_and_a_twentieth_on() -> None:
    boxes_of = np.array([[97, 3, 0], [38, 2, 0], [0, 3, 57], [0, 0, 0]])
    purity, mixed = purity_and_mixed(boxes_of)
    assert (purity, mixed) == (pytest.approx(192 / 200), pytest.approx(60 / 200))


def test_every_setting_is_varied_both_ways() -> None:
    settings = varied()
    assert len(settings) == 2 * len(vars(TrackingSettings())) and TrackingSettings() not in settings.values()
