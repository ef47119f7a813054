"""Files and folders of any storage as paths on this machine, for code that takes no other: to read, and to write whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from pipeline.storage.faults import explained
from pipeline.storage.hashing import file_sha256
from pipeline.storage.local_writes import sync_folder
from pipeline.storage.location import Location, resolve

COPY_BYTES = 16 << 20  # at a time


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that goes with the context. Raises StorageError where none can be made."""
    with explained("write", tempfile.gettempdir()):
        folder = tempfile.TemporaryDirectory(prefix="co-attention-search-")
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def local_file(location: Location) -> Iterator[Path]:
    """The file where it lies, or of an object a copy: what has been mapped of it stays readable after the context, and its disk
    space goes back when that is closed.
    """
    if location.is_local:
        yield Path(location.path)
        return
    with temporary_folder() as folder:
        path = folder / location.name
        with location.open_input() as source, explained(f"copy {location.uri} to", str(folder)), path.open("wb") as sink:
            shutil.copyfileobj(source, sink, COPY_BYTES)
        yield path


@contextlib.contextmanager
def local_folder(location: Location, names: Collection[str]) -> Iterator[Path]:
    """The folder where it lies, or of one in an object store a copy of its files of these names, small ones."""
    if location.is_local:
        yield Path(location.path)
        return
    with temporary_folder() as folder:
        for file in location.list():
            if file.name in names:
                resolve(folder / file.name).write_atomically(file.read_bytes())
        yield folder


@contextlib.contextmanager
def new_folder(location: Location) -> Iterator[tuple[Path, dict[str, dict[str, Any]]]]:
    """A folder to write files in, and, once the context has ended, their entries: name -> bytes and sha256.

    On a local disk it is the one that is meant, which must not be there yet, and its files survive a power cut; else they are
    uploaded in the end. When the writing fails nothing stays; what the disk refuses within the context is a StorageError.
    """
    files: dict[str, dict[str, Any]] = {}
    with explained("write", location.uri):
        if not location.is_local:
            with temporary_folder() as folder:
                yield folder, files
                for path in sorted(folder.iterdir()):
                    files[path.name] = _uploaded(path, location.join(path.name))
            return
        folder = Path(location.path)
        folder.mkdir(parents=True)
        try:
            yield folder, files
            for path in sorted(folder.iterdir()):
                with path.open("rb") as source:
                    os.fsync(source.fileno())
                    files[path.name] = _entry(source)
            sync_folder(folder)
            sync_folder(folder.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _uploaded(path: Path, location: Location) -> dict[str, Any]:
    with path.open("rb") as source:
        location.write_atomically(lambda sink: shutil.copyfileobj(source, sink, COPY_BYTES))
        source.seek(0)
        return _entry(source)


def _entry(file: IO[bytes]) -> dict[str, Any]:
    return {"bytes": os.fstat(file.fileno()).st_size, "sha256": file_sha256(file)}
