"""Pair scores come back from their file as the tables that were written, less what the file does not say."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.evaluation.judged_pairs import Split, judged_pairs
from pipeline.evaluation.metrics import query_figures
from pipeline.evaluation.pair_scores import read_pair_scores, write_pair_scores
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.storage.location import resolve


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


class OnlyVideos:
    """As much of an index as writing takes."""

    def __init__(self, videos: pa.Table) -> None:
        self.videos = videos


@given(st.integers(0, 10**6), st.integers(8, 20), st.integers(1, 3))
@settings(deadline=None, max_examples=30)
def test_what_was_written_comes_back(folder: Path, seed: int, count: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"v{number:02d}" for number in rng.permutation(count)]  # an index keeps videos in the order of shards
    people = ["a", "a", "b", "b", *rng.choice(["a", "b", "c"], count - 4).tolist()]
    cameras = ["1", None, "1", "2", *rng.choice(["1", "2", "3"], count - 4).tolist()]
    columns = {"video_id": names, "source_id": names, "person_id": people, "camera_id": cameras}
    videos = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    everything = Split(None, None, frozenset(names))
    some = [Split(tuple(sorted(rng.choice(names, 3, replace=False))), None, frozenset(names)) for _ in range(parts - 1)]
    pairs = judged_pairs(videos, [everything, *some])
    scores = {name: rng.normal(size=pairs.valid.shape).astype(np.float32).astype(float) for name in ("one", "two, normalised")}
    with (folder / "scores.parquet").open("wb") as sink:
        write_pair_scores(scores, OnlyVideos(videos), pairs, sink)  # type: ignore[arg-type]
    read, again = read_pair_scores(resolve(folder / "scores.parquet"), videos)
    told = pairs.valid.any(axis=1)
    for name in ("query_rows", "valid", "splits", "persons", "query_cameras"):
        assert np.array_equal(getattr(again, name), getattr(pairs, name)[told]), name
    assert np.array_equal(again.gallery_rows, pairs.gallery_rows)
    assert np.array_equal(again.gallery_cameras, pairs.gallery_cameras)
    assert np.array_equal(again.same, (pairs.same & pairs.valid)[told])
    assert list(read) == list(scores)
    for name, table in scores.items():
        assert np.array_equal(read[name], np.where(pairs.valid, table, np.nan)[told], equal_nan=True)
        mine, its = (query_figures(*part) for part in ((read[name], again.valid, again.same), (table, pairs.valid, pairs.same)))
        assert np.array_equal(mine.first_hit, its.first_hit[told])


def test_videos_that_are_gone_and_files_of_something_else_are_one_sentence(toy_gallery: Gallery, tmp_path: Path) -> None:
    videos = build_index(toy_gallery).videos
    pairs = judged_pairs(videos, [Split(None, None, frozenset(videos["source_id"].to_pylist()))])
    with (tmp_path / "scores.parquet").open("wb") as sink:
        write_pair_scores({"one": np.zeros(pairs.valid.shape)}, OnlyVideos(videos), pairs, sink)  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match=r"has 76 pairs with videos that are no longer there; run jobs.evaluate again"):
        read_pair_scores(resolve(tmp_path / "scores.parquet"), videos.slice(1))  # 38 as a query, 38 as a candidate
    pq.write_table(videos, tmp_path / "other.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for name in ("other", "damaged"):
        with pytest.raises(PipelineError, match=rf"{name}.parquet holds no pair scores of jobs.evaluate: "):
            read_pair_scores(resolve(tmp_path / f"{name}.parquet"), videos)
