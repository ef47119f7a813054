"""Every figure against its definition, counted out over sorted lists in plain Python, with many ties, junk and distractors."""

import math
import random
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.metrics import (
    QueryFigures,
    camera_pairs,
    identity_interval,
    left_out,
    open_set_points,
    operating_points,
    query_figures,
    ranking_quality,
    shortlist_length,
    shortlist_recall,
    threshold_for_rate,
)
from pipeline.scoring.video_scores import rank_videos

# ---- the definitions, in plain Python


@dataclass
class World:
    """Queries and a gallery with scores from a few values only. A person of "junk" never counts; "p0" is a distractor."""

    queries: list[tuple[str, str]]  # (person, camera)
    gallery: list[tuple[str, str]]
    scores: list[list[float]]

    def counts(self, q: int, g: int) -> bool:
        return self.gallery[g][0] != "junk" and self.queries[q] != self.gallery[g]

    def same(self, q: int, g: int) -> bool:
        return self.queries[q][0] == self.gallery[g][0]

    def ranking(self, q: int, columns: list[int] | None = None) -> list[int]:
        """Columns that count, best first; sorted() is stable, so equal scores stay in the order of columns."""
        inside = [g for g in (range(len(self.gallery)) if columns is None else columns) if self.counts(q, g)]
        return sorted(inside, key=lambda g: -self.scores[q][g])

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shape = (len(self.queries), len(self.gallery))
        cells = [(q, g) for q in range(shape[0]) for g in range(shape[1])]
        valid, same = (np.array([rule(*cell) for cell in cells], bool).reshape(shape) for rule in (self.counts, self.same))
        return np.array(self.scores, np.float64).reshape(shape), valid, same


def random_world(seed: int, queries: int = 12, gallery: int = 40, values: int = 6) -> World:
    rng = random.Random(seed)
    people, cameras = [f"p{i}" for i in range(1, 7)], ["a", "b", "c"]
    asked = [(rng.choice([*people, "nobody else"]), rng.choice(cameras)) for _ in range(queries)]
    shown = [(rng.choice([*people, "p0", "junk"]), rng.choice(cameras)) for _ in range(gallery)]
    return World(asked, shown, [[rng.randrange(values) / values - 0.3 for _ in shown] for _ in asked])


def counted_precision(world: World, q: int, columns: list[int] | None = None) -> Fraction | None:
    """Mean over the matches of (matches down to there / rank), in exact fractions; None without a match."""
    precisions, seen = [], 0
    for rank, g in enumerate(world.ranking(q, columns), start=1):
        if world.same(q, g):
            seen += 1
            precisions.append(Fraction(seen, rank))
    return sum(precisions) / len(precisions) if precisions else None


def counted_matches(world: World, q: int, columns: list[int] | None = None) -> list[int]:
    """Ranks of the matches."""
    return [rank for rank, g in enumerate(world.ranking(q, columns), start=1) if world.same(q, g)]


worlds = st.builds(random_world, st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 40), st.integers(1, 30))

# ---- rankings


@given(worlds)
@settings(deadline=None)
def test_the_figures_of_each_query_are_what_counting_gives(world: World) -> None:
    figures = query_figures(*world.arrays)
    for q in range(len(world.queries)):
        ranks = counted_matches(world, q)
        assert figures.first_hit[q] == (ranks[0] if ranks else 0)
        if ranks:
            assert figures.average_precision[q] == pytest.approx(float(counted_precision(world, q)), abs=1e-12)
            assert figures.inverse_penalty[q] == pytest.approx(len(ranks) / ranks[-1], abs=1e-12)
        else:
            assert math.isnan(figures.average_precision[q]) and math.isnan(figures.inverse_penalty[q])


@given(worlds)
@settings(deadline=None)
def test_the_means_leave_queries_without_a_match_out_and_count_them(world: World) -> None:
    matched = [q for q in range(len(world.queries)) if counted_matches(world, q)]
    figures = query_figures(*world.arrays)
    if not matched:
        with pytest.raises(ValueError, match="no query has a match"):
            ranking_quality(figures)
        return
    quality = ranking_quality(figures, (1, 3, 1000))
    assert (quality.queries, quality.unmatched) == (len(matched), len(world.queries) - len(matched))
    for rank in (1, 3, 1000):
        found = [q for q in matched if counted_matches(world, q)[0] <= rank]
        assert quality.cmc[rank] == pytest.approx(len(found) / len(matched), abs=1e-12)
    precisions = [counted_precision(world, q) for q in matched]
    assert quality.mean_ap == pytest.approx(float(sum(precisions) / len(precisions)), abs=1e-12)
    penalties = [Fraction(len(counted_matches(world, q)), counted_matches(world, q)[-1]) for q in matched]
    assert quality.mean_inp == pytest.approx(float(sum(penalties) / len(penalties)), abs=1e-12)


def test_a_gallery_that_needs_several_blocks_is_what_counting_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    world = random_world(5, queries=23, gallery=60, values=200)
    whole = query_figures(*world.arrays)
    monkeypatch.setattr("pipeline.evaluation.metrics._BLOCK", 120)  # two rows
    blocks = query_figures(*world.arrays)
    for name in ("first_hit", "average_precision", "inverse_penalty"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(blocks, name))
    assert blocks.first_hit.tolist() == [(counted_matches(world, q) or [0])[0] for q in range(23)]


def test_equal_scores_rank_as_the_search_ranks_them() -> None:
    ids, scores = ["a", "b", "c", "d"], np.array([0.5, 0.9, 0.5, 0.5])
    for match in range(4):
        same = np.arange(4) == match
        place = list(rank_videos(scores, ids)).index(match) + 1
        assert query_figures(scores[None], np.ones((1, 4), bool), same[None]).first_hit[0] == place


def test_scores_that_do_not_count_may_be_anything_others_must_be_finite() -> None:
    scores, valid = np.array([[0.1, np.nan, 0.3]]), np.array([[True, False, True]])
    assert query_figures(scores, valid, np.array([[True, True, False]])).first_hit[0] == 2
    with pytest.raises(ValueError, match="finite"):
        query_figures(scores, np.ones((1, 3), bool), valid)
    with pytest.raises(ValueError, match=r"\[Q, G\]"):
        query_figures(scores, valid[:, :2], valid)


# ---- intervals


def test_the_interval_is_that_of_drawing_persons_one_by_one() -> None:
    rng = random.Random(3)
    persons = [f"p{rng.randrange(15)}" for _ in range(80)]
    level = {person: rng.random() for person in set(persons)}
    values = [level[person] + 0.1 * rng.random() for person in persons]
    groups = {person: [v for v, p in zip(values, persons, strict=True) if p == person] for person in set(persons)}
    means = []
    for _ in range(20_000):
        drawn = [v for person in rng.choices(sorted(groups), k=len(groups)) for v in groups[person]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    low, high = identity_interval(values, persons, resamples=20_000, seed=1)
    width = means[19_500] - means[500]
    assert low == pytest.approx(means[500], abs=0.03 * width) and high == pytest.approx(means[19_499], abs=0.03 * width)


def test_many_queries_of_one_person_do_not_make_an_interval_narrower() -> None:
    rng = np.random.default_rng(0)
    values, persons = rng.random(30), np.arange(30)
    once = identity_interval(values, persons)
    often = identity_interval(np.repeat(values, 50), np.repeat(persons, 50))
    assert often == pytest.approx(once, abs=1e-12)


def test_queries_that_take_no_part_change_nothing_and_the_seed_decides() -> None:
    rng = np.random.default_rng(0)
    values, persons = rng.random(40), rng.integers(0, 9, 40)
    more = np.append(values, [np.nan, np.nan]), np.append(persons, [3, 99])
    assert identity_interval(values, persons, seed=4) == identity_interval(*more, seed=4)
    assert identity_interval(values, persons, seed=4) != identity_interval(values, persons, seed=5)
    with pytest.raises(ValueError, match="at least one query"):
        identity_interval([np.nan], ["p"])


def test_the_interval_of_a_difference_is_paired() -> None:
    rng = np.random.default_rng(0)
    persons = np.repeat(np.arange(60), 3)
    worse = np.repeat(rng.random(60), 3)
    low, high = identity_interval((worse + 0.05) - worse, persons)  # always 0.05 apart, though each spreads widely
    assert low == pytest.approx(0.05) and high == pytest.approx(0.05)
    spread = identity_interval(worse, persons)
    assert spread[1] - spread[0] > 0.1


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for trial in range(300):
        levels = rng.random(50)  # a person's queries are as good as they are alike: mean 0.5
        low, high = identity_interval(np.repeat(levels, 4), np.repeat(np.arange(50), 4), resamples=400, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.9 <= covered / 300 <= 0.98


# ---- camera pairs, shortlists


@given(worlds)
@settings(max_examples=50, deadline=None)
def test_a_camera_pair_is_the_ranking_of_that_camera_alone(world: World) -> None:
    cameras = [camera for _, camera in world.queries], [camera for _, camera in world.gallery]
    found = {(pair.query_camera, pair.gallery_camera): pair for pair in camera_pairs(*world.arrays, *cameras)}
    for query_camera in "abc":
        for gallery_camera in "abc":
            columns = [g for g, camera in enumerate(cameras[1]) if camera == gallery_camera]
            rows = [q for q, camera in enumerate(cameras[0]) if camera == query_camera and counted_matches(world, q, columns)]
            pair = found.pop((query_camera, gallery_camera), None)
            assert (pair is None) == (not rows)
            if pair is not None:
                assert pair.queries == len(rows)
                first = [counted_matches(world, q, columns)[0] == 1 for q in rows]
                assert pair.rank_1 == pytest.approx(sum(first) / len(rows))
                precisions = [counted_precision(world, q, columns) for q in rows]
                assert pair.mean_ap == pytest.approx(float(sum(precisions) / len(rows)))
    assert not found


@given(worlds, st.sampled_from(["1", "3", "10", "1000", "5%", "37.5%", "100%"]))
@settings(max_examples=50, deadline=None)
def test_shortlist_recall_is_what_counting_gives(world: World, size: str) -> None:
    scores, valid, same = world.arrays
    rng = np.random.default_rng(len(world.gallery))
    prefilter = rng.random(scores.shape)
    kept = np.zeros(scores.shape, np.bool_)
    top, kept_top, matches, kept_matches, lengths = 0, 0, 0, 0, []
    for q in range(len(world.queries)):
        order = sorted(world.ranking(q), key=lambda g: -prefilter[q, g])
        share = Fraction(size[:-1]) / 100 if size.endswith("%") else None
        lengths.append(min(len(order), int(size) if share is None else math.ceil(share * len(order))))
        assert shortlist_length(size, len(order)) == lengths[-1]
        chosen = set(order[: lengths[-1]])
        kept[q, list(chosen)] = True
        best = world.ranking(q)[:10]
        top, kept_top = top + len(best), kept_top + len(chosen & set(best))
        matching = {g for g in order if world.same(q, g)}
        matches, kept_matches = matches + len(matching), kept_matches + len(chosen & matching)
    recall = shortlist_recall(scores, valid, same, kept, size)
    assert recall.videos == pytest.approx(sum(lengths) / len(lengths))
    assert recall.top_10 == pytest.approx(kept_top / top if top else math.nan, nan_ok=True)
    assert recall.matches == pytest.approx(kept_matches / matches if matches else math.nan, nan_ok=True)


@pytest.mark.parametrize("size", ["0", "-3", "0%", "101%", "many", "1.5", "", "%", "nan%"])
def test_a_size_that_cannot_be_meant_is_refused(size: str) -> None:
    with pytest.raises(ValueError):
        shortlist_length(size, 100)


# ---- thresholds


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=60),
    st.lists(st.integers(0, 12), max_size=20),
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.5, 1.0])),
)
@settings(deadline=None)
def test_the_threshold_is_the_most_lenient_one_for_the_rate(negatives: list[int], positives: list[int], rate: float) -> None:
    threshold, reachable = threshold_for_rate(np.array(negatives) / 7, rate, np.array(positives) / 7)
    limit = math.floor(round(rate * len(negatives), 6))
    assert sum(score / 7 >= threshold for score in negatives) <= limit
    assert reachable == (limit >= 1)
    # Any lower threshold that lets one more score of either kind pass lets too many negatives pass.
    refused = [score / 7 for score in negatives + positives if score / 7 < threshold]
    if refused:
        assert sum(score / 7 >= max(refused) for score in negatives) > limit


def test_a_rate_needs_negatives_and_lies_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="different persons"):
        threshold_for_rate([], 0.1)
    for rate in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"0\.\.1"):
            threshold_for_rate([0.5], rate)


@given(worlds, st.sampled_from([0.0, 0.01, 0.2, 0.5]))
@settings(max_examples=60, deadline=None)
def test_verification_rates_are_shares_of_pairs(world: World, rate: float) -> None:
    pairs = [(q, g) for q in range(len(world.queries)) for g in range(len(world.gallery)) if world.counts(q, g)]
    different = [world.scores[q][g] for q, g in pairs if not world.same(q, g)]
    genuine = [world.scores[q][g] for q, g in pairs if world.same(q, g)]
    if not different:
        with pytest.raises(ValueError, match="different persons"):
            operating_points(*world.arrays, [rate])
        return
    (point,) = operating_points(*world.arrays, [rate])
    assert (point.different, point.same) == (len(different), len(genuine))
    assert point.false_match_rate == pytest.approx(sum(s >= point.threshold for s in different) / len(different))
    assert point.false_match_rate <= rate and point.reachable == (rate * len(different) >= 1)
    share = sum(s >= point.threshold for s in genuine) / len(genuine) if genuine else math.nan
    assert point.true_match_rate == pytest.approx(share, nan_ok=True)


@given(worlds, st.sampled_from([0.0, 0.1, 0.3, 1.0]))
@settings(max_examples=60, deadline=None)
def test_open_set_rates_are_shares_of_targets(world: World, rate: float) -> None:
    absent, present = [], []
    for q in range(len(world.queries)):
        without = [g for g in world.ranking(q) if not world.same(q, g)]
        if without:
            absent.append(world.scores[q][without[0]])
        if counted_matches(world, q):
            best = world.ranking(q)[0]
            present.append((world.same(q, best), world.scores[q][best]))
    if not absent:
        with pytest.raises(ValueError, match="different persons"):
            open_set_points(*world.arrays, [rate])
        return
    (point,) = open_set_points(*world.arrays, [rate])
    assert (point.absent, point.present) == (len(absent), len(present))
    assert point.false_positive_identification == pytest.approx(sum(s >= point.threshold for s in absent) / len(absent))
    assert point.false_positive_identification <= rate
    found = sum(right and s >= point.threshold for right, s in present) / len(present) if present else math.nan
    assert point.detection_and_identification == pytest.approx(found, nan_ok=True)


def test_found_by_tells_misses_from_queries_without_a_match() -> None:
    figures = QueryFigures(np.array([1, 6, 0]), np.zeros(3), np.zeros(3))
    np.testing.assert_array_equal(figures.found_by(5), [1.0, 0.0, np.nan])


def test_left_out_is_one_person_under_one_camera_that_is_known() -> None:
    people, cameras = np.arange(60) % 5, np.arange(60) % 4 - 1  # -1: not known
    found = left_out(people[:, None] == people, cameras[:, None], cameras)
    for a in range(60):
        for b in range(60):
            assert found[a, b] == (people[a] == people[b] and cameras[a] == cameras[b] and cameras[a] != -1)
