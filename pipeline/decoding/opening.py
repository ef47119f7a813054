"""Opens what a source is made of, for a process that may read but neither open files at will nor reach a network.

A file becomes a descriptor. Objects of a bucket are fetched into a temporary file without a name, which is gone with the last
process that holds it, however that ends. Images of a local folder stay where they are.
"""

import contextlib
import errno
import io
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from pyarrow.fs import FileType

from pipeline.catalog.image_folders import IMAGE_SUFFIXES, image_names, image_order, is_image_pattern
from pipeline.decoding.images import open_local, refuse_outside
from pipeline.decoding.reading import Heartbeat
from pipeline.decoding.sampling import Sampling
from pipeline.errors import VideoError
from pipeline.storage.faults import StorageError, explained
from pipeline.storage.location import Location, resolve
from pipeline.storage.uris import canonical_uri

BLOCK_BYTES = 16 << 20  # of an object that is fetched
LookedAt = Callable[[int, int], bool]
"""Whether the image of this number, from 0, is looked at of so many; asked in their order."""


@dataclass(frozen=True)
class Opened:
    """An open source, and its boxes file; a context manager that closes them.

    uri: what it is called in messages; name: its last part, whose ending helps to tell the format. file: descriptor of a video or
    photo, or of all fetched images one behind the other. images: names of the images, in the order of their numbers; None: a
    video. byte_ranges: name -> (first byte, bytes) in
    `file` of an image; None: the images are in the local folder `folder`. photo:
    the only image, given by its own name.
    """

    uri: str
    name: str
    file: int | None = None
    images: tuple[str, ...] | None = None
    folder: str = ""
    byte_ranges: Mapping[str, tuple[int, int]] | None = None
    photo: bool = False
    boxes: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for descriptor in self.descriptors():
            os.close(descriptor)

    def descriptors(self) -> list[int]:
        """The descriptors, of the process that opened them."""
        return [descriptor for descriptor in (self.file, self.boxes) if descriptor is not None]

    def received(self, descriptors: Iterable[int]) -> "Opened":
        """The same in another process, where what `descriptors` gave has these numbers."""
        given = iter(descriptors)
        file, boxes = (None if opened is None else next(given) for opened in (self.file, self.boxes))
        return replace(self, file=file, boxes=boxes)

    def boxes_bytes(self) -> bytes:
        """The content of the boxes file."""
        return b"" if self.boxes is None else DescriptorFile(self.boxes, self.name).read()


class DescriptorFile(io.RawIOBase):
    """A file behind a descriptor, which it leaves open, read at a position of its own. name: what FFmpeg tells formats by."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.at, self.size = 0, os.fstat(descriptor).st_size

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            return b"".join(iter(lambda: self.read(BLOCK_BYTES), b""))
        block = os.pread(self.descriptor, size, self.at)
        self.at += len(block)
        return block

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + (0, self.at, self.size)[whence]
        if at < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.at = at
        return at

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


def open_files(uri: str, boxes_uri: str | None, sampling: Sampling, heartbeat: Heartbeat, looked_at: LookedAt) -> Opened:
    """Open a source: a video file, an image, a folder of numbered images or a pattern of some of them, local or in a bucket.

    heartbeat: called while objects are fetched. looked_at: which images of a bucket are fetched. Raises VideoError with one of
    `pipeline.catalog.inputs.REJECT_REASONS`.
    """
    with contextlib.ExitStack() as closed_on_error:
        boxes = None if boxes_uri is None else _open_boxes(boxes_uri, sampling, heartbeat)
        if boxes is not None:
            closed_on_error.callback(os.close, boxes)
        refuse_outside(uri, sampling)
        try:
            opened = _open_source(uri, sampling, heartbeat, looked_at)
        except StorageError as error:
            raise VideoError(error.reject_reason("undecodable"), str(error)) from error
        closed_on_error.pop_all()
        return replace(opened, boxes=boxes)


def open_boxes(boxes_uri: str, sampling: Sampling, heartbeat: Heartbeat) -> Opened:
    """Open a boxes file alone. Raises VideoError."""
    return Opened(boxes_uri, posixpath.basename(boxes_uri), boxes=_open_boxes(boxes_uri, sampling, heartbeat))


def _open_source(uri: str, sampling: Sampling, heartbeat: Heartbeat, looked_at: LookedAt) -> Opened:
    location = resolve(uri)
    info = location.info()
    if info.type == FileType.Directory:
        return _open_images(uri, location, image_names(location), sampling, heartbeat, looked_at)
    if is_image_pattern(location.name):
        folder = resolve(canonical_uri("..", location.uri))
        names = image_names(folder, location.name)
        if not names:
            raise VideoError("no_frames", f"no image of the folder matches {uri}")
        return _open_images(uri, folder, names, sampling, heartbeat, looked_at)
    if info.type == FileType.NotFound:
        raise VideoError("missing", f"{uri} does not exist")
    if info.is_file and info.size == 0:
        raise VideoError("empty", f"{uri} is an empty file")
    if info.is_file and info.size > sampling.max_bytes:
        raise VideoError("too_large", f"{uri} has {info.size} bytes; the limit is {sampling.max_bytes} (--max-bytes)")
    file = open_local(location, sampling) if location.is_local else _fetched([location], sampling, heartbeat)[0]
    if file is None:
        raise VideoError("not_a_video", f"{uri} is a pipe, a device or a socket")
    if posixpath.splitext(location.name)[1].lower() not in IMAGE_SUFFIXES:
        return Opened(uri, location.name, file)
    byte_ranges = {location.name: (0, os.fstat(file).st_size)}
    return Opened(uri, location.name, file, (location.name,), canonical_uri("..", location.uri), byte_ranges, photo=True)


def _open_images(
    uri: str, folder: Location, names: Iterable[str], sampling: Sampling, heartbeat: Heartbeat, looked_at: LookedAt
) -> Opened:
    images = tuple(sorted(names, key=image_order))
    if folder.is_local:
        return Opened(uri, folder.name, images=images, folder=folder.uri)
    wanted = [name for number, name in enumerate(images) if looked_at(number, len(images))]
    try:
        file, ranges = _fetched([folder.join(name) for name in wanted], sampling, heartbeat)
    except StorageError as error:
        reason = error.reject_reason("unreadable_image")
        raise VideoError("unreadable_image" if reason == "missing" else reason, str(error)) from error
    return Opened(uri, folder.name, file, images, folder.uri, dict(zip(wanted, ranges, strict=True)))


def _open_boxes(uri: str, sampling: Sampling, heartbeat: Heartbeat) -> int:
    refuse_outside(uri, sampling)
    try:
        location = resolve(uri)
        file = open_local(location, sampling) if location.is_local else _fetched([location], sampling, heartbeat)[0]
    except StorageError as error:
        reason = "unavailable" if error.reject_reason("") == "unavailable" else "boxes_missing"
        raise VideoError(reason, f"the boxes file cannot be read: {error}") from error
    if file is None:
        raise VideoError("boxes_missing", f"the boxes file {uri} is not a file")
    return file


def _fetched(objects: Iterable[Location], sampling: Sampling, heartbeat: Heartbeat) -> tuple[int, list[tuple[int, int]]]:
    """Objects as one file without a name, its descriptor; and (first byte, bytes) of each in it.

    Seeking over a network costs more than fetching all. Raises StorageError, and VideoError where it is too much.
    """
    ranges = []
    with contextlib.ExitStack() as stack:
        try:
            copy = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        except OSError as error:  # said of this machine, not of the object
            raise StorageError(f"no temporary file can be made here: {error.strerror}; set TMPDIR", "no_space") from error
        for location in objects:
            start = copy.tell()
            for block in location.blocks(BLOCK_BYTES):
                if copy.tell() + len(block) > sampling.max_bytes:
                    raise VideoError("too_large", f"{location.uri}: more than {sampling.max_bytes} bytes (--max-bytes)")
                with explained(f"copy {location.uri} to", tempfile.gettempdir()):
                    rest = memoryview(block)
                    while rest:
                        rest = rest[copy.write(rest) :]
                heartbeat()
            ranges.append((start, copy.tell() - start))
        return os.dup(copy.fileno()), ranges
