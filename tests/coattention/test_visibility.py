"""Visibility of frames and segments against the definition, frame by frame in float64."""

import math

import numpy as np
import pytest
import torch

from pipeline.coattention.network import Coattention, CoattentionConfig
from pipeline.coattention.visibility import frame_visibility, mean_query, segment_visibility
from pipeline.segments import segment_frames, segment_starts


@pytest.mark.parametrize("slack", [1.0, 2.5])
def test_a_frame_s_visibility_is_its_heat_below_the_best_of_its_video(slack: float) -> None:
    rng = np.random.default_rng(0)
    frames = np.array([1, 7, 30, 2])
    keys, query = rng.normal(size=(frames.sum(), 5)).astype(np.float16), 2 * rng.normal(size=5).astype(np.float32)
    expected = []
    for of_video in np.split(keys.astype(np.float64), np.cumsum(frames)[:-1]):
        heat = [sum(a * b for a, b in zip(key, query.astype(np.float64), strict=True)) for key in of_video]
        expected += [math.exp(min(one - (max(heat) - slack), 0.0)) for one in heat]
    found = frame_visibility(keys, query, frames, slack)
    assert found.dtype == np.float32 and found.max() == 1
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("frames", [1, 3, 8, 21])
def test_a_segment_s_visibility_is_the_mean_over_its_distinct_frames(frames: int) -> None:
    visibility = np.random.default_rng(1).random(frames).astype(np.float32)
    rows = segment_frames(segment_starts(frames, 8, 4), 8, frames)
    expected = [np.mean([float(visibility[n]) for n in sorted(set(row.tolist()))]) for row in rows]
    np.testing.assert_allclose(segment_visibility(visibility, rows), expected, rtol=1e-6)


def test_a_segment_in_which_nobody_is_seen_still_has_a_logarithm() -> None:
    shown = segment_visibility(np.array([0, 0, 1], np.float32), np.array([[0, 1], [1, 2]]))
    assert np.isfinite(np.log(shown)).all() and shown[0] < 1e-30 and shown[1] == 0.5


def test_the_mean_query_is_that_of_all_segments() -> None:
    torch.manual_seed(0)
    head = Coattention(CoattentionConfig(6, 4, 3)).eval()
    segments = np.random.default_rng(2).normal(size=(5, 8, 6)).astype(np.float32)
    with torch.no_grad():
        each = [head.query_vectors(torch.from_numpy(segments[n : n + 1])).double().numpy()[0] for n in range(5)]
    np.testing.assert_allclose(mean_query(head, segments), np.mean(each, axis=0), atol=1e-6)
