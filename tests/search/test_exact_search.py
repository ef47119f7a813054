"""An exact search gives the first leads of scoring everything, and a batch gives what its targets give one by one."""

import dataclasses

import pytest

from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.partitions import opened_partitions
from pipeline.search.results import SearchResult
from pipeline.search.search import search, search_many
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import add_videos, people_features, toy_spec

PEOPLE, EACH = 60, 4
EXHAUSTIVE = SearchSettings(top=5, shortlist=None, evidence=False)
EXACT = SearchSettings(top=5, shortlist=5, exact=True, evidence=False)


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
    assert (exact.scored, exact.passed_over) == (exact.eligible, 0)
    assert exact.exact and not everything.exact


def test_the_shortlist_keeps_its_places_and_all_others_come_after_it(gallery: Gallery, index: Index) -> None:
    target = gallery_target(gallery, "v101")
    with opened_partitions(gallery, index, actors=0) as partitions:
        short = search(
            gallery, index, partitions, target, SearchSettings(shortlist=5, evidence=False, score=ScoreSettings(neighbours=0))
        )
        exact = search(gallery, index, partitions, target, dataclasses.replace(EXACT, top=1000))
    named = {lead.prefilter_rank: lead.video.video_id for lead in short.leads}
    others = [name for name in index.videos["video_id"].to_pylist() if name not in {"v101", *named.values()}]
    expected = named | dict(enumerate(others, start=6))
    assert len(named) == 5 and {lead.prefilter_rank: lead.video.video_id for lead in exact.leads} == expected


def test_filters_and_more_leads_than_videos_are_exact_too(gallery: Gallery, index: Index) -> None:
    target = gallery_target(gallery, "v050")
    with opened_partitions(gallery, index, actors=0) as partitions:
        filtered = dataclasses.replace(EXACT, cameras=("cam0",))
        everything = dataclasses.replace(EXHAUSTIVE, cameras=("cam0",))
        both = [search(gallery, index, partitions, target, settings) for settings in (filtered, everything)]
        assert leads(both[0]) == leads(both[1])
        whole = search(gallery, index, partitions, target, dataclasses.replace(EXACT, top=1000))
    assert len(whole.leads) == whole.eligible == whole.scored


def test_a_threshold_of_pair_scores_is_exact_too(gallery: Gallery, index: Index) -> None:
    score = ScoreSettings(threshold=0.5)
    target = gallery_target(gallery, "v050")
    with opened_partitions(gallery, index, actors=0) as partitions:
        exact = search(gallery, index, partitions, target, dataclasses.replace(EXACT, score=score))
        everything = search(gallery, index, partitions, target, dataclasses.replace(EXHAUSTIVE, score=score))
    assert leads(exact) == leads(everything)
    assert exact.exact


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
    assert exact.exact
    with opened_partitions(gallery, compressed, actors=0) as partitions:
        wide = search(
            gallery, compressed, partitions, target, SearchSettings(top=5, shortlist=10_000, patience=1, evidence=False)
        )
    assert leads(wide) == leads(results[0])  # the prefilter is not asked for an order of everything, so all of it is scored
    assert (wide.scored, wide.passed_over) == (wide.eligible, 0)


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
