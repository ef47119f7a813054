"""Search videos for the person that a target video shows: the library that jobs, notebooks and services call.

    import pipeline

    pipeline.ingest_videos("videos", "galleries/city")
    gallery = pipeline.open_gallery("galleries/city")
    pipeline.build_index(gallery)
    leads = gallery.search("person.mp4", reason="missing person", case="2026-17")       # a table
    answer = pipeline.search_gallery(gallery, ["person.mp4"], reason="missing person", case="2026-17")       # and all behind it

The four names below are what a newcomer needs; each is loaded when it is first used. Packages are rooms, in the order of reading:
storage, catalog, decoding, backbone, coattention, gallery, ingest, scoring, index, search, retention, evaluation, training,
distillation, datasets, rendering, service (docs/architecture.md).
"""

import importlib
import operator
import os
from typing import TYPE_CHECKING, Any

# Threads of torch and FAISS spin for milliseconds after each call, on cores that the scoring kernel, decoders and Ray's workers
# need. Read when torch is first loaded, so it has to stand here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

if TYPE_CHECKING:
    from pipeline.ingest.run import ingest_videos as ingest_videos
    from pipeline.search.open_gallery import OpenGallery
    from pipeline.search.run import run as search_gallery
    from pipeline.search.worth import build_measured_index as build_index

    open_gallery = OpenGallery.open

# Not the names of packages, which become attributes of this one as soon as they are imported.
_FACE = {
    "open_gallery": ("pipeline.search.open_gallery", "OpenGallery.open"),
    "ingest_videos": ("pipeline.ingest.run", "ingest_videos"),
    "build_index": ("pipeline.search.worth", "build_measured_index"),
    "search_gallery": ("pipeline.search.run", "run"),
}
__all__ = ["build_index", "ingest_videos", "open_gallery", "search_gallery"]


def __getattr__(name: str) -> Any:
    if name not in _FACE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, function = _FACE[name]
    return operator.attrgetter(function)(importlib.import_module(module))
