"""Files of an index in an object store, as files on this machine: fetched once, kept in the user's cache, gone with the index.

<cache folder>/index/<gallery>/<version or partition>/<file>          whole, compared with the manifest's sha256 when it came
                                                      <file>.part     of rows of frames, the blocks that were asked for

Names of versions and partitions are never used again and their files never change, so a file is found by them and its size;
<gallery> is a hash of its uri. What a new version has in common with an earlier one (statistics of cameras, the head, the cohort)
is copied from there, by sha256. Rows of frames are nine tenths of an index, and a search wants those of its shortlist: of them
single blocks are fetched. Where no folder can be kept private, and with COATTENTION_CACHE_BYTES=0, all of it lies in a temporary
folder of the process.
"""

import atexit
import contextlib
import fcntl
import functools
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np

from pipeline.errors import PipelineError, UsageError
from pipeline.stopping import Between, going_on, stoppable
from pipeline.storage.downloads import cache_folder, check_private
from pipeline.storage.faults import explained
from pipeline.storage.hashing import sha256, sha256_of
from pipeline.storage.local_writes import write_local
from pipeline.storage.location import Location, resolve
from pipeline.storage.seals import unsealed

LIMIT = "COATTENTION_CACHE_BYTES"  # of this machine, an environment variable; without it half of what the disk has for the cache
MANIFEST = "manifest.json"
BLOCK = 128 << 10  # bytes of a file of rows that are fetched or not
REQUEST_BYTES = 16 << 20  # at most
LEAST_BYTES = 4096  # pyarrow does not try again where a store's refusal is longer than what was asked for
AT_ONCE = 16  # requests
USED_LATELY = 600.0  # seconds; such a file may be about to be opened
KEPT = 30 * 86_400.0  # seconds that a file stays unused at most, where anything else of the cache is used
SWEEP = 64  # files came, and it is looked whether there are too many

Asked = TypeVar("Asked")
log = logging.getLogger(__name__)
_came = 0
_counting = threading.Lock()


def local_files(location: Location, files: Mapping[str, Mapping[str, Any]]) -> Location:
    """A folder of this machine that holds these files of a version or partition: its own, or for one in a store the cached one.

    files: name -> bytes and sha256, as in a manifest. Raises PipelineError for one that differs from that.
    """
    if location.is_local:
        return location
    folder = cached_folder(location)

    def missing() -> set[str]:
        return {name for name, entry in files.items() if not _is_there(folder / name, entry["bytes"])}

    if missing():
        with _alone(folder):
            names = missing()
            held = _of_earlier_versions(folder, {name: files[name] for name in names})
            at_once(lambda name: _fetch(location.join(name), folder / name, files[name]["sha256"]), names - held)
        _swept_now_and_then(len(names))
    return resolve(folder)


def _of_earlier_versions(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Those of a version's files that another version in the cache has, copied from there. folder: of a version or partition."""
    copied: set[str] = set()
    if not (folder / MANIFEST).exists():  # a partition: its files are its own
        return copied
    for manifest in folder.parent.glob(f"*/{MANIFEST}"):
        with contextlib.suppress(
            OSError, ValueError, LookupError, TypeError, AttributeError
        ):  # the store has what cannot be had here
            entries = unsealed(manifest.read_bytes())["files"]
            for name, entry in files.items():
                if name not in copied and entries.get(name) == entry and _is_there(manifest.parent / name, entry["bytes"]):
                    with contextlib.suppress(PipelineError):
                        _fetch(resolve(manifest.parent / name), folder / name, entry["sha256"])
                        copied.add(name)
    return copied


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Before other processes of this machine, which find afterwards what they want; without order where a disk knows no locks."""
    with explained("write", str(folder)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = (folder / ".lock").open("wb")
    with lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def at_once(work: Callable[[Asked], object], items: Collection[Asked], between: Between = going_on) -> None:
    """Do what waits for the store for many items, so many at a time. between: what it raises leaves out what has not begun."""
    if len(items) < 2:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        asked = [pool.submit(work, item) for item in items]
        try:
            for one in stoppable(asked, between):
                one.result()
        finally:
            for one in asked:
                one.cancel()


def cached_folder(location: Location) -> Path:
    """Where files of a version or partition are kept. location: GALLERY/index/.../NAME in an object store."""
    gallery = location.uri.replace(location.path, location.path.rpartition("/index/")[0], 1)
    return _root() / sha256(gallery)[:32] / location.name


def cached_manifest(location: Location) -> bytes:
    """The manifest of a version that is there: in its folder, or of one in a store the cached one."""
    manifest = location.join(MANIFEST)
    if location.is_local:
        return manifest.read_bytes()
    path = cached_folder(location) / manifest.name
    if not path.exists():
        content = manifest.read_bytes()
        with explained("write", str(path)):
            write_local(path, content)
    os.utime(path)
    return path.read_bytes()


def drop_gone(index: Location, versions: Collection[str], partitions_of: Callable[[bytes], Collection[str]]) -> None:
    """Remove from the cache what belongs to versions of an index that are gone. partitions_of: the ids in a manifest.

    versions: those that are there. One that is newer than all of them has just been published.
    """
    if index.is_local or not (place := cached_folder(index.join("any")).parent).is_dir():
        return
    names = {folder.name for folder in place.iterdir()}
    there = {*versions, *(name for name in names if name > max(versions, default="") and "-" in name)}
    for version in list(there):
        with contextlib.suppress(PipelineError, OSError, ValueError, LookupError, TypeError):
            there |= set(partitions_of(cached_manifest(index.join(version))))
    for name in names - there:
        shutil.rmtree(place / name, ignore_errors=True)


class PartialFile:
    """A file of rows in a store, and a sparse file of this machine that has the blocks of it that are needed.

    here: that file. Behind the rows it has a byte a block, 1 where the block is there; processes that fetch the same block write
    the same bytes. Raises PipelineError for an object of another size than its manifest's entry says.
    """

    def __init__(self, location: Location, entry: Mapping[str, Any], folder: Path) -> None:
        self.location, self.size = location, int(entry["bytes"])
        self.blocks = -(-self.size // BLOCK)
        path = folder / f"{location.name}.part"
        with explained("write", str(path)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self.descriptor)
            os.utime(path)
            os.truncate(self.descriptor, self.size + self.blocks)
        self.here = resolve(path)
        self.need(np.array([0]), np.array([1]))  # its header

    @functools.cached_property
    def source(self) -> Any:
        """The object, open."""
        with explained("read", self.location.uri):
            source = self.location.filesystem.open_input_file(self.location.path)
            if source.size() != self.size:
                raise PipelineError(f"the index file {self.location.uri} has {source.size()} bytes instead of {self.size}")
            return source

    def need(self, first: np.ndarray, end: np.ndarray) -> None:
        """Have the bytes [first, end) there, int64 [n] each. Blocks in a row are one request."""
        change = np.zeros(self.blocks + 1, np.int64)
        np.add.at(change, first // BLOCK, 1)
        np.add.at(change, -(-end // BLOCK), -1)
        there = np.frombuffer(os.pread(self.descriptor, self.blocks, self.size), np.uint8)
        missing = np.flatnonzero((np.cumsum(change)[:-1] > 0) & (there == 0))
        if not len(missing):
            return
        parts, source = list(_requests(missing, REQUEST_BYTES // BLOCK)), self.source
        with explained("copy", self.location.uri):
            at_once(lambda part: self._fetch(source, *part), parts)
            os.fdatasync(self.descriptor)  # after a power cut, what is said to be there is
            for begin, stop in parts:
                os.pwrite(self.descriptor, b"\1" * (stop - begin), self.size + begin)
        _swept_now_and_then(1)

    def _fetch(self, source: Any, begin: int, stop: int) -> None:
        end = min(stop * BLOCK, self.size)
        first = max(0, min(begin * BLOCK, end - LEAST_BYTES))
        content = source.read_at(end - first, first)
        if len(content) != end - first or os.pwrite(self.descriptor, content, first) != len(content):
            raise PipelineError(f"{self.location.uri} was not copied as a whole; search again")


def _requests(blocks: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """[begin, stop) of blocks that follow each other, at most so many. blocks: int64 [n], ascending."""
    for run in np.split(blocks, np.flatnonzero(np.diff(blocks) > 1) + 1):
        begin, end = int(run[0]), int(run[-1]) + 1
        yield from ((at, min(at + most, end)) for at in range(begin, end, most))


def sweep(limit: int | None = None) -> None:
    """Remove the files that were used longest ago, until the rest takes `limit` bytes, by default what this machine allows.

    What was not used for KEPT seconds goes whatever it takes.
    """
    root, found = _root(), []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                status = path.stat()
                found.append((status.st_mtime, 512 * status.st_blocks, path))
    held = sum(size for _, size, _ in found)
    limit = _allowed(held, root) if limit is None else limit
    for used, size, path in sorted(found):
        unused = time.time() - used
        if unused < USED_LATELY or (held <= limit and unused < KEPT):
            break
        path.unlink(missing_ok=True)
        held -= size


def _allowed(held: int, root: Path) -> int:
    if (said := os.environ.get(LIMIT)) is None:
        return (held + shutil.disk_usage(root).free) // 2
    if not said.isdecimal():
        raise UsageError(f"{LIMIT} is a number of bytes, not {said!r}")
    return int(said)


@functools.cache
def _root() -> Path:
    """The folder of all cached files."""
    folder = cache_folder() / "index"
    if os.environ.get(LIMIT) != "0":
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)  # what people look like, in numbers
            check_private(folder.resolve())
            return folder
        except (OSError, RuntimeError) as error:
            log.warning("files of indexes in object stores are not kept: %s", error)
    with explained("write", tempfile.gettempdir()):
        own = tempfile.mkdtemp(prefix="co-attention-search-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


def _is_there(path: Path, size: int) -> bool:
    try:
        os.utime(path)
        return path.stat().st_size == size
    except OSError:
        return False


def _fetch(location: Location, path: Path, checksum: str) -> None:
    def write(sink: IO[bytes]) -> None:
        def written() -> Iterator[bytes]:
            for block in location.blocks(REQUEST_BYTES):
                sink.write(block)
                yield block

        if sha256_of(written()) != checksum:
            raise PipelineError(f"the index file {location.uri} is damaged: its checksum differs")

    with explained("write", str(path)):
        write_local(path, write)


def _swept_now_and_then(came: int) -> None:
    global _came
    with _counting:
        before, _came = _came, _came + came
    if before // SWEEP < _came // SWEEP:
        sweep()
