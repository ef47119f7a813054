"""One person across a gallery: what is in searches too, who joins, who never does, and what the record says."""

import dataclasses
import json
import math
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import UsageError
from pipeline.gallery import audit
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.search.follow import at_once, expected_strangers, follow
from pipeline.search.partitions import opened_partitions
from pipeline.search.report_words import facts_of
from pipeline.search.results import SearchResult
from pipeline.search.run import run
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import FollowSettings, IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import add_videos, people_features, toy_spec

PEOPLE, EACH = 20, 4
NOBODY = FollowSettings(join_by="nobody")
ALONE = ScoreSettings(neighbours=0)  # as following scores
PLAIN = SearchSettings(top=100, evidence=False, score=ALONE)


@pytest.fixture(scope="module", autouse=True)
def _one_thread(one_thread: None) -> None:
    """Batches are small."""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """v000 to v003 show p00, v004 to v007 p01 and so on; two cameras in turn, a video a minute."""
    opened = Gallery.open_or_create(tmp_path_factory.mktemp("data") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(opened, people_features(PEOPLE, EACH, 24, seed=3), videos_a_shard=40)
    build_index(opened, IndexSettings(8, 4, partition_videos=30))
    return opened


def followed(
    gallery: Gallery, target: str, following: FollowSettings, settings: SearchSettings = PLAIN, further: Sequence[str] = ()
) -> SearchResult:
    index = open_index(gallery)
    with opened_partitions(gallery, index, actors=0) as partitions:
        first, *others = [gallery_target(gallery, one) for one in (target, *further)]
        return follow(gallery, index, partitions, first, settings, following, others)


def why(result: SearchResult) -> dict[str, str]:
    assert result.followed is not None
    return {one.video.video_id: one.why for one in result.followed.appearances}


def scores(result: SearchResult) -> dict[str, float]:
    return {lead.video.video_id: lead.score for lead in result.leads}


# ---- scores of several targets


def mean_of_logits(gallery: Gallery, targets: list[str], settings: SearchSettings) -> dict[str, float]:
    """What fusing should give, from one search a target."""
    everything = dataclasses.replace(settings, shortlist=None, top=100)
    index, found = open_index(gallery), {}
    with opened_partitions(gallery, index, actors=0) as partitions:
        for target in targets:
            found[target] = scores(search(gallery, index, partitions, gallery_target(gallery, target), everything))
    means = {}
    for video_id in set().union(*found.values()) - {targets[0]}:
        own = [of_target[video_id] for of_target in found.values() if video_id in of_target]
        assert len(own) == len(targets) - (video_id in targets)
        mean = sum(math.log(score / (1 - score)) for score in own) / len(own)
        means[video_id] = 1 / (1 + math.exp(-mean))
    return means


@pytest.mark.parametrize("shortlist", [None, 5])
def test_a_lead_scores_the_mean_of_its_logits_under_all_that_are_in(gallery: Gallery, shortlist: int | None) -> None:
    settings = dataclasses.replace(PLAIN, shortlist=shortlist, shortlist_share=0.0)
    result = followed(gallery, "v010", dataclasses.replace(NOBODY, confirmed=("v008", "v021")), settings)
    expected = mean_of_logits(gallery, ["v010", "v008", "v021"], settings)
    assert scores(result) == {name: pytest.approx(expected[name], abs=1e-5) for name in scores(result)}
    assert [lead.score for lead in result.leads] == sorted(scores(result).values(), reverse=True)
    assert (len(result.leads) == 79) if shortlist is None else (5 <= len(result.leads) <= 15)


def test_what_is_confirmed_is_among_the_leads_however_low_it_ranks_and_has_its_evidence(gallery: Gallery) -> None:
    settings = SearchSettings(top=2, score=ALONE)
    result = followed(gallery, "v010", dataclasses.replace(NOBODY, confirmed=("v077",)), settings)
    assert len(result.leads) == 3 and result.leads[-1].video.video_id == "v077" and result.leads[-1].rank > 3
    assert all(lead.best_pairs for lead in result.leads)
    assert result.settings == settings


def test_nothing_confirmed_and_nobody_joining_is_the_plain_search(gallery: Gallery) -> None:
    index = open_index(gallery)
    with opened_partitions(gallery, index, actors=0) as partitions:
        plain = search(gallery, index, partitions, gallery_target(gallery, "v033"), SearchSettings(score=ALONE))
    result = followed(gallery, "v033", NOBODY, SearchSettings())
    assert [lead.video for lead in result.leads] == [lead.video for lead in plain.leads]
    assert [lead.best_pairs for lead in result.leads] == [lead.best_pairs for lead in plain.leads]
    assert [lead.score for lead in result.leads] == pytest.approx([lead.score for lead in plain.leads], abs=1e-9)


@pytest.mark.parametrize("shortlist", [None, 5])
def test_several_targets_score_as_if_the_others_were_confirmed_and_are_no_leads(gallery: Gallery, shortlist: int | None) -> None:
    settings = dataclasses.replace(PLAIN, shortlist=shortlist, shortlist_share=0.0)
    result = followed(gallery, "v010", NOBODY, settings, further=("v008", "v021"))
    confirmed = followed(gallery, "v010", dataclasses.replace(NOBODY, confirmed=("v008", "v021")), settings)
    of_others = {name: score for name, score in scores(confirmed).items() if name not in ("v008", "v021")}
    assert scores(result).keys() >= of_others.keys() and not {"v008", "v010", "v021"} & scores(result).keys()
    assert {name: scores(result)[name] for name in of_others} == pytest.approx(of_others, abs=1e-9)
    assert [lead.rank for lead in result.leads] == list(range(1, len(result.leads) + 1))  # no place is left for them
    assert result.eligible == confirmed.eligible - 2 and result.target.video_id == "v010"
    assert why(result) == dict.fromkeys(["v008", "v010", "v021"], "target")
    assert [video.video_id for video in result.targets] == ["v010", "v008", "v021"]
    assert [video.video_id for video in confirmed.targets] == ["v010"]


def test_what_several_targets_show_joins(gallery: Gallery) -> None:
    result = followed(gallery, "v042", FollowSettings(), further=("v041",))
    assert why(result) == {"v040": "joined", "v041": "target", "v042": "target", "v043": "joined"}
    with pytest.raises(UsageError, match="v041 is a target"):
        followed(gallery, "v042", FollowSettings(("v041",)), further=("v041",))


def test_scores_that_are_sums_are_averaged_as_they_are(gallery: Gallery) -> None:
    settings = dataclasses.replace(PLAIN, score=ScoreSettings(0.2, aggregate="sum", neighbours=0))
    result = followed(gallery, "v010", dataclasses.replace(NOBODY, confirmed=("v021",)), settings)
    index, found = open_index(gallery), []
    with opened_partitions(gallery, index, actors=0) as partitions:
        for target in ("v010", "v021"):
            found.append(scores(search(gallery, index, partitions, gallery_target(gallery, target), settings)))
    assert scores(result)["v050"] == pytest.approx((found[0]["v050"] + found[1]["v050"]) / 2)


# ---- who joins


@pytest.mark.parametrize("target", [0, 41, 79])
def test_the_videos_of_the_person_join_and_no_others(gallery: Gallery, target: int) -> None:
    result = followed(gallery, f"v{target:03d}", FollowSettings())
    same = {f"v{target // EACH * EACH + i:03d}" for i in range(EACH)} - {f"v{target:03d}"}
    assert why(result) == {f"v{target:03d}": "target"} | dict.fromkeys(same, "joined")
    assert result.followed is not None and result.followed.rounds >= 1
    for one in result.followed.appearances:
        if one.why == "joined":
            assert one.score is not None and one.strangers is not None and one.strangers <= 0.5
            assert one.words.startswith(f"joined in round {one.round}, score {one.score:.4f}")


def test_the_same_twice(gallery: Gallery) -> None:
    one, other = (followed(gallery, "v042", FollowSettings(("v041",), ("v003",))) for _ in range(2))
    assert (one.followed, one.leads) == (other.followed, other.leads)


def test_appearances_stand_in_the_order_of_time(gallery: Gallery) -> None:
    result = followed(gallery, "v042", FollowSettings(("v041",)))
    assert list(why(result)) == ["v040", "v041", "v042", "v043"]


def test_what_is_rejected_is_out_and_nothing_that_scores_no_better_joins(gallery: Gallery) -> None:
    plain = followed(gallery, "v041", NOBODY)
    best, *others = [lead.video.video_id for lead in plain.leads][:3]
    result = followed(gallery, "v041", FollowSettings(rejected=(best,)))
    assert why(result) == {"v041": "target"}
    assert best not in scores(result) and set(others) <= scores(result).keys()
    result = followed(gallery, "v041", FollowSettings(rejected=(others[-1],)))
    assert others[-1] not in why(result) and best in why(result)


def test_a_lead_that_finds_others_first_does_not_join(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    centre, aside, far = np.zeros(24), np.eye(24)[0] * 4, rng.normal(size=(60, 24)) * 8
    places = [centre, aside, *(aside + rng.normal(size=24) * 0.1 for _ in range(5)), *far]
    videos = [(f"p{i:02d}", (place + 0.05 * rng.normal(size=(12, 24))).astype(np.float16)) for i, place in enumerate(places)]
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, videos, videos_a_shard=40)
    build_index(gallery, IndexSettings(8, 4))
    near = {f"v{number:03d}" for number in range(1, 7)}
    assert {lead.video.video_id for lead in followed(gallery, "v000", NOBODY).leads[:6]} == near
    lenient = FollowSettings(join_by="strangers", most_strangers=1e9)
    assert not near & why(followed(gallery, "v000", lenient)).keys()  # each finds the five others before v000
    assert near & why(followed(gallery, "v003", lenient)).keys() > {"v003"}


def test_too_few_candidates_do_not_tell_how_strangers_score(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    assert len(why(followed(toy_gallery, "v000", FollowSettings()))) == 1  # of 39 candidates


def test_the_number_of_strangers_is_that_of_an_exponential_tail() -> None:
    rng = np.random.default_rng(5)
    drawn = 3 + 2 * rng.exponential(size=(200, 1000))
    beyond = np.mean([(one > 12).sum() for one in drawn])  # 1000 exp(-9 / 2) = 11.1
    assert np.mean([expected_strangers(12.0, [one]) for one in drawn]) == pytest.approx(beyond, rel=0.1)
    assert expected_strangers(30.0, [drawn[0], drawn[1]]) < 0.01
    assert expected_strangers(30.0, [drawn[0][:39]]) == math.inf
    assert expected_strangers(30.0, [np.ones(100)]) == math.inf


# ---- two places at once


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """As `gallery`, but every video lasts two minutes and a half, so that it overlaps in time with the next two."""
    opened = Gallery.open_or_create(tmp_path_factory.mktemp("crowded") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(opened, people_features(PEOPLE, EACH, 24, seed=3), videos_a_shard=40)
    videos = opened.snapshot().videos
    starts = videos["start_time"].to_pylist()
    for name, times in (("seen_from", starts), ("seen_to", [start + timedelta(seconds=150) for start in starts])):
        field = videos.schema.field(name)
        videos = videos.set_column(videos.schema.get_field_index(name), field, pa.array(times, field.type))
    opened.commit(videos, REJECTS_SCHEMA.empty_table())
    build_index(opened, IndexSettings(8, 4))
    return opened


@pytest.mark.parametrize("target", ["v000", "v041", "v079"])
def test_what_is_elsewhere_at_the_same_time_does_not_join_and_is_named(crowded: Gallery, target: str) -> None:
    result = followed(crowded, target, FollowSettings())
    assert result.followed is not None and result.followed.apart
    within = [one.video for one in result.followed.appearances]
    assert not any(at_once(one, other) for one in within for other in within)
    for one, other in result.followed.apart:
        assert at_once(one, other) and one in within and other not in within
        assert one.video_id in result.followed.elsewhere(other.video_id)
        assert other.person_id == result.target.person_id  # that of others is not worth a word


def test_what_is_confirmed_is_in_two_places_at_once_and_that_is_said(crowded: Gallery) -> None:
    result = followed(crowded, "v040", dataclasses.replace(NOBODY, confirmed=("v041",)))
    assert why(result) == {"v040": "target", "v041": "confirmed"}
    assert result.followed is not None
    assert [(one.video_id, other.video_id) for one, other in result.followed.apart] == [("v040", "v041")]


def test_one_camera_and_times_that_are_not_known_are_no_contradiction(crowded: Gallery) -> None:
    here, there = (gallery_target(crowded, name).video for name in ("v000", "v001"))
    assert at_once(here, there) and at_once(there, here)
    assert not at_once(here, dataclasses.replace(there, camera_id=here.camera_id))
    assert not at_once(here, dataclasses.replace(there, camera_id=None))
    assert not at_once(here, dataclasses.replace(there, seen_from=None, seen_to=None, start_time=None))


# ---- what it refuses, and what it records


@pytest.mark.parametrize(
    ("following", "sentence"),
    [
        (FollowSettings(("nope",)), "has no video 'nope'"),
        (FollowSettings((), ("nope",)), "has no video 'nope'"),
        (FollowSettings(("v042",)), "v042 is the target"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(gallery: Gallery, following: FollowSettings, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        followed(gallery, "v042", following)


@pytest.mark.parametrize(
    "wrong",
    [
        {"confirmed": ("a",), "rejected": ("b", "a")},
        {"join_by": "magic"},
        {"most_strangers": -1.0},
        {"rounds": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FollowSettings(**wrong)


def test_a_follow_leaves_one_record_that_says_who_is_in_and_why(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    audit.set_policy(toy_gallery, ["reason", "case"])
    following = FollowSettings(("v003",), ("v020",), "nobody")
    before = len(audit.read_records(toy_gallery))
    with pytest.raises(UsageError, match="requires --reason and --case"):
        run(toy_gallery, ["id:v001"], following=following)
    with pytest.raises(UsageError, match="say who is followed"):
        run(toy_gallery, [], reason="missing child", case="17", following=following)
    assert len(audit.read_records(toy_gallery)) == before
    answer = run(toy_gallery, ["id:v001"], PLAIN, "missing child", "17", following=following)
    (record,) = audit.read_records(toy_gallery)[before:]
    assert (record["action"], record["target"], record["reason"], record["case"]) == ("follow", "v001", "missing child", "17")
    assert (record["following"]["confirmed"], record["following"]["rejected"]) == (["v003"], ["v020"])
    assert record["path"]["in"] == {"v001": "target", "v003": "confirmed"}
    assert record["results"] == [lead.video.video_id for lead in answer.results[0].leads]
    assert audit.verify(toy_gallery, answer.results[0].record.audit_head) == []
    with pytest.raises(UsageError, match="has no video 'nope'"):
        run(toy_gallery, ["id:v001"], PLAIN, "missing child", "17", following=FollowSettings(("nope",)))
    (record,) = audit.read_records(toy_gallery)[before + 1 :]
    assert record["action"] == "follow" and "has no video 'nope'" in record["failed"]


def test_one_person_in_several_targets_is_one_search_on_record(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    before = len(audit.read_records(toy_gallery))
    answer = run(toy_gallery, ["id:v001", "id:v002"], PLAIN, "missing child", following=NOBODY)
    (record,) = audit.read_records(toy_gallery)[before:]
    (result,) = answer.results
    assert (record["action"], record["target"]) == ("follow", "v001")
    assert [one["target"] for one in record["further_targets"]] == ["v002"]
    assert record["further_targets"][0]["target_hash"].startswith("features:")
    assert record["path"]["in"] == {"v001": "target", "v002": "target"}
    (said,) = json.loads(answer.table().schema.metadata[b"searches"])
    assert said["targets"] == ["v001", "v002"] and set(answer.table()["target_id"].to_pylist()) == {"v001"}
    assert ("Targets", "v001\nv002") in facts_of(result)
    for targets, sentence in ((["id:v001", "id:nope"], "has no video 'nope'"), (["id:v001", "id:v001"], "v001 is given twice")):
        with pytest.raises(UsageError, match=sentence):
            run(toy_gallery, targets, PLAIN, "missing child", following=NOBODY)
        failed = audit.read_records(toy_gallery)[-1]
        assert sentence in failed["failed"] and [one["target"] for one in failed["further_targets"]] == targets[1:]
    assert len(audit.read_records(toy_gallery)) == before + 3 and audit.verify(toy_gallery) == []
