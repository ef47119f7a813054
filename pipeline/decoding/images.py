"""Numbered images of a folder, read as the frames of a video, and the names of a folder's images."""

import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from pipeline.decoding.reading import Frame, Heartbeat, Reader, Reading
from pipeline.decoding.sampling import Sampling, resize
from pipeline.errors import VideoError
from pipeline.storage.faults import StorageError, explained
from pipeline.storage.location import Location
from pipeline.storage.reach import inside_checker
from pipeline.storage.uris import canonical_uri


@dataclass
class Images(Reader):
    """Numbered images, in the order of their numbers.

    uri: of their folder; path: what the folder or pattern is called. names: of the images that belong to the video, in order.
    content: the bytes of an image by its name, None for what is no file; raises StorageError and VideoError. rate: frames per
    second. size: height and width in pixels of the first image, once it was read.
    """

    uri: str
    path: Path
    names: Sequence[str]
    content: Callable[[str], bytes | None]
    rate: float
    heartbeat: Heartbeat
    size: tuple[int, int] | None = None

    def frames(self) -> Iterator[Frame]:
        if not self.names:
            raise VideoError("no_frames", f"{self.uri} has no frames")
        for number in range(len(self.names)):
            self.heartbeat()
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
