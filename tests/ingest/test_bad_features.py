"""A feature that is not a finite number names its video wherever features are read, and can be taken out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError
from pipeline.evaluation.baselines import video_means
from pipeline.gallery.gallery import Gallery, feature_matrix, frames_table
from pipeline.index.build import build_index
from pipeline.index.samples import sample_cohort, sample_features, sample_means
from pipeline.index.versions import Index
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.verify import verify_gallery
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings
from pipeline.training.features import Source, load_features
from tests.jobs.commands import command

VIDEO = "v017"


def spoil(gallery: Gallery, video_id: str, number: float) -> str:
    """Put a number in place of one feature in the middle of a video; returns the shard's name."""
    row = next(row for row in gallery.snapshot().videos.to_pylist() if row["video_id"] == video_id)
    path = Path(gallery.location.path, "frames", row["shard"])
    table = pq.read_table(path)
    features = feature_matrix(table).copy()
    features[row["first_row"] + row["sampled_frames"] // 2, 5] = number
    index, times = np.asarray(table["frame_index"]), np.asarray(table["time_s"])
    pq.write_table(frames_table(table["video_id"].to_pylist(), [1] * len(table), index, times, features), path)
    return row["shard"]


READERS: dict[str, Callable[[Gallery, Index], object]] = {
    "an index without a head": lambda gallery, index: build_index(gallery, IndexSettings(8, 4)),
    "an index": lambda gallery, index: build_index(gallery, IndexSettings(8, 4), index.head),
    "the untrained head's sample": lambda gallery, index: sample_features(gallery, index.videos),
    "a cohort": lambda gallery, index: sample_cohort(gallery, index.videos, index.heads, 8, 4),
    "a prefilter's sample": lambda gallery, index: sample_means(gallery, index.videos, index.heads, 8, 4),
    "a target": lambda gallery, index: gallery_target(gallery, VIDEO),
    "evaluation": video_means,
    "training": lambda gallery, index: load_features([Source(gallery.location.uri)]),
}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reader", READERS)
def test_a_feature_that_is_not_finite_names_its_video_and_shard(toy_gallery: Gallery, reader: str, number: float) -> None:
    index = build_index(toy_gallery, IndexSettings(8, 4))
    READERS[reader](toy_gallery, index)
    shard = spoil(toy_gallery, VIDEO, number)
    with pytest.raises(PipelineError, match=f"the video '{VIDEO}' in the shard .*/{shard} are not all finite numbers"):
        READERS[reader](toy_gallery, index)


def test_neighbours_of_a_damaged_video_are_read_as_before(toy_gallery: Gallery) -> None:
    spoil(toy_gallery, VIDEO, np.nan)
    for near in ("v014", "v016", "v018", "v020"):  # of the same shard
        assert np.isfinite(gallery_target(toy_gallery, near).features).all()


def test_a_damaged_video_can_be_forgotten_and_compacted_away(toy_gallery: Gallery) -> None:
    spoil(toy_gallery, VIDEO, np.nan)
    spoil(toy_gallery, "v003", np.inf)
    assert {fault.split()[3] for fault in verify_gallery(toy_gallery) if "not all finite" in fault} == {VIDEO, "v003"}
    forget(toy_gallery, Selection(video_ids=(VIDEO,)), reason="damaged")
    compact(toy_gallery)  # the other damaged one is moved as it is
    with pytest.raises(PipelineError, match="'v003'"):
        build_index(toy_gallery, IndexSettings(8, 4))
    forget(toy_gallery, Selection(video_ids=("v003",)), reason="damaged")
    assert len(build_index(toy_gallery, IndexSettings(8, 4)).videos) == 38


def test_commands_say_it_in_one_sentence(toy_gallery: Gallery) -> None:
    build_index(toy_gallery, IndexSettings(8, 4))
    spoil(toy_gallery, VIDEO, np.nan)
    for name, arguments in {"index": ["--force"], "search": [f"id:{VIDEO}"]}.items():
        ended = command(name, *arguments, "--gallery", toy_gallery.location.path)
        assert ended.code == 1
        assert ended.sentence.startswith(f"error: the features of the video '{VIDEO}' in the shard ")
        assert "Traceback" not in ended.err
