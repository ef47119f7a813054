"""Where files are, and that a write is whole or absent: on local disk, in pyarrow's memory store, on S3 over HTTP."""

import contextlib
import errno
import multiprocessing
import os
import pickle
import stat
import threading
from pathlib import Path

import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import PipelineError, UsageError
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location, resolve
from pipeline.storage.reach import inside_checker
from pipeline.storage.uris import canonical_uri


@pytest.fixture
def memory() -> Location:
    """A store that is not the local disk, in memory."""
    filesystem, _ = pafs.FileSystem.from_uri("mock:///")
    filesystem.create_dir("store/a b")  # a folder of its own, unlike in buckets
    return Location(filesystem, "store", "mock://store")


class TestCanonicalUris:
    def test_a_relative_path_lies_below_the_working_directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert canonical_uri("cam 1/a.mp4") == f"{tmp_path}/cam 1/a.mp4"

    @pytest.mark.parametrize(
        ("text", "base", "expected"),
        [
            ("/a/./b//c/../d/", None, "/a/b/d"),
            ("//a/b", None, "/a/b"),
            ("a/b.mp4", "/base", "/base/a/b.mp4"),
            ("../b.mp4", "/base/x", "/base/b.mp4"),
            ("/b.mp4", "s3://bucket/x", "/b.mp4"),
            ("file:///a%20b/c%C3%A9.mp4", None, "/a b/cé.mp4"),
            ("file://localhost/a#1.mp4", None, "/a#1.mp4"),
            ("s3://bucket/a b%20/é#1?.mp4", None, "s3://bucket/a b%20/é#1?.mp4"),
            ("S3://bucket/a//b/", None, "s3://bucket/a/b"),
            ("s3://bucket", None, "s3://bucket"),
            ("s3://bucket/../../a", None, "s3://bucket/a"),
            ("gcs://bucket/a", None, "gs://bucket/a"),
            ("gs://anonymous@bucket/a", None, "gs://anonymous@bucket/a"),
            ("s3://b/k?scheme=http&endpoint_override=h%3A9", None, "s3://b/k?endpoint_override=h:9&scheme=http"),
            ("c/a.mp4", "s3://b/m?region=x", "s3://b/m/c/a.mp4?region=x"),
            ("s3://b/a.mp4?token=1", None, "s3://b/a.mp4?token=1"),
        ],
    )
    def test_one_spelling(self, text: str, base: str | None, expected: str) -> None:
        assert canonical_uri(text, base) == expected

    @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
    def test_the_canonical_spelling_stays_what_it_is(self, key: str) -> None:
        for uri in (canonical_uri("/" + key), canonical_uri("s3://bucket/" + key)):
            assert canonical_uri(uri) == uri

    @pytest.mark.parametrize("text", ["http://host/a.mp4", "rtsp://camera/1", "s3a://bucket/a", "mock:///a"])
    def test_an_unknown_scheme_is_named(self, text: str) -> None:
        with pytest.raises(UsageError, match="unknown scheme " + text.split(":")[0]):
            resolve(text)

    @pytest.mark.parametrize("text", ["", "a\0b", "/a/\udcff", "s3://", "s3:///key", "file://host/a", "gs://anonymous@/a"])
    def test_what_cannot_be_a_place_is_refused(self, text: str) -> None:
        with pytest.raises(UsageError):
            resolve(text)

    def test_credentials_are_refused_and_not_repeated(self) -> None:
        with pytest.raises(UsageError, match="carries credentials") as refused:
            resolve("s3://AKIA123:hunter2@bucket/key")
        assert "hunter2" not in str(refused.value)
        assert "AKIA123" not in str(refused.value)


class TestInsideRoots:
    def test_links_and_dots_do_not_lead_out(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        (tmp_path / "root2").mkdir()
        (tmp_path / "root2/secret.mp4").touch()
        (tmp_path / "root/link.mp4").symlink_to(tmp_path / "root2/secret.mp4")
        (tmp_path / "root/folder").symlink_to(tmp_path / "root2")
        is_inside = inside_checker([tmp_path / "root"])
        inside = ["root/a.mp4", "root", "root/x/y.mp4"]
        outside = ["root2/secret.mp4", "root/link.mp4", "root/folder/secret.mp4", "root/../root2/secret.mp4", "."]
        assert [is_inside(canonical_uri(tmp_path / name)) for name in inside] == [True] * 3
        assert [is_inside(canonical_uri(tmp_path / name)) for name in outside] == [False] * 5

    def test_a_root_reached_through_a_link_holds_its_files(self, tmp_path: Path) -> None:
        (tmp_path / "disk").mkdir()
        (tmp_path / "videos").symlink_to(tmp_path / "disk")
        assert inside_checker([tmp_path / "videos"])(f"{tmp_path}/disk/a.mp4")

    def test_buckets_count_with_their_endpoint(self) -> None:
        is_inside = inside_checker(["s3://bucket/videos", "/data"])
        assert is_inside("s3://bucket/videos/a.mp4")
        assert not is_inside("s3://bucket/videos2/a.mp4")
        assert not is_inside("s3://bucket/videos/a.mp4?endpoint_override=elsewhere")
        assert not is_inside("gs://bucket/videos/a.mp4")
        assert is_inside("/data/a.mp4")

    def test_the_root_folder_holds_everything_local(self) -> None:
        assert inside_checker(["/"])("/a.mp4")


def _check_reading_and_writing(root: Location, *, exclusive: bool = True) -> None:
    first, second = root.join("a b", "é#1?.bin"), root.join("z.bin")
    assert not first.exists()
    assert root.list(recursive=True) == []
    assert first.write_atomically(b"one") is True
    assert second.write_atomically(lambda file: file.write(b"t" + b"wo")) is True
    if exclusive:
        assert first.write_atomically(b"other", exclusive=True) is first.create(b"other") is False
        assert root.join("new").create(b"1") is True and root.join("new").read_bytes() == b"1" and first.keeps_existing(b"one")
        root.join("new").delete()
    assert (first.read_bytes(), second.info().size) == (b"one", 3)
    assert first.write_atomically(b"newer") is True
    with first.open_input() as file:
        file.seek(2)
        assert file.read(2) == b"we"
    assert [file.uri for file in root.list(recursive=True)] == [first.uri, second.uri]
    assert [file.uri for file in root.list()] == [second.uri]
    first.delete()
    first.delete()
    assert not first.exists()
    with pytest.raises(StorageError, match=r"cannot read .*there is no such file") as missing:
        first.read_bytes()
    assert missing.value.kind == "missing"


class TestReadingAndWriting:
    def test_on_local_disk(self, tmp_path: Path) -> None:
        _check_reading_and_writing(resolve(tmp_path / "new" / "folder"))

    def test_in_memory(self, memory: Location) -> None:
        _check_reading_and_writing(memory, exclusive=False)

    def test_on_s3(self, s3_options: str) -> None:
        root = resolve("s3://bucket/some/prefix" + s3_options)
        _check_reading_and_writing(root)
        root.join("kept").write_atomically(b"1")
        assert resolve(root.join("kept").uri).read_bytes() == b"1"
        assert pickle.loads(pickle.dumps(root)).join("kept").read_bytes() == b"1"  # noqa: S301

    def test_every_listed_uri_resolves_to_the_same_file(self, tmp_path: Path, s3_options: str) -> None:
        for root in (resolve(tmp_path), resolve("s3://bucket/names" + s3_options)):
            for name in ("a b.mp4", "100%25.mp4", "what?.mp4", "a?b=c", "#1", "über 🎞 2"):
                root.join(name).write_atomically(name.encode())
            for file in root.list():
                assert resolve(file.uri) == file
                assert resolve(file.uri).read_bytes().decode() == file.name
            root.join("folder/inside").write_atomically(b"1")
            assert root.names() == [file.name for file in root.list()] != []
            assert root.join("absent").names() == []

    def test_a_part_cannot_lead_out(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="leads out of"):
            resolve(tmp_path).join("a/../../b")
        with pytest.raises(UsageError, match="leads out of"):
            resolve(tmp_path).join("/etc")

    def test_a_missing_bucket_is_one_sentence(self, s3_options: str) -> None:
        with pytest.raises(StorageError, match="no such file, folder or bucket") as missing:
            resolve("s3://absent/a" + s3_options).write_atomically(b"1")
        assert missing.value.kind == "missing"

    def test_errors_survive_the_way_from_a_worker(self) -> None:
        error = pickle.loads(pickle.dumps(StorageError("cannot read /a", "missing")))  # noqa: S301
        assert (str(error), error.kind, isinstance(error, PipelineError)) == ("cannot read /a", "missing", True)

    @pytest.mark.parametrize(("text", "goes_on"), [("NOT_FOUND: no such object", True), ("PERMISSION_DENIED", False)])
    def test_a_file_that_a_store_says_is_gone_is_deleted(self, text: str, goes_on: bool) -> None:
        """Google's store has no FileNotFoundError for it."""

        class Store:
            def delete_file(self, path: str) -> None:
                raise OSError(f"google::cloud::Status({text})")

        place = Location(Store(), "bucket/a", "gs://bucket/a")  # type: ignore[arg-type]
        with contextlib.nullcontext() if goes_on else pytest.raises(StorageError, match="cannot delete gs://bucket/a"):
            place.delete()


class TestWholeOrNothing:
    def test_a_failed_writer_changes_nothing(self, tmp_path: Path, memory: Location, s3_options: str) -> None:
        def half(file: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise ValueError("broken encoder")

        for root in (resolve(tmp_path), memory, resolve("s3://bucket/failed" + s3_options)):
            target = root.join("shard")
            for existing in (False, True):
                if existing:
                    target.write_atomically(b"before")
                with pytest.raises(ValueError, match="broken encoder"):
                    target.write_atomically(half)
                assert target.exists() == existing
            assert target.read_bytes() == b"before"
            assert [file for file, _ in root.infos()] == root.list() == [target]

    @pytest.mark.parametrize(
        ("number", "kind", "sentence"),
        [
            (errno.ENOSPC, "no_space", "no space is left"),
            (errno.EROFS, "read_only", "read-only"),
            (errno.EACCES, "permission_denied", "permission denied"),
            (errno.EIO, "unavailable", "Input/output error"),
        ],
    )
    def test_a_disk_that_refuses_is_named_and_left_clean(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: str, sentence: str
    ) -> None:
        def refuse(_: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=f"cannot write {tmp_path}/a: .*{sentence}") as refused:
            resolve(tmp_path / "a").write_atomically(b"1")
        assert refused.value.kind == kind
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(("number", "passed_over"), [(errno.EIO, False), (errno.EINVAL, True), (errno.ENOTSUP, True)])
    def test_a_sync_of_a_folder_that_fails_is_said_unless_there_is_none(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passed_over: bool
    ) -> None:
        real = os.fsync

        def sync(descriptor: int) -> None:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", sync)
        target = resolve(tmp_path / "a")
        with contextlib.nullcontext() if passed_over else pytest.raises(StorageError, match="Input/output error"):
            target.write_atomically(b"1")

    def test_a_full_device_is_named(self, tmp_path: Path) -> None:
        if not Path("/dev/full").exists():
            pytest.skip("/dev/full is a Linux device")

        def write_to_full_device(_: object) -> None:
            with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - the error must carry no file of ours
                full.write(b"1")

        with pytest.raises(StorageError, match="no space is left"):
            resolve(tmp_path / "a").write_atomically(write_to_full_device)

    def test_readers_never_see_a_part(self, tmp_path: Path) -> None:
        target = resolve(tmp_path / "shard")
        target.write_atomically(b"a" * 100_000)
        stop = threading.Event()

        def rewrite() -> None:
            while not stop.is_set():
                for letter in (b"a", b"b"):
                    target.write_atomically(letter * 100_000)

        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            seen = [target.read_bytes() for _ in range(100)]
        finally:
            stop.set()
            writer.join()
        assert {(len(content), len(set(content))) for content in seen} == {(100_000, 1)}

    def test_one_of_many_exclusive_writers_wins(self, tmp_path: Path) -> None:
        with multiprocessing.get_context("spawn").Pool(4) as pool:
            won = pool.map(_claim, [(str(tmp_path / "version"), number) for number in range(16)])
        assert sum(won) == 1
        assert resolve(tmp_path / "version").read_bytes() == b"%d" % won.index(True)
        assert [path.name for path in tmp_path.iterdir()] == ["version"]

    def test_exclusive_works_without_hard_links(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        target = resolve(tmp_path / "a")
        assert [target.write_atomically(content, exclusive=True) for content in (b"1", b"2")] == [True, False]
        assert target.read_bytes() == b"1"

    def test_a_killed_writer_leaves_nothing_that_readers_list(self, tmp_path: Path) -> None:
        process = multiprocessing.get_context("spawn").Process(target=_die_while_writing, args=(str(tmp_path / "a"),))
        process.start()
        process.join()
        root = resolve(tmp_path)
        assert root.list() == root.names() == []
        ((leftover, _),) = root.infos()
        leftover.delete()
        assert list(tmp_path.iterdir()) == []

    def test_new_files_follow_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            resolve(tmp_path / "a").write_atomically(b"1")
        finally:
            os.umask(before)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def _claim(task: tuple[str, int]) -> bool:
    path, number = task
    return resolve(path).write_atomically(b"%d" % number, exclusive=True)


def _die_while_writing(path: str) -> None:
    resolve(path).write_atomically(lambda _: os._exit(9))
