"""A recording that was moved is the same recording: nothing is decoded, ids stay, and evidence is cut from where it lies now."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow as pa
import pytest

from pipeline.catalog.inputs import default_video_id, read_catalog
from pipeline.decoding.sampling import Sampling
from pipeline.errors import PipelineError
from pipeline.footage import run
from pipeline.footage.commit import Committer
from pipeline.footage.detect import DETECTED_SCHEMA
from pipeline.footage.recordings import Clocks, name_pattern, plan_recordings, timeline
from pipeline.footage.run import ingest_footage
from pipeline.footage.summary import FootageSummary
from pipeline.gallery.gallery import Gallery
from pipeline.gallery.video_ref import VideoRef
from pipeline.index.partition_store import as_indexed
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.search.evidence import SourcePictures
from pipeline.search.results import SegmentView
from tests.footage.made_up import candidates
from tests.footage.red_squares import worker, write_square
from tests.footage.test_recording_changes import Reader

NAMES = name_pattern("{camera}/%Y%m%d_%H%M%S.mp4")
FIRST, SECOND = "20260701_120000.mp4", "20260701_120003.mp4"


class SquaresReader(Reader):
    """Finds red squares in what is to be read."""

    def run(self, missing: pa.Table, gallery: Gallery, *more: object) -> None:
        people = worker(gallery)
        people.sampling = more[0]  # type: ignore[assignment]
        found = [row for table in people(missing) for row in table.to_pylist()]
        self.read += [Path(row["uri"]).name for row in found]
        committer = Committer(missing, gallery, *more[4:6], more[3])  # type: ignore[arg-type]
        committer.asked()
        committer.add(pa.Table.from_pylist(found, schema=DETECTED_SCHEMA))
        committer.flush()


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    found = SquaresReader(monkeypatch)
    monkeypatch.setattr(run, "load_detector", lambda *_, **__: type("Red", (), {"identity": "red@0"}))
    return found


@pytest.fixture
def nvr(tmp_path: Path) -> Path:
    write_square(tmp_path / "nvr/cam" / FIRST)
    write_square(tmp_path / "nvr/cam" / SECOND, frames=20)
    return tmp_path / "nvr"


def ingested(source: Path | str, gallery: Gallery, **how: bool) -> FootageSummary:
    plan = plan_recordings(read_catalog(source), NAMES, Clocks())
    return ingest_footage(plan, gallery, Sampling(rate=5.0, height=32, width=16), "red", source="nvr", **how)


def without_uri(found: dict[str, tuple]) -> dict[str, tuple]:
    return {video_id: said[1:] for video_id, said in found.items()}


def uris(gallery: Gallery) -> set[str]:
    now = gallery.snapshot()
    return {*now.videos["uri"].to_pylist(), *now.recordings["uri"].to_pylist()}


def archived(nvr: Path, gallery: Gallery, reader: Reader) -> dict[str, tuple]:
    """Ingest, move all to an archive, and ingest again; the candidates of before."""
    ingested(nvr, gallery)
    assert sorted(reader.read) == [FIRST, SECOND]
    reader.read.clear()
    before = candidates(gallery)
    (nvr / "archive").mkdir()
    (nvr / "cam").rename(nvr / "archive/cam")
    return before


def test_a_moved_recording_keeps_its_people_under_their_ids_at_its_new_place(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    before = archived(nvr, gallery, reader)
    position = gallery.snapshot().position
    summary = ingested(nvr, gallery)
    assert reader.read == [] and (summary.moved, summary.corrected, summary.already, summary.done) == (2, 0, 2, 0)
    assert before and without_uri(candidates(gallery)) == without_uri(before)
    assert uris(gallery) == {f"{nvr}/archive/cam/{name}" for name in (FIRST, SECOND)}
    assert summary.irregularities == [] and verify_gallery(gallery) == []
    assert gallery.snapshot().position == position + 1  # nobody is followed anew
    again = ingested(nvr, gallery)
    assert (again.moved, again.changed, again.already) == (0, (), 2) and gallery.snapshot().position == position + 1


def test_evidence_is_cut_from_where_a_recording_lies_now(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    ingested(nvr, gallery)
    indexed = gallery.snapshot().videos.to_pylist()[0]  # an index has it as it was until it is built anew
    (nvr.parent / "archived").mkdir()
    (nvr / "cam").rename(nvr.parent / "archived/cam")
    ingested(nvr.parent / "archived", gallery)
    frames = gallery.read_video(gallery.snapshot().videos.to_pylist()[0]).to_pylist()
    view = SegmentView((0, 10), (0.0, 1.0), (0.5, 0.5))
    shown = SourcePictures(gallery=gallery)
    try:
        for row in (indexed, gallery.snapshot().videos.to_pylist()[0]):
            crops = shown(VideoRef.of(row), {frame["frame_index"]: frame["time_s"] for frame in frames})
            assert len(crops) == len(frames)
            assert all(crop[:, :, 0].mean() > 180 and crop[:, :, 1].mean() < 80 for crop in crops.values())
            assert len(shown.clip(VideoRef.of(row), view).content) > 1000
    finally:
        shown.close()


def test_an_index_from_before_a_move_is_behind(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    archived(nvr, gallery, reader)
    indexed = gallery.snapshot()
    ingested(nvr, gallery)
    assert gallery.has_changes_since(indexed.position)
    assert not as_indexed(gallery.snapshot().videos, indexed.videos).any()


def test_a_copy_is_left_out_while_the_recording_is_there_and_takes_its_place_afterwards(
    nvr: Path, gallery: Gallery, reader: Reader
) -> None:
    ingested(nvr, gallery)
    shutil.copytree(nvr / "cam", nvr / "archive/cam")
    both = ingested(nvr, gallery)
    assert both.moved == 0 and [one.kind for one in both.irregularities] == ["copy"] * 2
    before, counts = (
        candidates(gallery),
        {part.row["uri"] for one in timeline(gallery.snapshot().recordings)[0] for part in one.parts},
    )
    for uri in counts:
        Path(uri).unlink()
    reader.read.clear()
    assert ingested(nvr, gallery).moved == 2 and reader.read == []
    assert without_uri(candidates(gallery)) == without_uri(before)
    now = {part.row["uri"] for one in timeline(gallery.snapshot().recordings)[0] for part in one.parts}
    assert (
        len(now) == 2
        and all(Path(uri).exists() for uri in now)
        and counts.isdisjoint(gallery.snapshot().videos["uri"].to_pylist())
    )
    position = gallery.snapshot().position
    assert ingested(nvr, gallery).moved == 0 and gallery.snapshot().position == position and verify_gallery(gallery) == []


def test_a_recording_that_is_moved_back_is_the_same_again(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    before = archived(nvr, gallery, reader)
    ingested(nvr, gallery)
    (nvr / "archive/cam").rename(nvr / "cam")
    assert ingested(nvr, gallery).moved == 2 and reader.read == [] and candidates(gallery) == before


def test_another_file_where_a_moved_one_lay_is_a_recording_of_its_own(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    before = archived(nvr, gallery, reader)
    ingested(nvr, gallery)
    write_square(nvr / "cam" / FIRST, frames=25)
    for _ in range(2):
        ingested(nvr, gallery)
        assert reader.read == [FIRST]
    rows = {row["uri"]: row["source_id"] for row in gallery.snapshot().recordings.to_pylist()}
    own = default_video_id(f"{nvr}/cam/{FIRST}")
    assert rows[f"{nvr}/archive/cam/{FIRST}"] == own and rows[f"{nvr}/cam/{FIRST}"] == f"{own}-2"
    assert set(candidates(gallery)) > set(before)


@pytest.mark.parametrize("other", ["bytes", "start"])
def test_what_has_other_bytes_or_another_start_is_not_the_recording_that_is_gone(
    nvr: Path, gallery: Gallery, reader: Reader, other: str
) -> None:
    archived(nvr, gallery, reader)
    file = nvr / "archive/cam" / FIRST
    if other == "start":
        file.rename(file.with_name("20260702_120000.mp4"))
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)  # as long, at another time
    assert ingested(nvr, gallery).moved == 1 and len(reader.read) == 1


def test_a_copy_with_another_time_of_modification_is_told_by_its_bytes(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    before = archived(nvr, gallery, reader)
    for file in nvr.glob("archive/cam/*"):
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    assert ingested(nvr, gallery).moved == 2 and ingested(nvr, gallery).changed == ()
    assert reader.read == [] and without_uri(candidates(gallery)) == without_uri(before)


def test_ids_that_a_manifest_gives_are_of_one_recording_wherever_it_lies(
    nvr: Path, gallery: Gallery, reader: Reader, tmp_path: Path
) -> None:
    manifest, now = tmp_path / "manifest.csv", nvr / "archive" / FIRST
    manifest.write_text(f"uri,video_id,camera_id,start_time\n{nvr}/cam/{FIRST},one,cam,2026-07-01T12:00:00\n")
    ingested(manifest, gallery)
    now.parent.mkdir()
    (nvr / "cam" / FIRST).rename(now)
    manifest.write_text(manifest.read_text().replace(f"{nvr}/cam/{FIRST}", str(now)))
    assert ingested(manifest, gallery).moved == 1 and uris(gallery) == {str(now)} and reader.read == [FIRST]
    write_square(now.with_name("other.mp4"), frames=10)
    manifest.write_text(manifest.read_text().replace(str(now), str(now.with_name("other.mp4"))))
    with pytest.raises(PipelineError, match="ids belong to other videos"):
        ingested(manifest, gallery)


def test_who_was_forgotten_in_a_moved_recording_stays_so(nvr: Path, gallery: Gallery, reader: Reader) -> None:
    before = archived(nvr, gallery, reader)
    gone = sorted(before)[0]
    forget(gallery, Selection((gone,)), "asked to")
    ingested(nvr, gallery)
    assert set(candidates(gallery)) == set(before) - {gone}
    ingested(nvr, gallery)
    assert gone not in candidates(gallery) and reader.read == []


@pytest.fixture
def bucket(s3_endpoint: str, s3_options: str, nvr: Path) -> Iterator[tuple[object, str]]:
    client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
    for name in (FIRST, SECOND):
        client.upload_file(str(nvr / "cam" / name), "bucket", f"nvr/cam/{name}")
    yield client, f"s3://bucket/nvr{s3_options}"


def test_objects_that_were_moved_within_a_bucket_are_the_same(bucket: tuple, gallery: Gallery, reader: Reader) -> None:
    client, source = bucket
    ingested(source, gallery)
    before = candidates(gallery)
    for name in (FIRST, SECOND):
        client.copy_object(Bucket="bucket", Key=f"nvr/old/cam/{name}", CopySource=f"bucket/nvr/cam/{name}")
        client.delete_object(Bucket="bucket", Key=f"nvr/cam/{name}")
    reader.read.clear()
    assert ingested(source, gallery).moved == 2 and reader.read == []
    assert all("/old/cam/" in uri for uri in uris(gallery)) and without_uri(candidates(gallery)) == without_uri(before)
