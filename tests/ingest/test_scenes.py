"""Whole pictures that are given as videos of one person each: seen before the ingest, and said after it."""

from pathlib import Path

import pyarrow as pa
import pytest

from jobs import ingest as job
from jobs.ingest import describe
from pipeline.catalog.inputs import read_catalog
from pipeline.decoding.sampling import Sampling
from pipeline.errors import UsageError
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery, GallerySettings
from pipeline.ingest.run import IngestSummary
from pipeline.ingest.scenes import LOOKED_AT, Scenes, scenes_among, whole_scenes
from tests.conftest import toy_spec
from tests.decoding.test_video import write_video
from tests.jobs.test_jobs import command

SCENE, CROP, LARGE_CROP, SMALL_SCENE = (768, 576), (64, 128), (576, 768), (320, 240)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def found(folder: Path, known: pa.Array | None = None) -> Scenes:
    return scenes_among(read_catalog(folder).table, Sampling(), known)


def gallery_of(folder: Path, *rows: dict) -> Gallery:
    gallery = Gallery.open_or_create(folder, GallerySettings(toy_spec(), 10.0, None))
    gallery.commit(pa.Table.from_pylist([{"source_id": row["video_id"], **row} for row in rows], VIDEOS_SCHEMA))
    return gallery


def test_a_picture_is_a_scene_by_its_size_and_shape(folder: Path) -> None:
    for name, size in {"scene": SCENE, "crop": CROP, "large": LARGE_CROP, "small": SMALL_SCENE}.items():
        write_video(folder / f"{name}.mp4", frames=2, size=size)
    assert found(folder) == Scenes(4, (f"{folder}/scene.mp4 (768 x 576)",)) and not found(folder).all_of_them


def test_a_few_are_looked_at_of_many_and_what_cannot_be_read_says_nothing(folder: Path) -> None:
    for number in range(LOOKED_AT + 3):
        write_video(folder / f"{number:02d}.mp4", frames=1, size=SCENE)
    assert found(folder).looked_at == LOOKED_AT and found(folder).all_of_them
    known = read_catalog(folder).table["source_id"].combine_chunks()
    assert found(folder, known) == Scenes()
    (folder / "00.mp4").write_text("no video")
    assert found(folder).looked_at == LOOKED_AT - 1 and found(folder).all_of_them


def test_boxes_say_who_is_where_in_a_scene(folder: Path) -> None:
    write_video(folder / "a.mp4", frames=2, size=SCENE)
    (folder / "boxes.txt").write_text("1,1,5,5,50,100\n")
    (folder / "manifest.csv").write_text("uri,boxes_uri\na.mp4,boxes.txt\n")
    assert scenes_among(read_catalog(folder / "manifest.csv").table, Sampling()) == Scenes()


def test_a_folder_of_recordings_without_a_detector_is_refused_and_makes_no_gallery(folder: Path, tmp_path: Path) -> None:
    for name in "ab":
        write_video(folder / f"{name}.mp4", frames=2, size=SCENE)
    ended = command("ingest", str(folder), "--gallery", str(tmp_path / "gallery"))
    assert ended.code == 2 and not (tmp_path / "gallery").exists()
    assert "2 of 2 inputs that were looked at show whole scenes without boxes" in ended.sentence
    for remedy in ("--detector yolox_nano", "rendered", "boxes_uri", "--whole-picture"):
        assert remedy in ended.sentence
    both = command("ingest", str(folder), "--gallery", str(tmp_path / "gallery"), "--detector", "rendered", "--whole-picture")
    assert both.code == 2 and "not both" in both.sentence


@pytest.mark.parametrize("why", ["some only", "asked for", "there are such already"])
def test_large_clips_that_are_meant_are_said_and_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], why: str
) -> None:
    write_video(folder / "scene.mp4", frames=2, size=SCENE)
    if why == "some only":
        write_video(folder / "crop.mp4", frames=2, size=CROP)
    if why == "there are such already":
        gallery_of(tmp_path / "gallery", {"video_id": "x", "width": 768, "height": 576})
    job.refuse_scenes(read_catalog(folder), str(tmp_path / "gallery"), Sampling(), why == "asked for")
    said = capsys.readouterr().err
    assert "whole scenes without boxes, such as" in said and "scene.mp4 (768 x 576)" in said and "--detector" in said


def test_crops_of_one_person_in_the_gallery_excuse_no_scenes(folder: Path, tmp_path: Path) -> None:
    write_video(folder / "scene.mp4", frames=2, size=SCENE)
    gallery_of(tmp_path / "gallery", {"video_id": "x", "width": 64, "height": 128})
    with pytest.raises(UsageError, match="1 of 1 inputs"):
        job.refuse_scenes(read_catalog(folder), str(tmp_path / "gallery"), Sampling(), False)


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
