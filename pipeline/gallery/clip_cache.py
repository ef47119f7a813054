"""Where clips of a gallery's videos are kept for a while: clips/<hash of the video's id>/, beside the tables, on local disks.

They can be made anew from the sources at any time, so nothing counts on them; what is forgotten takes its clips along, and one of
several people of a source those of the others, who may show them.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.gallery.gallery import Gallery
from pipeline.storage.hashing import sha256

FOLDER = "clips"


def cache_root(gallery: Gallery) -> Path | None:
    """The folder of a gallery's clips; None for one in an object store, where a service keeps its own."""
    return Path(gallery.location.path) / FOLDER if gallery.location.is_local else None


def clip_folder(root: Path, video_id: str) -> Path:
    """Where the clips of one video are, below the root: ids may hold what names of files may not."""
    return root / sha256(video_id)[:32]


def delete_clips(gallery: Gallery, video_ids: Iterable[str] | None) -> None:
    """Remove the clips of these videos, or of all; those of a service that has its own folder it removes itself."""
    root = cache_root(gallery)
    if root is not None and root.is_dir():
        for folder in root.iterdir() if video_ids is None else (clip_folder(root, one) for one in video_ids):
            shutil.rmtree(folder, ignore_errors=True)
