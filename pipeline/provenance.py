"""What exactly was compared: hashes of a target, a source, a calibration, and the version of a gallery."""

import hashlib
import json
import posixpath
from dataclasses import asdict

from pyarrow.fs import FileType

from pipeline.calibration import Calibration
from pipeline.catalog import is_image_pattern
from pipeline.gallery import Gallery
from pipeline.images import image_names
from pipeline.storage import content_hash, resolve


def source_hash(uri: str) -> str:
    """A video file or images as they are now: "file:SHA256" of bytes, or "images:SHA256" (`pipeline.storage.content_hash`).

    Raises StorageError.
    """
    location = resolve(uri)
    if is_image_pattern(location.name):
        folder = resolve(posixpath.dirname(uri))
        return f"images:{content_hash(folder, image_names(folder, location.name))}"
    if location.info().type == FileType.File:
        return f"file:{content_hash(location)}"
    return f"images:{content_hash(location, image_names(location))}"


def gallery_version(gallery: Gallery) -> str:
    """Names the set of a gallery's commits: how many there are, and a hash of their names."""
    names = gallery.commit_names()
    return f"{len(names)}:{hashlib.sha256(' '.join(names).encode()).hexdigest()[:16]}"


def calibration_version(calibration: Calibration | None) -> str | None:
    """Name and content hash of the calibration of an index, None without one."""
    if calibration is None:
        return None
    document = json.dumps(asdict(calibration), sort_keys=True, default=str)
    return f"{calibration.fitted_on.name}@{hashlib.sha256(document.encode()).hexdigest()[:16]}"
