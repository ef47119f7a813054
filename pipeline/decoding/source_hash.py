"""What exactly was compared: hashes of a target, a source, a calibration, and the version of a gallery."""

from pyarrow.fs import FileType

from pipeline.catalog.image_folders import image_names, is_image_pattern
from pipeline.storage.faults import StorageError
from pipeline.storage.hashing import content_hash
from pipeline.storage.location import Location, resolve
from pipeline.storage.reach import Reach
from pipeline.storage.uris import canonical_uri


def source_hash(uri: str, reach: Reach | None = None) -> str:
    """A video file or images as they are now: "file:SHA256" of bytes, or "images:SHA256" (`hashing.content_hash`).

    reach: where the uri and its images may lead; None: anywhere, for a uri that the operator gave. Raises StorageError.
    """
    _check(uri, reach)
    location = resolve(uri)
    if is_image_pattern(location.name):
        folder = resolve(canonical_uri("..", uri))
        return _images_hash(folder, image_names(folder, location.name), reach)
    if location.info().type == FileType.File:
        return f"file:{content_hash(location)}"
    return _images_hash(location, image_names(location), reach)


def _images_hash(folder: Location, names: list[str], reach: Reach | None) -> str:
    for name in names:  # each may be a link
        _check(folder.join(name).uri, reach)
    return f"images:{content_hash(folder, names)}"


def _check(uri: str, reach: Reach | None) -> None:
    if reach is not None and (refusal := reach.refusal(uri)):
        raise StorageError(refusal[1], "permission_denied")
