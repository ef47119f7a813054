"""What a video can be, ready to be read: a file, numbered images of a folder, or one image."""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.decoding.images import Images, open_local, refuse_outside
from pipeline.decoding.opening import BLOCK_BYTES, DescriptorFile, Opened
from pipeline.decoding.reading import Heartbeat, Reader
from pipeline.decoding.sampling import Sampling
from pipeline.storage.faults import StorageError, explained
from pipeline.storage.hashing import listed_hash, sha256, sha256_of
from pipeline.storage.location import resolve


def reader_of(opened: Opened, sampling: Sampling, heartbeat: Heartbeat = lambda: None) -> Reader:
    """Reads an open source, while it is open. heartbeat: called while frames are decoded.

    Raises VideoError with one of `pipeline.catalog.inputs.REJECT_REASONS`.
    """
    if opened.images is None:
        from pipeline.decoding.recording import Recording  # PyAV with it, which only the decoder's child needs

        return Recording(Path(opened.name), opened.uri, sampling, heartbeat, opened.file)
    content = functools.partial(_content, opened, sampling)
    rate = sampling.image_rate or sampling.rate
    return Images(opened.folder, Path(opened.name), opened.images, content, rate, heartbeat)


def _content(opened: Opened, sampling: Sampling, name: str) -> bytes | None:
    """The bytes of an image; None for what is no file."""
    if opened.byte_ranges is not None and opened.file is not None:
        start, size = opened.byte_ranges[name]
        with explained("read", opened.uri):
            return os.pread(opened.file, size, start)
    location = resolve(opened.folder).join(name)
    refuse_outside(location.uri, sampling)
    try:
        file = open_local(location, sampling)
    except StorageError as error:
        if error.kind == "missing":  # a link to nothing
            return None
        raise
    if file is None:
        return None
    with os.fdopen(file, "rb") as image, explained("read", location.uri):
        return image.read()


def hashed(opened: Opened, sampling: Sampling, heartbeat: Heartbeat = lambda: None) -> str | None:
    """The hash of an open source, as `pipeline.decoding.source_hash.source_hash` gives it.

    None for images in object stores, of which not all are fetched, and for what cannot be read: decoding says why.
    """
    try:
        if opened.images is None or opened.photo:
            return f"file:{sha256_of(_blocks(DescriptorFile(opened.file or 0, opened.name), heartbeat))}"
        if opened.byte_ranges is not None:
            return None
        hashes = {}
        for name in opened.images:
            content = _content(opened, sampling, name)
            if content is None:
                return None
            hashes[name] = sha256(content)
            heartbeat()
        return f"images:{listed_hash(hashes)}" if hashes else None
    except (StorageError, OSError):
        return None


def _blocks(file: DescriptorFile, heartbeat: Heartbeat) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block
        heartbeat()
