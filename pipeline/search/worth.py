"""What scores are worth in a gallery: a sample of its videos scored among each other, as searches score them."""

from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.coattention.calibration import Setting, settings_of
from pipeline.coattention.gallery_calibration import GalleryCalibration, fit_gallery_calibration
from pipeline.coattention.logits import Floats
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.scoring.candidates import TargetSegments
from pipeline.search.partitions import opened_partitions
from pipeline.search.shortlist import segmented
from pipeline.search.targets import stored_target
from pipeline.settings import IndexSettings, ScoreSettings
from pipeline.storage.hashing import hash_order
from pipeline.time_windows import seen

SAMPLE_VIDEOS = 512  # scored among each other: 260,000 scores
AT_ONCE = 64  # targets whose scores are made in one pass over the sample


def build_measured_index(gallery: Gallery, settings: IndexSettings | None = None, **more: Any) -> Index:
    """`pipeline.index.build.build_index`, and what scores are worth is measured; more: its other arguments."""
    return build_index(gallery, settings, measure=measure_worth, **more)


def measure_worth(gallery: Gallery, index: Index) -> GalleryCalibration:
    """The gallery's calibration for searches with default scores, from up to SAMPLE_VIDEOS of its videos.

    index: published or not; its partitions are read in this process. Where it has no usable cohort, scores are those without one.
    """
    rows = np.array(hash_order(index.videos["video_id"].to_pylist(), SAMPLE_VIDEOS), np.int64)
    score = _default_score(index)
    videos = index.videos.take(pa.array(rows))
    return fit_gallery_calibration(
        _scores_among(gallery, index, rows, videos, score),
        seen_apart(videos),
        head=index.manifest["head"],
        settings=default_settings(index),
        bounded=score.aggregate == "mean",
    )


def default_settings(index: Index) -> dict[str, Setting]:
    """What scores of searches with default settings depend on (`settings_of`)."""
    cut = index.settings.segment_length, index.settings.stride
    return settings_of(_default_score(index), *cut, cameras=index.settings.cameras)


def _default_score(index: Index) -> ScoreSettings:
    return ScoreSettings(normalise="cohort" if index.cohort.usable else "none").alone


def _scores_among(gallery: Gallery, index: Index, rows: np.ndarray, videos: pa.Table, score: ScoreSettings) -> Floats:
    """Scores float64 [M, M] of videos among each other, target by candidate. rows: int64 [M], of Index.videos."""
    scores, ascending = np.empty((len(rows), len(rows))), np.argsort(rows)
    with opened_partitions(gallery, index, actors=0) as partitions:
        places: list[int] = []
        targets: list[TargetSegments] = []

        def flush() -> None:
            if targets:
                scored = partitions.score_many(targets, [rows[ascending]] * len(targets), score)
                scores[np.array(places)[:, None], ascending] = scored
            places.clear()
            targets.clear()

        for place, frames in gallery.iter_videos(videos):
            places.append(place)
            targets.append(segmented(stored_target(videos.slice(place, 1).to_pylist()[0], frames), index))
            if len(targets) == AT_ONCE:
                flush()
        flush()
    return scores


def seen_apart(videos: pa.Table) -> np.ndarray:
    """bool [M, M]: pairs of videos in which one camera sees somebody at the same moment, who are therefore two people."""
    first, last = (np.asarray(column.combine_chunks().cast(pa.int64()).fill_null(0)) for column in seen(videos))
    known = np.asarray(videos["camera_id"].is_valid()) & np.asarray(seen(videos)[0].is_valid())
    camera = np.unique(np.asarray(videos["camera_id"].fill_null("").to_pylist(), np.str_), return_inverse=True)[1]
    together = (first[:, None] <= last) & (first <= last[:, None]) & (camera[:, None] == camera)
    return together & known & known[:, None] & ~np.eye(len(known), dtype=bool)
