"""A day's changes: files that changed, grew or are still written, rejects that were mended, manifests that were corrected."""

import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.catalog.inputs import Catalog, read_catalog
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.source_hash import source_hash
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.ingest.commit import Committer
from pipeline.ingest.source_changes import STILL_CHANGING, Changes, find_changes, is_changing, too_young, with_states
from pipeline.ingest.stages import decode_source
from pipeline.retention import compact as compaction
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from tests.conftest import toy_spec
from tests.decoding.test_video import write_video
from tests.ingest.test_ingest import SAMPLING, chunk_row, contents, end_row, manifest, row_of, written

FIRST = datetime(2026, 3, 1, 12, tzinfo=UTC)
NO_REJECTS = REJECTS_SCHEMA.empty_table()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files a, b, c that are no videos: nothing here decodes them."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abc":
        (folder / f"{name}.mp4").write_bytes(name.encode() * 100)
    return folder


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))


NAMED = "uri,video_id,camera_id,start_time,person_id\n"
PLAIN = NAMED + "a.mp4,a,cam1,2026-03-01T12:00:00Z,\nb.mp4,b,,,\nc.mp4,c,,,\n"


def taken_in(gallery: Gallery, catalog: Catalog, rejected: tuple[str, ...] = (), value: float = 1.0) -> pa.Table:
    """Commit made-up frames of every source of a catalog, or a reject; returns the catalog with the states it had then."""
    table = with_states(catalog.table)
    committer = Committer(gallery, table)
    for row in table.to_pylist():
        source_id = row["source_id"]
        if source_id in rejected:
            rows = [end_row(source_id, 0, fatal=True, video_id=source_id, reason="truncated", message="cut off")]
        else:
            end = end_row(source_id, 1, source_hash=source_hash(row["uri"]), fps=10.0, source_frames=20, width=8, height=8)
            rows = [chunk_row(source_id, 0, 20, value), end]
        committer.add(written(gallery, rows))
    return table


def found(gallery: Gallery, catalog: Catalog) -> Changes:
    return find_changes(with_states(catalog.table), gallery, gallery.snapshot())


def age(path: Path, seconds: float) -> None:
    """Set a file's time of modification to so many seconds ago."""
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def correct(gallery: Gallery, changes: Changes) -> str:
    return gallery.commit(changes.corrections, NO_REJECTS, kind="correct")


# which sources have changed


def test_what_did_not_change_is_not_named(gallery: Gallery, folder: Path) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog)
    changes = found(gallery, catalog)
    assert (changes.changed, changes.again, len(changes.corrections)) == (frozenset(), frozenset(), 0)
    stat = (folder / "a.mp4").stat()
    row = row_of(gallery, "a")
    assert row["source_size"] == stat.st_size == 100
    assert row["source_mtime"] == datetime.fromtimestamp(0, UTC) + timedelta(microseconds=stat.st_mtime_ns // 1000)


def test_a_file_that_grew_and_one_with_other_bytes_of_the_same_size_have_changed(gallery: Gallery, folder: Path) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog)
    (folder / "a.mp4").write_bytes(b"a" * 101)
    (folder / "b.mp4").write_bytes(b"x" * 100)
    age(folder / "b.mp4", -5)
    assert found(gallery, catalog).changed == {"a", "b"}


def test_the_same_bytes_with_another_time_have_not_changed_and_are_not_hashed_again(
    gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog)
    shutil.copyfile(folder / "a.mp4", folder / "copy")
    (folder / "copy").replace(folder / "a.mp4")
    age(folder / "a.mp4", 3600)
    changes = found(gallery, catalog)
    assert not changes.changed and changes.corrected == 0 and changes.corrections["video_id"].to_pylist() == ["a"]
    correct(gallery, changes)
    hashed: list[str] = []
    monkeypatch.setattr("pipeline.ingest.source_changes.source_hash", hashed.append)
    assert len(found(gallery, catalog).corrections) == 0 and hashed == []


def test_a_source_that_is_gone_has_not_changed(gallery: Gallery, folder: Path) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog)
    (folder / "a.mp4").unlink()
    assert not found(gallery, catalog).changed


def test_images_that_were_added_or_painted_over_change_a_folder(gallery: Gallery, tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        (tmp_path / "in" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "in" / name / f"{number}.jpg").write_bytes(b"image")
    catalog = read_catalog(str(tmp_path / "in"))
    taken_in(gallery, catalog)
    assert not found(gallery, catalog).changed
    (tmp_path / "in" / "x" / "3.jpg").write_bytes(b"image")
    (tmp_path / "in" / "y" / "1.jpg").write_bytes(b"other")
    age(tmp_path / "in" / "y" / "1.jpg", -5)
    assert {name.split("-")[0] for name in found(gallery, catalog).changed} == {"x", "y"}


def test_another_boxes_file_new_boxes_and_another_frame_rate_are_changes_but_what_a_folder_does_not_say_is_not(
    gallery: Gallery, folder: Path
) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("1,1,0,0,9,9")
    head = "uri,video_id,boxes_uri,frame_rate\n"
    taken_in(gallery, manifest(folder, head + "a.mp4,a,a.txt,25\nb.mp4,b,b.txt,\nc.mp4,c,,25\n"))
    assert not found(gallery, manifest(folder, head + "a.mp4,a,a.txt,25\nb.mp4,b,b.txt,\nc.mp4,c,,\n")).changed
    assert not found(gallery, manifest(folder, "uri,video_id\na.mp4,a\nb.mp4,b\nc.mp4,c\n")).changed
    assert found(gallery, manifest(folder, head + "a.mp4,a,b.txt,25\nb.mp4,b,b.txt,\nc.mp4,c,,12.5\n")).changed == {"a", "c"}
    (folder / "b.txt").write_text("1,1,0,0,8,8\n2,1,0,0,8,8")
    assert found(gallery, manifest(folder, head + "a.mp4,a,a.txt,25\nb.mp4,b,b.txt,\nc.mp4,c,,\n")).changed == {"b"}


def test_in_a_gallery_of_an_older_version_files_modified_since_are_compared_by_their_hash(gallery: Gallery, folder: Path) -> None:
    catalog = manifest(folder, PLAIN)
    for name in "abc":
        age(folder / f"{name}.mp4", 3600)
    taken_in(gallery, catalog)
    older = gallery.snapshot().videos.drop_columns(["source_size", "source_mtime", "boxes_size", "boxes_mtime", "frame_rate"])
    gallery.commit(older, NO_REJECTS)
    assert not found(gallery, catalog).changed
    (folder / "a.mp4").write_bytes(b"other")
    age(folder / "a.mp4", -5)
    age(folder / "b.mp4", -3700)
    changes = found(gallery, catalog)
    assert changes.changed == {"a"} and changes.corrections["video_id"].to_pylist() == ["b"]


def test_a_reject_is_tried_again_once_its_file_was_completed_and_not_before(gallery: Gallery, folder: Path) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog, rejected=("a", "b"))
    assert not found(gallery, catalog).again
    with (folder / "a.mp4").open("ab") as file:
        file.write(b"the rest")
    changes = found(gallery, catalog)
    assert changes.again == {"a"} and not changes.changed


def test_a_missing_file_is_tried_again_when_it_is_there_however_old_it_is(gallery: Gallery, folder: Path) -> None:
    (folder / "a.mp4").rename(folder / "elsewhere")
    catalog = manifest(folder, PLAIN)
    row = {"uri": str(folder / "a.mp4"), "video_id": "a", "source_id": "a", "reason": "missing", "rejected_at": datetime.now(UTC)}
    gallery.commit(VIDEOS_SCHEMA.empty_table(), pa.Table.from_pylist([row], REJECTS_SCHEMA))
    assert not found(gallery, catalog).again
    (folder / "elsewhere").rename(folder / "a.mp4")
    age(folder / "a.mp4", 3600)
    assert found(gallery, catalog).again == {"a"}


def test_what_was_forgotten_is_not_named_and_does_not_come_back(gallery: Gallery, folder: Path) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog)
    forget(gallery, Selection(("a",)), "a test")
    (folder / "a.mp4").write_bytes(b"other")
    (folder / "b.mp4").write_bytes(b"other")
    assert found(gallery, catalog).changed == {"b"}


# corrections


def test_a_corrected_manifest_changes_camera_label_and_times_and_nothing_else(gallery: Gallery, folder: Path) -> None:
    taken_in(gallery, manifest(folder, PLAIN))
    before, features = {name: row_of(gallery, name) for name in "abc"}, contents(gallery)
    text = NAMED + "a.mp4,a,cam2,2026-03-01T13:00:00Z,\nb.mp4,b,,2026-03-01T12:00:00Z,p1\nc.mp4,c,,,\n"
    changes = found(gallery, manifest(folder, text))
    assert changes.corrected == len(changes.corrections) == 2 and not changes.changed
    correct(gallery, changes)
    hour = timedelta(hours=1)
    shifted = {name: before["a"][name] + hour for name in ("start_time", "seen_from", "seen_to")}
    assert row_of(gallery, "a") == before["a"] | {"camera_id": "cam2"} | shifted
    # Frames 0 to 19 of ten a second, as chunk_row writes them:
    b = row_of(gallery, "b")
    assert (b["person_id"], b["start_time"], b["seen_from"]) == ("p1", FIRST, FIRST)
    assert abs(b["seen_to"] - (FIRST + timedelta(seconds=1.9))) < timedelta(milliseconds=1)
    assert row_of(gallery, "c") == before["c"]
    assert all(np.array_equal(features[name], now) for name, now in contents(gallery).items())
    assert found(gallery, manifest(folder, text)).corrected == 0


def test_an_empty_value_corrects_nothing_and_a_sources_label_is_not_its_tracks(gallery: Gallery, folder: Path) -> None:
    taken_in(gallery, manifest(folder, PLAIN))
    row = row_of(gallery, "b") | {"track": 7, "video_id": "b#7"}
    gallery.commit(pa.Table.from_pylist([row], VIDEOS_SCHEMA), NO_REJECTS)
    changes = found(gallery, manifest(folder, NAMED + "a.mp4,a,,,\nb.mp4,b,cam9,,p1\nc.mp4,c,,,\n"))
    correct(gallery, changes)
    assert row_of(gallery, "a")["camera_id"] == "cam1" and row_of(gallery, "a")["start_time"] == FIRST
    assert (row_of(gallery, "b#7")["camera_id"], row_of(gallery, "b#7")["person_id"]) == ("cam9", None)


def test_a_correction_survives_a_compaction_that_ran_at_the_same_time(
    gallery: Gallery, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_in(gallery, manifest(folder, PLAIN))
    features = contents(gallery)
    changes = found(gallery, manifest(folder, NAMED + "a.mp4,a,cam2,,\nb.mp4,b,,,\nc.mp4,c,,,\n"))
    compact(gallery)  # deletes the shards that the corrections were read beside
    correct(gallery, changes)
    assert row_of(gallery, "a")["camera_id"] == "cam2"
    assert all(np.array_equal(features[name], now) for name, now in contents(gallery).items())
    rewrite = compaction._rewrite

    def interrupted(opened: Gallery, *arguments: Any) -> None:
        correct(opened, found(opened, manifest(folder, NAMED + "a.mp4,a,cam3,,\nb.mp4,b,,,\nc.mp4,c,,,\n")))
        rewrite(opened, *arguments)

    monkeypatch.setattr(compaction, "_rewrite", interrupted)
    compact(gallery)
    monkeypatch.setattr(compaction, "_rewrite", rewrite)
    assert row_of(gallery, "a")["camera_id"] == "cam3"
    compact(gallery)
    assert row_of(gallery, "a")["camera_id"] == "cam3"
    assert all(np.array_equal(features[name], now) for name, now in contents(gallery).items())


def test_a_correction_of_what_was_ingested_anew_meanwhile_neither_brings_rows_back_nor_changes_the_new_ones(
    gallery: Gallery, folder: Path
) -> None:
    catalog = manifest(folder, PLAIN)
    taken_in(gallery, catalog)
    late = found(gallery, manifest(folder, NAMED + "a.mp4,a,cam2,,\nb.mp4,b,,,\nc.mp4,c,cam2,,\n"))
    taken_in(gallery, catalog, rejected=("c",), value=2.0)
    correct(gallery, late)
    assert row_of(gallery, "a")["camera_id"] == "cam1" and contents(gallery)["a"][0, 0] == 2.0
    snapshot = gallery.snapshot()
    assert snapshot.videos["video_id"].to_pylist() == ["a", "b"] and snapshot.rejects["video_id"].to_pylist() == ["c"]


# files that are still written


def test_a_file_that_grows_while_it_is_decoded_is_left_and_not_rejected(gallery: Gallery, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", frames=30).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").write_bytes(whole[: len(whole) // 2])
    table = with_states(read_catalog(str(tmp_path / "in")).table)
    source = table.to_pylist()[0]
    committer = Committer(gallery, table)
    with Decoder(SAMPLING) as decoder:
        assert [row["reason"] for row in decode_source(decoder, source)] == ["truncated"]
        (tmp_path / "in" / "a.mp4").write_bytes(whole)
        rows = list(decode_source(decoder, source))
        assert rows[-1]["reason"] == STILL_CHANGING and rows[-1]["fatal"]
        end = end_row(source["source_id"], 1, **{name: rows[-1][name] for name in ("fatal", "reason", "message", "video_id")})
        committer.add(written(gallery, [chunk_row(source["source_id"], 0, 10, 1), end]))
        assert committer.left == {source["source_id"]} and not committer.committed and not gallery.log.head()
        source = with_states(read_catalog(str(tmp_path / "in")).table).to_pylist()[0]
        assert not list(decode_source(decoder, source))[-1]["fatal"]


def test_a_boxes_file_that_is_written_is_seen_and_a_file_that_goes_away_is_not_being_written(folder: Path) -> None:
    (folder / "a.txt").write_text("1,1,0,0,9,9")
    source = with_states(manifest(folder, "uri,boxes_uri\na.mp4,a.txt\n").table).to_pylist()[0]
    assert not is_changing(source)
    (folder / "a.mp4").unlink()
    assert not is_changing(source)
    (folder / "a.txt").write_text("1,1,0,0,9,9\n2,1,0,0,9,9")
    assert is_changing(source)


def test_a_quiet_period_leaves_young_files_and_boxes(folder: Path) -> None:
    (folder / "c.txt").write_text("1,1,0,0,9,9")
    age(folder / "a.mp4", 100)
    age(folder / "c.mp4", 100)
    table = with_states(manifest(folder, "uri,boxes_uri\na.mp4,\nb.mp4,\nc.mp4,c.txt\nabsent.mp4,\n").table)
    young = table.filter(too_young(table, 30))
    assert sorted(Path(uri).name for uri in young["uri"].to_pylist()) == ["b.mp4", "c.mp4"]


# taking in again


def test_a_source_of_the_gallery_that_cannot_be_reached_keeps_its_videos(gallery: Gallery, folder: Path) -> None:
    table = taken_in(gallery, manifest(folder, PLAIN))
    committer = Committer(gallery, table, replaced={"a", "b"})
    for source_id, reason in (("a", "unavailable"), ("b", "truncated")):
        committer.add(written(gallery, [end_row(source_id, 0, fatal=True, video_id=source_id, reason=reason, message="m")]))
    assert committer.left == {"a"} and committer.committed == {"b"}
    assert gallery.snapshot().videos["video_id"].to_pylist() == ["a", "c"]
