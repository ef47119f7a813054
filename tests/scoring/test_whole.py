"""Whole videos and the soft maximum over all pairs against their definitions, number by number in float64."""

import itertools
import math

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.scoring.video_scores import SHARPNESS, visible_logits
from pipeline.scoring.whole import (
    COST,
    LEAST_VISIBLE,
    SCALE,
    WholeVideos,
    joined,
    nearest_part,
    or_whole,
    resemblance,
    video_encodings,
    video_parts,
)


def whole(count: int, width: int, seed: int) -> WholeVideos:
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=count), rng.uniform(0.3, 2, count)
    return WholeVideos(rng.normal(size=(count, width)).astype(np.float16), *(part.astype(np.float32) for part in numbers))


@pytest.mark.parametrize("unit", [False, True])
def test_a_video_s_encoding_is_the_mean_of_its_frames_by_their_visibility(unit: bool) -> None:
    rng = np.random.default_rng(0)
    frames = np.array([3, 1, 12])
    values, visibility = rng.normal(size=(16, 5)).astype(np.float16), rng.uniform(1e-3, 1, 16).astype(np.float32)
    expected = []
    for rows in np.split(np.arange(16), np.cumsum(frames)[:-1]):
        mean = sum(float(visibility[t]) * values[t].astype(np.float64) for t in rows) / sum(float(visibility[t]) for t in rows)
        expected.append(mean / math.sqrt(sum(mean**2)) if unit else mean)
    np.testing.assert_allclose(video_encodings(values, visibility, frames, unit), expected, rtol=1e-5, atol=1e-6)


def test_resemblance_is_the_scaled_normalised_logit_of_both_sides_for_weights_of_both_signs() -> None:
    some, others = whole(2, 6, seed=1), whole(7, 6, seed=2)
    weight, bias = np.random.default_rng(3).normal(size=6).astype(np.float32), 0.7
    found = resemblance(some, others, weight, bias)
    for n in range(2):
        for j in range(7):
            gap = some.encodings[n].astype(np.float64) - others.encodings[j].astype(np.float64)
            logit = bias + sum(float(w) * d * d for w, d in zip(weight, gap, strict=True))
            sides = ((logit - float(part.mean[row])) / float(part.spread[row]) for part, row in ((some, n), (others, j)))
            assert found[n, j] == pytest.approx(SCALE * sum(sides) / 2, rel=1e-4, abs=1e-5)


def test_resemblance_has_the_same_bits_whatever_stands_beside_it() -> None:
    some, others = whole(3, 67, seed=4), whole(40, 67, seed=5)
    weight = -np.random.default_rng(6).random(67).astype(np.float32)
    together = resemblance(some, others, weight, 1.0)
    rows = np.array([39, 0, 17])
    assert np.array_equal(resemblance(some[1:2], others[rows], weight, 1.0)[0], together[1, rows])
    assert np.array_equal(resemblance(some, joined([others[:9], others[9:]]), weight, 1.0), together)


def near(axis: int, count: int, seed: int) -> np.ndarray:
    """Unit vectors about a direction of six."""
    x = np.eye(6)[axis] + 0.1 * np.random.default_rng(seed).normal(size=(count, 6))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_a_track_of_two_people_has_the_encoding_of_each_and_one_of_one_person_its_own_twice() -> None:
    jumped, shown = np.concatenate([near(0, 6, 1), near(1, 4, 2), near(0, 2, 3)]), np.ones(12, np.float32)
    shown[7:9] = 1e-3  # hidden, and so hardly in the encoding
    one, short = near(2, 9, 4), near(3, 3, 5)
    short[0] = near(4, 1, 6)[0]  # of too few frames to tell
    values, frames = np.concatenate([jumped, one, short]), np.array([12, 9, 3])
    visibility = np.concatenate([shown, np.ones(12, np.float32)])
    whole = video_encodings(values, visibility, frames, unit=True)
    found = video_parts(values, visibility, frames, whole)
    assert found.shape == (3, 2, 6) and found.dtype == np.float32
    first = np.delete(jumped, slice(6, 10), axis=0).astype(np.float64).mean(axis=0)
    second = np.average(jumped[6:10].astype(np.float64), axis=0, weights=shown[6:10])
    np.testing.assert_allclose(found[0], [first / np.linalg.norm(first), second / np.linalg.norm(second)], atol=1e-6)
    assert np.array_equal(found[1:], np.stack([whole[1:]] * 2, axis=1))
    together = video_parts(
        np.concatenate([one, jumped]), np.concatenate([np.ones(9, np.float32), shown]), frames[[1, 0]], whole[[1, 0]]
    )
    np.testing.assert_allclose(together, found[[1, 0]], atol=1e-6)


def test_a_video_resembles_a_target_as_far_as_its_likest_part_does() -> None:
    target, videos, parts = whole(1, 6, seed=1), whole(5, 6, seed=2), whole(10, 6, seed=3)
    weight = -np.random.default_rng(4).random(6).astype(np.float32)
    of_videos = WholeVideos(parts.encodings.reshape(5, 2, 6), parts.mean.reshape(5, 2), parts.spread.reshape(5, 2))
    found = nearest_part(target, videos, of_videos, weight, 0.5)
    alone, each = resemblance(target, videos, weight, 0.5)[0], resemblance(target, parts, weight, 0.5)[0]
    expected = [max(alone[v], each[2 * v] - COST, each[2 * v + 1] - COST) for v in range(5)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert (found != alone).any()
    assert np.array_equal(nearest_part(target, videos, videos.as_parts(), weight, 0.5), alone)


def test_hidden_segments_are_looked_for_by_their_whole_video() -> None:
    encodings, shown = np.zeros((3, 2), np.float32), np.array([LEAST_VISIBLE / 2, LEAST_VISIBLE, 1], np.float32)
    assert or_whole(encodings, shown, np.ones((1, 2), np.float32)).tolist() == [[1, 1], [0, 0], [0, 0]]


def pairs(segments: np.ndarray, targets: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, offsets, and visibility of both sides, some of it next to nothing."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(segments)])
    shown = (10 ** rng.uniform(-30, 0, count) for count in (targets, offsets[-1]))
    logits = rng.normal(0, 4, (targets, offsets[-1])).astype(np.float32)
    return (logits, offsets, *(part.astype(np.float32) for part in shown))  # type: ignore[return-value]


@pytest.mark.parametrize("targets", [1, 9])
def test_a_video_s_logit_is_the_soft_maximum_over_its_pairs(targets: int) -> None:
    logits, offsets, of_target, of_candidates = pairs(np.array([1, 4, 23, 2]), targets, seed=0)
    expected = []
    for begin, end in itertools.pairwise(offsets):
        weights = [[float(u) ** 2 * float(v) for v in of_candidates[begin:end]] for u in of_target]
        powers = [[math.exp(SHARPNESS * float(s)) for s in row[begin:end]] for row in logits]
        total = math.fsum(w * p for a, b in zip(weights, powers, strict=True) for w, p in zip(a, b, strict=True))
        expected.append(math.log(total / math.fsum(w for row in weights for w in row)) / SHARPNESS)
    np.testing.assert_allclose(visible_logits(logits, offsets, of_target, of_candidates), expected, rtol=1e-5, atol=1e-5)


def test_a_target_s_hidden_segment_counts_less_than_a_candidate_s() -> None:
    """What hides a target may hide any stranger just so; a candidate is hidden from one target."""
    logits = np.array([[0, 0], [0, 6]], np.float32)
    half, full = np.array([1, 0.1], np.float32), np.ones(2, np.float32)
    of_target, of_candidate = (visible_logits(logits, np.array([0, 2]), *sides)[0] for sides in ((half, full), (full, half)))
    assert of_target < of_candidate < 6


def test_a_soft_maximum_has_the_same_bits_whatever_videos_stand_beside_it() -> None:
    segments = np.random.default_rng(1).integers(1, 70, 200)
    logits, offsets, of_target, of_candidates = pairs(segments, 13, seed=2)
    together = visible_logits(logits, offsets, of_target, of_candidates)
    for video in (0, 57, 199):
        part = slice(*offsets[[video, video + 1]])
        alone = visible_logits(logits[:, part], np.array([0, segments[video]]), of_target, of_candidates[part])
        assert alone[0] == together[video]


def test_a_soft_maximum_lies_between_the_mean_and_the_best_and_does_not_overflow() -> None:
    ones = np.ones(2, np.float32)
    found = visible_logits(np.array([[1, 3], [1, 3]], np.float32), np.array([0, 2]), ones, ones)
    assert 2 < found[0] < 3
    far = visible_logits(np.array([[-1e4, 1e4], [-1e4, 1e4]], np.float32), np.array([0, 1, 2]), ones, ones)
    assert np.isfinite(far).all() and far[0] < -30 and far[1] > 30
    with pytest.raises(PipelineError, match="pair scores hold NaN"):
        visible_logits(np.full((2, 2), np.nan, np.float32), np.array([0, 2]), ones, ones)
