"""Files from elsewhere, known by their checksum: found in the user's cache, else downloaded into it."""

import http.client
import os
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage.hashing import sha256
from pipeline.storage.local_writes import write_local

BLOCK = 1 << 16  # bytes
CONNECT_S = 20.0  # a server that says nothing for so long is given up
WHOLE_S = 300.0  # a server that trickles is given up after so long


@dataclass(frozen=True)
class PinnedFile:
    """A file of known content. name: of the file; size: bytes; url: where it is published, None if it can only be copied."""

    name: str
    sha256: str
    size: int
    url: str | None


class _DownloadError(Exception):
    """Why a download failed, as the end of a sentence."""


def cache_folder() -> Path:
    """Where this program keeps what can be made or fetched again; XDG_CACHE_HOME moves it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "co-attention-search"


def check_private(folder: Path) -> None:
    """Raise RuntimeError unless this user or root alone can change what is in a resolved folder, or put another in its place."""
    for place in (folder, *folder.parents):
        check_owned(place, place.stat())


def check_owned(place: Path, found: os.stat_result) -> None:
    """Raise RuntimeError for what belongs to another user than this one and root, or that others may write to."""
    if found.st_uid not in (0, os.getuid()):
        raise RuntimeError(f"{place} belongs to another user; set XDG_CACHE_HOME to a folder of your own")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeError(f"others may write to {place}; set XDG_CACHE_HOME to a folder in which only you may write")


def cached(file: PinnedFile, folder: Path) -> Path | None:
    """The file in `folder`, under whatever name it was copied there; None if no file has its content."""
    try:
        for path in sorted(folder.glob("[!.]*")):  # hidden files are downloads under way
            if path.is_file() and path.stat().st_size == file.size and sha256(path.read_bytes()) == file.sha256:
                return path
    except OSError as error:
        raise PipelineError(f"the cache {folder} cannot be read: {error.strerror}; set XDG_CACHE_HOME") from error
    return None


def fetch(file: PinnedFile, folder: Path, timeout: float = CONNECT_S, whole: float = WHOLE_S) -> Path:
    """The file in `folder`, downloaded if it is not there yet.

    It appears under its name only when it is whole and its checksum is right. timeout: seconds without a byte; whole: seconds for
    everything. Only https is trusted, also of what the server redirects to. Raises PipelineError in one sentence with the reason,
    the address, and what to do without a network.
    """
    if (path := cached(file, folder)) is not None:
        return path
    path = folder / file.name
    if file.url is None:
        raise PipelineError(f"{file.name} has no published address: {_remedy(file, path)}")
    try:
        write_local(path, _content(file, _blocks(file.url, timeout, time.monotonic() + whole)))
    except _DownloadError as error:
        raise PipelineError(f"{file.name} cannot be used from {file.url}: {error}; {_remedy(file, path)}") from error
    except OSError as error:
        raise PipelineError(f"the cache {folder} cannot be written: {error.strerror}; set XDG_CACHE_HOME") from error
    return path


def _content(file: PinnedFile, blocks: Iterable[bytes]) -> bytes:
    """The blocks put together. Raises _DownloadError unless they are the file that is expected."""
    content = bytearray()
    for block in blocks:
        content += block
        if len(content) > file.size:
            raise _DownloadError(f"it is larger than the {file.size} bytes that are expected")
    if len(content) < file.size:
        raise _DownloadError(f"the connection was cut after {len(content)} of {file.size} bytes")
    if (digest := sha256(content)) != file.sha256:
        raise _DownloadError(f"its sha256 is {digest[:16]}..., not the pinned one, so it was deleted")
    return bytes(content)


def _remedy(file: PinnedFile, path: Path) -> str:
    return f"copy the file with sha256 {file.sha256} to {path}, or give the path of any .onnx file with its sidecar"


def _blocks(url: str, timeout: float, deadline: float) -> Iterator[bytes]:
    """The body behind an address. Raises _DownloadError for whatever the network or the server does."""
    if not url.startswith("https://"):
        raise _DownloadError("only https is trusted")
    opener = urllib.request.build_opener(_HttpsRedirects)
    request = urllib.request.Request(url, headers={"User-Agent": "co-attention-search"})  # noqa: S310, https is checked above
    try:
        with opener.open(request, timeout=timeout) as response:
            while block := response.read1(BLOCK):
                if time.monotonic() > deadline:
                    raise _DownloadError("the server is too slow")
                yield block
    except urllib.error.HTTPError as error:
        raise _DownloadError(f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _DownloadError(f"there is no connection ({getattr(error.reason, 'strerror', None) or error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _DownloadError(f"the connection failed ({error or type(error).__name__})") from error


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise _DownloadError(f"it redirects to {newurl}, and only https is trusted")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
