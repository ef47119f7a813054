"""What it takes to check a lead stands beside it: source and hash, calibration, gallery, audit record; in careful words."""

import hashlib
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.backbone.spec import find_backbone
from pipeline.decoding import source_hash as source_hash_module
from pipeline.errors import UsageError
from pipeline.gallery import audit
from pipeline.gallery.gallery import REJECTS_SCHEMA, Gallery, GallerySettings
from pipeline.index.build import build_index
from pipeline.search.targets import gallery_backbone, read_targets, target_decoder
from tests.decoding.test_video import write_video
from tests.jobs.commands import command

PIPELINE = Path(__file__).parents[2] / "pipeline"


@pytest.fixture
def with_sources(toy_gallery: Gallery, tmp_path: Path) -> Gallery:
    """A gallery whose videos v001 and on have files that hold their ids; v000's is gone."""
    videos = toy_gallery.snapshot().videos
    ids = videos["video_id"].to_pylist()
    for video_id in ids[1:]:
        (tmp_path / video_id).write_text(video_id)
    uris = pa.array([str(tmp_path / video_id) for video_id in ids])
    toy_gallery.commit(videos.set_column(1, "uri", uris), REJECTS_SCHEMA.empty_table())
    build_index(toy_gallery)
    return toy_gallery


def test_results_say_what_it_takes_to_check_them(with_sources: Gallery, tmp_path: Path) -> None:
    gallery = ("--gallery", with_sources.location.uri)
    ended = command("search", "id:v001", *gallery, "--out", str(tmp_path / "r"), "--top", "40", "--no-report")
    assert ended.code == 0, ended.err
    rows = pq.read_table(tmp_path / "r" / "results.parquet").to_pylist()
    assert len(rows) == 39
    for row in rows:
        expected = None if row["video_id"] == "v000" else f"file:{hashlib.sha256(row['video_id'].encode()).hexdigest()}"
        assert row["source_hash"] == expected
        assert (row["gallery"], row["gallery_videos"]) == (with_sources.location.uri, 40)
        assert audit.verify(with_sources, row["audit_head"]) == []
    assert (tmp_path / "r" / "results.csv").read_text().count("file:") == 38


def test_a_source_that_is_no_longer_what_was_ingested_is_named(with_sources: Gallery, tmp_path: Path) -> None:
    videos = with_sources.snapshot().videos
    hashes = [f"file:{hashlib.sha256(name.encode()).hexdigest()}" for name in videos["video_id"].to_pylist()]
    known = videos.set_column(videos.schema.get_field_index("ingested_hash"), "ingested_hash", pa.array([None, *hashes[1:]]))
    with_sources.commit(known, REJECTS_SCHEMA.empty_table())
    build_index(with_sources)
    (tmp_path / "v007").write_text("another video")
    asked = ("--gallery", with_sources.location.uri, "--out", str(tmp_path / "r"), "--top", "40")
    ended = command("search", "id:v001", *asked)
    assert ended.code == 0, ended.err
    said = f"note: {tmp_path}/v007 is no longer the file that was ingested and scored"
    assert [line for line in ended.err.splitlines() if "no longer" in line] == [said]
    rows = pq.read_table(tmp_path / "r" / "results.parquet").to_pylist()
    changed = [row["video_id"] for row in rows if row["ingested_hash"] not in (None, row["source_hash"])]
    assert changed == ["v007"] and sum(row["ingested_hash"] is None for row in rows) == 1
    page = (tmp_path / "r" / "report.html").read_text()
    assert page.count("no longer the one that was ingested") == 1


def test_a_source_is_read_once_for_all_leads_and_targets(with_sources: Gallery, tmp_path: Path) -> None:
    asked = ("--gallery", with_sources.location.uri, "--out", str(tmp_path / "r"), "--top", "40", "--no-report")
    with mock.patch.object(source_hash_module, "content_hash", wraps=source_hash_module.content_hash) as read:
        assert command("search", "id:v001", "id:v002", *asked).code == 0
    assert read.call_count == 39  # all but the one that is gone


def test_a_report_of_another_search_does_not_stay_beside_results(with_sources: Gallery, tmp_path: Path) -> None:
    asked = ("--gallery", with_sources.location.uri, "--out", str(tmp_path / "r"))
    assert command("search", "id:v001", *asked).code == 0
    assert (tmp_path / "r" / "report.html").exists()
    assert command("search", "id:v002", *asked, "--no-report").code == 0
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["results.csv", "results.parquet"]


def test_a_targets_hash_is_of_the_bytes_that_were_decoded(tmp_path: Path, toy_backbone: Path) -> None:
    spec = find_backbone(str(toy_backbone))
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(spec, 10.0, None))
    clip = write_video(tmp_path / "a.mp4")
    content = clip.read_bytes()
    with target_decoder(gallery) as decoder:
        (target,) = read_targets([str(clip)], gallery, decoder)
    assert target.content == f"file:{hashlib.sha256(content).hexdigest()}"


def test_a_target_without_finite_features_is_refused(tmp_path: Path, toy_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(find_backbone(str(toy_backbone)), 10.0, None))
    clip = write_video(tmp_path / "a.mp4")
    backbone = gallery_backbone(gallery)  # before: loading looks at features as well
    monkeypatch.setattr(backbone, "embed", lambda frames: np.full((len(frames), 3), np.inf, np.float16))
    monkeypatch.setattr("pipeline.search.targets.gallery_backbone", lambda *_: backbone)
    with target_decoder(gallery) as decoder, pytest.raises(UsageError, match=r"no finite features for .*a\.mp4"):
        read_targets([str(clip)], gallery, decoder)


def test_sources_are_left_alone_when_asked(with_sources: Gallery, tmp_path: Path) -> None:
    asked = ("--gallery", with_sources.location.uri, "--out", str(tmp_path / "r"), "--no-report", "--no-hash-sources")
    assert command("search", "id:v001", *asked).code == 0
    assert set(pq.read_table(tmp_path / "r" / "results.parquet")["source_hash"].to_pylist()) == {None}


def test_the_words_shown_to_people_are_lead_and_never_match_found() -> None:
    shown = (PIPELINE / "search" / "report.html.j2").read_text() + (PIPELINE / "search" / "report.py").read_text()
    assert "These are leads, to be checked by a person." in shown
    assert not re.search(r"match(es)? found|identified as|positive match", shown, re.IGNORECASE)


def test_a_camera_id_cannot_steer_the_terminal(toy_gallery: Gallery) -> None:
    videos = toy_gallery.snapshot().videos
    cameras = pa.array(["cam\x1b[2J"] * len(videos))
    toy_gallery.commit(
        videos.set_column(videos.schema.get_field_index("camera_id"), "camera_id", cameras), REJECTS_SCHEMA.empty_table()
    )
    build_index(toy_gallery)
    ended = command("search", "id:v001", "--gallery", toy_gallery.location.uri)
    assert ended.out.count("cam?[2J") == 20 and "\x1b" not in ended.out
