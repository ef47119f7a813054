"""Pictures of uploaded targets that speak for decided leads, kept with their case: an upload itself goes when the service ends.

They lie in the gallery (`pipeline.gallery.kept_pictures`), each under the SHA-256 of its bytes, which a decision's record names.
A target whose bytes the gallery has forgotten is shown no more, and the next compaction deletes what was kept of it.
"""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from pipeline.gallery.forgotten import covers
from pipeline.gallery.kept_pictures import picture_file
from pipeline.search.results import Lead
from pipeline.service.casebook import Case
from pipeline.service.pictures import Pictures
from pipeline.service.searches import Search
from pipeline.service.uploads import Upload
from pipeline.storage.faults import StorageError
from pipeline.storage.hashing import sha256


def keep_target(case: Case, search: Search, lead: Lead, upload: Upload | None, pictures: Pictures) -> dict[str, Any]:
    """Keep the frames of an uploaded target that speak for a lead. Returns what the decision's record says of them: target_hash,
    and target_pictures, frame -> hash; nothing without an upload. Raises StorageError where they cannot be kept.
    """
    if upload is None or not lead.best_pairs:
        return {}
    kept: dict[str, str] = {}
    for frame in lead.best_pairs[0].target.frame_index:
        picture = pictures.of_target(search, frame)
        if picture is not None:
            kept[str(frame)] = digest = sha256(picture)
            picture_file(case.gallery, case.name, digest).write_atomically(picture)
    return {"target_hash": f"file:{upload.sha256}", "target_pictures": kept}


def kept_picture(case: Case, record: Mapping[str, Any], frame: int) -> bytes | None:
    """A frame of an uploaded target that a decision's record names, as JPEG; None where none was kept, or another than that."""
    digest = record.get("target_pictures", {}).get(str(frame))
    if digest is None or covers(case.gallery.snapshot().tombstones.content, record.get("target_hash"), None):
        return None
    try:
        data = picture_file(case.gallery, case.name, digest).read_bytes()
    except StorageError as error:
        if error.kind == "missing":
            return None
        raise
    return data if sha256(data) == digest else None


def kept_frames(case: Case, record: Mapping[str, Any], frames: Mapping[int, Any]) -> dict[int, np.ndarray]:
    """Those of these frames that were kept, as RGB pictures uint8 [h, w, 3]."""
    found = {frame: kept_picture(case, record, frame) for frame in frames}
    return {
        frame: cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        for frame, data in found.items()
        if data is not None
    }
