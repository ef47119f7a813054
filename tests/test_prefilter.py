"""The shortlist is exactly what a brute-force search in the score's metric gives."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.prefilter import PrefilterMetric, shortlist
from pipeline.scoring import TargetEncoding


def case(seed: int, signs: str) -> tuple[TargetEncoding, np.ndarray, np.ndarray]:
    """A target, mean segment values [S, d] and the video of each segment, ascending."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=6).astype(np.float32)
    weight = -np.abs(weight) if signs == "negative" else weight
    encodings = torch.from_numpy(rng.normal(size=(3, 6)).astype(np.float32))
    empty = torch.empty(0)
    target = TargetEncoding(empty, encodings, empty, torch.from_numpy(weight), torch.tensor(1.5), empty)
    video_of_segment = np.repeat(np.arange(50), rng.integers(1, 6, size=50))
    return target, rng.normal(size=(len(video_of_segment), 6)).astype(np.float32), video_of_segment


def brute_force(target: TargetEncoding, means: np.ndarray, video_of_segment: np.ndarray) -> np.ndarray:
    """The best logit of each video under uniform attention, written out."""
    encodings, weight = target.encodings.numpy().astype(float), target.weight.numpy().astype(float)
    logits = np.array([[1.5 + (weight * (e - m) ** 2).sum() for m in means.astype(float)] for e in encodings])
    return np.array([logits[:, video_of_segment == v].max() for v in range(video_of_segment[-1] + 1)])


@pytest.mark.parametrize("signs", ["negative", "mixed"])
@given(seed=st.integers(0, 10_000), count=st.integers(1, 60))
@settings(max_examples=40, deadline=None)
def test_it_is_the_exact_top_of_the_score_under_uniform_attention(signs: str, seed: int, count: int) -> None:
    target, means, video_of_segment = case(seed, signs)
    metric = PrefilterMetric.of_target(target)
    index = metric.empty_index()
    index.add(metric.stored(means))
    videos, logits = shortlist(index, target, video_of_segment, count)
    truth = brute_force(target, means, video_of_segment)
    assert videos.tolist() == np.argsort(-truth)[:count].tolist()
    assert np.allclose(logits, truth[videos], atol=1e-4)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 60), share=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_filter_gives_the_top_of_what_it_allows_and_never_fewer(seed: int, count: int, share: float) -> None:
    target, means, video_of_segment = case(seed, "negative")
    allowed = np.random.default_rng(seed).random(50) < share
    metric = PrefilterMetric.of_target(target)
    index = metric.empty_index()
    index.add(metric.stored(means))
    videos, _ = shortlist(index, target, video_of_segment, count, allowed)
    truth = np.where(allowed, brute_force(target, means, video_of_segment), -np.inf)
    assert videos.tolist() == np.argsort(-truth)[: min(count, allowed.sum())].tolist()


def test_equal_logits_at_the_end_of_the_list_are_all_returned() -> None:
    target, _, _ = case(0, "negative")
    metric = PrefilterMetric.of_target(target)
    index = metric.empty_index()
    index.add(metric.stored(np.zeros((30, 6))))
    videos, _ = shortlist(index, target, np.arange(30), 5)
    assert videos.tolist() == list(range(30))
