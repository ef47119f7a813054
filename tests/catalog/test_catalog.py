"""The catalog: what becomes a candidate, what is marked as refused, and what is an error with its row."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av.format
import boto3
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from pipeline.catalog.image_folders import IMAGE_SUFFIXES
from pipeline.catalog.inputs import REJECT_REASONS, VIDEO_SUFFIXES, Catalog, candidate_id, default_video_id, read_catalog
from pipeline.catalog.manifest import MANIFEST_SUFFIXES
from pipeline.errors import UsageError
from pipeline.storage.faults import StorageError
from pipeline.storage.location import resolve
from tests.conftest import SHARED, touch


@dataclass(frozen=True)
class Source:
    """A row of the catalog, to compare with."""

    source_id: str
    uri: str
    kind: str
    camera_id: str | None = None
    start_time: datetime | None = None
    person_id: str | None = None
    boxes_uri: str | None = None


def source_from_row(row: dict) -> Source:
    start_time = row["start_time"].astimezone(UTC) if row["start_time"] is not None else None
    same = ("source_id", "uri", "kind", "camera_id", "person_id", "boxes_uri")
    return Source(**{name: row[name] for name in same}, start_time=start_time)


def kinds(catalog: Catalog) -> dict[str, str]:
    """Path below the root -> kind."""
    rows = catalog.table.to_pylist()
    return {row["uri"].removeprefix(catalog.root).partition("?")[0].lstrip("/"): row["kind"] for row in rows}


def rows(catalog: Catalog) -> list[dict[str, Any]]:
    return catalog.table.to_pylist()


def write_csv(path: Path, records: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(records[0]))
        writer.writeheader()
        writer.writerows(records)
    return path


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8", newline="")
    return path


def write_parquet(path: Path, records: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(records), path)
    return path


WRITERS = {"m.csv": write_csv, "m.jsonl": write_jsonl, "m.ndjson": write_jsonl, "m.parquet": write_parquet}
every_format = pytest.mark.parametrize("name", WRITERS)


class TestFolders:
    def test_videos_and_folders_of_numbered_images_are_candidates(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4", "deep/er/b.MKV", "raw/c.264", "person 1/0001.jpg", "person 1/0002.jpg", "png/frame-7.PNG")
        assert kinds(read_catalog(tmp_path)) == {
            "a.mp4": "file",
            "deep/er/b.MKV": "file",
            "raw/c.264": "file",
            "person 1": "images",
            "png": "images",
        }

    def test_the_input_itself_may_be_the_folder_of_images(self, tmp_path: Path) -> None:
        touch(tmp_path, "person/1.jpg")
        assert [row["uri"] for row in rows(read_catalog(tmp_path / "person"))] == [str(tmp_path / "person")]

    def test_images_are_a_candidate_whatever_lies_in_folders_below_theirs(self, tmp_path: Path) -> None:
        touch(tmp_path, "person/0001.jpg", "person/0002.jpg", "person/thumbs/0001.jpg", "person/notes/readme.txt")
        touch(tmp_path, "camera/7.png", "camera/clips/a.mp4", "camera/tracks/3/1.jpg", "person/.cache/1.jpg")
        assert kinds(read_catalog(tmp_path)) == {
            "person": "images",
            "person/thumbs": "images",
            "camera": "images",
            "camera/clips/a.mp4": "file",
            "camera/tracks/3": "images",
        }

    def test_images_that_belong_to_no_candidate_are_counted_by_the_reason(self, tmp_path: Path) -> None:
        touch(tmp_path, "c/3.jpg", "c/clip.mp4", "d/cover.jpg", "e/back.png", "e/front.PNG", "f/x.mkv", "f/9.jpg")
        catalog = read_catalog(tmp_path)
        assert kinds(catalog) == {"c/clip.mp4": "file", "f/x.mkv": "file"}
        assert catalog.ignored_images == {
            f"in folders that also hold videos, such as {tmp_path}/c": 2,
            f"in folders without numbered names, such as {tmp_path}/d": 3,
        }
        assert catalog.ignored == {}

    def test_hidden_names_are_skipped_and_other_files_counted_by_extension(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4", ".b.mp4", ".trash/c.mp4", "notes.txt", "x/NOTES.TXT", "list.json", "x/.1.jpg", "README")
        touch(tmp_path, "x/of Dr. Who", "x/" + "y." + "z" * 50)
        catalog = read_catalog(tmp_path)
        assert kinds(catalog) == {"a.mp4": "file"}
        assert catalog.ignored == {".txt": 2, ".json": 1, "": 3}
        assert catalog.not_read() == "6 files: 3 without extension, 2 .txt, 1 .json"

    def test_of_many_kinds_the_most_frequent_are_named_and_the_rest_summed(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4", *(f"{i}.k{kind:02d}" for kind in range(14) for i in range(20 - kind)))
        named = ", ".join(f"{20 - kind} .k{kind:02d}" for kind in range(12))
        assert read_catalog(tmp_path).not_read() == f"{sum(range(7, 21))} files: {named}, 15 of 2 other kinds"

    def test_a_name_that_is_no_text_can_still_be_told(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4")
        try:
            touch(tmp_path, os.fsdecode(b"caf\xe9/cover.jpg"), os.fsdecode(b"b.tx\xe9"))
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        told = read_catalog(tmp_path).not_read().encode().decode()
        assert told == f"1 file: 1 without extension; 1 image in folders without numbered names, such as {tmp_path}/caf?"

    @pytest.mark.parametrize("demuxer", ["dhav", "dv", "h264", "hevc", "m4v"])
    def test_what_ffmpeg_calls_recordings_is_a_video(self, demuxer: str) -> None:
        assert {f".{name}" for name in av.format.ContainerFormat(demuxer, "r").extensions} <= VIDEO_SUFFIXES

    def test_recordings_of_every_extension_are_candidates_and_none_is_an_image_too(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"a{suffix}" for suffix in VIDEO_SUFFIXES), "b.TRP", "b.g64x")
        catalog = read_catalog(tmp_path)
        assert set(kinds(catalog)) == {f"a{suffix}" for suffix in VIDEO_SUFFIXES} | {"b.TRP"}
        assert catalog.ignored == {".g64x": 1}
        assert not VIDEO_SUFFIXES & (IMAGE_SUFFIXES | set(MANIFEST_SUFFIXES))

    def test_links_in_circles_end_and_a_folder_is_read_once(self, tmp_path: Path) -> None:
        touch(tmp_path, "z/a.mp4", "z/deep/b.mp4")
        (tmp_path / "z/deep/up").symlink_to(tmp_path)
        (tmp_path / "alias").symlink_to(tmp_path / "z")
        (tmp_path / "self").symlink_to(tmp_path / "self")
        (tmp_path / "self.mp4").symlink_to(tmp_path / "self.mp4")
        assert set(kinds(read_catalog(tmp_path))) == {"z/a.mp4", "z/deep/b.mp4", "self.mp4"}

    def test_linked_folders_outside_are_followed(self, tmp_path: Path) -> None:
        touch(tmp_path, "disk/b.mp4")
        (tmp_path / "input").mkdir()
        (tmp_path / "input/link").symlink_to(tmp_path / "disk")
        assert kinds(read_catalog(tmp_path / "input")) == {"link/b.mp4": "file"}

    def test_a_link_to_nothing_stays_a_candidate_and_a_pipe_is_none(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4")
        (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
        os.mkfifo(tmp_path / "pipe.mp4")
        catalog = read_catalog(tmp_path)
        assert set(kinds(catalog)) == {"a.mp4", "gone.mp4"}
        assert catalog.not_read() == "1 file: 1 (pipe, socket or device)"

    def test_a_folder_that_may_not_be_listed_is_a_refused_row(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "a.mp4", "locked/b.mp4")
        scan = os.scandir

        def refuse(path: str) -> Any:
            if "locked" in str(path):
                raise PermissionError(13, "Permission denied")
            return scan(path)

        monkeypatch.setattr(os, "scandir", refuse)
        refused = {row["uri"]: row["reject_reason"] for row in rows(read_catalog(tmp_path))}
        assert refused == {f"{tmp_path}/a.mp4": None, f"{tmp_path}/locked": "permission_denied"}
        with pytest.raises(StorageError, match="permission denied"):
            read_catalog(tmp_path / "locked")

    def test_a_name_that_is_no_text_is_a_refused_row(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4")
        try:
            (tmp_path / os.fsdecode(b"caf\xe9.mp4")).touch()
        except OSError:
            pytest.skip("this file system takes UTF-8 names only")
        refused = {row["uri"]: row["reject_reason"] for row in rows(read_catalog(tmp_path, roots=[tmp_path]))}
        assert refused == {f"{tmp_path}/a.mp4": None, f"file://{tmp_path}/caf%E9.mp4": "bad_name"}

    @pytest.mark.parametrize("names", [[], ["notes.txt"], [".hidden.mp4"], ["pictures/cover.jpg"]])
    def test_a_folder_without_candidates_is_an_error(self, tmp_path: Path, names: list[str]) -> None:
        touch(tmp_path, *names)
        with pytest.raises(UsageError, match=f"{tmp_path} holds no video and no folder of numbered images"):
            read_catalog(tmp_path)

    def test_one_video_is_a_catalog_of_one(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.mp4", "b.mp4")
        (row,) = rows(read_catalog(tmp_path / "a.mp4"))
        assert source_from_row(row) == Source(default_video_id(f"{tmp_path}/a.mp4"), f"{tmp_path}/a.mp4", "file")

    def test_another_file_is_no_input(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.txt")
        with pytest.raises(UsageError, match="is no input: give a folder, a manifest"):
            read_catalog(tmp_path / "a.txt")

    @pytest.mark.parametrize("name", ["absent", "absent.mp4", "absent.csv"])
    def test_a_missing_input_is_named(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(UsageError, match=f"there is no file or folder {tmp_path}/{name}"):
            read_catalog(tmp_path / name)


class TestPatterns:
    @every_format
    def test_a_manifest_may_name_images_by_a_pattern(self, tmp_path: Path, name: str) -> None:
        records = [{"uri": f"0001/0001C1T000{t}F*.jpg", "video_id": f"t{t}"} for t in (1, 2)]
        catalog = read_catalog(WRITERS[name](tmp_path / name, records), roots=[tmp_path])
        assert [(row["source_id"], row["uri"], row["reject_reason"]) for row in rows(catalog)] == [
            ("t1", f"{tmp_path}/0001/0001C1T0001F*.jpg", None),
            ("t2", f"{tmp_path}/0001/0001C1T0002F*.jpg", None),
        ]

    def test_a_pattern_outside_the_roots_is_marked(self, tmp_path: Path) -> None:
        touch(tmp_path, "secret/1.jpg", "in/2.jpg")
        (tmp_path / "in/link").symlink_to(tmp_path / "secret")
        manifest = write_csv(tmp_path / "m.csv", [{"uri": f"{folder}/*.jpg"} for folder in ("in", "in/link", "secret")])
        marked = {row["uri"]: row["reject_reason"] for row in rows(read_catalog(manifest, roots=[tmp_path / "in"]))}
        assert marked == {
            f"{tmp_path}/in/*.jpg": None,
            f"{tmp_path}/in/link/*.jpg": "outside_roots",
            f"{tmp_path}/secret/*.jpg": "outside_roots",
        }

    def test_one_pattern_is_a_catalog_of_one(self, tmp_path: Path) -> None:
        touch(tmp_path, "0001C1T0001F001.jpg")
        (row,) = rows(read_catalog(f"{tmp_path}/0001C1T0001F*.jpg"))
        assert (row["uri"], row["kind"]) == (f"{tmp_path}/0001C1T0001F*.jpg", "images")
        assert row["source_id"].startswith("0001C1T0001F-")
        for absent in (f"{tmp_path}/absent/*.jpg", f"{tmp_path}/*.mp4", f"{tmp_path}/*"):
            with pytest.raises(UsageError, match="there is no file or folder"):
                read_catalog(absent)


class TestBuckets:
    @pytest.fixture(scope="class")
    def options(self, s3_endpoint: str, s3_options: str) -> str:
        client = boto3.client("s3", endpoint_url=s3_endpoint, region_name="us-east-1")
        for key in (
            *("in/a.mp4", "in/deep/b c.mkv", "in/person 1/0001.jpg", "in/person 1/0002.jpg"),
            *("in/.hidden/x.mp4", "in/notes.txt", "in/outer/1.jpg", "in/outer/inner/2.jpg", "in/what?.mp4", "in/empty/"),
            *("input/other.mp4", "notes/only.txt"),
        ):
            client.put_object(Bucket="bucket", Key=key, Body=b"")
        lines = b"uri,video_id,boxes_uri\na.mp4,one,boxes/a.txt\ns3://elsewhere/b.mp4,two,\n/local/c.mp4,three,\n"
        client.put_object(Bucket="bucket", Key="in/list/m.csv", Body=lines)
        return s3_options

    def test_a_prefix_follows_the_rules_of_folders(self, options: str) -> None:
        catalog = read_catalog("s3://bucket/in" + options)
        assert kinds(Catalog(catalog.table, "s3://bucket/in")) == {
            "a.mp4": "file",
            "deep/b c.mkv": "file",
            "what": "file",  # kinds() cuts off the options
            "person 1": "images",
            "outer": "images",
            "outer/inner": "images",
        }
        assert catalog.ignored == {".txt": 1, ".csv": 1}
        for row in rows(catalog):
            assert row["kind"] == "images" or resolve(row["uri"]).exists()

    def test_the_same_prefix_gives_the_same_ids(self, options: str) -> None:
        assert read_catalog("s3://bucket/in" + options).table.equals(read_catalog("s3://bucket/in/" + options).table)

    def test_a_manifest_in_a_bucket_counts_from_its_folder(self, options: str) -> None:
        catalog = read_catalog("s3://bucket/in/list/m.csv" + options, roots=["s3://bucket/in" + options])
        assert [(row["source_id"], row["uri"], row["boxes_uri"], row["reject_reason"]) for row in rows(catalog)] == [
            ("one", "s3://bucket/in/list/a.mp4" + options, "s3://bucket/in/list/boxes/a.txt" + options, None),
            ("three", "/local/c.mp4", None, "outside_roots"),
            ("two", "s3://elsewhere/b.mp4", None, "outside_roots"),
        ]

    def test_one_video_in_a_bucket(self, options: str) -> None:
        assert [row["kind"] for row in rows(read_catalog("s3://bucket/in/a.mp4" + options))] == ["file"]

    @pytest.mark.parametrize(
        ("prefix", "sentence"),
        [
            ("s3://bucket/absent", "there is no file or folder s3://bucket/absent"),
            ("s3://absent/in", "there is no file or folder s3://absent/in"),
            ("s3://bucket/notes", "s3://bucket/notes.* holds no video"),
        ],
    )
    def test_a_prefix_without_candidates_is_an_error(self, options: str, prefix: str, sentence: str) -> None:
        with pytest.raises(UsageError, match=sentence):
            read_catalog(prefix + options)


class TestIds:
    def test_the_default_id_is_readable_and_belongs_to_the_uri(self) -> None:
        uri = "/data/cam 1/Höfe & Wege.mp4"
        assert default_video_id(uri) == "H_fe_Wege-" + hashlib.sha256(uri.encode()).hexdigest()[:12]
        assert default_video_id("s3://b/c/person.7?region=x").startswith("person.7-")
        assert default_video_id("/data/日本.mp4").startswith("video-")
        assert default_video_id("/a/b.mp4") != default_video_id("/c/b.mp4")

    def test_a_gallery_of_older_versions_keeps_the_ids_of_rows_whose_extension_was_no_videos_then(self) -> None:
        assert default_video_id("/a/rec.dav").startswith("rec.dav-")

    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
    def test_every_default_id_can_be_an_explicit_one(self, name: str) -> None:
        made = default_video_id("/" + name)
        assert len(made) <= 200
        assert set(made) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

    def test_a_folder_and_a_manifest_give_a_video_the_same_id(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.mp4")
        manifest = write_csv(tmp_path / "m.csv", [{"uri": "in/a.mp4"}])
        assert read_catalog(manifest).table["source_id"] == read_catalog(tmp_path / "in").table["source_id"]

    def test_tracks_have_ids_of_their_own(self) -> None:
        assert candidate_id("hall-1", 7) == "hall-1#7"


class TestRoots:
    @every_format
    def test_rows_outside_are_marked_and_the_others_stay(self, tmp_path: Path, name: str) -> None:
        touch(tmp_path, "secret/s.mp4", "videos/a.mp4")
        (tmp_path / "videos/link.mp4").symlink_to(tmp_path / "secret/s.mp4")
        (tmp_path / "videos/folder").symlink_to(tmp_path / "secret")
        uris = {
            "inside": "a.mp4",
            "dots": "../secret/s.mp4",
            "link": "link.mp4",
            "folder": "folder/s.mp4",
            "file": f"file://{tmp_path}/secret/x.mp4",
            "bucket": "s3://bucket/a.mp4",
            "boxes": "b.mp4",
        }
        records = [{"uri": uri, "video_id": v, "boxes_uri": "../b.txt" if v == "boxes" else ""} for v, uri in uris.items()]
        catalog = read_catalog(WRITERS[name](tmp_path / "videos" / name, records), roots=[tmp_path / "videos"])
        marked = {row["source_id"]: row["reject_reason"] for row in rows(catalog)}
        assert marked == {v: None if v == "inside" else "outside_roots" for v in uris}
        assert all((row["reject_message"] is None) == (row["reject_reason"] is None) for row in rows(catalog))

    def test_links_in_a_folder_do_not_lead_out(self, tmp_path: Path) -> None:
        touch(tmp_path, "secret/s.mp4", "videos/a.mp4")
        (tmp_path / "videos/folder").symlink_to(tmp_path / "secret")
        marked = {
            row["uri"]: row["reject_reason"] for row in rows(read_catalog(tmp_path / "videos", roots=[tmp_path / "videos"]))
        }
        assert marked == {f"{tmp_path}/videos/a.mp4": None, f"{tmp_path}/videos/folder/s.mp4": "outside_roots"}


def test_the_operators_page_says_what_every_reason_means() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert [reason for reason, meaning in REJECT_REASONS.items() if f"| `{reason}` | {meaning} |" not in page] == []


@pytest.mark.shared
class TestRealExamples:
    @pytest.fixture
    def shared(self) -> Callable[[str], Path]:
        def find(name: str) -> Path:
            if not (SHARED / "data" / name).exists():
                pytest.skip(f"{name} is not in ../shared/data")
            return SHARED / "data" / name

        return find

    def test_the_manifest_of_real_tracklets(self, shared: Callable[[str], Path]) -> None:
        manifest = shared("vtest_tracklets/manifest.csv")
        catalog = read_catalog(manifest)
        expected = pd.read_csv(manifest, dtype=str).sort_values("video_id")
        assert catalog.ignored_columns == ("role",)
        for ours, theirs in (("source_id", "video_id"), ("camera_id", "camera_id"), ("person_id", "person_id")):
            assert catalog.table[ours].to_pylist() == expected[theirs].tolist()
        assert catalog.table["start_time"].to_pylist() == pd.to_datetime(expected["start_time"]).tolist()
        assert all(Path(uri).is_file() for uri in catalog.table["uri"].to_pylist())

    def test_the_folders_of_real_images(self, shared: Callable[[str], Path]) -> None:
        catalog = read_catalog(shared("mini_mars"))
        folders = {path.parent for path in shared("mini_mars").rglob("*.jpg")}
        assert {Path(uri) for uri in catalog.table["uri"].to_pylist()} == folders
        assert set(catalog.table["kind"].to_pylist()) == {"images"}
        files = [path for path in shared("mini_mars").rglob("*") if path.is_file()]
        assert catalog.ignored == Counter(path.suffix for path in files if path.suffix != ".jpg") != {}
