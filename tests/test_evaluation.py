"""The quality of rankings against the textbook's definitions, counted out one rank at a time."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation import (
    RankingQuality,
    average_precision,
    judge,
    rank_by_mean,
    rank_by_search,
    ranking_quality,
    same_camera_left_out,
)
from pipeline.gallery import Gallery
from pipeline.index import build_index
from pipeline.scoring import ScoreSettings
from pipeline.search import opened_partitions
from tests.conftest import people_features

RANKINGS = st.lists(st.lists(st.booleans(), max_size=60), min_size=1, max_size=12)


def counted_average_precision(hits: list[bool]) -> Fraction:
    """Sum over the ranks that are hits of (hits down to there / rank), divided by all hits; in exact fractions."""
    total, seen = Fraction(0), 0
    for rank, hit in enumerate(hits, start=1):
        if hit:
            seen += 1
            total += Fraction(seen, rank)
    return total / seen


def counted_quality(rankings: list[list[bool]], ranks: tuple[int, ...]) -> RankingQuality:
    matched = [hits for hits in rankings if True in hits]
    cmc = {rank: Fraction(sum(True in hits[:rank] for hits in matched), len(matched)) for rank in ranks}
    precision = sum(map(counted_average_precision, matched)) / len(matched)
    return RankingQuality(
        {rank: float(share) for rank, share in cmc.items()}, float(precision), len(matched), len(rankings) - len(matched)
    )


def assert_same(found: RankingQuality, expected: RankingQuality) -> None:
    assert found.cmc == pytest.approx(expected.cmc, abs=1e-12)
    assert found.mean_ap == pytest.approx(expected.mean_ap, abs=1e-12)
    assert (found.queries, found.unmatched) == (expected.queries, expected.unmatched)


@given(RANKINGS)
def test_quality_is_what_counting_gives(rankings: list[list[bool]]) -> None:
    arrays = [np.array(hits, bool) for hits in rankings]
    if not any(True in hits for hits in rankings):
        with pytest.raises(ValueError, match="no query has a match"):
            ranking_quality(arrays)
    else:
        assert_same(ranking_quality(arrays), counted_quality(rankings, (1, 5, 10, 20)))


def test_quality_of_long_random_rankings_is_what_counting_gives() -> None:
    rng = np.random.default_rng(0)
    rankings = [rng.random(rng.integers(1, 2000)) < share for share in rng.uniform(0, 0.05, 200)]
    ranks = (1, 2, 3, 50, 5000)
    assert_same(ranking_quality(rankings, ranks), counted_quality([hits.tolist() for hits in rankings], ranks))


@given(st.integers(1, 50), st.integers(0, 200))
def test_average_precision_is_one_when_all_hits_come_first(hits: int, others: int) -> None:
    assert average_precision(np.array([True] * hits + [False] * others)) == 1.0


@given(st.integers(1, 200), st.integers(0, 200))
def test_average_precision_of_a_single_hit_is_one_over_its_rank(rank: int, others: int) -> None:
    hits = np.array([False] * (rank - 1) + [True] + [False] * others)
    assert average_precision(hits) == pytest.approx(1 / rank, abs=1e-12)


def test_a_first_hit_at_rank_k_counts_from_rank_k_on() -> None:
    first_at_five = np.arange(30) == 4
    assert ranking_quality([first_at_five], (1, 4, 5, 6, 100)).cmc == {1: 0.0, 4: 0.0, 5: 1.0, 6: 1.0, 100: 1.0}


def test_queries_without_a_match_are_told_apart_and_do_not_lower_the_mean() -> None:
    hit, miss, nothing = np.array([True, False]), np.array([False, False]), np.array([], bool)
    assert ranking_quality([hit, miss, nothing, hit]) == RankingQuality({1: 1.0, 5: 1.0, 10: 1.0, 20: 1.0}, 1.0, 2, 2)


def test_without_any_query_there_is_no_quality() -> None:
    with pytest.raises(ValueError, match="no query has a match"):
        ranking_quality([])


def test_ranking_by_mean_is_the_cosine_of_mean_features(toy_gallery: Gallery) -> None:
    people = people_features(10, 4, 24, seed=1)
    means = np.stack([features.astype(np.float64).mean(axis=0) for _, features in people])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    videos = toy_gallery.snapshot().videos
    ranked = rank_by_mean(toy_gallery, videos, ["v000", "v017"])
    for query in (0, 17):
        order = [i for i in np.argsort(-(means @ means[query])) if i != query]
        assert ranked[f"v{query:03d}"] == [f"v{i:03d}" for i in order]


def test_the_search_ranks_every_other_video_and_is_judged_by_the_field_s_rule(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery)
    person = {row["video_id"]: row["person_id"] for row in index.videos.to_pylist()}
    with opened_partitions(toy_gallery, index, actors=0) as partitions:
        ranked = rank_by_search(toy_gallery, index, partitions, list(person), ScoreSettings())
    assert all(sorted([query, *others]) == sorted(person) for query, others in ranked.items())
    counts = same_camera_left_out(index.videos)
    assert not counts("v000", "v002") and counts("v000", "v001") and counts("v000", "v004")  # same camera, other, other person
    quality = judge(ranked, person, counts)
    assert (quality.queries, quality.unmatched) == (40, 0) and quality.cmc[1] == 1.0
    only = judge({"v000": ["v001", "v009"]}, {"v000": "a", "v009": "a"}, lambda query, candidate: True)
    assert only.cmc[1] == 1.0  # v001 has no label and is left out
