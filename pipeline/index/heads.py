"""Which head an index is made with: of a folder, here or in a bucket, or one that ships for the gallery's backbone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.backbone.spec import same_backbone
from pipeline.coattention.calibration import FILE as CALIBRATION
from pipeline.coattention.calibration import Calibration, load_calibration
from pipeline.coattention.head import DESCRIPTION, TENSORS, head_hash, load_head, read_description, shipped_head
from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.storage.local_paths import local_folder
from pipeline.storage.location import Location, resolve


@contextlib.contextmanager
def head_folder(place: str | Path | Location) -> Iterator[Path]:
    """The folder of a head on this machine; of one in an object store a copy, as long as the context is open."""
    location = place if isinstance(place, Location) else resolve(place)
    with local_folder(location, (TENSORS, DESCRIPTION, CALIBRATION)) as folder:
        if not location.is_local and not (folder / DESCRIPTION).exists():
            raise PipelineError(f"{location.uri} is not a head: it holds no {DESCRIPTION}")
        yield folder


def find_head(place: str | None, gallery: Gallery) -> tuple[Coattention | None, Calibration | None]:
    """A trained head and its calibration: of a folder, here or in a bucket, or without one of those that ship, by the gallery's
    backbone.

    (None, None) where none ships for that backbone. Raises PipelineError when the head or its calibration is damaged, belongs to
    another backbone, or the calibration to another head.
    """
    found = shipped_head(gallery.settings.backbone.identity) if place is None else place
    if found is None:
        return None, None
    with head_folder(found) as folder:
        head, calibration = head_for(gallery, folder), load_calibration(folder)
    if calibration is not None and calibration.head != head_hash(head):
        raise PipelineError(f"{found}/{CALIBRATION} belongs to another head; fit it again with jobs.calibrate or remove it")
    return head, calibration


def head_for(gallery: Gallery, folder: Path) -> Coattention:
    """The head in a folder. Raises PipelineError when it is damaged or belongs to another backbone than the gallery's."""
    identity = gallery.settings.backbone.identity
    description = read_description(folder)
    if description.backbone_hash and not same_backbone(description.backbone_hash, identity):
        raise PipelineError(f"the head {folder} belongs to the backbone {description.backbone_hash}; the gallery has {identity}")
    return load_head(folder)
