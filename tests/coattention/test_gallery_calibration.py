"""Calibration within a gallery: on made-up galleries of which the truth is known, and against densities of scipy."""

import dataclasses
import json
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from pipeline.coattention.calibration_quality import expected_calibration_error
from pipeline.coattention.gallery_calibration import (
    HIGHEST,
    LEAST_VIDEOS,
    NOT_TOLD_APART,
    STRONG,
    WEAK,
    GalleryCalibration,
    Mixture,
    _fit,
    _right_links,
    fit_gallery_calibration,
)
from pipeline.errors import PipelineError

Floats = NDArray[np.float64]
HEAD = "ab" * 32
MIXTURE = Mixture(mode=-1.0, width=0.8, shape=1.1, mean=4.0, deviation=1.0, odds=-4.0)


def gallery(people: int, videos: int, noise: float, seed: int, spread: int = 24) -> tuple[Floats, NDArray[np.int64]]:
    """Cosines [V, V] of made-up videos about one centre a person, stretched as logits are; and who is on each [V]."""
    rng = np.random.default_rng(seed)
    person = np.sort(rng.permutation(np.arange(videos) % people))
    x = rng.normal(size=(people, spread))[person] + noise * rng.normal(size=(videos, spread))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return 8 * x @ x.T, person


def fitted(scores: Floats, apart: NDArray[np.bool_] | None = None) -> GalleryCalibration:
    apart = np.zeros(scores.shape, bool) if apart is None else apart
    return fit_gallery_calibration(scores, apart, head=HEAD, settings={"ratio": 0.1}, bounded=False)


def probabilities(known: GalleryCalibration, scores: Floats) -> Floats:
    return known.probabilities(scores, len(scores) - 1, known.expected_matches(len(scores) - 1))


@pytest.mark.parametrize(("people", "videos", "noise"), [(60, 240, 0.5), (100, 400, 0.4), (20, 160, 0.6)])
def test_probabilities_are_true_where_nobody_is_labelled(people: int, videos: int, noise: float) -> None:
    scores, person = gallery(people, videos, noise, seed=people)
    known = fitted(scores)
    others, same = ~np.eye(videos, dtype=bool), person[:, None] == person
    said = probabilities(known, scores)
    assert not known.why and known.links >= 10
    assert expected_calibration_error(said[others], same[others]) <= 0.02
    assert 0.7 < said[others].sum() / same[others].sum() < 1.4
    none = []
    for row in range(0, videos, 3):
        there = others[row] & ~(same[row] & (row % 2 == 0))
        none.append(known.none_probability(scores[row, there], int(there.sum())))
    assert np.mean(none) == pytest.approx(0.5, abs=0.15)
    assert np.mean(none[::2]) > 0.6 > 0.4 > np.mean(none[1::2])


@pytest.mark.parametrize("seed", range(4))
def test_people_who_look_alike_are_not_taken_for_one(seed: int) -> None:
    """A tenth of the people have a double, whose videos resemble theirs by halves."""
    rng = np.random.default_rng(seed)
    person, centre = np.arange(300) % 150, rng.normal(size=(150, 48))
    for one in range(0, 30, 2):
        centre[one] = 0.75 * centre[one + 1] + 0.66 * centre[one]
    x = centre[person] + 0.6 * rng.normal(size=(300, 48))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    scores, same, others = 8 * x @ x.T, person[:, None] == person, ~np.eye(300, dtype=bool)
    known = fitted(scores)
    said = probabilities(known, scores)
    assert known.mixture is not None and known.mixture.alike > 0
    assert expected_calibration_error(said[others], same[others]) <= 0.02
    assert 0.7 < said[others].sum() / same[others].sum() < 1.4


def test_no_level_of_the_scores_is_built_in() -> None:
    scores, _ = gallery(60, 240, 0.6, seed=4)
    plain, moved = fitted(scores), fitted(3 * scores - 11)
    np.testing.assert_allclose(probabilities(plain, scores), probabilities(moved, 3 * scores - 11), atol=0.02)


def test_probabilities_never_fall_with_the_score() -> None:
    known = fitted(gallery(60, 240, 0.6, seed=4)[0])
    line = np.linspace(-20, 40, 2000)
    llrs = known.log_likelihood_ratios(line)
    assert (np.diff(llrs) >= 0).all() and 6 < llrs[-1] - known.shift <= HIGHEST


def test_small_galleries_get_words_and_why() -> None:
    scores, person = gallery(10, LEAST_VIDEOS - 4, 0.4, seed=5)
    known = fitted(scores)
    assert known.words == known.why == "the gallery has 60 videos, and fewer than 64 do not tell how high strangers score"
    others = ~np.eye(len(person), dtype=bool)
    words = np.array(known.strengths(scores[others], len(person) - 1))
    same = (person[:, None] == person)[others]
    assert same[words == STRONG].mean() > 0.95 and same[words == NOT_TOLD_APART].mean() < 0.01
    order = [known.strengths(np.array([one]), 60)[0] for one in np.linspace(-8, 8, 50)]
    assert [word for place, word in enumerate(order) if word not in order[:place]] == [NOT_TOLD_APART, WEAK, STRONG]


def test_a_gallery_in_which_nobody_recurs_gets_words_and_why() -> None:
    scores, _ = gallery(200, 200, 0.6, seed=6, spread=64)
    assert "too few pairs stand out from strangers" in fitted(scores).why


@pytest.mark.parametrize(("videos", "why"), [(5, "the gallery has 5 videos"), (40, "the scores of its videos hardly differ")])
def test_nothing_is_said_where_nothing_can_be_measured(videos: int, why: str) -> None:
    known = fitted(np.ones((videos, videos)))
    assert known.mixture is None and known.why == f"{why}: too little to judge by"
    with pytest.raises(ValueError, match="nothing is known"):
        known.strengths(np.ones(3), 3)


def test_pairs_that_one_camera_saw_at_once_are_no_links() -> None:
    scores, person = gallery(60, 240, 0.5, seed=7)
    free = fitted(scores)
    twins = (person[:, None] // 2 == person // 2) & (person[:, None] != person)
    alike = np.where(twins, np.maximum(scores, 7.0), scores)  # every person has somebody who looks alike
    known, unknown = fitted(alike, twins), fitted(alike)
    assert unknown.links > free.links + 200
    assert abs(known.links - free.links) < (unknown.links - free.links) / 8


def test_the_densities_are_those_of_scipy() -> None:
    k = math.exp(MIXTURE.shape)
    strangers = stats.loggamma(
        k, loc=-MIXTURE.mode - MIXTURE.width * math.sqrt(k) * math.log(k), scale=MIXTURE.width * math.sqrt(k)
    )
    line = np.linspace(-6, 12, 100)
    np.testing.assert_allclose(MIXTURE.log_strangers(line), strangers.logpdf(-line), atol=1e-9)
    np.testing.assert_allclose(MIXTURE.strangers_above(line), strangers.cdf(-line), atol=1e-9)
    np.testing.assert_allclose(MIXTURE.log_matches(line), stats.norm(4.0, 1.0).logpdf(line), atol=1e-9)
    between = np.linspace(0, 5, 50)
    ratio = MIXTURE.log_matches(between) - MIXTURE.log_strangers(between)
    np.testing.assert_allclose(MIXTURE.llr(between), np.minimum(ratio, HIGHEST), atol=1e-3)
    alike = dataclasses.replace(MIXTURE, alike=0.02, falling=0.7)
    tail = stats.expon(loc=-1 + 3 * 0.8, scale=0.8 / 0.7)
    np.testing.assert_allclose(
        np.exp(alike.log_strangers(line)), 0.98 * strangers.pdf(-line) + 0.02 * tail.pdf(line), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(alike.strangers_above(line), 0.98 * strangers.cdf(-line) + 0.02 * tail.sf(line), atol=1e-9)
    high = np.linspace(3, 6, 50)
    ratio = alike.log_matches(high) - alike.log_strangers(high)
    np.testing.assert_allclose(alike.llr(high), np.maximum.accumulate(ratio), atol=1e-3)
    for wrong in ({"alike": 1.0}, {"alike": -0.1}, {"falling": 0.0}, {"width": 0.0}, {"onset": 0.0}):
        with pytest.raises(ValueError, match=r"strangers looks alike|above 0"):
            dataclasses.replace(MIXTURE, **wrong)


def test_strangers_who_look_alike_set_in_gradually() -> None:
    """A sum of a uniform and an exponential variable: the mean of exponential densities that begin anywhere in the onset."""
    mixture = dataclasses.replace(MIXTURE, alike=0.5, falling=0.7, onset=2.0)
    most = dataclasses.replace(MIXTURE, alike=0.0)
    begin = -1 + 0.8 * (2 + (np.arange(20_000) + 0.5) / 10_000)
    for x in np.linspace(-2, 12, 40):
        tail = stats.expon(loc=begin, scale=0.8 / 0.7)
        density, above = (
            (np.exp(most.log_strangers(x)) + tail.pdf(x).mean()) / 2,
            (most.strangers_above(x) + tail.sf(x).mean()) / 2,
        )
        assert np.exp(mixture.log_strangers(x)) == pytest.approx(density, abs=1e-4)
        assert mixture.strangers_above(x) == pytest.approx(above, abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_fit_does_not_hang_on_where_its_bins_begin(seed: int) -> None:
    """With a step where strangers who look alike set in, fits stopped where they were: this one moved by tenths."""
    rng = np.random.default_rng(seed)
    person = np.arange(300) // 2
    same = (person[:, None] == person) & ~np.eye(300, dtype=bool)
    x = -1 + 0.9 * (rng.gumbel(0, 0.8, same.shape) + (rng.random(same.shape) < 0.004) * rng.exponential(2, same.shape))
    x = np.where(same, rng.normal(5, 1.5, same.shape), x)
    x = np.triu(x, 1) + np.triu(x, 1).T
    bulk = x[~np.eye(300, dtype=bool)]
    fits = [
        _fit(np.append(bulk, bulk.max() + more), 300) for more in np.linspace(0, 0.3, 7)
    ]  # the last bin, and so each, is wider
    assert np.ptp([fit.odds for fit in fits]) < 0.1 and np.ptp([fit.mean for fit in fits]) < 0.2


@pytest.mark.parametrize("wrong", [0.0, 0.25])
def test_wrong_links_are_told_by_the_triples_that_do_not_close(wrong: float) -> None:
    rng = np.random.default_rng(8)
    person = np.arange(240) // 6
    same = (person[:, None] == person) & ~np.eye(240, dtype=bool)
    x = np.where(same, rng.normal(4, 1, same.shape), -1 + rng.normal(0, 0.8, same.shape))
    noise = np.triu(~same & (rng.random(same.shape) < wrong / (1 - wrong) * same.mean() / (1 - same.mean())), 1)
    link = same | noise | noise.T
    np.fill_diagonal(link, False)
    x = np.where(noise, 4.0, x)
    x = np.triu(x, 1) + np.triu(x, 1).T
    right = _right_links(x, link, np.zeros_like(link), MIXTURE)
    assert right == pytest.approx(same[link].mean(), abs=0.06)


def test_matches_of_one_person_may_score_anything_above_strangers() -> None:
    """As tracks of some seconds do: the best pairs are links, and the third of a triple scores less than they."""
    rng = np.random.default_rng(9)
    person = np.arange(240) // 20
    same = (person[:, None] == person) & ~np.eye(240, dtype=bool)
    x = np.where(same, rng.uniform(0, 6, same.shape), -1 + rng.normal(0, 0.8, same.shape))
    x = np.triu(x, 1) + np.triu(x, 1).T
    assert _right_links(x, same & (x > 4), np.zeros_like(same), MIXTURE) > 0.85


def test_a_gallery_calibration_is_read_as_it_was_written() -> None:
    known = GalleryCalibration(HEAD, {"ratio": 0.1}, True, 100, 30, 0.7, MIXTURE, -0.3, "")
    assert GalleryCalibration.from_json(known.to_json(), "here") == known
    nothing = dataclasses.replace(known, mixture=None, why="too few")
    assert GalleryCalibration.from_json(nothing.to_json(), "here") == nothing
    for name in ("format", *(field.name for field in dataclasses.fields(known))):
        document = json.loads(known.to_json())
        del document[name]
        with pytest.raises(PipelineError, match=r"^here is not a usable gallery calibration: .*; run jobs\.index --rebuild"):
            GalleryCalibration.from_json(json.dumps(document), "here")


@pytest.mark.parametrize(("number", "lacks"), [(1, ("alike", "falling", "onset")), (2, ("onset",))])
def test_one_of_an_earlier_format_knows_no_onset_and_at_first_nobody_who_looks_alike(number: int, lacks: tuple[str, ...]) -> None:
    known = GalleryCalibration(HEAD, {"ratio": 0.1}, True, 100, 30, 0.7, MIXTURE, -0.3, "")
    document = json.loads(known.to_json())
    assert document["format"] == "gallery calibration 3"
    document["format"] = f"gallery calibration {number}"
    for name in lacks:
        del document["mixture"][name]
    assert GalleryCalibration.from_json(json.dumps(document), "here") == known


def test_it_is_for_one_head_and_one_way_of_scoring() -> None:
    known = GalleryCalibration(HEAD, {"ratio": 0.1}, True, 100, 30, 0.7, MIXTURE, -0.3, "")
    assert known.mismatch(HEAD, {"ratio": 0.1}) == ""
    assert known.mismatch(HEAD, {"ratio": 0.2}) == "the calibration is for ratio 0.1, not 0.2"
    assert "belongs to the head" in known.mismatch("0" * 64, {"ratio": 0.1})


def test_tables_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of a sample among itself"):
        fitted(np.ones((10, 9)))
