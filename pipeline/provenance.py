"""What exactly was compared: hashes of a target, a source, a calibration, and the version of a gallery."""

import hashlib
import json
import posixpath
from dataclasses import asdict

import numpy as np
from pyarrow.fs import FileType

from pipeline.calibration import Calibration
from pipeline.catalog import is_image_pattern
from pipeline.gallery import Gallery
from pipeline.readers import image_names
from pipeline.storage import content_hash, resolve
from pipeline.targets import GALLERY_PREFIX, Target


def target_hash(name: str, target: Target) -> str:
    """What was searched for, as "KIND:SHA256"; name: as it was given to `pipeline.targets.read_targets`.

    features: of a gallery video's stored frame features (float16, little endian, row by row), file: of a file's bytes, images: of
    a folder's images (see `pipeline.storage.content_hash`). Raises StorageError when the source went away.
    """
    if not name.startswith(GALLERY_PREFIX):
        return source_hash(target.video.uri)
    return f"features:{hashlib.sha256(np.ascontiguousarray(target.features.astype('<f2')).tobytes()).hexdigest()}"


def source_hash(uri: str) -> str:
    """A video file or images as they are now: "file:SHA256" or "images:SHA256". Raises StorageError."""
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
