"""Files and folders of any storage as local ones: local ones where they lie, objects as copies; and folders written whole."""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs as pafs

from pipeline.errors import PipelineError
from pipeline.storage.faults import StorageError
from pipeline.storage.local_paths import local_file, local_folder, new_folder
from pipeline.storage.location import Location, resolve

FILES = {"a.npy": b"\x93NUMPY" * 1000, "b.json": b"{}", "c.txt": b"c"}


def store(folder: Path) -> Location:
    """An object store, as far as `Location` can tell."""
    return Location(pafs.SubTreeFileSystem(str(folder.parent), pafs.LocalFileSystem()), folder.name, f"s3://{folder.name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    for name, content in FILES.items():
        (tmp_path / "there" / name).write_bytes(content)
    return tmp_path / "there"


def test_local_files_and_folders_are_used_where_they_lie(folder: Path) -> None:
    with local_file(resolve(folder / "a.npy")) as path, local_folder(resolve(folder), FILES) as same:
        assert (path, same) == (folder / "a.npy", folder)
    assert path.exists()


def test_an_object_is_a_file_while_the_context_is_open_and_what_was_mapped_of_it_stays(folder: Path) -> None:
    with local_file(store(folder).join("a.npy")) as path:
        assert path.name == "a.npy"
        mapped = np.memmap(path, np.uint8, "r")
    assert not path.exists()
    assert not path.parent.exists()
    assert mapped.tobytes() == FILES["a.npy"]


def test_of_a_folder_in_a_store_only_the_named_files_are_copied(folder: Path) -> None:
    with local_folder(store(folder), ("b.json", "c.txt", "absent")) as copy:
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == {name: FILES[name] for name in ("b.json", "c.txt")}
    assert not copy.exists()


def test_where_no_temporary_folder_can_be_made_the_sentence_says_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with (
        pytest.raises(StorageError, match=f"cannot write {tmp_path}/absent: there is no such file"),
        local_file(store(folder).join("a.npy")),
    ):
        pass


@pytest.mark.parametrize("kind", ["local", "store"])
def test_a_new_folder_has_its_files_and_their_entries_in_the_end(tmp_path: Path, kind: str) -> None:
    location = resolve(tmp_path) if kind == "local" else store(tmp_path)
    if kind == "store":
        (tmp_path / "new" / "one").mkdir(parents=True)  # the disk below needs it, a store does not
    with new_folder(location.join("new", "one")) as (folder, entries):
        for name, content in FILES.items():
            (folder / name).write_bytes(content)
        assert entries == {}
    assert {path.name: path.read_bytes() for path in (tmp_path / "new" / "one").iterdir()} == FILES
    assert entries == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in FILES.items()
    }


@pytest.mark.parametrize("kind", ["local", "store"])
def test_a_new_folder_that_fails_leaves_nothing(tmp_path: Path, kind: str) -> None:
    location = resolve(tmp_path) if kind == "local" else store(tmp_path)
    for error in (PipelineError("the head does not fit"), OSError(28, "No space left on device"), KeyboardInterrupt()):
        kept = StorageError if isinstance(error, OSError) else type(error)
        with pytest.raises(kept) as caught, new_folder(location.join("new")) as (folder, _):
            (folder / "a").write_bytes(b"a")
            raise error
        assert not (tmp_path / "new").exists()
        assert not folder.exists()
        if isinstance(error, OSError):
            assert str(caught.value) == f"cannot write {location.join('new').uri}: no space is left on the device"


def test_a_folder_that_is_there_is_not_written_into(folder: Path) -> None:
    with pytest.raises(StorageError), new_folder(resolve(folder)) as (path, _):
        (path / "a.npy").write_bytes(b"other")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
