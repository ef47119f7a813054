"""Numbered images of a folder, read as the frames of a video, and the names of a folder's images."""

import bisect
import functools
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from pyarrow.fs import FileType

from pipeline.catalog.inputs import IMAGE_SUFFIXES
from pipeline.decoding.reading import Alive, Frame, Reader, Reading
from pipeline.decoding.sampling import Sampling, resize
from pipeline.errors import VideoError
from pipeline.storage.location import Location, StorageError, canonical_uri, explained, inside_checker, resolve

LISTING_SECONDS = 600  # for which the listing of a bucket prefix is good; local folders say when they change


class Images(Reader):
    """Numbered images, in the order of their numbers. names: of the images that belong to the video, so ordered.

    content: the bytes of an image by its name, None for what is no file; raises StorageError and VideoError. path: what
    a folder or pattern is called.
    """

    def __init__(
        self,
        uri: str,
        path: Path,
        names: Sequence[str],
        content: Callable[[str], bytes | None],
        sampling: Sampling,
        alive: Alive = lambda: None,
    ) -> None:
        self.uri, self.path, self.names, self.content, self.alive = uri, path, names, content, alive
        self.rate = sampling.image_rate or sampling.rate
        self.size: tuple[int, int] | None = None  # height and width in pixels of the first image, once it was read

    def frames(self) -> Iterator[Frame]:
        if not self.names:
            raise VideoError("no_frames", f"{self.uri} has no frames")
        for number in range(len(self.names)):
            self.alive()
            yield Frame(number, number / self.rate, functools.partial(self._picture, number))

    def reading(self) -> Reading:
        return Reading(len(self.names), self.rate)

    def _picture(self, number: int) -> np.ndarray:
        image = self._image(number)
        if self.size is None:  # images of a tracklet may differ in size; the first one's is the video's
            first = image if number == 0 else self._image(0)
            self.size = first.shape[0], first.shape[1]
        return resize(image, *self.size)

    def _image(self, index: int) -> np.ndarray:
        uri = canonical_uri(self.names[index], self.uri)
        try:
            data = self.content(self.names[index])
            frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        except StorageError as error:
            reason = error.reject_reason("unreadable_image")
            raise VideoError("unreadable_image" if reason == "missing" else reason, str(error)) from error
        except cv2.error as error:  # what OpenCV refuses before it decodes: too many pixels, or no memory for them
            raise VideoError("too_large", f"{uri} has more pixels than can be decoded") from error
        if frame is None:
            raise VideoError("unreadable_image", f"{uri} is not an image that can be read")
        return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


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


def refuse_outside(uri: str, sampling: Sampling) -> None:
    """Raises VideoError for what is out of reach by now: a link may have changed since the catalog was read."""
    if refusal := sampling.reach.refusal(uri):
        raise VideoError(*refusal)


def open_local(location: Location, sampling: Sampling) -> int | None:
    """A descriptor of a local file, open for reading; None for what is no regular file: a pipe would be waited for for ever.

    Whether it lies within the roots is asked of the file that was opened, whatever became of its name meanwhile. Raises
    StorageError and VideoError.
    """
    with explained("read", location.uri):
        if not stat.S_ISREG(os.stat(location.path).st_mode):  # noqa: PTH116 - some devices do something when they are opened
            return None
        file = os.open(location.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            return None
        if sampling.roots and not inside_checker(sampling.roots)(os.readlink(f"/proc/self/fd/{file}")):  # noqa: PTH115
            raise VideoError("outside_roots", f"{location.uri} lies outside the allowed roots")
    except BaseException:
        os.close(file)
        raise
    return file
