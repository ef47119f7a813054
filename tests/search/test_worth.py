"""What scores are worth in a gallery: measured when an index is built, kept with it, and said alike wherever a search is told."""

from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.search import ranked_list
from pipeline.coattention.gallery_calibration import NOT_TOLD_APART, STRONG, GalleryCalibration
from pipeline.errors import PipelineError
from pipeline.evaluation.as_searched import coattention_scores
from pipeline.gallery.gallery import Gallery, GallerySettings
from pipeline.index.build import build_index, publish_without
from pipeline.index.freshness import extensible_index
from pipeline.index.versions import WORTH, Index, open_index
from pipeline.retention.verify import verify_gallery
from pipeline.search import worth
from pipeline.search.partitions import opened_partitions
from pipeline.search.results import SearchResult, write_results
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.search.worth import measure_worth, seen_apart
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from pipeline.storage.hashing import hash_order
from tests.conftest import add_videos, people_features, toy_spec

TWENTY = IndexSettings(partition_videos=20)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """80 made-up videos of 20 people, indexed."""
    gallery = Gallery.open_or_create(tmp_path_factory.mktemp("town") / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(20, 4, 24, seed=1), videos_a_shard=40)
    build_index(gallery, TWENTY, measure=measure_worth)
    return gallery


def found(gallery: Gallery, index: Index, settings: SearchSettings | None = None) -> SearchResult:
    with opened_partitions(gallery, index, actors=0) as partitions:
        return search(gallery, index, partitions, gallery_target(gallery, "v001"), settings or SearchSettings(top=12))


def test_searches_give_the_probabilities_of_their_gallery(town: Gallery) -> None:
    index = open_index(town)
    known = index.gallery_calibration
    assert known is not None and known.why == "" and known.videos == 80 and verify_gallery(town) == []
    result = found(town, index, SearchSettings(top=12, score=ScoreSettings().alone))
    said = [lead.probability for lead in result.leads]
    by_themselves = found(town, index, SearchSettings(top=12, score=ScoreSettings(neighbours=0)))
    there = {lead.video.video_id: lead.probability for lead in by_themselves.leads}
    assert list(there.values()) == sorted(there.values(), reverse=True) and all(lead.strength is None for lead in result.leads)
    assert all(there.get(lead.video.video_id, lead.probability) == lead.probability for lead in result.leads)
    assert min(said[:3]) > 0.5 > 0.1 > max(said[4:])  # three others of the person
    assert result.none_probability is not None and result.none_probability < 0.3
    assert result.expected_matches == pytest.approx(known.expected_matches(79)) and 1.5 < result.expected_matches < 6
    assert result.calibration == "80 videos of this gallery among each other, nobody labelled"
    assert found(town, index, SearchSettings(top=3, expected_matches=0.01)).leads[0].probability < said[0]
    by_id = {lead.video.video_id: lead.probability for lead in result.leads}
    ranked = found(town, index).leads  # with neighbours: the order may change, what a video says by itself does not
    assert all(lead.probability == by_id.get(lead.video.video_id, lead.probability) for lead in ranked)
    assert any(lead.video.video_id in by_id for lead in ranked)


def test_what_is_measured_are_scores_as_searches_make_them_before_neighbours(
    town: Gallery, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, seen = open_index(town), []
    monkeypatch.setattr(worth, "fit_gallery_calibration", lambda scores, *_, **__: seen.append(scores))
    monkeypatch.setattr(worth, "AT_ONCE", 50)
    measure_worth(town, index)
    rows = np.array(hash_order(index.videos["video_id"].to_pylist()))
    with opened_partitions(town, index, actors=0) as partitions:
        expected = coattention_scores(town, index, partitions, rows, rows, ScoreSettings().alone)
    np.testing.assert_array_equal(seen[0], expected)


def test_it_is_measured_on_the_index_as_it_is_published(town: Gallery) -> None:
    index = open_index(town)
    assert index.has_whole_videos and index.gallery_calibration == measure_worth(town, index)


def test_a_gallery_that_was_too_small_is_measured_again_as_it_grows(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1))
    assert build_index(gallery, TWENTY, measure=measure_worth).gallery_calibration.videos == 40
    add_videos(gallery, people_features(10, 4, 24, seed=2), first=40)
    grown = build_index(gallery, TWENTY, base=extensible_index(gallery, TWENTY), measure=measure_worth)
    assert len(grown.manifest["partitions"]) == 4 and grown.gallery_calibration.videos == 80


def test_a_sample_is_measured_and_is_the_same_whatever_the_partitions(town: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worth, "SAMPLE_VIDEOS", 70)
    one, other = (build_index(town, IndexSettings(partition_videos=n), measure=measure_worth) for n in (20, 80))
    mine, others = (asdict(index.gallery_calibration) for index in (one, other))
    for name in (
        "mixture",
        "right",
        "shift",
    ):  # a fit of scores, whose last digits differ
        assert mine.pop(name) == pytest.approx(others.pop(name), rel=1e-6)
    assert mine == others and mine["videos"] == 70


def test_additions_and_deletions_take_it_over_and_a_rebuild_renews_it(town: Gallery, tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(20, 4, 24, seed=1), videos_a_shard=40)
    first = build_index(gallery, TWENTY, measure=measure_worth)
    add_videos(gallery, people_features(10, 4, 24, seed=9), first=80)
    added = build_index(gallery, TWENTY, base=extensible_index(gallery, TWENTY), measure=measure_worth)
    assert added.gallery_calibration == first.gallery_calibration and len(added.videos) == 120
    name = publish_without(gallery, added, pa.array(["v001"]))
    assert open_index(gallery, name).gallery_calibration == first.gallery_calibration
    renewed = build_index(gallery, TWENTY, measure=measure_worth)
    assert renewed.gallery_calibration.videos == 120


def test_an_index_that_was_never_measured_is_when_it_is_extended(tmp_path: Path, toy_gallery: Gallery) -> None:
    old = build_index(toy_gallery)
    assert old.gallery_calibration is None and WORTH not in old.manifest["files"]
    assert found(toy_gallery, old).calibration == "the index does not know what its scores are worth; run jobs.index --rebuild"
    new = build_index(toy_gallery, base=extensible_index(toy_gallery, IndexSettings()), measure=measure_worth)
    assert new.gallery_calibration is not None
    assert [part["id"] for part in new.manifest["partitions"]] == [part["id"] for part in old.manifest["partitions"]]


def test_small_galleries_get_the_same_words_everywhere(toy_gallery: Gallery, tmp_path: Path) -> None:
    index = build_index(toy_gallery, measure=measure_worth)
    result = found(toy_gallery, index, SearchSettings(top=30))
    why = "the gallery has 40 videos, and fewer than 64 do not tell how high strangers score"
    assert result.calibration == why and result.none_probability is None and result.expected_matches is None
    words = [lead.strength for lead in result.leads]
    assert words[:3] == [STRONG] * 3 and words[-1] == NOT_TOLD_APART and {lead.probability for lead in result.leads} == {None}
    printed = ranked_list(result)
    assert f"no probabilities: {why}" in printed and printed.count(STRONG) == words.count(STRONG)
    write_results([result], tmp_path)
    table = pq.read_table(tmp_path / "results.parquet")
    assert table["strength"].to_pylist() == words and set(table["calibration"].to_pylist()) == {why}
    from pipeline.search.report import write_report

    write_report([result], tmp_path, lambda *_: {})
    page = (tmp_path / "report.html").read_text()
    assert page.count(f"</span> {STRONG}</p>") == words.count(STRONG) and f"none: {why}" in page


def test_other_ways_of_scoring_have_no_numbers(town: Gallery) -> None:
    result = found(town, open_index(town), SearchSettings(score=ScoreSettings(ratio=0.5)))
    assert result.calibration == "the calibration is for ratio none, not 0.5"
    assert {lead.probability for lead in result.leads} == {lead.strength for lead in result.leads} == {None}


def test_a_damaged_one_is_one_sentence(town: Gallery) -> None:
    index = open_index(town)
    file = Path(index.location.join(WORTH).path)
    before = file.read_bytes()
    try:
        file.write_bytes(before.replace(b'"odds"', b'"odd"'))
        with pytest.raises(PipelineError, match=r"worth/calibration\.json is not a usable gallery calibration: .*--rebuild"):
            open_index(town, index.version)
        assert any("worth/calibration.json" in fault for fault in map(str, verify_gallery(town)))
    finally:
        file.write_bytes(before)


def test_two_people_are_seen_by_one_camera_at_the_same_moment() -> None:
    noon = datetime(2026, 3, 1, 12, tzinfo=UTC)
    rows = [("a", 0, 10), ("a", 5, 15), ("b", 0, 10), (None, 0, 10), (None, 0, 10), ("a", 11, 20), ("a", None, None)]
    videos = pa.table(
        {
            "camera_id": pa.array([camera for camera, _, _ in rows], pa.string()),
            **{
                name: pa.array(
                    [None if row[place] is None else noon + timedelta(seconds=row[place]) for row in rows],
                    pa.timestamp("us", tz="UTC"),
                )
                for name, place in (("start_time", 1), ("seen_from", 1), ("seen_to", 2))
            },
        }
    )
    assert {(int(i), int(j)) for i, j in zip(*np.nonzero(seen_apart(videos)), strict=True)} == {(0, 1), (1, 0), (1, 5), (5, 1)}


def test_the_record_of_a_search_names_what_its_probabilities_rest_on(town: Gallery) -> None:
    index = open_index(town)
    version = index.calibration_version
    assert version is not None and version.startswith("this gallery@")
    assert isinstance(index.gallery_calibration, GalleryCalibration)
    other = replace(index, gallery_calibration=replace(index.gallery_calibration, shift=1.0))
    assert other.calibration_version != version
    assert replace(index, gallery_calibration=None).calibration_version is None
