"""Index versions over time: additions, deletions, killed builds, and that none of them changes a score."""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import ray

from jobs.index import index as run_jobs_index
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, frames_table
from pipeline.index.build import build_index
from pipeline.index.freshness import Lag, current_index, extensible_index, index_lag
from pipeline.index.partition_store import FULL, PartitionWork, build_partitions
from pipeline.index.version_files import index_versions
from pipeline.index.versions import Index, open_index
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, ScoreSettings, SearchSettings
from tests.conftest import add_videos, people_features, toy_spec

NINE = IndexSettings(partition_videos=9)
ALL = SearchSettings(top=999, shortlist=None)


@pytest.fixture
def first_index(toy_gallery: Gallery) -> Index:
    """Partitions of 9, 9, 9, 9 and 4 videos."""
    return build_index(toy_gallery, NINE)


def extended(gallery: Gallery, settings: IndexSettings = NINE, **arguments: object) -> Index:
    return build_index(gallery, settings, base=extensible_index(gallery, settings), **arguments)  # type: ignore[arg-type]


def partitions(index: Index) -> list[str]:
    return [part["id"] for part in index.manifest["partitions"]]


def sizes(index: Index) -> list[int]:
    return [part["videos"] for part in index.manifest["partitions"]]


def stored(gallery: Gallery) -> set[str]:
    """Ids of the partitions of which there are files."""
    root = Path(gallery.location.path, "index", "partitions")
    return {path.parent.name for path in root.rglob("*") if path.is_file()}


def scores(gallery: Gallery, index: Index, target: str = "v005", settings: SearchSettings = ALL) -> dict[str, float]:
    with opened_partitions(gallery, index, actors=0) as opened:
        result = search(gallery, index, opened, gallery_target(gallery, target), settings)
    return {lead.video.video_id: lead.score for lead in result.leads}


def holder(index: Index, video_id: str) -> int:
    """Number of the partition that a video lies in."""
    return next(n for n in range(len(sizes(index))) if video_id in index.partition_videos(n)["video_id"].to_pylist())


def committed_again(gallery: Gallery, video_id: str, kind: str = "ingest", **values: object) -> None:
    """Commit a row of the gallery once more, with some other values."""
    rows = [row | values for row in gallery.snapshot().videos.to_pylist() if row["video_id"] == video_id]
    gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table(), kind=kind)


# replacements


def test_a_video_that_was_ingested_anew_is_built_anew_and_until_then_counted(toy_gallery: Gallery, first_index: Index) -> None:
    other = next(row for row in toy_gallery.snapshot().videos.to_pylist() if row["video_id"] == "v031")
    place = {name: other[name] for name in ("shard", "first_row", "sampled_frames")}
    features = toy_gallery.read_video(other)["feature"]
    # Frames of v031, of the same camera, under the id of v003:
    index, times = (toy_gallery.read_video(other)[name].to_numpy() for name in ("frame_index", "time_s"))
    matrix = np.array(features.to_pylist(), np.float16)
    place["shard"] = toy_gallery.write_shard(frames_table(["v003"], [len(matrix)], index, times, matrix))
    committed_again(toy_gallery, "v003", ingested_at=datetime(2026, 3, 2, tzinfo=UTC), **(place | {"first_row": 0}))
    assert current_index(toy_gallery, NINE) is None
    assert index_lag(toy_gallery, first_index) == Lag(missing=0, outdated=1)
    rebuilt = extended(toy_gallery)
    assert index_lag(toy_gallery, rebuilt) == Lag() and current_index(toy_gallery, NINE) is not None
    kept = set(partitions(rebuilt)) & set(partitions(first_index))
    assert kept and partitions(first_index)[holder(first_index, "v003")] not in kept
    assert "v003" in first_index.cohort_ids.to_pylist() and "v003" not in rebuilt.cohort_ids.to_pylist()
    plain = replace(ALL, score=ScoreSettings(normalise="none"))  # by a cohort, a video's own segments do not count
    now, then = (scores(toy_gallery, index, settings=plain) for index in (rebuilt, first_index))
    assert now["v003"] == now["v031"] != pytest.approx(then["v003"], rel=1e-3)
    assert now["v031"] == pytest.approx(then["v031"], rel=1e-5)  # each index has its own centre, which rounds differently


@pytest.mark.parametrize("numbers", [[39, 0, 17, 17, 8, 9], [], range(40)])
def test_rows_are_those_of_the_table_in_any_order(first_index: Index, numbers: Sequence[int]) -> None:
    assert len(first_index.manifest["partitions"]) > 3
    every = first_index.videos.to_pylist()
    assert first_index.rows(numbers) == [every[number] for number in numbers]
    ids = first_index.ids(np.array(numbers, np.int64))
    assert ids == [every[number]["video_id"] for number in numbers] and {str} >= set(map(type, ids))


def test_a_corrected_video_is_built_anew_though_its_ingest_is_the_same(toy_gallery: Gallery, first_index: Index) -> None:
    before = scores(toy_gallery, first_index)
    committed_again(toy_gallery, "v003", kind="correct", camera_id="cam7")
    assert index_lag(toy_gallery, first_index) == Lag(missing=0, outdated=1)
    rebuilt = extended(toy_gallery)
    row = rebuilt.rows([rebuilt.position("v003")])[0]
    assert row["camera_id"] == "cam7" and rebuilt.partitions_matching(["cam7"]) == [holder(rebuilt, "v003")]
    after = scores(toy_gallery, rebuilt)
    assert after.pop("v003") != before.pop("v003")  # its values are another camera's
    assert after == before


def test_a_video_whose_source_was_rejected_later_is_counted_and_leaves_the_next_version(
    toy_gallery: Gallery, first_index: Index
) -> None:
    row = {"uri": "/videos/v003.mp4", "video_id": "v003", "source_id": "v003", "reason": "truncated"}
    toy_gallery.commit(VIDEOS_SCHEMA.empty_table(), pa.Table.from_pylist([row], schema=REJECTS_SCHEMA))
    assert index_lag(toy_gallery, first_index) == Lag(missing=0, outdated=1)
    forget(toy_gallery, Selection(("v004",)), "a test")
    assert index_lag(toy_gallery, first_index) == Lag(missing=0, outdated=1)  # what was forgotten is in no result anyway
    assert extended(toy_gallery).position("v003") == -1


# additions


def test_an_addition_builds_only_what_is_new_and_what_shares_a_partition_that_was_not_full(
    toy_gallery: Gallery, first_index: Index
) -> None:
    assert sizes(first_index) == [9, 9, 9, 9, 4]
    add_videos(toy_gallery, people_features(7, 1, 24, seed=5), first=40)
    added = extended(toy_gallery)
    assert sizes(added) == [9, 9, 9, 9, 9, 2]
    assert partitions(added)[:4] == partitions(first_index)[:4] and partitions(first_index)[4] not in partitions(added)
    assert sorted(added.videos["video_id"].to_pylist()) == [f"v{i:03d}" for i in range(47)]
    assert [part["first_video"] for part in added.manifest["partitions"]] == [0, 9, 18, 27, 36, 45]
    assert all(len(added.partition_videos(n)) == size for n, size in enumerate(sizes(added)))
    assert added.videos["video_id"][added.position("v046")].as_py() == "v046"
    assert added.manifest["head"] == first_index.manifest["head"] and added.cohort.means.equal(first_index.cohort.means)


def test_what_was_added_is_byte_for_byte_what_the_same_partitions_are_when_built_at_once(
    toy_gallery: Gallery, first_index: Index
) -> None:
    add_videos(toy_gallery, people_features(12, 1, 24, seed=5), first=40)
    added = extended(toy_gallery)
    work = PartitionWork(toy_gallery, added.heads, 8, 4, added.query, added.cohort)
    for number, part in enumerate(added.manifest["partitions"]):
        rows = added.partition_videos(number).select(VIDEOS_SCHEMA.names)
        again = work.build(rows, part["first_video"])
        assert again["files"] == part["files"] and again["id"] != part["id"]


def test_the_videos_that_were_there_before_keep_their_scores(toy_gallery: Gallery, first_index: Index) -> None:
    before = scores(toy_gallery, first_index)
    add_videos(toy_gallery, people_features(12, 1, 24, seed=5), first=40)
    after = scores(toy_gallery, extended(toy_gallery))
    assert len(after) == 51 and {video_id: after[video_id] for video_id in before} == before


@pytest.mark.parametrize("daily", [1, 4, 25])
def test_after_many_additions_there_are_about_as_many_partitions_as_videos_need(tmp_path: Path, daily: int) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 1, 24, seed=2))
    build_index(gallery, NINE)
    for day in range(6):
        add_videos(gallery, people_features(daily, 1, 24, seed=day), first=10 + day * daily)
        index = extended(gallery)
        assert sorted(index.videos["video_id"].to_pylist()) == gallery.snapshot().videos["video_id"].to_pylist()
        assert len(sizes(index)) <= len(index.videos) / (FULL * 9) + 1


def test_an_index_to_which_nothing_can_be_added_is_current(toy_gallery: Gallery, first_index: Index) -> None:
    assert current_index(toy_gallery, NINE) is not None
    compact(toy_gallery)
    assert current_index(toy_gallery, NINE) is not None
    add_videos(toy_gallery, people_features(1, 1, 24, seed=5), first=40)
    assert current_index(toy_gallery, NINE) is None
    assert extensible_index(toy_gallery, IndexSettings(partition_videos=8)) is None
    assert extensible_index(toy_gallery, IndexSettings(stride=2, partition_videos=9)) is None


def test_a_video_that_was_ingested_anew_is_indexed_anew(toy_gallery: Gallery, first_index: Index) -> None:
    number = holder(first_index, "v020")
    (_, features), *_ = people_features(1, 1, 24, seed=77)
    add_videos(toy_gallery, [("p05", np.tile(features, (20, 1))[:77])], first=20)
    assert current_index(toy_gallery, NINE) is None
    renewed = extended(toy_gallery)
    assert set(partitions(first_index)) - set(partitions(renewed)) == {partitions(first_index)[n] for n in (number, 4)}
    assert renewed.videos["sampled_frames"][renewed.position("v020")].as_py() == 77


def test_only_videos_that_came_since_are_read_to_say_how_far_an_index_is_behind(
    toy_gallery: Gallery, first_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact(toy_gallery)
    forget(toy_gallery, Selection(video_ids=("v001",)), "asked to")
    with monkeypatch.context() as patch:
        patch.setattr(Gallery, "snapshot", lambda gallery: pytest.fail("the videos were read"))
        assert index_lag(toy_gallery, first_index).missing == 0
    add_videos(toy_gallery, people_features(3, 1, 24, seed=5), first=40)
    assert index_lag(toy_gallery, first_index).missing == 3


def test_a_cohort_of_too_few_videos_is_not_kept(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(3, 1, 24, seed=2))
    assert not build_index(gallery, NINE).cohort.usable
    add_videos(gallery, people_features(20, 1, 24, seed=3), first=3)
    assert extended(gallery).cohort.usable


def test_a_compressed_prefilter_is_trained_once_and_kept(toy_gallery: Gallery) -> None:
    settings = IndexSettings(partition_videos=9, prefilter="compressed")
    first = build_index(toy_gallery, settings)
    add_videos(toy_gallery, people_features(7, 1, 24, seed=5), first=40)
    added = extended(toy_gallery, settings)
    trained = [Path(index.location.path, "prefilter", "trained.faiss").read_bytes() for index in (first, added)]
    assert trained[0] == trained[1] and partitions(added)[:4] == partitions(first)[:4]
    assert "inverted lists" in added.manifest["prefilter"] and len(scores(toy_gallery, added)) == 46


# deletions


def test_compaction_takes_the_partitions_of_forgotten_videos_and_leaves_the_others(
    toy_gallery: Gallery, first_index: Index
) -> None:
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    gone = holder(first_index, "v003")
    done = compact(toy_gallery)
    reduced = open_index(toy_gallery)
    assert done.indexes == [first_index.version] and done.reduced == reduced.version
    assert partitions(reduced) == [part for n, part in enumerate(partitions(first_index)) if n != gone]
    assert stored(toy_gallery) == set(partitions(reduced))
    others = set(first_index.partition_videos(gone)["video_id"].to_pylist()) - {"v003"}
    assert index_lag(toy_gallery, reduced).missing == len(others) == 8
    assert scores(toy_gallery, reduced, sorted(others)[0]).keys() == set(reduced.videos["video_id"].to_pylist())
    assert verify_gallery(toy_gallery) == []


def test_the_next_build_after_a_compaction_builds_only_what_went(toy_gallery: Gallery, first_index: Index) -> None:
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    compact(toy_gallery)
    kept = partitions(open_index(toy_gallery))[:3]
    whole = extended(toy_gallery)
    assert partitions(whole)[:3] == kept and sizes(whole) == [9, 9, 9, 9, 3]
    assert sorted(whole.videos["video_id"].to_pylist()) == [f"v{i:03d}" for i in range(40) if i != 3]
    assert index_lag(toy_gallery, whole).missing == 0


def test_what_scores_are_normalised_by_holds_nothing_of_a_forgotten_video(toy_gallery: Gallery, first_index: Index) -> None:
    own = first_index.cohort.means[first_index.cohort.video == first_index.position("v003")]
    assert len(own) > 0
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    compact(toy_gallery)
    for index in (open_index(toy_gallery), extended(toy_gallery)):
        assert not (index.cohort.means[:, None] == own).all(dim=2).any()
        assert len(index.cohort.means) == len(first_index.cohort.means) - len(own)
        files = [path.read_bytes() for path in Path(index.location.path).rglob("*") if path.is_file()]
        assert not any(b"v003" in data or own[0].numpy().tobytes() in data for data in files)


def test_a_video_of_the_cohort_that_is_not_indexed_for_now_can_be_forgotten_too(toy_gallery: Gallery, first_index: Index) -> None:
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    compact(toy_gallery)
    reduced = open_index(toy_gallery)
    neighbour = next(v for v in first_index.partition_videos(holder(first_index, "v003"))["video_id"].to_pylist() if v != "v003")
    assert reduced.position(neighbour) == -1
    forget(toy_gallery, Selection(video_ids=(neighbour,)), "asked to")
    assert compact(toy_gallery).indexes == [reduced.version]
    assert partitions(open_index(toy_gallery)) == partitions(reduced)
    assert len(open_index(toy_gallery).cohort.means) < len(reduced.cohort.means)


def test_versions_that_share_partitions_lose_none_of_them_to_a_compaction(toy_gallery: Gallery, first_index: Index) -> None:
    add_videos(toy_gallery, people_features(7, 1, 24, seed=5), first=40)
    added = extended(toy_gallery)
    assert compact(toy_gallery, keep_indexes=1).indexes == [first_index.version]
    assert stored(toy_gallery) == set(partitions(added))
    assert len(scores(toy_gallery, open_index(toy_gallery))) == 46 and verify_gallery(toy_gallery) == []


# killed and overtaken builds


def test_partitions_of_a_build_that_was_killed_go_when_they_are_old(toy_gallery: Gallery, first_index: Index) -> None:
    root = Path(toy_gallery.location.path, "index", "partitions")
    young, old, foreign = root / ("0" * 32), root / ("1" * 32), root / "notes"
    for folder in (young, old, foreign):
        shutil.copytree(root / partitions(first_index)[0], folder)
    then = (datetime.now(UTC) - timedelta(hours=25)).timestamp()
    for folder in (old, foreign, *(root / part for part in partitions(first_index))):
        for path in folder.iterdir():
            os.utime(path, (then, then))
    compact(toy_gallery)
    assert stored(toy_gallery) == {young.name, foreign.name, *partitions(first_index)}


def test_unpublished_partitions_with_forgotten_videos_go_at_once(toy_gallery: Gallery, first_index: Index) -> None:
    root = Path(toy_gallery.location.path, "index", "partitions")
    for number in (holder(first_index, "v003"), holder(first_index, "v039")):
        shutil.copytree(root / partitions(first_index)[number], root / (str(number) * 32))
    assert holder(first_index, "v003") != holder(first_index, "v039")
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    compact(toy_gallery)
    assert str(holder(first_index, "v039")) * 32 in stored(toy_gallery)
    assert str(holder(first_index, "v003")) * 32 not in stored(toy_gallery)


def test_a_build_whose_partitions_were_removed_meanwhile_takes_itself_back(
    toy_gallery: Gallery, first_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_videos(toy_gallery, people_features(7, 1, 24, seed=5), first=40)
    base = extensible_index(toy_gallery, NINE)
    shutil.rmtree(first_index.partition_location(0).path)
    with pytest.raises(PipelineError, match="a compaction removed partitions while the index was built"):
        build_index(toy_gallery, NINE, base=base)
    assert index_versions(toy_gallery) == [first_index.version]
    assert stored(toy_gallery) > set(partitions(first_index)[1:])  # and what the next build goes on with


@pytest.mark.ray
def test_workers_build_what_one_process_builds(toy_gallery: Gallery, first_index: Index) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        seen: list[int] = []
        there = build_index(toy_gallery, NINE, first_index.head, lambda done, total: seen.append(done), workers=2)
        assert seen == sorted(seen) and seen[-1] == 40
        assert there.videos.equals(first_index.videos) and there.cohort.means.equal(first_index.cohort.means)
        for number in range(5):
            here, other = (Path(index.partition_location(number).path) for index in (first_index, there))
            assert {path.name for path in here.iterdir()} == {path.name for path in other.iterdir()}
            for path in here.glob("*.npy"):  # the last bits follow the number of threads
                assert np.allclose(np.load(path), np.load(other / path.name), atol=2e-3), path
        shard = Path(toy_gallery.location.path, "frames", toy_gallery.snapshot().videos["shard"][0].as_py())
        shard.write_bytes(b"nonsense")
        work = PartitionWork(toy_gallery, there.heads, 8, 4, there.query, there.cohort)
        rows = [there.partition_videos(number).select(VIDEOS_SCHEMA.names) for number in range(5)]
        with pytest.raises(PipelineError, match="cannot be read"):
            list(build_partitions(work, rows, [0, 9, 18, 27, 36], workers=2))
    finally:
        ray.shutdown()


# opening, choosing partitions, verifying


def matching_by_hand(index: Index, inside: Callable[[dict], bool]) -> list[int]:
    return [n for n in range(len(sizes(index))) if any(map(inside, index.partition_videos(n).to_pylist()))]


def test_partitions_without_a_matching_camera_or_time_are_known_without_opening_them(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1), videos_a_shard=5)
    rows = gallery.snapshot().videos.to_pylist()
    for i, row in enumerate(rows):
        row["camera_id"] = None if i >= 35 else f"cam{i // 10}"
        row["start_time"] = None if i >= 30 else row["start_time"]
    gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    index = build_index(gallery, IndexSettings(partition_videos=5))
    assert len(sizes(index)) == 8
    start = datetime(2026, 3, 1, 12, tzinfo=UTC)
    for cameras in ((), ("cam0",), ("cam1", "cam3"), ("cam9",)):
        for after in (None, start + timedelta(minutes=14), start + timedelta(minutes=29), start + timedelta(minutes=30)):
            for before in (None, start, start + timedelta(minutes=1), start + timedelta(minutes=21)):

                def inside(
                    row: dict,
                    cameras: tuple[str, ...] = cameras,
                    after: datetime | None = after,
                    before: datetime | None = before,
                ) -> bool:
                    time = row["start_time"]
                    return (
                        (not cameras or row["camera_id"] in cameras)
                        and (after is None or (time is not None and time >= after))
                        and (before is None or (time is not None and time < before))
                    )

                by_hand = matching_by_hand(index, inside)
                found = index.partitions_matching(cameras, after, before)
                # Of camera and time each may lie in another video of the partition, so a few too many may be named.
                assert set(by_hand) <= set(found)
                if not (cameras and (after or before)) and not (after and before):
                    assert by_hand == found


def test_partitions_of_an_index_span_little_time(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 4, 24, seed=1), videos_a_shard=4)
    index = build_index(gallery, IndexSettings(partition_videos=8))
    firsts = [part["first_start"] for part in index.manifest["partitions"]]
    lasts = [part["last_start"] for part in index.manifest["partitions"]]
    assert all(last < first for last, first in zip(lasts[:-1], firsts[1:], strict=True))


def test_verifying_names_the_damaged_file_of_a_partition_once_however_many_versions_share_it(
    toy_gallery: Gallery, first_index: Index
) -> None:
    add_videos(toy_gallery, people_features(7, 1, 24, seed=5), first=40)
    extended(toy_gallery)
    assert verify_gallery(toy_gallery) == []
    for number, name in ((1, "values.npy"), (2, "videos.arrow")):
        path = Path(first_index.partition_location(number).path, name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        assert [fault for fault in verify_gallery(toy_gallery) if str(path) in fault] == [
            f"{path} is damaged: its checksum differs"
        ]
        path.unlink()
        assert f"{path} is missing" in verify_gallery(toy_gallery)


@pytest.mark.parametrize("damage", [b"", b"nonsense", b"ARROW1\0\0 cut"])
def test_a_damaged_table_of_videos_is_an_error_that_names_it(toy_gallery: Gallery, first_index: Index, damage: bytes) -> None:
    path = Path(first_index.partition_location(1).path, "videos.arrow")
    path.write_bytes(damage)
    with pytest.raises(PipelineError, match=r"videos\.arrow is damaged"):
        open_index(toy_gallery)
    assert len(build_index(toy_gallery, NINE, base=extensible_index(toy_gallery, NINE)).videos) == 40


# the command


def test_the_command_says_what_it_kept_and_when_to_build_anew(toy_gallery: Gallery, capsys: pytest.CaptureFixture[str]) -> None:
    def run(force: bool = False) -> str:
        run_jobs_index(toy_gallery.location.uri, partition_videos=9, force=force)
        return capsys.readouterr().out

    assert "5 partitions\n" in run() and "nothing to do" in run()
    add_videos(toy_gallery, people_features(119, 1, 24, seed=5), first=40)
    assert "18 partitions, 4 of them kept" in (almost := run()) and "advice" not in almost
    add_videos(toy_gallery, people_features(1, 1, 24, seed=6), first=159)
    advice = "advice: the gallery has grown from 40 to 160 videos; build everything anew with --rebuild"
    assert advice in run() and advice in run()
    anew = run(force=True)
    assert "kept" not in anew and "advice" not in anew
