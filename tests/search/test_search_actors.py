"""Search actors: they find what this process does, hold several versions, and one that answers no more is replaced."""

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index import partition_store
from pipeline.index.build import build_index
from pipeline.index.freshness import extensible_index
from pipeline.index.versions import Index
from pipeline.search import search_actors
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.partitions import Partitions, opened_partitions
from pipeline.search.search import search, search_many
from pipeline.search.search_actors import SearchActors
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings
from tests.conftest import add_videos, people_features
from tests.search.test_exact_search import EXACT, gallery, index
from tests.search.test_exact_search import leads as leads_of

__all__ = ["gallery", "index"]
pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def on_ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def built_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of Ray would take longer to start than these indexes to build."""
    monkeypatch.setattr(partition_store, "cluster_is_named", lambda _: False)


def leads(gallery: Gallery, index: Index, held: Partitions) -> list[tuple[str, float]]:
    found = search(gallery, index, held, gallery_target(gallery, "v003"), SearchSettings(top=100, exact=True))
    return [(lead.video.video_id, lead.score) for lead in found.leads]


def here(gallery: Gallery, index: Index) -> list[tuple[str, float]]:
    return leads(gallery, index, LocalPartitions(index, range(len(index.manifest["partitions"]))))


def openings(actor: Any) -> int:
    return len(ray.get(actor.__ray_call__.remote(lambda self: list(self.held))))


def test_actors_find_exactly_what_this_process_does(gallery: Gallery, index: Index, on_ray: None) -> None:
    targets = [gallery_target(gallery, name) for name in ("v003", "v077")]
    with opened_partitions(gallery, index, actors=0) as partitions:
        here = search_many(gallery, index, partitions, targets, EXACT)
    with opened_partitions(gallery, index, actors=2) as partitions:
        there = search_many(gallery, index, partitions, targets, EXACT)
    assert [leads_of(result) for result in there] == [leads_of(result) for result in here]
    assert all(result.exact for result in (*here, *there))


def test_leads_do_not_depend_on_the_number_of_actors(on_ray: None, toy_gallery: Gallery) -> None:
    built = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9))
    settings, target = SearchSettings(top=8, shortlist=12), gallery_target(toy_gallery, "v011")
    found = []
    for actors in (0, 1, 3):
        with opened_partitions(toy_gallery, built, actors) as partitions:
            found.append(search(toy_gallery, built, partitions, target, settings).leads)
    assert found[0] == found[1] == found[2]


def test_versions_lie_beside_each_other_until_nobody_searches_them(on_ray: None, toy_gallery: Gallery) -> None:
    old = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=10))
    actors = SearchActors(toy_gallery.location.uri, 2)
    first = actors.open(old)
    new = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=1000))
    assert new.version != old.version
    second = actors.open(new)
    assert len(actors.actors) == 2 and second.actors == first.actors[:1], "of one partition"
    assert leads(toy_gallery, old, first) == here(toy_gallery, old)
    assert leads(toy_gallery, new, second) == here(toy_gallery, new)
    assert openings(actors.actors[0]) == 2
    del first
    end = time.monotonic() + 20
    while openings(actors.actors[0]) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert openings(actors.actors[0]) == 1 and leads(toy_gallery, new, second) == here(toy_gallery, new)
    actors.close()


def test_what_a_version_shares_with_the_one_before_stays_where_it_is_open(on_ray: None, toy_gallery: Gallery) -> None:
    settings = IndexSettings(8, 4, partition_videos=9)
    old = build_index(toy_gallery, settings)
    actors = SearchActors(toy_gallery.location.uri, 2)
    first = actors.open(old)
    add_videos(toy_gallery, people_features(9, 1, 24, seed=4), first=40)
    new = build_index(toy_gallery, settings, base=extensible_index(toy_gallery, settings))
    second = actors.open(new)
    before, after = (
        {index.manifest["partitions"][number]["id"]: place for place, share in enumerate(held.shares) for number in share.numbers}
        for index, held in ((old, first), (new, second))
    )
    kept = before.keys() & after.keys()
    assert len(kept) == 4 and len(after) == 6 and sorted(map(len, (share.numbers for share in second.shares))) == [3, 3]
    assert all(before[name] == after[name] for name in kept)
    actors.close()


def test_an_actor_that_answers_no_more_is_said_and_replaced(
    on_ray: None, toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=10))
    actors = SearchActors(toy_gallery.location.uri, 2)
    held = actors.open(index)
    process = ray.get(actors.actors[1].__ray_call__.remote(lambda _: os.getpid()))
    monkeypatch.setattr(search_actors, "AWAY_SECONDS", 2.0)
    os.kill(process, signal.SIGSTOP)  # as one that found no place after its node went
    with pytest.raises(PipelineError, match="died and is not back; nothing is lost, search again"):
        leads(toy_gallery, index, held)
    again = actors.open(index)
    assert again.actors[0] == held.actors[0] and len(actors.actors) == 2
    assert leads(toy_gallery, index, again) == here(toy_gallery, index)
    actors.close()


def test_partitions_that_outlive_ray_start_none(on_ray: None, toy_gallery: Gallery) -> None:
    """The last one here: Ray of all of them has ended then."""
    index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=1000))
    held = SearchActors(toy_gallery.location.uri).open(index)
    ray.shutdown()
    del held
    assert not ray.is_initialized()
