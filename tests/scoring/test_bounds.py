"""Bounds of scores are never below the scores (float64, brute force), and the certified top k is the true one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coattention.cohort import CohortStatistics
from pipeline.scoring.bounds import (
    Projection,
    attention_logits,
    ball_logits,
    boundable,
    certified_top,
    radii,
    video_bounds,
)
from pipeline.scoring.scores import TargetEncoding, segment_distances, video_scores
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import ScoreSettings

KEY_WIDTH, VALUE_WIDTH, LENGTH, STRIDE = 6, 12, 8, 4


class Candidates:
    """Keys, values and tables of a few videos as an index stores them. line: values on a line through the target, where the ball
    touches the score. scale: of the deviations within a video."""

    def __init__(self, seed, scale=1.0, heat=3.0, line=False, offset=0.0):
        rng = np.random.default_rng(seed)
        lengths = [3, 8, 21, 1, 14]
        self.weight = -np.exp(rng.normal(size=VALUE_WIDTH)).astype(np.float32)
        if line:
            direction = rng.normal(size=VALUE_WIDTH)
            people = [rng.normal() * direction + np.outer(scale * rng.normal(size=n), direction) for n in lengths]
            encodings = np.outer(rng.normal(size=3) * 4, direction)
        else:
            people = [offset + rng.normal(size=VALUE_WIDTH) + scale * rng.normal(size=(n, VALUE_WIDTH)) for n in lengths]
            encodings = offset + rng.normal(size=(3, VALUE_WIDTH))
        self.values = torch.from_numpy(np.concatenate(people)).half()
        self.keys = torch.from_numpy(heat * rng.normal(size=(len(self.values), KEY_WIDTH))).half()
        first = np.cumsum([0, *lengths[:-1]])
        rows = [segment_frames(segment_starts(n, LENGTH, STRIDE), LENGTH, n) + f for n, f in zip(lengths, first, strict=True)]
        self.frames, self.offsets = torch.from_numpy(np.concatenate(rows)), np.cumsum([0, *map(len, rows)])
        self.bias = float(rng.normal())
        self.set_target(rng.normal(size=(3, KEY_WIDTH)), encodings)
        self.store()

    def set_target(self, queries, encodings):
        tensors = [torch.tensor(a, dtype=torch.float32) for a in (queries, encodings, np.ones((3, 1)), self.weight, self.bias)]
        self.target = TargetEncoding(*tensors, torch.zeros(VALUE_WIDTH))

    def store(self):
        x = self.values.float() * torch.sqrt(-self.target.weight)
        self.means = x[self.frames].mean(dim=1)
        self.band = torch.zeros(len(x), LENGTH - 1, dtype=torch.float16)
        for i in range(1, LENGTH):
            self.band[:-i, i - 1] = (x[:-i] - x[i:]).square().sum(dim=1).half()
        self.table = segment_distances(self.band, self.frames)

    def logits(self):
        """METHOD's formula, pair by pair, float64 [N, K]."""
        target = [part.double().numpy() for part in (self.target.query_vectors, self.target.encodings, self.target.weight)]
        keys, values = self.keys.double().numpy(), self.values.double().numpy()
        found = np.empty((len(target[0]), len(self.frames)))
        for n, (query, encoding) in enumerate(zip(*target[:2], strict=True)):
            for j, rows in enumerate(self.frames.numpy()):
                heat = keys[rows] @ query
                attention = np.exp(heat - heat.max())
                mixed = attention @ values[rows] / attention.sum()
                found[n, j] = self.target.bias.double() + target[2] @ (encoding - mixed) ** 2
        return found

    def ball(self):
        return ball_logits(self.target, self.means, radii(self.table, self.means))

    def attention(self, projected=None):
        return attention_logits(self.target, self.means, self.keys, self.table, self.frames, projected)

    def along_axes(self, width):
        """The bound by some of the stored coordinates."""
        scaled = self.values.float() * torch.sqrt(-self.target.weight)
        axes = Projection.of_axes(scaled)
        rotated, means = axes.rotated_target(self.target), self.means[:, axes.order]
        return attention_logits(rotated, means, self.keys, self.table, self.frames, scaled[:, axes.order[:width]])

    def rotate(self):
        """Store the values in their principal directions, as an index may; the stored ones then define the scores."""
        scaled = self.values.float() * torch.sqrt(-self.target.weight)
        projection = Projection.of_sample(scaled)
        self.values = (scaled @ projection.basis).half()
        self.target = projection.rotated_target(self.target)
        self.store()


def test_distances_of_a_segment_are_read_off_the_band():
    candidates = Candidates(0)
    x = candidates.values.double() * torch.sqrt(-candidates.target.weight.double())
    expected = torch.cdist(x[candidates.frames], x[candidates.frames]).square()
    torch.testing.assert_close(candidates.table.double(), expected, rtol=2**-10, atol=1e-6)


def test_the_radius_reaches_the_farthest_frame_and_hardly_farther():
    candidates = Candidates(1)
    x = candidates.values.double() * torch.sqrt(-candidates.target.weight.double())
    frames = x[candidates.frames]
    true = (frames - frames.mean(dim=1, keepdim=True)).norm(dim=2).amax(dim=1)
    found = radii(candidates.table, candidates.means).double()
    assert (found >= true).all() and (found <= 1.01 * true + 1e-3).all()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 1.0, 5.0]),
    st.sampled_from([0.0, 1.0, 10.0]),
    st.booleans(),
    st.sampled_from([0.0, 30.0]),
)
def test_no_bound_is_ever_below_the_score(seed, scale, heat, line, offset):
    candidates = Candidates(seed, scale, heat, line, offset)
    exact = candidates.logits()
    assert (candidates.ball().double().numpy() >= exact).all()
    assert (candidates.attention().double().numpy() >= exact).all()
    for width in (1, 4, VALUE_WIDTH):
        assert (candidates.along_axes(width).double().numpy() >= exact).all()
    candidates.rotate()
    exact = candidates.logits()
    for width in (1, 4, VALUE_WIDTH):
        assert (candidates.attention(candidates.values[:, :width]).double().numpy() >= exact).all()


def test_a_ball_that_touches_its_score_is_tight():
    """Values on a line, all attention on the frame nearest to the target: the bound may exceed the score by rounding only."""
    candidates = Candidates(5, scale=0.1, line=True)
    x = (candidates.values.float() * torch.sqrt(-candidates.target.weight))[candidates.frames]
    own = candidates.target.encodings * torch.sqrt(-candidates.target.weight)
    nearest = (x[None] - own[:, None, None]).norm(dim=3).amin(dim=2)
    reach = candidates.target.bias - nearest.square()
    centre = (own[:, None] - candidates.means).norm(dim=2)
    touching = (nearest - (centre - radii(candidates.table, candidates.means))).abs() < 2e-3 * centre
    assert touching.sum() >= 3
    assert ((candidates.ball() - reach)[touching] <= 0.01 * reach.abs()[touching] + 1e-2).all()


def test_each_stage_is_tighter_and_all_directions_give_the_score():
    candidates = Candidates(3, scale=0.5, heat=1.0)
    candidates.rotate()
    exact = torch.from_numpy(candidates.logits())
    slack = [
        (bound.double() - exact).mean().item()
        for bound in (candidates.ball(), *(candidates.attention(candidates.values[:, :r]) for r in (0, 4, VALUE_WIDTH)))
    ]
    assert slack == sorted(slack, reverse=True) and slack[0] > 1.5 * slack[1] and 0 <= slack[-1] < 0.1


def test_axes_come_in_the_order_of_their_variance_and_tighten_the_bound():
    candidates = Candidates(3, scale=0.5, heat=1.0)
    x = candidates.values.float() * torch.sqrt(-candidates.target.weight)
    spread = x[:, Projection.of_axes(x).order].double().var(dim=0)
    assert (spread.diff() <= 0).all()
    exact = torch.from_numpy(candidates.logits())
    slack = [(candidates.along_axes(width).double() - exact).mean().item() for width in (0, 2, 6, VALUE_WIDTH)]
    assert slack == sorted(slack, reverse=True) and slack[1] < 0.95 * slack[0] and 0 <= slack[-1] < 0.1


def test_distances_too_large_for_float16_give_up_the_bound_and_stay_valid():
    candidates = Candidates(4, scale=400.0)
    assert torch.isinf(candidates.table).any()
    assert (candidates.attention().double().numpy() >= candidates.logits()).all()
    assert (candidates.ball().double().numpy() >= candidates.logits()).all()


def test_a_weight_above_zero_has_no_bounds():
    candidates = Candidates(0)
    assert boundable(candidates.target)
    candidates.weight[0] = 0.1
    candidates.set_target(np.ones((3, KEY_WIDTH)), np.ones((3, VALUE_WIDTH)))
    assert not boundable(candidates.target)


@pytest.mark.parametrize(
    "how",
    [
        ScoreSettings(),
        ScoreSettings(ratio=0.5, aggregate="sum"),
        ScoreSettings(threshold=0.3),
        ScoreSettings(threshold=0.3, aggregate="sum"),
    ],
)
def test_video_bounds_are_never_below_the_video_scores(how):
    for seed in range(20):
        candidates, rng = Candidates(seed, scale=0.7), np.random.default_rng(seed)
        count = len(candidates.frames)
        own, theirs = (
            CohortStatistics(torch.from_numpy(rng.normal(size=n)), torch.from_numpy(rng.uniform(0.05, 2, n))) for n in (3, count)
        )
        logits = candidates.logits()
        mean, spread = own.mean.numpy()[:, None], own.spread.numpy()[:, None]
        normalised = ((logits - mean) / spread + (logits - theirs.mean.numpy()) / theirs.spread.numpy()) / 2
        for exact, statistics in ((logits, (None, None)), (normalised, (own, theirs))):
            scores = video_scores(1 / (1 + np.exp(-exact)), candidates.offsets, how)
            assert (video_bounds(candidates.attention(), candidates.offsets, how, *statistics) >= scores).all()


def test_a_mean_over_a_threshold_is_bounded_although_one_more_score_lowers_it():
    how = ScoreSettings(threshold=0.5)
    below, above = torch.tensor([[2.0, -0.01]]), torch.tensor([[2.0, 0.01]])  # the second pair's score, and its bound
    ends = np.array([0, 2])
    assert video_scores(above.sigmoid(), ends, how) < video_scores(below.sigmoid(), ends, how)
    assert video_bounds(above, ends, how)[0] >= video_scores(below.sigmoid(), ends, how)[0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(0, 10**6),
    st.integers(1, 7),
)
def test_the_certified_top_is_that_of_scoring_everything(numbers, k, seed, block):
    """Few distinct scores, so that the border is full of equal ones."""
    rng = np.random.default_rng(seed)
    scores = np.array(numbers) / 6
    ids = rng.permutation([f"v{i:02d}" for i in range(len(scores))])
    candidates = np.flatnonzero(rng.random(len(scores)) < 0.8)
    slack = [rng.choice([0, 0.01, 0.3], len(scores)) for _ in range(2)]
    asked, scored = [], []

    def stage(number):
        def bounds(videos):
            asked.append((number, len(videos)))
            return scores[videos] + slack[number][videos]

        return bounds

    def score(videos):
        scored.extend(videos.tolist())
        assert (np.diff(videos) > 0).all()
        return scores[videos]

    shortlist = candidates[rng.random(len(candidates)) < 0.2]
    found = certified_top(k, candidates, ids, shortlist, [stage(0), stage(1)], score, block)
    order = sorted(candidates.tolist(), key=lambda v: (-scores[v], ids[v]))
    assert found.videos[:k].tolist() == order[:k]
    assert found.scores[:k].tolist() == scores[order[:k]].tolist()
    assert sorted(scored) == sorted(set(scored)) == sorted(found.videos.tolist())
    left = np.setdiff1d(candidates, found.videos)
    assert found.largest_bound_left < found.threshold or not len(left)
    assert (scores[left] <= found.largest_bound_left).all()
    assert len(found.reached) == 2 and [count for number, count in asked] == [count for count in found.reached if count]


def test_good_bounds_spare_most_of_the_scores():
    scores = np.linspace(0, 1, 1000)
    ids = np.array([f"{i:04d}" for i in range(1000)])
    found = certified_top(10, np.arange(1000), ids, np.arange(990, 1000), [lambda v: scores[v] + 0.005], lambda v: scores[v], 4)
    assert len(found.videos) < 20 and found.reached == (990,)


def test_a_score_above_its_bound_is_an_error_and_not_a_certificate():
    scores, ids = np.arange(6) / 6, np.array(list("abcdef"))
    with pytest.raises(ValueError, match="scores more than its bound"):
        certified_top(2, np.arange(6), ids, np.array([0]), [lambda v: scores[v] - 0.1], lambda v: scores[v])
