"""Galleries and indexes that releases wrote are read by every later one: the folders in tests/fixtures, one a release."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.gallery import Gallery
from pipeline.index import open_index
from pipeline.index_build import build_index
from pipeline.settings import IndexSettings
from pipeline.verification import verify_gallery
from tests.write_format_fixture import found, write

RELEASES = sorted(folder.name for folder in (Path(__file__).parent / "fixtures").iterdir())


@pytest.fixture(params=RELEASES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a release wrote: opening it must not need to change it, but a search adds to its audit log."""
    return Path(shutil.copytree(Path(__file__).parent / "fixtures" / request.param, tmp_path / "release"))


def test_what_a_release_wrote_is_sound_and_searched_with_the_same_leads(written: Path) -> None:
    gallery = Gallery.open(written / "gallery")
    assert len(gallery.snapshot().videos) == 12 and verify_gallery(gallery) == []
    then = json.loads((written / "found.json").read_text())
    now = found(gallery)
    assert [video for video, _ in now] == [video for video, _ in then]
    assert [score for _, score in now] == pytest.approx([score for _, score in then], abs=2e-5)


def test_the_index_of_a_release_is_added_to(written: Path) -> None:
    gallery = Gallery.open(written / "gallery")
    built = build_index(gallery, IndexSettings(), base=open_index(gallery))
    assert [part["id"] for part in built.manifest["partitions"]] == [
        part["id"] for part in open_index(gallery).manifest["partitions"]
    ]
    assert len(built.videos) == 12


def test_the_newest_fixture_is_what_this_release_writes(tmp_path: Path) -> None:
    """A release that changes what it writes needs a fixture of its own: python -m tests.write_format_fixture."""
    write(tmp_path / "now")
    kept = Path(__file__).parent / "fixtures" / RELEASES[-1] / "gallery"

    def columns(gallery: Path) -> list[str]:
        return Gallery.open(gallery).snapshot().videos.schema.to_string().split("\n")

    def formats(gallery: Path) -> list[int]:
        return [json.loads(next(gallery.glob(name)).read_text())["format"] for name in ("gallery.json", "index/*/manifest.json")]

    assert formats(kept) == formats(tmp_path / "now/gallery")
    assert columns(kept) == columns(tmp_path / "now/gallery")
