"""Nothing is answered without a record, of what fails neither."""

import hashlib
import re
import socket
import subprocess
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.backbone.spec import DEFAULT, find_backbone
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.source_hash import source_hash
from pipeline.errors import PipelineError
from pipeline.gallery.audit import append_record, read_records, user, verify
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, feature_matrix
from pipeline.index.build import build_index
from pipeline.settings import IndexSettings, ScoreSettings
from tests.jobs.commands import command


def test_a_search_that_fails_is_recorded_too(toy_gallery: Gallery) -> None:
    asked = ["search", "id:v003", "--gallery", toy_gallery.location.uri, "--reason", "lost child", "--camera", "cam9"]
    build_index(toy_gallery, IndexSettings(8, 4))
    ended = command(*asked)
    assert ended.code == 2
    (record,) = read_records(toy_gallery)
    assert record["failed"] == "the gallery has no camera 'cam9'; it has cam0, cam1"
    assert (record["action"], record["target"], record["reason"], record["filters"]) == (
        "search",
        "v003",
        "lost child",
        ["camera cam9"],
    )
    assert record["target_hash"].startswith("features:") and "results" not in record and verify(toy_gallery) == []


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("id:v999", "v999"),
        ("/nowhere/\udce9.mp4", "is not UTF-8"),
        ("/nowhere/a.mp4", "has no backbone toy"),
        ("id:v003", "has no index yet"),
    ],
    ids=["an unknown id", "a name that is not UTF-8", "no backbone", "no index"],
)
def test_a_search_that_fails_before_its_targets_are_read_is_recorded_too(toy_gallery: Gallery, target: str, words: str) -> None:
    if "no index" not in words:
        build_index(toy_gallery, IndexSettings(8, 4))
    ended = command("search", target, "id:v004", "--gallery", toy_gallery.location.uri, "--reason", "lost child")
    assert ended.code in (1, 2) and ended.out == ""
    records = read_records(toy_gallery)
    assert [record["target"] for record in records] == [target.replace("\udce9", "\\udce9"), "id:v004"]
    for record in records:
        assert words in record["failed"] and "results" not in record
        assert (record["action"], record["reason"], record["who"]) == ("search", "lost child", user())
        assert datetime.fromisoformat(record["started_at"]) <= datetime.fromisoformat(record["ended_at"])
    assert verify(toy_gallery) == []


def test_an_interrupted_search_is_recorded_too(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    build_index(toy_gallery, IndexSettings(8, 4))
    monkeypatch.setattr("pipeline.search.search.search_many", interrupted)
    assert command("search", "id:v003", "--gallery", toy_gallery.location.uri).code == 130
    (record,) = read_records(toy_gallery)
    assert (record["target"], record["failed"]) == ("v003", "cancelled")


def test_an_evaluation_that_fails_is_recorded_too(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("uri,person_id,camera_id\nabsent.mp4,p1,c1\n")
    Gallery.open_or_create(tmp_path / "out/gallery", GallerySettings(find_backbone(DEFAULT), 10.0, None)).commit(
        VIDEOS_SCHEMA.empty_table(), absent_reject(tmp_path)
    )
    ended = command("evaluate", "--data", str(tmp_path / "m.csv"), "--out", str(tmp_path / "out"), "--reason", "a test")
    assert ended.code in (1, 2), ended.err
    (record,) = read_records(Gallery.open(tmp_path / "out/gallery"))
    assert (record["action"], record["data"], record["reason"]) == ("evaluate", str(tmp_path / "m.csv"), "a test")
    assert record["failed"] and "queries" not in record


def absent_reject(folder: Path) -> pa.Table:
    """That the one input was refused before: nothing is ingested, and Ray need not start."""
    (row,) = read_catalog(str(folder / "m.csv")).table.to_pylist()
    reject = {"uri": row["uri"], "video_id": row["source_id"], "source_id": row["source_id"], "reason": "missing"}
    return pa.Table.from_pylist([reject], schema=REJECTS_SCHEMA)


def ranked_ids(output: str) -> list[str]:
    """The video ids of the tables that jobs.search prints."""
    return re.findall(r"^ *\d+  [\d.]+  +[\d.-]+  [ *] (\S+)", output, re.MULTILINE)


def test_a_search_is_recorded_with_its_reason_case_user_and_results(toy_gallery: Gallery) -> None:
    index = build_index(toy_gallery)
    asked = ["--top", "6", "--camera", "cam1", "--reason", "lost child", "--case", "2026/117"]
    ended = command("search", "id:v000", "id:v017", "--gallery", toy_gallery.location.uri, *asked)
    assert ended.code == 0, ended.err
    records = read_records(toy_gallery)
    assert [record["target"] for record in records] == ["v000", "v017"]
    for record in records:
        assert (record["action"], record["who"], record["host"]) == ("search", user(), socket.gethostname())
        assert (record["reason"], record["case"]) == ("lost child", "2026/117")
        assert (record["gallery"], record["index_version"], record["filters"]) == (
            toy_gallery.location.uri,
            index.version,
            ["camera cam1"],
        )
        assert record["settings"]["score"] == asdict(ScoreSettings()) and record["settings"]["expected_matches"] is None
        assert record["gallery_videos"] == 40
    assert [video_id for record in records for video_id in record["results"]] == ranked_ids(ended.out)
    assert len(ranked_ids(ended.out)) == 12 and verify(toy_gallery) == []
    for record in records:
        assert datetime.fromisoformat(record["started_at"]) < datetime.fromisoformat(record["ended_at"])
        row = next(row for row in toy_gallery.snapshot().videos.to_pylist() if row["video_id"] == record["target"])
        features = feature_matrix(toy_gallery.read_video(row)).tobytes()
        assert record["target_hash"] == f"features:{hashlib.sha256(features).hexdigest()}"
        assert record["gallery_version"] == str(toy_gallery.log.head())
        assert record["calibration_version"] is None and record["model"] == index.model


def test_a_source_is_named_by_what_sha256sum_says_of_it(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"bytes of a video")
    assert source_hash(str(tmp_path / "video.mp4")) == f"file:{hashlib.sha256(b'bytes of a video').hexdigest()}"
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("0002.jpg", "0001.jpg", "notes.txt"):
        (folder / name).write_bytes(name.encode())
    listed = subprocess.run(["sha256sum", "0001.jpg", "0002.jpg"], cwd=folder, capture_output=True, check=True).stdout
    assert source_hash(str(folder)) == source_hash(f"{folder}/*.jpg") == f"images:{hashlib.sha256(listed).hexdigest()}"


def test_a_search_without_a_reason_is_recorded_too(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    assert command("search", "id:v000", "--gallery", toy_gallery.location.uri).code == 0
    (record,) = read_records(toy_gallery)
    assert (record["target"], record["reason"], record["case"]) == ("v000", None, None)


def test_the_record_comes_before_the_answer(toy_gallery: Gallery, tmp_path: Path) -> None:
    build_index(toy_gallery)
    Path(toy_gallery.location.path, "audit").write_text("a file where the log should be")
    ended = command("search", "id:v000", "--gallery", toy_gallery.location.uri, "--out", str(tmp_path / "out"))
    assert ended.code == 1 and "audit" in ended.sentence
    assert ended.out == "" and not (tmp_path / "out").exists()


def test_a_log_that_cannot_be_written_is_an_error_that_names_it(toy_gallery: Gallery) -> None:
    Path(toy_gallery.location.path, "audit").write_text("a file where the log should be")
    with pytest.raises(PipelineError, match="audit"):
        append_record(toy_gallery, "search", {})
