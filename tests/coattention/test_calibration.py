"""Calibration against the definitions: counted out, differentiated numerically, and on scores of which the truth is known."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.coattention.calibration import (
    FILE,
    Calibration,
    load_calibration,
    none_probability,
    posterior,
    save_calibration,
    settings_of,
)
from pipeline.coattention.calibration_fit import SLOPE_PRIOR, _held_out, _Pairs, fit_calibration
from pipeline.coattention.calibration_quality import cllr, expected_calibration_error, min_cllr, reliability
from pipeline.errors import PipelineError, UsageError
from pipeline.settings import ScoreSettings

SCORE = ScoreSettings(ratio=0.2, threshold=None, aggregate="mean")
SETTINGS = settings_of(SCORE, 8, 4)
HEAD = "ab" * 32


def fit(scores: Any, query: Any, candidate: Any, bounded: bool = False) -> Calibration:
    return fit_calibration(
        scores, query, candidate, head=HEAD, settings=SETTINGS, bounded=bounded, name="made up", date="2026-01-01"
    )


def all_pairs(people: int, videos: int) -> tuple[np.ndarray, np.ndarray]:
    """Query and candidate people of every ordered pair of different videos."""
    person = np.repeat(np.arange(people), videos)
    query, candidate = np.nonzero(~np.eye(len(person), dtype=bool))
    return person[query], person[candidate]


def gaussian_scores(query: np.ndarray, candidate: np.ndarray, separation: float, seed: int = 0) -> np.ndarray:
    """Scores of which the true llr is separation * score: unit normal about +separation / 2 for the same person, - for others."""
    rng = np.random.default_rng(seed)
    return rng.normal(np.where(query == candidate, separation / 2, -separation / 2))


def uneven_pairs(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, query and candidate people: 14 people of 2 to 5 videos, 3 of whom query no others, with gaps."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(14), rng.integers(2, 6, 14))
    query, candidate = np.nonzero(~np.eye(len(person), dtype=bool) & (rng.random((len(person),) * 2) < 0.7))
    query, candidate = person[query], person[candidate]
    kept = (query == candidate) | (query < 11)
    query, candidate = query[kept], candidate[kept]
    return gaussian_scores(query, candidate, 2.0, seed), query, candidate


def counted_weights(query: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    """The weights of the docstring, counted out pair by pair."""
    pairs = list(zip(query.tolist(), candidate.tolist(), strict=True))
    same_people = {q for q, c in pairs if q == c}
    strangers: dict[int, set[int]] = {}
    for q, c in pairs:
        if q != c:
            strangers.setdefault(q, set()).add(c)
    return np.array(
        [
            0.5 / len(same_people) / pairs.count((q, c))
            if q == c
            else 0.5 / len(strangers) / len(strangers[q]) / pairs.count((q, c))
            for q, c in pairs
        ]
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_where_the_gradient_of_the_stated_objective_vanishes(seed: int) -> None:
    scores, query, candidate = uneven_pairs(seed)
    weights, same = counted_weights(query, candidate), query == candidate
    means = [np.sum(weights[kind] * scores[kind]) / weights[kind].sum() for kind in (same, ~same)]
    spread = math.sqrt(np.sum(weights * (scores - np.where(same, means[0], means[1])) ** 2))
    people = len(set(query[same].tolist()))

    def objective(intercept: float, slope: float) -> float:
        llr = intercept + slope * scores
        loss = np.log(1 + np.exp(np.where(same, -llr, llr)))
        return float(np.sum(weights * loss) + (slope * spread) ** 2 / (2 * SLOPE_PRIOR**2 * people))

    found = fit(scores, query, candidate)
    step = 1e-5
    for direction in ((step, 0.0), (0.0, step)):
        up = objective(found.intercept + direction[0], found.slope + direction[1])
        down = objective(found.intercept - direction[0], found.slope - direction[1])
        assert abs(up - down) / (2 * step) < 1e-8
        assert min(up, down) > objective(found.intercept, found.slope)


@pytest.mark.parametrize("seed", range(3))
def test_llr_goes_no_further_than_the_counts_support(seed: int) -> None:
    scores, query, candidate = uneven_pairs(seed)
    scores = scores.round()  # many are equal, and no threshold can tell those apart
    weights, same = 2 * counted_weights(query, candidate), query == candidate
    people = len(set(query[same].tolist()))
    strangers = len({frozenset(pair) for pair in zip(query.tolist(), candidate.tolist(), strict=True) if pair[0] != pair[1]})
    highest, lowest = -math.inf, math.inf
    for t in scores:
        hits, false_hits = weights[same & (scores >= t)].sum(), weights[~same & (scores >= t)].sum()
        highest = max(highest, hits / ((strangers * false_hits + 1) / (strangers + 1)))
        correct, misses = weights[~same & (scores <= t)].sum(), weights[same & (scores <= t)].sum()
        lowest = min(lowest, ((people * misses + 1) / (people + 1)) / correct if correct else math.inf)
    found = fit(scores, query, candidate)
    assert found.highest == pytest.approx(math.log(highest), abs=1e-9)
    assert found.lowest == pytest.approx(math.log(lowest), abs=1e-9)
    assert found.log_likelihood_ratios([-1e6, 1e6]).tolist() == [found.lowest, found.highest]


def test_perfectly_separated_scores_claim_one_error_more_than_was_tried() -> None:
    query, candidate = all_pairs(people=12, videos=2)
    found = fit(np.where(query == candidate, 0.9, 0.1), query, candidate, bounded=True)
    assert math.isfinite(found.slope)
    assert found.log_likelihood_ratios([0.9, 0.1, 0.0, 1.0]) == pytest.approx(
        [math.log(12 * 11 / 2 + 1), -math.log(13), -math.log(13), math.log(12 * 11 / 2 + 1)]
    )


@pytest.mark.parametrize("bounded", [True, False])
def test_known_likelihood_ratios_are_found(bounded: bool) -> None:
    query, candidate = all_pairs(people=100, videos=2)
    x = gaussian_scores(query, candidate, separation=3.0)
    found = fit(1 / (1 + np.exp(-x)) if bounded else x, query, candidate, bounded)
    at = np.linspace(-1, 2, 13)
    llrs = found.log_likelihood_ratios(1 / (1 + np.exp(-at)) if bounded else at)
    assert np.abs(llrs - 3 * at).max() < 0.35
    assert found.quality.ece < 0.025 and found.quality.ece_own_prior < 0.002
    assert found.quality.min_cllr < found.quality.cllr == pytest.approx(cllr(3 * x, query == candidate), abs=0.015)
    fresh = gaussian_scores(query, candidate, separation=3.0, seed=1)
    probabilities = found.probabilities(1 / (1 + np.exp(-fresh)) if bounded else fresh, eligible=450, expected_matches=2.0)
    assert expected_calibration_error(probabilities, query == candidate) < 0.002


def test_scores_that_say_nothing_get_a_likelihood_ratio_of_one() -> None:
    query, candidate = all_pairs(people=60, videos=3)
    scores = np.random.default_rng(0).normal(size=len(query))
    found = fit(scores, query, candidate)
    assert np.abs(found.log_likelihood_ratios(scores)).max() < 0.5
    assert found.quality.cllr == pytest.approx(1, abs=0.02)


def test_scores_that_rank_backwards_get_a_likelihood_ratio_of_one_and_no_more() -> None:
    query, candidate = all_pairs(people=20, videos=3)
    found = fit(-gaussian_scores(query, candidate, 3.0), query, candidate)
    assert found.slope == 0 and found.log_likelihood_ratios([-5.0, 0.0, 5.0]).tolist() == [0.0, 0.0, 0.0]
    assert found.quality.cllr == pytest.approx(1) and found.quality.min_cllr > 0.95


@settings(max_examples=15, deadline=None)
@given(st.data(), st.integers(0, 2**32 - 1))
def test_llr_is_finite_and_never_falls_with_the_score(data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    query, candidate = all_pairs(people=11, videos=2)
    levels = np.array(data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=5)))
    scores = levels[rng.integers(0, len(levels), len(query))]
    found = fit(scores, query, candidate, bounded=True)
    llrs = found.log_likelihood_ratios(np.sort(np.append(rng.random(50), levels)))
    assert np.isfinite(llrs).all() and (np.diff(llrs) >= 0).all()
    assert found.lowest <= llrs[0] <= llrs[-1] <= found.highest


def test_more_videos_of_the_same_people_do_not_change_the_fit() -> None:
    scores, query, candidate = uneven_pairs(0)
    again = np.concatenate(
        [np.arange(len(scores)), *[np.flatnonzero((query == q) & (candidate == c)) for q, c in [(3, 3), (3, 5)]] * 9]
    )
    once, often = fit(scores, query, candidate), fit(scores[again], query[again], candidate[again])
    numbers = [
        [c.intercept, c.slope, c.lowest, c.highest, c.quality.ece, c.quality.cllr, c.quality.min_cllr] for c in (once, often)
    ]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-9)
    assert often.fitted_on.same_pairs > once.fitted_on.same_pairs


def test_neither_the_order_of_pairs_nor_the_names_of_people_matter() -> None:
    scores, query, candidate = uneven_pairs(1)
    order = np.random.default_rng(0).permutation(len(scores))
    names = np.array([f"person {i:02d}" for i in range(14)])
    one, other = fit(scores, query, candidate), fit(scores[order], names[query[order]], names[candidate[order]])
    same, strangers = query == candidate, (query != candidate)
    counts = (len(set(query[same])), len({frozenset(p) for p in zip(query[strangers], candidate[strangers], strict=True)}))
    for c in (one, other):
        assert (c.fitted_on.identities, c.fitted_on.identity_pairs) == counts
        assert (c.fitted_on.same_pairs, c.fitted_on.different_pairs) == (same.sum(), strangers.sum())
    assert (one.intercept, one.slope, one.quality.cllr) == pytest.approx(
        (other.intercept, other.slope, other.quality.cllr), abs=1e-9
    )


def test_a_pair_is_judged_by_a_fit_that_has_seen_neither_of_its_people() -> None:
    scores, query, candidate = uneven_pairs(2)
    pair = int(np.flatnonzero((query == 4) & (candidate == 9))[0])
    scores[pair] = -0.123456
    changed = scores.copy()
    theirs = np.isin(query, (4, 9)) | np.isin(candidate, (4, 9))
    theirs[pair] = False
    changed[theirs] += 7.0
    judged = []
    for version in (scores, changed):
        pairs = _Pairs.of(version, query, candidate)
        judged.append(float(_held_out(pairs, "made up")[pairs.x == -0.123456][0]))
    assert judged[0] == judged[1]
    assert fit(scores, query, candidate).intercept != fit(changed, query, candidate).intercept


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(-30, 30), st.booleans(), st.floats(0.1, 5)), min_size=2, max_size=40))
def test_cllr_is_its_definition(pairs: list[tuple[float, bool, float]]) -> None:
    pairs += [(0.5, True, 1.0), (0.5, False, 2.0)]
    total = {True: 0.0, False: 0.0}
    for llr, same, weight in pairs:
        total[same] += weight * (math.log2(1 + math.exp(-llr)) if same else math.log2(1 + math.exp(llr)))
    expected = sum(total[kind] / sum(w for _, same, w in pairs if same == kind) for kind in (True, False)) / 2
    assert cllr(*map(np.array, zip(*pairs, strict=True))) == pytest.approx(expected, rel=1e-9)


def test_cllr_of_nothing_known_is_one_bit() -> None:
    assert cllr([0.0, 0.0, 0.0], [True, False, False]) == 1.0


def textbook_isotonic(values: list[float], weights: list[float]) -> list[float]:
    """The max-min formula: each value is the greatest over starts of the least over ends of the mean from start to end."""
    n = len(values)

    def mean(a: int, b: int) -> float:
        return float(np.average(values[a : b + 1], weights=weights[a : b + 1]))

    return [max(min(mean(a, b) for b in range(i, n)) for a in range(i + 1)) for i in range(n)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_min_cllr_is_that_of_the_balanced_isotonic_fit_and_no_monotone_map_beats_it(
    pairs: list[tuple[int, bool]], seed: int
) -> None:
    pairs = sorted([*pairs, (3, True), (5, False)])
    scores, same = np.array([score for score, _ in pairs]), np.array([same for _, same in pairs])
    levels = sorted(set(scores.tolist()))
    hits = [float(np.sum(same & (scores == level)) / same.sum()) for level in levels]
    misses = [float(np.sum(~same & (scores == level)) / (~same).sum()) for level in levels]
    share = textbook_isotonic(
        [h / (h + m) for h, m in zip(hits, misses, strict=True)], [h + m for h, m in zip(hits, misses, strict=True)]
    )
    bits = [
        (h * -math.log2(p) if h else 0.0) + (m * -math.log2(1 - p) if m else 0.0)
        for h, m, p in zip(hits, misses, share, strict=True)
    ]
    found = min_cllr(scores, same)
    assert found == pytest.approx(sum(bits) / 2, abs=1e-9)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        assert cllr(np.sort(rng.normal(scale=rng.uniform(0, 5), size=9))[scores], same) >= found - 1e-12


def test_min_cllr_is_zero_for_perfect_order_and_one_for_none() -> None:
    assert min_cllr([0.1, 0.2, 0.8], [False, False, True]) == 0.0
    assert min_cllr([0.5, 0.5, 0.5], [False, False, True]) == pytest.approx(1.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.floats(0.1, 5)), min_size=1, max_size=60), st.integers(1, 12))
def test_calibration_error_is_its_definition(pairs: list[tuple[float, bool, float]], bins: int) -> None:
    p, same, weights = map(np.array, zip(*pairs, strict=True))
    expected, seen = 0.0, 0
    for b in range(bins):
        inside = [i for i in range(len(p)) if min(int(p[i] * bins), bins - 1) == b]
        if inside:
            mass = sum(weights[i] for i in inside)
            expected += abs(sum(weights[i] * (p[i] - same[i]) for i in inside)) / weights.sum()
            part = reliability(p, same, bins, weights)[seen]
            assert (part.pairs, part.share) == (len(inside), pytest.approx(mass / weights.sum()))
            seen += 1
    assert len(reliability(p, same, bins, weights)) == seen
    assert expected_calibration_error(p, same, bins, weights) == pytest.approx(expected, abs=1e-9)


def test_the_same_score_is_worth_less_in_a_larger_gallery() -> None:
    llr = math.log(1000)
    assert posterior(llr, eligible=2) == pytest.approx(1000 / 1001)
    assert posterior(llr, eligible=101) == pytest.approx(10 / 11)
    assert posterior(llr, eligible=1_000_001) == pytest.approx(1 / 1001)
    assert posterior(llr, eligible=101, expected_matches=51) == pytest.approx(1020 / 1021)


@settings(deadline=None)
@given(st.integers(2, 10**9), st.floats(0.01, 1))
def test_no_evidence_leaves_the_prior(eligible: int, expected: float) -> None:
    assert posterior([0.0], eligible, expected)[0] == pytest.approx(expected / eligible, rel=1e-6)


@settings(deadline=None)
@given(st.lists(st.floats(-4, 4), max_size=6), st.integers(0, 5), st.floats(0, 1))
def test_none_of_these_is_what_bayes_gives_over_all_hypotheses(scores: list[float], unscored: int, absent: float) -> None:
    """Normal scores about +1 and -1, of which llr is 2 * score; an unscored video has the score of the lowest llr."""
    lowest = -9.0
    observed = [*scores, *[lowest / 2] * unscored]

    def likelihood(match: int | None) -> float:
        return math.prod(math.exp(-((s - (1 if i == match else -1)) ** 2) / 2) for i, s in enumerate(observed))

    nobody = absent * likelihood(None)
    somebody = sum((1 - absent) / len(observed) * likelihood(j) for j in range(len(observed)))
    found = none_probability([2 * s for s in scores], len(observed), lowest, absent)
    assert found == pytest.approx(nobody / (nobody + somebody) if observed else 1.0, rel=1e-6, abs=1e-9)


def test_what_cannot_be_meant_is_said() -> None:
    with pytest.raises(UsageError, match="expected number of matches must be above 0, not 0"):
        posterior([0.0], 10, 0)
    with pytest.raises(UsageError, match=r"absent lies in 0\.\.1, not 1\.5"):
        none_probability([0.0], 10, -3.0, 1.5)
    with pytest.raises(ValueError, match="2 eligible"):
        none_probability([0.0] * 3, 2, -3.0)
    query, candidate = all_pairs(people=12, videos=2)
    scores = gaussian_scores(query, candidate, 2.0)
    few = np.minimum(query, candidate) < 9
    with pytest.raises(UsageError, match=r"at least 10 people .* made up has 9 and 63"):
        fit(scores[few], query[few], candidate[few])
    same = query == candidate
    with pytest.raises(UsageError, match=r"at least 10 people .* made up has 12 and 0"):
        fit(scores[same], query[same], candidate[same])
    lopsided = same | ((query == 0) & (candidate == 1))
    with pytest.raises(UsageError, match="too few pairs of different people to judge a calibration: 1 among 12 people"):
        fit(scores[lopsided], query[lopsided], candidate[lopsided])
    with pytest.raises(PipelineError, match="NaN"):
        fit(np.where(query == 0, np.nan, scores), query, candidate)
    with pytest.raises(PipelineError, match=r"must lie in 0\.\.1"):
        fit(scores, query, candidate, bounded=True)
    with pytest.raises(ValueError, match="one length"):
        fit(scores[1:], query, candidate)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return fit(*uneven_pairs(0))


def test_a_calibration_is_read_as_it_was_written(calibration: Calibration, tmp_path: Path) -> None:
    assert load_calibration(tmp_path) is None
    assert save_calibration(calibration, tmp_path) == str(tmp_path / FILE)
    assert load_calibration(tmp_path) == calibration
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("slope",), math.nan, "slope is nan"),
        (("slope",), -1.0, "slope of at least 0"),
        (("slope",), "1", "slope is '1'"),
        (("highest",), math.inf, "highest is inf"),
        (("lowest",), 0.5, "bounds about 0"),
        (("bounded",), 1, "bounded is 1"),
        (("head",), None, "head is None"),
        (("format",), "score calibration two", "its format is not"),
        (("new",), 1, "new missing or unknown"),
        (("quality", "ece"), True, "quality.ece is True"),
        (("quality", "reliability"), {}, "quality.reliability is"),
        (("quality", "reliability", 0, "pairs"), 1.5, r"quality.reliability\[0\].pairs is 1.5"),
        (("fitted_on", "extra"), 1, "fitted_on has extra missing or unknown"),
        (("fitted_on",), 3, "fitted_on is 3"),
        (("settings", "ratio"), [0.2], "settings.ratio is"),
    ],
)
def test_a_damaged_calibration_is_one_sentence_with_its_path(
    calibration: Calibration, tmp_path: Path, place: tuple[Any, ...], value: Any, said: str
) -> None:
    document = json.loads(calibration.to_json())
    inner = document
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    (tmp_path / FILE).write_text(json.dumps(document))
    with pytest.raises(PipelineError, match=said) as raised:
        load_calibration(tmp_path)
    assert str(tmp_path / FILE) in str(raised.value)


def test_every_entry_is_needed(calibration: Calibration) -> None:
    for name in ("format", *(field.name for field in dataclasses.fields(Calibration))):
        document = json.loads(calibration.to_json())
        del document[name]
        with pytest.raises(PipelineError, match="^here is not a usable calibration: .*" + name):
            Calibration.from_json(json.dumps(document), "here")
    for text in ("", "[]", "{", b"\xff\xfe", "[" * 100_000):
        with pytest.raises(PipelineError, match=r"^here is not a usable calibration"):
            Calibration.from_json(text, "here")


def test_a_calibration_is_for_one_head_and_one_way_of_scoring(calibration: Calibration) -> None:
    assert not calibration.mismatch(HEAD, settings_of(SCORE, 8, 4, target_length=8, target_stride=4))
    assert "belongs to the head abababababababab, not to 0000" in calibration.mismatch("0" * 64, SETTINGS)
    others = [
        settings_of(dataclasses.replace(SCORE, ratio=0.05), 8, 4),
        settings_of(dataclasses.replace(SCORE, threshold=0.5), 8, 4),
        settings_of(dataclasses.replace(SCORE, aggregate="sum"), 8, 4),
        settings_of(SCORE, 6, 4),
        settings_of(SCORE, 8, 2),
        settings_of(SCORE, 8, 4, target_length=10),
        settings_of(SCORE, 8, 4, target_stride=1),
        {**SETTINGS, "another way": "of scoring"},
    ]
    assert all(calibration.mismatch(HEAD, other) for other in others)
    assert calibration.mismatch(HEAD, others[0]) == "the calibration is for ratio 0.2, not 0.05"


def test_nothing_found_is_a_possible_answer() -> None:
    """Searches with scores of known truth: 'none' is likely without the person, unlikely with them, and right on average."""
    query, candidate = all_pairs(people=100, videos=2)
    known = fit(gaussian_scores(query, candidate, separation=5.0), query, candidate)
    rng = np.random.default_rng(3)
    present = np.arange(400) % 2 == 0
    scores = rng.normal(-2.5, size=(400, 100))
    scores[present, 0] += 5
    none = np.array([known.none_probability(of_search, eligible=100) for of_search in scores])
    assert none[~present].mean() > 0.8 and none[present].mean() < 0.2
    assert expected_calibration_error(none, ~present, bins=4) < 0.05
