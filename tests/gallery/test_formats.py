"""Galleries and indexes that releases wrote are read by every later one: the folders in tests/fixtures, one a release."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.coattention import calibration, head
from pipeline.coattention.calibration import Calibration
from pipeline.coattention.head import read_description
from pipeline.errors import PipelineError
from pipeline.gallery import audit, entries, gallery
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery
from pipeline.index import version_files as index
from pipeline.index.build import build_index
from pipeline.index.versions import open_index
from pipeline.retention.verify import verify_gallery
from pipeline.settings import IndexSettings
from pipeline.storage.seals import sealed, unsealed
from tests.write_format_fixture import found, write

PADDED = "0.1"
RELEASES = sorted(folder.name for folder in (Path(__file__).parents[1] / "fixtures").iterdir())


@pytest.fixture(params=RELEASES)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of what a release wrote: opening it must not need to change it, but a search adds to its audit log."""
    return Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / request.param, tmp_path / request.param))


def test_what_a_release_wrote_is_sound_and_searched_with_the_same_leads(written: Path) -> None:
    gallery = Gallery.open(written / "gallery")
    assert len(gallery.snapshot().videos) == 12 and verify_gallery(gallery) == []
    then = json.loads((written / "found.json").read_text())
    now = found(gallery)
    assert [video for video, _ in now] == [video for video, _ in then]
    # The first release counted the last frame of a video shorter than a segment several times.
    tolerance = 0.02 if written.name == PADDED else 2e-5
    assert [score for _, score in now] == pytest.approx([score for _, score in then], abs=tolerance)


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
    kept = Path(__file__).parents[1] / "fixtures" / RELEASES[-1] / "gallery"

    def columns(gallery: Path) -> list[pa.Schema]:
        """As they lie there: a snapshot has all columns of this version, whatever the files hold."""
        rows = json.loads((gallery / "commits/0000000001.json").read_text())["rows"]["videos"]
        tables = [pa.Table.from_pylist(rows).schema, pq.read_schema(next((gallery / "frames").glob("*.parquet")))]
        return [*tables, pa.ipc.open_file(next(gallery.glob("index/partitions/*/videos.arrow"))).schema]

    def formats(gallery: Path) -> list[int]:
        return [json.loads(next(gallery.glob(name)).read_text())["format"] for name in ("gallery.json", "index/*/manifest.json")]

    assert formats(kept) == formats(tmp_path / "now/gallery")
    assert columns(kept) == columns(tmp_path / "now/gallery")


def test_the_first_fixture_lacks_what_came_later() -> None:
    """Otherwise it would not show that older files are read."""
    first = next((Path(__file__).parents[1] / "fixtures/0.1/gallery/videos").iterdir())
    later = {"seen_from", "seen_to", "passed_over", "remarks", "frame_rate"}
    later |= {"source_size", "source_mtime", "boxes_size", "boxes_mtime"}
    assert later == {*VIDEOS_SCHEMA.names} - {*pq.read_schema(first).names}


def rewrite(file: Path, number: int) -> None:
    """Give a sealed document another number of its format; the seal stays right."""
    file.write_bytes(sealed({**unsealed(file.read_bytes()), "format": number}))


def in_gallery(folder: Path, number: int) -> None:
    rewrite(folder / "gallery.json", number)
    Gallery.open(folder)


def in_commit(folder: Path, number: int) -> None:
    rewrite(max((folder / "commits").iterdir()), number)
    Gallery.open(folder).snapshot()


def in_index(folder: Path, number: int) -> None:
    rewrite(next(folder.glob("index/*/manifest.json")), number)
    open_index(Gallery.open(folder))


def in_head(folder: Path, number: int) -> None:
    file = next(folder.glob("index/*/head/model.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": f"co-attention head {number}"}))
    read_description(file.parent)


def in_calibration(folder: Path, number: int) -> None:
    Calibration.from_json(json.dumps({"format": f"score calibration {number}"}), "here")


def in_audit_log(folder: Path, number: int) -> None:
    name = audit.append_record(Gallery.open(folder), "ingest", {})
    file = folder / "audit" / name
    file.write_text(json.dumps({**json.loads(file.read_text()), "format": number}))
    if faults := audit.verify(Gallery.open(folder)):
        raise PipelineError(faults[0])


@pytest.mark.parametrize(
    ("read", "oldest", "newest", "remedy"),
    [
        (in_gallery, gallery.OLDEST_FORMAT, gallery.FORMAT, "ingest"),
        (in_commit, entries.OLDEST_COMMIT, entries.COMMIT_FORMAT, "ingest"),
        (in_index, index.OLDEST_FORMAT, index.FORMAT, r"jobs\.index"),
        (in_head, head.OLDEST_FORMAT, head.FORMAT, r"jobs\.train"),
        (in_calibration, calibration.OLDEST_FORMAT, calibration.FORMAT, r"jobs\.calibrate"),
        (in_audit_log, audit.OLDEST_FORMAT, audit.FORMAT, "an older version"),
    ],
)
def test_a_format_that_is_not_read_is_one_sentence_with_the_remedy(
    tmp_path: Path, read: Callable[[Path, int], None], oldest: int, newest: int, remedy: str
) -> None:
    for number, advice in ((oldest - 1, remedy), (newest + 1, "use that or a later one")):
        folder = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / RELEASES[-1] / "gallery", tmp_path / str(number)))
        with pytest.raises(PipelineError, match=rf"has format {number}; this version reads formats? .*{newest}: .*{advice}"):
            read(folder, number)


def test_several_formats_are_a_range(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(Path(__file__).parents[1] / "fixtures" / RELEASES[-1] / "gallery", tmp_path / "gallery"))
    monkeypatch.setattr(gallery, "FORMAT", 4)
    in_gallery(folder, 1)
    in_gallery(folder, 2)
    with pytest.raises(PipelineError, match="has format 5; this version reads formats 1 to 4: a newer version wrote it"):
        in_gallery(folder, 5)
