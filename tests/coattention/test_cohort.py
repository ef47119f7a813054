"""Cohort normalisation is what its definition says, and puts segments that look like everybody's on the scale of the others."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coattention.cohort import LEAST_SPREAD, Cohort, CohortStatistics, cohort_statistics, normalised_logits


def definition(cohort: np.ndarray, owner: np.ndarray, encoding: np.ndarray, own: int, weight: np.ndarray, bias: float):
    """Mean and standard deviation of the logits against the nearest third of the others' segments, one at a time."""
    logits = [bias + float(weight @ (encoding - other) ** 2) for other, v in zip(cohort, owner, strict=True) if v != own]
    nearest = sorted(logits)[-int(np.ceil(len(logits) / 3)) :]
    return np.mean(nearest), max(np.std(nearest), LEAST_SPREAD)


@given(seed=st.integers(0, 10_000), segments=st.integers(1, 40), videos=st.integers(2, 15))
@settings(max_examples=30, deadline=None)
def test_statistics_are_those_of_the_nearest_third_of_other_videos(seed: int, segments: int, videos: int) -> None:
    rng = np.random.default_rng(seed)
    owner = np.sort(rng.integers(0, videos, size=30))
    means, encodings, weight = rng.normal(size=(30, 5)), rng.normal(size=(segments, 5)), -rng.exponential(size=5)
    own = rng.integers(-1, videos, size=segments)
    if len(np.unique(owner)) < 2:
        return
    cohort = Cohort(torch.from_numpy(means).float(), torch.from_numpy(owner))
    found = cohort_statistics(cohort, *(torch.from_numpy(a) for a in (encodings, own, weight)), torch.tensor(1.5))
    for row in range(segments):
        mean, spread = definition(means, owner, encodings[row], own[row], weight, 1.5)
        assert float(found.mean[row]) == pytest.approx(mean, abs=1e-4)
        assert float(found.spread[row]) == pytest.approx(spread, abs=1e-4)


def test_a_pair_is_normalised_from_both_sides() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    target = CohortStatistics(torch.tensor([1.0]), torch.tensor([0.5]))
    candidate = CohortStatistics(torch.tensor([0.0, -2.0]), torch.tensor([2.0, 1.0]))
    assert normalised_logits(logits, target, candidate).tolist() == [[(2 + 1) / 2, (-4 + 1) / 2]]


def test_a_cohort_of_few_videos_is_not_usable() -> None:
    assert not Cohort(torch.zeros(20, 3), torch.arange(20) // 4).usable
    assert Cohort(torch.zeros(20, 3), torch.arange(20)).usable
