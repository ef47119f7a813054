"""Which images of a folder are the frames of a video: their names, their order, and patterns of names."""

import bisect
import functools
import os
import posixpath
import re
import sys
import time

from pyarrow.fs import FileType

from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location, resolve

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
LISTING_SECONDS = 600  # for which the listing of a bucket prefix is good; local folders say when they change


def is_image_pattern(name: str) -> bool:
    """Whether a uri's last part names images of its folder: `*`, for any characters, and an image's suffix ("0001C1T0001F*.jpg").

    So one folder can hold many tracklets. No other character is special, and `*` stands for no leading dot.
    """
    return "*" in name and posixpath.splitext(name)[1].lower() in IMAGE_SUFFIXES


def image_order(name: str) -> tuple[list[int], str]:
    """Sort key of a numbered image: all numbers in its name, compared as numbers, then the name."""
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def image_names(folder: Location, pattern: str = "*") -> list[str]:
    """Names of the images of a folder that match the pattern, sorted; `*` is any characters, but no leading dot.

    The last folder's names are kept, so asking for one tracklet after another of a folder lists it once. Raises StorageError
    when the folder is missing (an object store has none that is empty) or may not be read.
    """
    stamp = _last_change(folder.path) if folder.is_local else int(time.monotonic() // LISTING_SECONDS)
    names = _listed_images(folder.uri, stamp)
    if not names and folder.info().type != FileType.Directory:
        raise StorageError(f"cannot read {folder.uri}: there is no such folder", "missing")
    start = pattern.partition("*")[0]
    first, last = (bisect.bisect_left(names, bound) for bound in (start, start + chr(sys.maxunicode)))
    return [name for name in names[first:last] if matches(name, pattern)]


def matches(name: str, pattern: str) -> bool:
    """Whether the name is the pattern with some characters, or none, in the place of each `*`. Takes linear time."""
    start, *between = pattern.split("*")
    if not between:
        return name == pattern
    end = between.pop()
    at, stop = len(start), len(name) - len(end)
    if at > stop or not name.startswith(start) or not name.endswith(end):
        return False
    for part in between:
        at = name.find(part, at, stop)
        if at < 0:
            return False
        at += len(part)
    return True


def _last_change(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns  # noqa: PTH116
    except OSError:
        return 0  # listing it says why


@functools.lru_cache(maxsize=1)
def _listed_images(uri: str, stamp: int) -> list[str]:
    """All image names of a folder, sorted, without hidden ones. stamp: another one for a folder that may have changed."""
    folder = resolve(uri)
    if folder.is_local:
        try:
            with os.scandir(folder.path) as entries:
                names = [entry.name for entry in entries if not entry.is_dir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            kind = "permission_denied" if isinstance(error, PermissionError) else "other"
            raise StorageError(f"cannot list {uri}: {error.strerror}", kind) from error
    else:
        names = [file.name for file in folder.list()]
    suffixes = tuple(IMAGE_SUFFIXES)
    return sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))
