"""Where files are: local disk, S3 or Google Cloud Storage (pyarrow.fs), by canonical uri; writes are whole or absent.

A canonical uri is an absolute local path (`/data/cam1/a.mp4`) or `s3://bucket/key`, `gs://bucket/key`. The key is
literal, as the AWS command line writes it: a blank is a blank and `%20` is three characters. Connection options that
pyarrow knows (`?endpoint_override=...&region=...`) stay at the end of the uri, since another process needs them to open
it; credentials never stand in a uri, since uris are written into the gallery.
"""

import errno
import fcntl
import functools
import io
import os
import posixpath
import random
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qsl, unquote, urlencode

import numpy as np
import pyarrow as pa
from numpy.typing import DTypeLike
from pyarrow import fs as pafs

from pipeline.errors import PipelineError, UsageError
from pipeline.storage.conditional import put_if_absent

# What pyarrow.fs.FileSystem.from_uri accepts after "?". Anything else after a question mark belongs to the key.
_OPTIONS = {
    *("endpoint_override", "region", "scheme", "allow_bucket_creation", "allow_bucket_deletion", "allow_delayed_open"),
    *("check_directory_existence_before_creation", "force_virtual_addressing", "tls_ca_file_path"),
    *("retry_limit_seconds", "project_id"),
}
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
_MISSING = re.compile(r"AWS Error NO_SUCH_(KEY|BUCKET)|HTTP status 404|Status\(NOT_FOUND")
_DENIED = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH)|HTTP status 40[13]"
    r"|Status\((PERMISSION_DENIED|UNAUTHENTICATED)"
)
_BUSY = re.compile(
    r"AWS Error (SLOW_DOWN|THROTTLING|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|NETWORK_CONNECTION|REQUEST_TIMEOUT)"
    r"|HTTP status (429|5\d\d)|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|INTERNAL)"
)
_NOT_WHOLE = re.compile(r"^\d+ requested and \d+ written$")  # NumPy's words, without a number, for a full disk
_LEFTOVER_PREFIX = ".writing-"
_LOCK = f"{_LEFTOVER_PREFIX}lock"  # in a folder of a disk without hard links; listings leave it out
S3_TRIES = 12  # with pauses that double from 25 ms: 51 s, about as for Google's store; pyarrow's own end after 6 s
_SMALL_BYTES = 2**20
_SPOOL_BYTES = 64 * 2**20
_NOT_ANSWERING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EBADF}


class StorageError(PipelineError):
    """A file or bucket cannot be read or written.

    kind: "missing", "permission_denied", "no_space", "read_only", "unavailable" (a store that throttles, fails or does not
    answer, after retries) or "other".
    """

    def __init__(self, message: str, kind: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (str(self), self.kind)

    def reject_reason(self, otherwise: str) -> str:
        """Why a video is refused that this keeps from being read; `otherwise` where the file is to blame."""
        if self.kind in ("missing", "permission_denied"):
            return self.kind
        return "unavailable" if self.kind in ("unavailable", "no_space", "read_only") else otherwise


@dataclass(frozen=True)
class Location:
    """One file or folder: `path` is what `filesystem` (a pyarrow.fs.FileSystem) calls it, `uri` what all others do.

    It can be pickled; another process opens it by its uri. Every method raises StorageError, naming the uri and the cause, where
    the storage refuses.
    """

    filesystem: Any
    path: str
    uri: str

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return resolve, (self.uri,)  # pyarrow's S3 client would leave its retries behind

    @property
    def is_local(self) -> bool:
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    def join(self, *parts: str) -> "Location":
        """The location below this one. Raises UsageError for a part that would lead out of it."""
        tail = posixpath.join("", *parts)
        if not tail:
            return self
        if any(part.startswith("/") or ".." in part.split("/") for part in parts):
            raise UsageError(f"{tail!r} leads out of {self.uri}")
        head, options = _split_options(self.uri)
        return Location(self.filesystem, posixpath.join(self.path, tail), posixpath.join(head, tail) + options)

    def info(self) -> pafs.FileInfo:
        """pyarrow's FileInfo: type (File, Directory, NotFound), size, mtime."""
        with explained("read", self.uri):
            return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        return self.info().type != pafs.FileType.NotFound

    def read_bytes(self) -> bytes:
        with self.open_input() as file, explained("read", self.uri):
            return file.read()

    def open_input(self) -> pa.NativeFile:
        """The file opened for reading at any position; a small object is read now, as a whole."""
        with explained("read", self.uri):
            file = self.filesystem.open_input_file(self.path)
            return file if self.is_local or file.size() > _SMALL_BYTES else pa.BufferReader(_read_small(file))

    def blocks(self, size: int) -> Iterator[bytes]:
        """The file's content from the start, `size` bytes at a time."""
        with self.open_input() as file, explained("read", self.uri):
            while block := file.read(size):
                yield block

    def names(self) -> list[str]:
        """Names of the files in this folder, sorted, as those of `list`; on a local disk twenty times as fast."""
        if not self.is_local:
            return [file.name for file in self.list()]
        with explained("list", self.uri), suppress(FileNotFoundError), os.scandir(self.path) as entries:
            return sorted(e.name for e in entries if e.is_file() and not e.name.startswith(_LEFTOVER_PREFIX))
        return []

    def infos(self, recursive: bool = False) -> list[tuple["Location", pafs.FileInfo]]:
        """The files below this folder and what `info` says of each, sorted by path; unfinished writes too."""
        selector = pafs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        with explained("list", self.uri):
            infos = self.filesystem.get_file_info(selector)
        start = len(self.path.rstrip("/")) + 1
        files = sorted((info for info in infos if info.is_file), key=lambda info: info.path)
        return [(self.join(info.path[start:]), info) for info in files]

    def delete(self) -> None:
        """Remove the file; nothing happens when it is already gone."""
        try:
            with explained("delete", self.uri):
                self.filesystem.delete_file(self.path)
        except StorageError as error:
            if error.kind != "missing":
                raise

    def write_atomically(self, content: bytes | Callable[[IO[bytes]], object], *, exclusive: bool = False) -> bool:
        """Write the file so that readers see all of it or nothing; after the return a local file survives a power cut.

        content: the bytes, or a function that writes them to the binary file it is given; when it raises, nothing has
        been written. exclusive: leave a file that already exists alone and return False, see `create`. Folders above the
        file are made. Returns True when this call wrote the file. Raises StorageError; other errors of `content` pass through.
        """
        with explained("write", self.uri):
            if self.is_local:
                return write_local(self.path, content, exclusive)
            if not exclusive:
                _put(self.filesystem, self.path, content)
                return True
            if callable(content):
                content(whole := io.BytesIO())
                content = whole.getvalue()
            return self.create(content)

    def create(self, content: bytes) -> bool:
        """Write the file unless there is one, by a single conditional write; returns whether this call wrote it.

        Of any number of processes that try at once, one wins. On a disk without hard links (exFAT, some network mounts) a lock
        in the folder stands in for them (`flock`); an object store has to know the condition (`keeps_existing`).
        Raises StorageError.
        """
        with explained("write", self.uri):
            if self.is_local:
                return write_local(self.path, content, exclusive=True)
            if self._put_if_absent(content):
                return True
            return self.read_bytes() == content  # its answer was lost, and it was asked for again

    def keeps_existing(self, content: bytes) -> bool:
        """Whether the storage leaves a file alone that is there when it is asked to; content: what the file holds, for those
        that do not know the condition write it again. Raises StorageError.
        """
        with explained("write", self.uri):
            return self.is_local or not self._put_if_absent(content)

    def _put_if_absent(self, content: bytes) -> bool:
        scheme, _, rest = self.uri.partition("://")
        head, options = _split_options(rest)
        return put_if_absent(scheme, head, dict(parse_qsl(options.removeprefix("?"))), content, S3_TRIES)

    # The last method, for after it `list` means this one.
    def list(self, recursive: bool = False) -> list["Location"]:
        """The files below this folder, sorted by path; none where it is absent. Unfinished writes are left out."""
        return [file for file, _ in self.infos(recursive) if not file.name.startswith(_LEFTOVER_PREFIX)]


def resolve(uri_or_path: str | Path) -> Location:
    """The location of a path or uri; a relative one lies below the working directory.

    Raises UsageError for an unknown scheme, credentials in the uri or a missing bucket name, and StorageError when the
    store cannot be reached.
    """
    uri = canonical_uri(uri_or_path)
    if uri.startswith("/"):
        return Location(pafs.LocalFileSystem(), uri, uri)
    head, options = _split_options(uri)
    scheme, path = head.split("://", 1)
    return Location(_object_store(scheme, path.split("/", 1)[0], options), path.removeprefix("anonymous@"), uri)


def canonical_uri(uri_or_path: str | Path, base: str | None = None) -> str:
    """The one spelling of a path or uri, as the head of this file says, found without opening anything.

    `.`, `..` and doubled slashes are resolved by spelling. base: folder (path or uri) that a relative path starts from;
    the working directory without it. Raises UsageError.

    >>> canonical_uri("clips/../a b.mp4", base="s3://footage/cam1")
    's3://footage/cam1/a b.mp4'
    """
    text = str(uri_or_path)
    if not text or "\0" in text or not is_utf8(text):
        raise UsageError(f"{text!r} cannot be a path: it is empty, holds a NUL character or is not UTF-8")
    scheme = _SCHEME.match(text) if "://" in text else None
    if scheme is None:
        if text.startswith("/"):
            return _normal(text)
        if base is None:
            return canonical_uri(str(Path(text).absolute()))
        if base.startswith("/"):
            return _normal(f"{base}/{text}")
        base = canonical_uri(base)
        head, options = _split_options(base)
        text = f"{head}/{text}{options}"
        if head.startswith("/"):
            return _normal(text)
        scheme = _SCHEME.match(text)
        assert scheme is not None  # noqa: S101 - base is canonical: a path or a uri with a scheme
    return _canonical_with_scheme(scheme.group(1).lower(), text[scheme.end() :], text)


def _canonical_with_scheme(scheme: str, rest: str, text: str) -> str:
    if scheme == "file":
        host, slash, path = unquote(rest).partition("/")
        if host not in ("", "localhost") or not slash:
            raise UsageError(f"{text!r} is not a local file: write file:///absolute/path")
        return canonical_uri("/" + path)
    if scheme not in ("s3", "gs", "gcs"):
        raise UsageError(f"{text!r}: unknown scheme {scheme}://; use a path, file://, s3:// or gs://")
    head, options = _split_options(rest)
    bucket, _, key = head.partition("/")
    user, at, _ = bucket.rpartition("@")
    if at and not (user == "anonymous" and scheme != "s3"):
        raise UsageError(
            f"{scheme}://...@{bucket.rpartition('@')[2]} carries credentials, which would be stored with every row; "
            "give them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or a credentials file"
        )
    if not bucket.rpartition("@")[2]:
        raise UsageError(f"{text!r} names no bucket")
    return f"{scheme.replace('gcs', 'gs')}://{bucket}{_normal('/' + key)}".rstrip("/") + options


@dataclass(frozen=True)
class Reach:
    """Where uris may lead that stand in data: in a manifest, or in a gallery's rows.

    roots: canonical uris that they must lie in or below, links followed; (): anywhere. endpoints: those of `endpoint_of`, which
    the operator named; credentials are sent to no other, but for the cloud's own.
    """

    roots: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()

    @classmethod
    def of(cls, *named: str, roots: Sequence[str | Path] = (), endpoints: Sequence[str] = ()) -> "Reach":
        """The reach of a command. named: the canonical uris in its own arguments, whose endpoints count. endpoints: URLs.

        Raises UsageError for a root or an endpoint that cannot be meant.
        """
        canonical = tuple(map(canonical_uri, roots))
        found = [*map(endpoint_of, (*named, *canonical)), *map(_named_endpoint, endpoints)]
        return cls(canonical, tuple(sorted({one for one in found if one is not None})))

    def refusal(self, uri: str) -> tuple[str, str] | None:
        """(reject reason, sentence) for a canonical uri that leads out of reach by now, else None. Opens nothing."""
        return self.refusals()(uri)

    def refusals(self) -> Callable[[str], tuple[str, str] | None]:
        """`refusal` for many uris: where a folder's links lead is looked up once."""
        is_inside = inside_checker(self.roots) if self.roots else None

        def refusal(uri: str) -> tuple[str, str] | None:
            if (endpoint := endpoint_of(uri)) is not None and endpoint not in self.endpoints:
                sentence = f"{uri} names the endpoint {endpoint}, which the command does not; if you trust it, add --endpoint URL"
                return "unnamed_endpoint", sentence
            if is_inside is not None and not is_inside(uri):
                return "outside_roots", f"{uri} lies outside the allowed roots"
            return None

        return refusal


def endpoint_of(uri: str) -> str | None:
    """Which server a canonical uri sends requests to, as "https://HOST"; None for local paths and for the cloud's own.

    What else decides where signed requests go, or who may read them, is part of it.

    >>> endpoint_of("s3://bucket/a.mp4?endpoint_override=store.example:9000&region=eu")
    'https://store.example:9000'
    >>> endpoint_of("s3://bucket/a.mp4?region=eu") is None
    True
    """
    options = dict(parse_qsl(_split_options(uri)[1].removeprefix("?"), keep_blank_values=True))
    if not options:
        return None
    scheme, mark, host = options.get("endpoint_override", "").rstrip("/").rpartition("://")
    parts = [f"{scheme if mark else options.get('scheme', 'https')}://{host}".lower()]
    if "tls_ca_file_path" in options:
        parts.append(f"with the certificates of {options['tls_ca_file_path']}")
    if re.fullmatch(r"[A-Za-z0-9-]*", region := options.get("region", "")) is None:  # it becomes part of the host's name
        parts.append(f"with the region {region}")
    return None if parts == ["https://"] else " ".join(parts)


def _named_endpoint(url: str) -> str:
    """An --endpoint as `endpoint_of` gives it."""
    if re.fullmatch(r"https?://[^/?#\s]+/?", url) is None:
        raise UsageError(f"--endpoint is a URL such as https://store.example:9000, not {url!r}")
    return url.rstrip("/").lower()


def inside_checker(roots: Sequence[str | Path]) -> Callable[[str], bool]:
    """A function that says whether a canonical uri lies in or below one of the roots, local symlinks followed.

    Another endpoint is another place: `s3://b/x?endpoint_override=elsewhere` is not inside `s3://b`.
    """
    real_folder = functools.lru_cache(maxsize=65536)(os.path.realpath)  # many files, few folders

    def real(uri: str) -> str:
        if not uri.startswith("/"):
            return uri
        if os.path.islink(uri):  # noqa: PTH114 - a Path object a row would double the time
            return os.path.realpath(uri)
        folder, name = posixpath.split(uri)
        return posixpath.join(real_folder(folder), name)

    resolved = [_split_options(real(canonical_uri(root))) for root in roots]

    def is_inside(uri: str) -> bool:
        path, options = _split_options(real(uri))
        return any(
            options == root_options and (path == root or path.startswith(root.rstrip("/") + "/"))
            for root, root_options in resolved
        )

    return is_inside


@functools.lru_cache(maxsize=256)
def _object_store(scheme: str, bucket: str, options: str) -> Any:
    # One client for a bucket: making one costs a connection pool and, without a region, a request.
    if scheme == "gs" and "retry_limit_seconds=" not in options:
        options = f"{options or '?'}&retry_limit_seconds=60"  # the client's own limit is 15 minutes
    with explained("reach", f"{scheme}://{bucket}"):
        store = pafs.FileSystem.from_uri(f"{scheme}://{bucket}{options.replace('?&', '?')}")[0]
        if scheme == "s3":
            settings = store.__reduce__()[1][0]
            settings["allow_delayed_open"] |= "allow_delayed_open=" not in options  # a small file is one request, not three
            # The "standard" strategy shares a budget of retries among all requests of a client: in a bad hour it runs out, and
            # from then on every fault is final. This one counts the tries after the first.
            store = pafs.S3FileSystem(**settings, retry_strategy=pafs.AwsDefaultS3RetryStrategy(max_attempts=S3_TRIES - 1))
        return store


def _split_options(uri: str) -> tuple[str, str]:
    """(uri without its connection options, the options from "?" on in one spelling or ""). Local paths have none."""
    head, mark, query = uri.rpartition("?")
    if not mark or uri.startswith("/"):
        return uri, ""
    pairs = parse_qsl(query, keep_blank_values=True)
    if not pairs or not {name for name, _ in pairs} <= _OPTIONS:
        return uri, ""
    return head, "?" + urlencode(sorted(pairs), safe=":/")


def _normal(path: str) -> str:
    if "//" not in path and "/." not in path and not path.endswith("/"):
        return path  # a million rows are mostly like this
    # normpath keeps two leading slashes, as POSIX allows
    return "/" + posixpath.normpath(path).lstrip("/")


def is_utf8(text: str) -> bool:
    """Whether a name is text: the bytes of others come from the file system as lone surrogates, which no table can hold."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


@contextmanager
def explained(action: str, uri: str) -> Iterator[None]:
    """Within the block, what the storage refuses is a StorageError: "cannot ACTION URI: the cause"."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        kind, cause = _cause(error)
        raise StorageError(f"cannot {action} {uri}: {cause}", kind) from error


def new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap:
    """A new .npy file to be written as a memory map, its disk space taken beforehand: on a full disk, writing to a map ends the
    process (SIGBUS). Raises StorageError, leaving nothing.
    """
    with explained("write", str(path)):
        try:
            array: np.memmap = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return array


def _cause(error: Exception) -> tuple[str, str]:
    number, text = getattr(error, "errno", None), str(error)
    if isinstance(error, FileNotFoundError) or _MISSING.search(text):
        return "missing", "there is no such file, folder or bucket"
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return "permission_denied", "permission denied"
    if number in (errno.ENOSPC, errno.EDQUOT) or _NOT_WHOLE.search(text):
        return "no_space", "no space is left on the device"
    if number in _NOT_ANSWERING:
        return "unavailable", f"the file system does not answer: {os.strerror(number)}"
    if number == errno.EROFS:
        return "read_only", "the file system is read-only"
    if _BUSY.search(text):
        return "unavailable", f"the store throttles, fails or does not answer, after {S3_TRIES} tries: {' '.join(text.split())}"
    return "other", " ".join(text.split())


def _read_small(file: pa.NativeFile) -> bytes:
    """The content of an object. pyarrow does not try again when the store's refusal is longer than what was asked for."""
    for attempt in range(1, S3_TRIES):
        try:
            return file.read_at(file.size(), 0)
        except OSError as error:
            if "Failed to flush response stream" not in str(error):
                raise
            time.sleep(min(20.0, 0.1 * 2**attempt * random.random()))
    return file.read_at(file.size(), 0)


def _put(filesystem: Any, path: str, content: bytes | Callable[[IO[bytes]], object]) -> None:
    if not callable(content):
        with filesystem.open_output_stream(path) as stream:
            stream.write(content)
        return
    # pyarrow's S3 stream publishes what it has when it is closed or collected, even after an error: so make all of the
    # content beforehand.
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as spool:
        content(spool)
        spool.seek(0)
        with filesystem.open_output_stream(path) as stream:
            while piece := spool.read(8 * 2**20):
                stream.write(piece)


def write_local(path: str | Path, content: bytes | Callable[[IO[bytes]], object], exclusive: bool = False) -> bool:
    """`Location.write_atomically` of a local path; what the disk refuses is an OSError."""
    if exclusive and os.path.lexists(path):
        return False
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_LEFTOVER_PREFIX}{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if not exclusive:
            temporary.replace(path)
        elif not _link(temporary, path):
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(folder)
    return True


def _link(temporary: Path, path: str | Path) -> bool:
    """Give the finished file its name if nobody has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
        # No hard links here (exFAT, some network mounts): look, then rename, one at a time. A lock ends with its process.
        with Path(path).with_name(_LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.lexists(path):
                return False
            temporary.replace(path)
    return True


def sync_folder(folder: Path) -> None:
    """Let the names in a local folder survive a power cut. Raises OSError, but not where the file system cannot sync folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
