"""Whether an index still fits its gallery and these settings: to go on with, to leave alone, or how far it is behind."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.coattention.calibration import Calibration
from pipeline.coattention.head import head_hash
from pipeline.coattention.network import Coattention
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.partition_store import (
    as_indexed,
    plan_partitions,
)
from pipeline.index.version_files import index_versions
from pipeline.index.versions import Index, open_index
from pipeline.settings import IndexSettings


def extensible_index(gallery: Gallery, settings: IndexSettings, head: Coattention | None = None) -> Index | None:
    """The newest index version if one of these arguments can be made of it by adding and removing videos, else None.

    An index of so few videos that nothing can be normalised by them is not worth keeping.
    """
    index = _newest_of(gallery, settings, head)
    return index if index is not None and index.cohort.usable else None


def current_index(
    gallery: Gallery, settings: IndexSettings, head: Coattention | None = None, calibration: Calibration | None = None
) -> Index | None:
    """The newest index version if building one with these arguments would bring nothing new, else None."""
    index = _newest_of(gallery, settings, head)
    return index if index is not None and index.calibration == calibration and is_complete(gallery, index) else None


def _newest_of(gallery: Gallery, settings: IndexSettings, head: Coattention | None) -> Index | None:
    if not index_versions(gallery):
        return None
    try:
        index = open_index(gallery)
    except PipelineError:  # damaged: building again is what mends it
        return None
    same_head = index.untrained if head is None else index.manifest["head"] == head_hash(head)
    return index if same_head and index.settings == settings and index.query is not None else None


def is_complete(gallery: Gallery, index: Index) -> bool:
    """Whether an index holds the gallery's videos, all and no others; reads the gallery only if there were commits since."""
    if gallery.log.is_newest(index.manifest["commits"]):
        return True
    videos = gallery.snapshot().videos
    if len(videos) == 0:
        return False
    plan = plan_partitions(videos, index.settings.partition_videos, index.videos, index.manifest["partitions"])
    return not plan.fresh and len(plan.kept) == len(index.manifest["partitions"])


def holds_any(index: Index, video_ids: pa.Array) -> bool:
    """Whether a partition or the cohort of an index holds features of any of the videos."""
    return any(pc.any(pc.is_in(ids, video_ids)).as_py() for ids in (index.videos["video_id"], index.cohort_ids))


@dataclass(frozen=True)
class Lag:
    """How far an index is behind its gallery. missing: videos of the gallery that it does not hold; outdated: videos that it
    holds otherwise than the gallery: ingested anew, corrected or gone since, without those that were forgotten.
    """

    missing: int = 0
    outdated: int = 0


def index_lag(gallery: Gallery, index: Index) -> Lag:
    """How far an index is behind; reads the videos only if there were commits since."""
    if not gallery.has_changes_since(index.manifest["commits"]):
        return Lag()
    snapshot = gallery.snapshot()
    ids = index.videos["video_id"].combine_chunks()
    held = pc.is_in(snapshot.videos["video_id"], ids)
    forgotten = np.asarray(pc.is_in(ids, pa.array(sorted(snapshot.forgotten), pa.string())))
    outdated = ~as_indexed(snapshot.videos, index.videos) & ~forgotten
    return Lag(len(held) - (pc.sum(held).as_py() or 0), int(outdated.sum()))
