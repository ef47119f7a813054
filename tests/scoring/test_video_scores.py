"""From pair scores to video scores, and to a ranking."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError, UsageError
from pipeline.scoring.video_scores import rank_videos, video_score, video_scores
from pipeline.settings import ScoreSettings

FEW_VALUES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.9, 1.0])  # ties on purpose
SCORE = st.one_of(FEW_VALUES, st.floats(0, 1, width=32))
SETTINGS = st.builds(
    ScoreSettings,
    ratio=st.integers(1, 100).map(lambda percent: percent / 100),
    threshold=st.one_of(st.none(), FEW_VALUES),
    aggregate=st.sampled_from(["mean", "sum"]),
)


def plain_video_score(scores, settings):
    """The rule in exact fractions."""
    ordered = sorted((Fraction(float(score)) for score in scores), reverse=True)
    if settings.threshold is None:
        counted = ordered[: max(1, math.ceil(Fraction(str(settings.ratio)) * len(ordered)))]
    else:
        counted = [score for score in ordered if score >= Fraction(settings.threshold)]
    if not counted:
        return 0.0
    return float(sum(counted) / (1 if settings.aggregate == "sum" else len(counted)))


@given(st.lists(SCORE, min_size=1, max_size=120), SETTINGS)
def test_a_video_score_is_the_plain_rule_s(scores, settings):
    assert video_score(scores, settings) == pytest.approx(plain_video_score(scores, settings), rel=1e-12)


@given(st.data(), SETTINGS)
def test_videos_score_the_same_alone_and_together_and_in_any_order_of_their_segments(data, settings):
    rows = data.draw(st.integers(1, 4))
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    values = data.draw(st.lists(SCORE, min_size=rows * sum(counts), max_size=rows * sum(counts)))
    scores = np.array(values, dtype=np.float32).reshape(rows, -1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    together = video_scores(scores, offsets, settings)
    assert together.dtype == np.float64
    for video, score in enumerate(together):
        own = scores[:, offsets[video] : offsets[video + 1]]
        assert score == video_score(own, settings) == video_score(own[:, ::-1], settings)


def test_a_thousand_videos_score_bit_for_bit_what_each_scores_alone_with_its_segments_reversed():
    generator = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(generator.integers(1, 60, size=1000))])
    scores = generator.random((7, offsets[-1]))  # float64: adding up in another order would show in the last bits
    for settings in (ScoreSettings(ratio=0.2), ScoreSettings(ratio=1), ScoreSettings(threshold=0.5)):
        together = video_scores(scores, offsets, settings)
        alone = [video_score(scores[:, first:last][:, ::-1], settings) for first, last in itertools.pairwise(offsets)]
        np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(("ratio", "pairs", "counted"), [(0.07, 100, 7), (0.2, 15, 3), (0.2, 16, 4), (0.1, 3, 1)])
def test_the_top_share_is_rounded_up_from_its_decimal_value(ratio, pairs, counted):
    assert video_score(np.ones(pairs), ScoreSettings(ratio=ratio, aggregate="sum")) == counted


def test_the_mean_of_a_top_share_makes_videos_of_any_length_comparable():
    pattern = [0.9, 0.9, 0.5, *[0.1] * 17]
    short, long = np.array(pattern), np.tile(pattern, 40)
    tenth = ScoreSettings(ratio=0.1)
    assert video_score(short, tenth) == pytest.approx(video_score(long, tenth)) == pytest.approx(0.9)
    added = ScoreSettings(ratio=0.1, aggregate="sum")
    assert video_score(long, added) == pytest.approx(40 * video_score(short, added))


def test_a_threshold_replaces_the_share_and_a_video_below_it_scores_zero():
    scores = [0.9, 0.8, 0.7, 0.1]
    assert video_score(scores, ScoreSettings(ratio=0.01, threshold=0.7)) == pytest.approx(0.8)
    assert video_score(scores, ScoreSettings(threshold=0.95)) == 0.0


@pytest.mark.parametrize("offsets", [[0, 2], [1, 3], [0, 4], [], [[0, 3]]])
def test_offsets_that_do_not_cover_the_columns_are_refused(offsets):
    with pytest.raises(ValueError, match="offsets"):
        video_scores(np.ones((2, 3)), offsets)


@pytest.mark.parametrize(("shape", "offsets"), [((2, 3), [0, 0, 3]), ((2, 3), [0, 5, 3]), ((0, 3), [0, 3])])
def test_a_video_without_pair_scores_is_refused(shape, offsets):
    with pytest.raises(ValueError, match="every video needs"):
        video_scores(np.ones(shape), offsets)


def test_a_call_without_videos_gives_no_scores():
    assert video_scores(np.ones((2, 0)), [0]).shape == (0,)


def test_damaged_scores_are_refused_rather_than_ranked_first():
    with pytest.raises(PipelineError, match="NaN"):
        video_score([0.5, math.nan])
    with pytest.raises(PipelineError, match="NaN"):
        rank_videos([0.5, math.nan], ["a", "b"])


@pytest.mark.parametrize(
    "settings",
    [
        {"ratio": 0.0},
        {"ratio": 1.01},
        {"ratio": math.nan},
        {"threshold": math.nan},
        {"aggregate": "max"},
        {"aggregate": "sum"},
        {"neighbours": -1},
        {"neighbours": 101},
    ],
)
def test_score_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(UsageError):
        ScoreSettings(**settings)


@given(st.lists(st.tuples(FEW_VALUES, st.text("abcé", max_size=3)), max_size=30))
def test_videos_rank_by_score_then_by_id(videos):
    scores, ids = [score for score, _ in videos], [video_id for _, video_id in videos]
    expected = sorted(range(len(videos)), key=lambda position: (-scores[position], ids[position]))
    assert rank_videos(scores, ids).tolist() == expected


def test_as_many_ids_as_scores_are_needed_to_rank():
    with pytest.raises(ValueError, match="do not belong"):
        rank_videos([0.1, 0.2], ["a"])
