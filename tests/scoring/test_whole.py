"""Whole videos and the soft maximum over all pairs against their definitions, number by number in float64."""

import itertools
import math

import numpy as np
import pytest

from pipeline.errors import PipelineError
from pipeline.scoring.video_scores import SHARPNESS, visible_logits
from pipeline.scoring.whole import LEAST_VISIBLE, SCALE, WholeVideos, joined, or_whole, resemblance, video_encodings


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
        weights = [[float(u) * float(v) for v in of_candidates[begin:end]] for u in of_target]
        powers = [[math.exp(SHARPNESS * float(s)) for s in row[begin:end]] for row in logits]
        total = math.fsum(w * p for a, b in zip(weights, powers, strict=True) for w, p in zip(a, b, strict=True))
        expected.append(math.log(total / math.fsum(w for row in weights for w in row)) / SHARPNESS)
    np.testing.assert_allclose(visible_logits(logits, offsets, of_target, of_candidates), expected, rtol=1e-5, atol=1e-5)


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
