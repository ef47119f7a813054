"""What a video can be, opened: a file, numbered images of a folder, or one image."""

import contextlib
import hashlib
import posixpath
import tempfile
from pathlib import Path

from pyarrow.fs import FileType

from pipeline.catalog import IMAGE_SUFFIXES, is_image_pattern
from pipeline.errors import VideoError
from pipeline.images import Images, image_names, refuse_outside
from pipeline.reading import Alive, Reader
from pipeline.sampling import Sampling
from pipeline.storage import Location, StorageError, canonical_uri, content_hash, explained, listed_hash, resolve

BLOCK_BYTES = 16 << 20  # of a file that is copied or hashed


def open_source(uri: str, sampling: Sampling, stack: contextlib.ExitStack, alive: Alive = lambda: None) -> Reader:
    """The opened source. stack: closes it. alive: called while it is copied from an object store, and while frames are decoded.

    Raises VideoError with one of `pipeline.catalog.REJECT_REASONS`.
    """
    refuse_outside(uri, sampling)
    try:
        location = resolve(uri)
        info = location.info()
        if info.type == FileType.Directory:
            return Images(location, image_names(location), sampling, alive)
        if is_image_pattern(location.name):
            folder = resolve(canonical_uri("..", uri))
            names = image_names(folder, location.name)
            if not names:
                raise VideoError("no_frames", f"no image of the folder matches {uri}")
            return Images(folder, names, sampling, alive)
        if info.type == FileType.NotFound:
            raise VideoError("missing", f"{uri} does not exist")
        if not info.is_file:
            raise VideoError("not_a_video", f"{uri} is a pipe, a device or a socket")
        if info.size == 0:
            raise VideoError("empty", f"{uri} is an empty file")
        if info.size > sampling.max_bytes:
            raise VideoError("too_large", f"{uri} has {info.size} bytes; the limit is {sampling.max_bytes} (--max-bytes)")
        if posixpath.splitext(location.name)[1].lower() in IMAGE_SUFFIXES:
            photo = Images(resolve(canonical_uri("..", uri)), [location.name], sampling, alive)
            photo.path = Path(location.path)
            return photo
        path = Path(location.path) if location.is_local else _local_copy(location, stack, alive)
        from pipeline.recording import Recording  # PyAV with it, which only the decoder's child needs

        with location.open_input():  # a refusal to read is told apart from damage here
            return Recording(path, uri, sampling, alive)
    except StorageError as error:
        raise VideoError(error.reject_reason("undecodable"), str(error)) from error


def hashed(reader: Reader, alive: Alive = lambda: None) -> str | None:
    """The hash of what the reader reads, as `pipeline.provenance.source_hash` gives it; None for images in object stores, which
    would be fetched twice, and for what cannot be read: decoding says why.
    """
    try:
        if isinstance(reader, Images) and not reader.path.is_file():
            hashes = {}
            for name in reader.names if reader.folder.is_local else ():
                image = reader.image(name)
                if image is None:
                    return None
                hashes[name] = content_hash(image)
                alive()
            return f"images:{listed_hash(hashes)}" if hashes else None
        digest = hashlib.sha256()
        with reader.path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                alive()
        return f"file:{digest.hexdigest()}"
    except (StorageError, OSError):
        return None


def _local_copy(location: Location, stack: contextlib.ExitStack, alive: Alive) -> Path:
    """An object as a temporary file: containers need seeks, and seeking over the network costs more than one pass."""
    copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=Path(location.path).suffix))  # noqa: SIM115
    for block in location.blocks(BLOCK_BYTES):
        with explained(f"copy {location.uri} to", copy.name):
            copy.write(block)
            copy.flush()
        alive()
    return Path(copy.name)
