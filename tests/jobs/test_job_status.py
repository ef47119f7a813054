"""What jobs.ingest and jobs.status say of what was passed over, guessed or given twice, and how it stands in a terminal."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.command_line import printable
from jobs.ingest import describe
from pipeline.gallery import audit
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.source_notes import source_notes
from pipeline.ingest.run import IngestSummary
from tests.conftest import toy_spec
from tests.decoding.test_video import write_video
from tests.jobs.commands import SIZE, command, process

HOSTILE = "a\x1b[2Jb\u202ec\u2066d\u200fe\x9bf\x07g"
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
ROWS = [
    {"video_id": "a#1", "source_id": "a", "ingested_hash": "x", "passed_over": 5, "remarks": ["cut at 3 s"]},
    {"video_id": "a#2", "source_id": "a", "ingested_hash": "x", "passed_over": 5, "remarks": ["cut at 3 s"]},
    {"video_id": "b", "source_id": "b", "ingested_hash": "x", "passed_over": 0, "remarks": ["cut at 10 s"]},
    {"video_id": HOSTILE, "source_id": HOSTILE, "ingested_hash": "x", "camera_id": HOSTILE, "remarks": [HOSTILE]},
    {"video_id": "old", "source_id": "old"},
]
NOTES = [
    "  passed over   5 packets or images that cannot be decoded, of 1 input",
    "  remarks       2 kinds: what was guessed or mended in reading",
    "        2 cut at N s (such as a)",
    "        1 a?[NJb?c?d?e?f?g (such as a?[2Jb?c?d?e?f?g)",
    "  equal bytes   3 inputs have the same bytes as another one",
    "    a = a?[2Jb?c?d?e?f?g = b",
]


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    gallery = Gallery.open_or_create(tmp_path / "gallery", GallerySettings(toy_spec(), 10.0, None))
    rejects = pa.Table.from_pylist([{"video_id": "r", "source_id": "r", "reason": "empty"}], REJECTS_SCHEMA)
    gallery.commit(pa.Table.from_pylist(ROWS, VIDEOS_SCHEMA), rejects)
    return gallery


def test_a_terminal_is_given_nothing_that_steers_it_and_names_as_they_are() -> None:
    assert printable(HOSTILE) == "a?[2Jb?c?d?e?f?g"
    every = "".join(map(chr, range(0x11000)))
    assert STEERING.search(every) and not STEERING.search(printable(every)) and "\n" not in printable(every)
    for name in ("Grüße/日本\u3000語.mp4", "می\u200cخواهم", "क्\u200dष", "😀 a\xa0b"):
        assert printable(name) == name
    printable("\udce9").encode()  # of a name that is not UTF-8


def test_status_says_what_was_passed_over_guessed_and_given_twice(gallery: Gallery) -> None:
    ingest = {"source": HOSTILE, "inputs": 5, "already": 0, "not_read": f"3 files: 3 .txt; 1 image in {HOSTILE}"}
    audit.append_record(gallery, "ingest", ingest)
    ended = command("status", "--gallery", gallery.location.path)
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert [line for line in lines if line in NOTES] == NOTES
    assert "  not read      3 files: 3 .txt; 1 image in a?[2Jb?c?d?e?f?g" in lines
    assert not STEERING.search(ended.out)


def test_status_of_a_log_of_older_versions_says_nothing_of_files(gallery: Gallery) -> None:
    audit.append_record(gallery, "ingest", {"source": "in", "inputs": 4, "already": 0})
    ended = command("status", "--gallery", gallery.location.path)
    assert ended.code == 0 and "last ingest" in ended.out and "not read" not in ended.out


def test_the_summary_says_the_same(gallery: Gallery) -> None:
    notes = source_notes(gallery.snapshot().videos)
    summary = IngestSummary(4, candidates=5, reasons={"empty": 1}, not_read="1 file: 1 .txt", notes=notes)
    text = describe(summary, HOSTILE, "g", "b")
    assert [line for line in text.splitlines() if line in NOTES] == NOTES
    assert "\n  rejected      1\n        1 empty\n  not read      1 file: 1 .txt\n" in text
    assert not STEERING.search(text)


def test_an_error_on_a_file_whose_name_steers_terminals_does_not(tmp_path: Path) -> None:
    (tmp_path / f"{HOSTILE}.csv").write_text("id\n1\n")
    ended = command("ingest", str(tmp_path / f"{HOSTILE}.csv"), "--gallery", str(tmp_path / "gallery"))
    assert ended.code == 2 and "a?[2Jb?c?d?e?f?g.csv has no column uri" in ended.sentence
    assert not STEERING.search(ended.err)


@pytest.mark.ray
def test_an_ingest_names_what_it_did_not_read_and_so_does_status_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "covers").mkdir(parents=True)
    write_video(folder / "a.mp4")
    shutil.copy(folder / "a.mp4", folder / f"{HOSTILE}.mp4")
    for name in ("notes.txt", "more.TXT", "README", "covers/front.jpg"):
        (folder / name).write_text("x")
    ended = process("ingest", str(folder), "--gallery", str(tmp_path / "gallery"), *SIZE)
    assert ended.code == 0, ended.err
    not_read = f"3 files: 2 .txt, 1 without extension; 1 image in folders without numbered names, such as {folder}/covers"
    assert f"not read: {not_read}\n" in ended.err and f"  not read      {not_read}\n" in ended.out
    told = command("status", "--gallery", str(tmp_path / "gallery")).out
    assert f"  not read      {not_read}\n" in told
    ids = sorted(Gallery.open(tmp_path / "gallery").snapshot().videos["source_id"].to_pylist())
    for text in (ended.out, told):
        assert f"  equal bytes   2 inputs have the same bytes as another one\n    {' = '.join(ids)}\n" in text
        assert not STEERING.search(text)
    assert not STEERING.search(ended.err)
