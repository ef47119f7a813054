"""An exact search gives the first leads of scoring everything, and a batch gives what its targets give one by one."""

import dataclasses
import json
import math

import faiss
import numpy as np
import pytest
import ray
import torch

from benchmarks import exact as exact_benchmark
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.search.partitions import LocalPartitions, opened_partitions
from pipeline.search.results import SearchResult
from pipeline.search.search import search, search_many
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import add_videos, people_features, toy_spec

PEOPLE, EACH = 60, 4
EXHAUSTIVE = SearchSettings(top=5, shortlist=None, evidence=False)
EXACT = SearchSettings(top=5, shortlist=5, exact=True, bounded=True, evidence=False)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    opened = Gallery.open_or_create(tmp_path_factory.mktemp("data") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(opened, people_features(PEOPLE, EACH, 24, seed=3), videos_a_shard=60)
    return opened


@pytest.fixture(scope="module")
def index(gallery: Gallery) -> Index:
    return build_index(gallery, IndexSettings(8, 4, partition_videos=90))


def leads(result: SearchResult) -> list[tuple[str, object]]:
    return [(lead.video.video_id, pytest.approx(lead.score, abs=1e-5)) for lead in result.leads]


@pytest.mark.parametrize("normalise", ["none", "cohort"])
@pytest.mark.parametrize("target", ["v000", "v101", "v239"])
def test_its_leads_are_those_of_scoring_everything(gallery: Gallery, index: Index, target: str, normalise: str) -> None:
    score = ScoreSettings(normalise=normalise)  # type: ignore[arg-type]
    with opened_partitions(gallery, index, actors=0) as partitions:
        everything, exact = (
            search(gallery, index, partitions, gallery_target(gallery, target), dataclasses.replace(settings, score=score))
            for settings in (EXHAUSTIVE, EXACT)
        )
    assert leads(exact) == leads(everything)
    assert everything.proof is None
    proof = exact.proof
    assert proof is not None
    assert proof.scored == exact.scored < exact.eligible
    assert proof.largest_bound < proof.threshold == exact.leads[-1].score


def test_scoring_everything_is_exact_too(gallery: Gallery, index: Index) -> None:
    target = gallery_target(gallery, "v050")
    with opened_partitions(gallery, index, actors=0) as partitions:
        everything = search(gallery, index, partitions, target, EXHAUSTIVE)
        exact = search(gallery, index, partitions, target, dataclasses.replace(EXACT, bounded=False))
    assert leads(exact) == leads(everything)
    assert exact.proof is not None
    assert exact.proof.scored == exact.eligible
    assert exact.proof.largest_bound == -math.inf


def test_a_bad_start_costs_scores_but_not_the_answer(gallery: Gallery, index: Index) -> None:
    target = gallery_target(gallery, "v050")
    with opened_partitions(gallery, index, actors=0) as partitions:
        everything = search(gallery, index, partitions, target, EXHAUSTIVE)
        poor = search(gallery, index, partitions, target, dataclasses.replace(EXACT, shortlist=1))
    assert leads(poor) == leads(everything)


def test_filters_and_more_leads_than_videos_are_exact_too(gallery: Gallery, index: Index) -> None:
    target = gallery_target(gallery, "v050")
    with opened_partitions(gallery, index, actors=0) as partitions:
        filtered = dataclasses.replace(EXACT, cameras=("cam0",))
        everything = dataclasses.replace(EXHAUSTIVE, cameras=("cam0",))
        both = [search(gallery, index, partitions, target, settings) for settings in (filtered, everything)]
        assert leads(both[0]) == leads(both[1])
        whole = search(gallery, index, partitions, target, dataclasses.replace(EXACT, top=1000))
    assert len(whole.leads) == whole.eligible == whole.proof.scored  # type: ignore[union-attr]
    assert whole.proof.largest_bound == -math.inf  # type: ignore[union-attr]


def test_what_bounds_do_not_hold_for_is_scored_in_full(gallery: Gallery, index: Index) -> None:
    score = ScoreSettings(threshold=0.5)
    target = gallery_target(gallery, "v050")
    with opened_partitions(gallery, index, actors=0) as partitions:
        exact = search(gallery, index, partitions, target, dataclasses.replace(EXACT, score=score))
        everything = search(gallery, index, partitions, target, dataclasses.replace(EXHAUSTIVE, score=score))
    assert leads(exact) == leads(everything)
    assert exact.scored == exact.eligible


def test_its_benchmark_finds_what_scoring_everything_finds(gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(gallery, IndexSettings(8, 4))
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    try:
        exact_benchmark.exact(gallery.location.uri, targets=3, top=4, repeats=1)
    finally:
        torch.set_num_threads(threads[0])
        faiss.omp_set_num_threads(threads[1])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["agree"] == figures["targets"] == 3
    left = figures["videos_left"]
    assert 4 / 240 <= figures["scored_share"] < 1
    assert left["true attention, 16 stored coordinates"] <= left["ball, true attention"] <= left["ball"]


@pytest.mark.parametrize("settings", [EXHAUSTIVE, EXACT, SearchSettings(top=7, shortlist=20)])
def test_a_batch_is_its_targets_one_by_one(gallery: Gallery, index: Index, settings: SearchSettings) -> None:
    targets = [gallery_target(gallery, f"v{i:03d}") for i in (3, 77, 140)]
    with opened_partitions(gallery, index, actors=0) as partitions:
        together = search_many(gallery, index, partitions, targets, settings)
        alone = [search(gallery, index, partitions, target, settings) for target in targets]
    for one, other in zip(together, alone, strict=True):
        assert leads(one) == leads(other)
        frames = [[[pair.candidate.frame_index for pair in lead.best_pairs] for lead in r.leads] for r in (one, other)]
        assert frames[0] == frames[1]
        assert one.target == other.target


def test_a_compressed_prefilter_keeps_the_leads_and_the_partitions_order_does_not_matter(gallery: Gallery, index: Index) -> None:
    compressed = build_index(gallery, IndexSettings(8, 4, 90, prefilter="compressed"), index.head)
    assert "inverted lists" in compressed.manifest["prefilter"]
    target = gallery_target(gallery, "v010")
    results = []
    for version, settings in ((index, EXHAUSTIVE), (compressed, SearchSettings(top=5, shortlist=40, evidence=False))):
        with opened_partitions(gallery, version, actors=0) as partitions:
            results.append(search(gallery, version, partitions, target, settings))
    assert leads(results[0]) == leads(results[1])
    with opened_partitions(gallery, compressed, actors=0) as partitions:
        exact = search(gallery, compressed, partitions, target, EXACT)
    assert leads(exact) == leads(results[0])
    assert exact.scored == exact.eligible  # no means are stored, so there are no bounds
    with opened_partitions(gallery, compressed, actors=0) as partitions:
        wide = search(
            gallery, compressed, partitions, target, SearchSettings(top=5, shortlist=10_000, patience=1, evidence=False)
        )
    assert leads(wide) == leads(results[0])  # the prefilter is not asked for an order of everything, so all of it is scored
    assert (wide.scored, wide.passed_over) == (wide.eligible, 0)


@pytest.mark.ray
def test_actors_certify_what_this_process_does(gallery: Gallery, index: Index) -> None:
    targets = [gallery_target(gallery, name) for name in ("v003", "v077")]
    with opened_partitions(gallery, index, actors=0) as partitions:
        here = search_many(gallery, index, partitions, targets, EXACT)
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    try:
        with opened_partitions(gallery, index, actors=2) as partitions:
            there = search_many(gallery, index, partitions, targets, EXACT)
    finally:
        ray.shutdown()
    assert [leads(result) for result in there] == [leads(result) for result in here]
    assert np.allclose([r.proof.largest_bound for r in there], [r.proof.largest_bound for r in here])  # type: ignore[union-attr]


def test_a_filter_on_time_opens_only_the_partitions_that_can_match_and_gives_k_of_them(gallery: Gallery, index: Index) -> None:
    target = gallery_target(gallery, "v200")
    first = index.partition_videos(0)["start_time"].to_pylist()
    settings = SearchSettings(top=7, shortlist=7, before=max(first), evidence=False)
    with opened_partitions(gallery, index, actors=0) as partitions:
        result = search(gallery, index, partitions, target, settings)
        assert isinstance(partitions, LocalPartitions)
        assert set(partitions.opened) == {0}
    assert len(result.leads) == 7
    assert result.eligible == len(first) - 1
    everything = dataclasses.replace(EXHAUSTIVE, before=max(first), top=7)
    with opened_partitions(gallery, index, actors=0) as partitions:
        assert {lead.video.start_time for lead in search(gallery, index, partitions, target, everything).leads} <= set(first)
