"""Forgetting: what was forgotten is gone and stays gone, whatever it is called."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.catalog.inputs import SOURCE_SCHEMA
from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import read_records
from pipeline.gallery.forgotten import write_forgotten
from pipeline.gallery.gallery import (
    VIDEOS_SCHEMA,
    Gallery,
    GallerySettings,
    feature_matrix,
    frames_table,
)
from pipeline.ingest.run import missing_sources
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget, take_forgotten
from pipeline.retention.verify import verify_gallery
from tests.conftest import add_videos, people_features, toy_spec
from tests.jobs.commands import command
from tests.retention.galleries import NO_REJECTS, all_files, contents, ids


def test_a_video_is_forgotten_by_its_id_and_no_other_goes(toy_gallery: Gallery) -> None:
    before = contents(toy_gallery)
    assert forget(toy_gallery, Selection(video_ids=("v003", "v017")), "asked to") == ["v003", "v017"]
    assert contents(toy_gallery) == {name: video for name, video in before.items() if name not in ("v003", "v017")}
    assert toy_gallery.forgotten() == {"v003", "v017"}


def test_a_camera_is_forgotten(toy_gallery: Gallery) -> None:
    forgotten = forget(toy_gallery, Selection(camera="cam1"), "camera taken down")
    assert forgotten == [f"v{i:03d}" for i in range(1, 40, 2)]
    assert ids(toy_gallery) == [f"v{i:03d}" for i in range(0, 40, 2)]


def test_what_starts_before_a_time_is_forgotten_and_that_moment_itself_stays(toy_gallery: Gallery) -> None:
    forgotten = forget(toy_gallery, Selection(before=datetime(2026, 3, 1, 12, 10, tzinfo=UTC)), "kept for a month")
    assert forgotten == [f"v{i:03d}" for i in range(10)]


def test_a_person_is_forgotten(toy_gallery: Gallery) -> None:
    rows = toy_gallery.snapshot().videos.to_pylist()
    expected = [row["video_id"] for row in rows if row["person_id"] == "p04"]
    assert forget(toy_gallery, Selection(person="p04"), "asked to") == expected and len(expected) == 4


def test_videos_without_a_camera_time_or_label_are_not_forgotten_by_them(toy_gallery: Gallery) -> None:
    bare = {**toy_gallery.snapshot().videos.to_pylist()[0], "video_id": "bare", "source_id": "bare"}
    bare |= dict.fromkeys(["camera_id", "start_time", "person_id"])
    toy_gallery.commit(pa.Table.from_pylist([bare], schema=VIDEOS_SCHEMA), NO_REJECTS)
    future = Selection(before=datetime(2030, 1, 1, tzinfo=UTC))
    for selection in (Selection(person="p00"), Selection(camera="cam0"), future):
        assert forget(toy_gallery, selection, "test")
    assert future.undated(toy_gallery.snapshot()) == ["bare"]
    assert ids(toy_gallery) == ["bare"]


def test_an_unknown_id_forgets_nothing_at_all(toy_gallery: Gallery) -> None:
    files = all_files(toy_gallery)
    with pytest.raises(UsageError, match=r"no video 'v999'; nothing was forgotten"):
        forget(toy_gallery, Selection(video_ids=("v001", "v999")), "typing error")
    assert len(ids(toy_gallery)) == 40 and all_files(toy_gallery) == files


@pytest.mark.parametrize("nothing", [Selection(), Selection(camera=""), Selection(person="")])
def test_a_selection_by_nothing_is_refused(toy_gallery: Gallery, nothing: Selection) -> None:
    with pytest.raises(UsageError, match="say what to forget"):
        forget(toy_gallery, nothing, "test")
    assert len(ids(toy_gallery)) == 40


def test_criteria_that_no_video_meets_change_nothing(toy_gallery: Gallery) -> None:
    files = all_files(toy_gallery)
    assert forget(toy_gallery, Selection(before=datetime(2000, 1, 1, tzinfo=UTC)), "yearly") == []
    assert all_files(toy_gallery) == files


def test_the_audit_record_comes_first(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **fields: object) -> str:
        raise PipelineError("the disk is full")

    monkeypatch.setattr(Gallery, "commit", full)
    with pytest.raises(PipelineError, match="the disk is full"):
        forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    (record,) = read_records(toy_gallery)
    assert (record["action"], record["reason"], record["videos"]) == ("forget", "asked to", ["v003"])
    monkeypatch.undo()
    assert "v003" in ids(toy_gallery)
    (fault,) = verify_gallery(toy_gallery)
    assert fault.startswith("1 videos that the audit log calls forgotten are not ('v003')")
    forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    assert verify_gallery(toy_gallery) == []


def test_a_deletion_that_somebody_took_back_is_found(toy_gallery: Gallery) -> None:
    gone = forget(toy_gallery, Selection(camera="cam1"), "moved away")
    max(all_files(toy_gallery, "commits")).unlink()
    (fault,) = verify_gallery(toy_gallery)
    assert fault.startswith(f"{len(gone)} videos that the audit log calls forgotten are not ('v") and "and others" in fault
    forget(toy_gallery, Selection(camera="cam1"), "moved away")
    compact(toy_gallery, timedelta(0))
    assert verify_gallery(toy_gallery) == []


def test_nothing_is_forgotten_when_the_audit_log_cannot_be_written(toy_gallery: Gallery) -> None:
    Path(toy_gallery.location.path, "audit").write_text("a file where the log should be")
    with pytest.raises(PipelineError, match="audit"):
        forget(toy_gallery, Selection(video_ids=("v003",)), "asked to")
    assert "v003" in ids(toy_gallery)


@pytest.mark.parametrize("compacted", [False, True], ids=["before compaction", "after compaction"])
def test_a_forgotten_video_does_not_come_back_by_another_ingest(toy_gallery: Gallery, compacted: bool) -> None:
    forget(toy_gallery, Selection(video_ids=("v003", "v004")), "asked to")
    if compacted:
        compact(toy_gallery)
    rows = [
        {"source_id": video_id, "uri": f"/videos/{video_id}.mp4", "kind": "auto"} for video_id in ("v003", "v004", "v005", "new")
    ]
    catalog = pa.Table.from_pylist(rows, schema=SOURCE_SCHEMA)
    for retry_rejected in (False, True):
        missing, already = missing_sources(catalog, toy_gallery.snapshot(), retry_rejected)
        assert missing["source_id"].to_pylist() == ["new"] and already == 3
    add_videos(toy_gallery, people_features(10, 1, 24, seed=3))  # v000 ... v009 once more, by an ingest that had begun before
    assert not {"v003", "v004"} & set(ids(toy_gallery)) and len(ids(toy_gallery)) == 38


def test_forgetting_one_track_leaves_the_others_of_its_video(toy_gallery: Gallery) -> None:
    (row,) = [row for row in toy_gallery.snapshot().videos.to_pylist() if row["video_id"] == "v000"]
    tracks = [{**row, "video_id": f"crowd#{track}", "source_id": "crowd", "track": track} for track in (1, 2, 3)]
    toy_gallery.commit(pa.Table.from_pylist(tracks, schema=VIDEOS_SCHEMA), NO_REJECTS)
    forget(toy_gallery, Selection(video_ids=("crowd#2",)), "asked to")
    toy_gallery.commit(pa.Table.from_pylist(tracks, schema=VIDEOS_SCHEMA), NO_REJECTS)
    assert [name for name in ids(toy_gallery) if "#" in name] == ["crowd#1", "crowd#3"]


def with_bytes(gallery: Gallery, *rows: tuple[str, str | None, int | None]) -> None:
    """Commit videos (id, ingested_hash, track) that have the frames of v000 and uris of their own."""
    frames = gallery.read_video(next(row for row in gallery.snapshot().videos.to_pylist() if row["video_id"] == "v000"))
    features, steps = feature_matrix(frames), np.arange(len(frames))
    table = []
    for video_id, content, track in rows:
        row = {"video_id": video_id, "source_id": video_id.split("#")[0], "uri": f"/mount/{video_id}.mp4", "track": track}
        row |= {"shard": gallery.write_shard(frames_table([video_id], [len(steps)], steps, steps / 10, features)), "first_row": 0}
        row |= {"sampled_frames": len(steps), "ingested_hash": content}
        table.append(row)
    gallery.commit(pa.Table.from_pylist(table, schema=VIDEOS_SCHEMA), NO_REJECTS)


@pytest.mark.parametrize("compacted", [False, True], ids=["before compaction", "after compaction"])
def test_copies_go_with_a_forgotten_video_and_a_later_one_never_counts(toy_gallery: Gallery, compacted: bool) -> None:
    with_bytes(
        toy_gallery, ("one", "file:aa", None), ("copy", "file:aa", None), ("track#3", "file:aa", 3), ("bb", "file:bb", None)
    )
    assert forget(toy_gallery, Selection(video_ids=("one",)), "asked to") == ["copy", "one", "track#3"]
    if compacted:
        compact(toy_gallery)
    with_bytes(toy_gallery, ("late", "file:aa", None), ("late#1", "file:aa", 1), ("unknown", None, None))  # begun before
    assert set(ids(toy_gallery)) == {*(f"v{i:03d}" for i in range(40)), "bb", "unknown"}


def test_a_forgotten_track_takes_only_the_same_track_of_copies_along(toy_gallery: Gallery) -> None:
    with_bytes(toy_gallery, *((f"{name}#{track}", "file:aa", track) for name in ("one", "copy") for track in (1, 2)))
    with_bytes(toy_gallery, ("whole", "file:aa", None))
    assert forget(toy_gallery, Selection(video_ids=("one#2",)), "asked to") == ["copy#2", "one#2"]
    assert {"one#1", "copy#1", "whole"} <= set(ids(toy_gallery))


@pytest.fixture
def other_gallery(tmp_path: Path) -> Gallery:
    gallery = Gallery.open_or_create(tmp_path / "other", GallerySettings(toy_spec(), 10.0, None))
    add_videos(gallery, people_features(10, 1, 24, seed=5))
    return gallery


def test_another_gallery_forgets_what_it_is_told_of_and_nothing_that_only_shares_an_id(
    toy_gallery: Gallery, other_gallery: Gallery, tmp_path: Path
) -> None:
    with_bytes(toy_gallery, ("one", "file:aa", None), ("two#7", "file:bb", 7), ("three", None, None))
    with_bytes(
        other_gallery, ("here", "file:aa", None), ("four#7", "file:bb", 7), ("four#8", "file:bb", 8), ("one", "file:cc", None)
    )
    forget(toy_gallery, Selection(video_ids=("one", "two#7", "three", "v001")), "secret reason", "secret case")
    listed = str(tmp_path / "list.parquet")
    assert write_forgotten(toy_gallery.snapshot().tombstones, listed) == 4
    assert pq.read_table(listed).to_pylist() == [
        {"video_id": "one", "uri": "/mount/one.mp4", "ingested_hash": "file:aa", "track": None},
        {"video_id": "three", "uri": "/mount/three.mp4", "ingested_hash": None, "track": None},
        {"video_id": "two#7", "uri": "/mount/two#7.mp4", "ingested_hash": "file:bb", "track": 7},
        {"video_id": "v001", "uri": "/videos/v001.mp4", "ingested_hash": None, "track": None},
    ]
    assert b"secret" not in Path(listed).read_bytes()
    assert take_forgotten(other_gallery, listed) == ["four#7", "here", "v001"]  # v001: known by its uri only
    assert set(ids(other_gallery)) == {*(f"v{i:03d}" for i in range(10) if i != 1), "four#8", "one"}
    assert (read_records(other_gallery)[-1]["action"], read_records(other_gallery)[-1]["videos"]) == (
        "take_forgotten",
        ["four#7", "here", "v001"],
    )
    before = other_gallery.position()
    assert take_forgotten(other_gallery, listed) == [] and other_gallery.position() == before  # told again
    with_bytes(other_gallery, ("late", "file:aa", None))
    assert "late" not in ids(other_gallery) and verify_gallery(other_gallery) == []
    # A third gallery learns from the second what the first one forgot.
    write_forgotten(other_gallery.snapshot().tombstones, listed)
    assert {("file:aa", None), ("file:bb", 7)} <= {
        (row["ingested_hash"], row["track"]) for row in pq.read_table(listed).to_pylist()
    }


def test_a_list_of_another_kind_is_refused_and_nothing_is_forgotten(toy_gallery: Gallery, tmp_path: Path) -> None:
    for number, content in enumerate((b"", b"video_id\nv001\n", b"PAR1PAR1")):
        (tmp_path / f"{number}").write_bytes(content)
        with pytest.raises(UsageError, match="no list of forgotten videos"):
            take_forgotten(toy_gallery, str(tmp_path / f"{number}"))
    pq.write_table(pa.table({"video_id": ["v001"]}), tmp_path / "columns")
    with pytest.raises(UsageError, match="no list of forgotten videos"):
        take_forgotten(toy_gallery, str(tmp_path / "columns"))
    assert len(ids(toy_gallery)) == 40 and read_records(toy_gallery) == []


def test_a_video_is_older_when_it_ends_before_and_without_times_when_it_was_ingested_before(toy_gallery: Gallery) -> None:
    limit, hour = datetime(2020, 1, 1, tzinfo=UTC), timedelta(hours=1)
    base = toy_gallery.snapshot().videos.to_pylist()[0]
    times = {  # seen_to, start_time, ingested_at -> goes
        "ended": (limit - hour, limit - 2 * hour, limit + hour),
        "running": (limit + hour, limit - hour, limit - hour),
        "started": (None, limit - hour, limit + hour),
        "ingested": (None, None, limit - hour),
        "new": (None, None, limit),
        "undated": (None, None, None),
    }
    rows = [
        {**base, "video_id": name, "source_id": name, "seen_to": seen_to, "start_time": start, "ingested_at": ingested}
        for name, (seen_to, start, ingested) in times.items()
    ]
    toy_gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), NO_REJECTS)
    ended = command("forget", "--gallery", toy_gallery.location.path, "--before", limit.isoformat(), "--reason", "retention")
    assert set(times) & set(ids(toy_gallery)) == {"running", "new", "undated"}
    assert ended.code == 1 and "not judged, because no time of theirs is known: 1 videos (undated)" in ended.out
    again = command("forget", "--gallery", toy_gallery.location.path, "--before", "2019-01-01", "--reason", "retention")
    assert again.code == 1 and "nothing was forgotten: no video is older than 2019-01-01" in again.out


def test_the_command_says_so_when_nothing_was_forgotten(toy_gallery: Gallery, tmp_path: Path) -> None:
    asked = ("forget", "--gallery", toy_gallery.location.path, "--reason", "retention")
    nothing = command(*asked, "--before", "2019-01-01")
    assert nothing.code == 0 and nothing.out == "nothing was forgotten: no video is older than 2019-01-01\n"
    for flag, words in (("--camera", "camera 'cam7'"), ("--person", "person label 'cam7'"), ("--video-id", "video 'cam7'")):
        refused = command(*asked, flag, "cam7")
        assert refused.code == 2 and words in refused.sentence and "nothing was forgotten" in refused.sentence
    assert command("forget", "--gallery", toy_gallery.location.path, "--camera", "cam1").code == 2  # no reason
    assert len(ids(toy_gallery)) == 40 and read_records(toy_gallery) == []
    exported = command("forget", "--gallery", toy_gallery.location.path, "--export", str(tmp_path / "list"))
    assert exported.code == 0 and exported.out == f"0 forgotten videos listed in {tmp_path}/list\n"
    assert take_forgotten(toy_gallery, str(tmp_path / "list")) == []
