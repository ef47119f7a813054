"""Whole pictures that are given as videos of one person each: seen before the ingest, and said after it."""

from pathlib import Path

import pyarrow as pa
import pytest

from jobs import ingest as job
from jobs.ingest import describe
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.sampling import Sampling
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.gallery.state import Snapshot
from pipeline.ingest.run import IngestSummary
from pipeline.ingest.scenes import LOOKED_AT, Scenes, scenes_among, whole_scenes
from tests.conftest import toy_spec
from tests.decoding.test_video import write_video

NOTHING = Snapshot(VIDEOS_SCHEMA.empty_table(), REJECTS_SCHEMA.empty_table())
SCENE, CROP, LARGE_CROP, SMALL_SCENE = (768, 576), (64, 128), (576, 768), (320, 240)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def found(folder: Path, there: Snapshot | None = None) -> Scenes:
    return scenes_among(read_catalog(folder).table, Sampling(), there or NOTHING)


def gallery_of(folder: Path, *rows: dict) -> Gallery:
    gallery = Gallery.open_or_create(folder, GallerySettings(toy_spec(), 10.0, None))
    gallery.commit(pa.Table.from_pylist([{"source_id": row["video_id"], **row} for row in rows], VIDEOS_SCHEMA))
    return gallery


def test_a_picture_is_a_scene_by_its_size_and_shape(folder: Path) -> None:
    for name, size in {"scene": SCENE, "crop": CROP, "large": LARGE_CROP, "small": SMALL_SCENE}.items():
        write_video(folder / f"{name}.mp4", frames=2, size=size)
    assert found(folder) == Scenes(4, (f"{folder}/scene.mp4 (768 x 576)",))


def test_a_few_are_looked_at_of_many_and_what_cannot_be_read_says_nothing(folder: Path) -> None:
    for number in range(LOOKED_AT + 3):
        write_video(folder / f"{number:02d}.mp4", frames=1, size=SCENE)
    assert found(folder).looked_at == LOOKED_AT
    ids = read_catalog(folder).table["source_id"].to_pylist()
    assert found(folder, gallery_of(folder.parent / "all", *({"video_id": one} for one in ids)).snapshot()) == Scenes()
    but_two = gallery_of(folder.parent / "most", *({"video_id": one} for one in ids[:-2])).snapshot()
    assert found(folder, but_two).looked_at == 2
    (folder / "00.mp4").write_text("no video")
    assert found(folder).looked_at == LOOKED_AT - 1


def test_boxes_say_who_is_where_in_a_scene(folder: Path) -> None:
    write_video(folder / "a.mp4", frames=2, size=SCENE)
    (folder / "boxes.txt").write_text("1,1,5,5,50,100\n")
    (folder / "manifest.csv").write_text("uri,boxes_uri\na.mp4,boxes.txt\n")
    assert scenes_among(read_catalog(folder / "manifest.csv").table, Sampling(), NOTHING) == Scenes()


@pytest.mark.parametrize("others", [0, 1])
def test_recordings_that_are_given_without_a_detector_are_said_before_the_ingest(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], others: int
) -> None:
    write_video(folder / "scene.mp4", frames=2, size=SCENE)
    for number in range(others):
        write_video(folder / f"crop{number}.mp4", frames=2, size=CROP)
    job.warn_of_scenes(read_catalog(folder), gallery_of(tmp_path / "gallery"), Sampling())
    said = capsys.readouterr().err
    assert f"1 of {1 + others} inputs that were looked at show whole scenes without boxes, such as" in said
    for words in ("scene.mp4 (768 x 576)", "--detector yolox_nano", "rendered", "boxes_uri"):
        assert words in said


def test_nothing_is_said_of_clips_and_of_what_the_gallery_has(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(folder / "scene.mp4", frames=2, size=SCENE)
    (source,) = read_catalog(folder).table["source_id"].to_pylist()
    there = gallery_of(tmp_path / "gallery", {"video_id": source, "width": 768, "height": 576})
    write_video(folder / "crop.mp4", frames=2, size=CROP)
    job.warn_of_scenes(read_catalog(folder), there, Sampling())
    assert capsys.readouterr().err == ""


def test_scenes_without_boxes_are_counted_of_what_stands_in_the_gallery(tmp_path: Path) -> None:
    of_size = {"width": 768, "height": 576}
    rows = [{"video_id": f"s{number}", "uri": f"/s{number}.mp4", **of_size} for number in range(3)]
    rows += [{"video_id": "t#1", "uri": "/t.mp4", "track": 1, **of_size}, {"video_id": "old", "uri": "/old.mp4"}]
    rows += [{"video_id": "c", "uri": "/c.mp4", "width": 576, "height": 768}]
    videos = gallery_of(tmp_path / "gallery", *rows).snapshot().videos
    assert whole_scenes(videos, 2) == (3, ("/s0.mp4", "/s1.mp4"))
    assert whole_scenes(videos, 2, pa.array(["s2", "c"])) == (1, ("/s2.mp4",))


def test_the_summary_names_scenes_and_the_remedy() -> None:
    text = describe(IngestSummary(9, scenes=7, such_scenes=("/a.mp4", "/b.mp4")), "/in", "/g", "b")
    assert "7 videos look like whole scenes and have no boxes, so that each is searched as one person; " in text
    assert "\n    /a.mp4\n    /b.mp4\n    and 5 more\n" in text and "--detector yolox_nano" in text
    assert "whole scenes" not in describe(IngestSummary(9), "/in", "/g", "b")
