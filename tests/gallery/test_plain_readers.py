"""pandas, pyarrow and DuckDB read what counts and nothing else, also where ingests were killed, by the lines of README.md."""

import re
from collections import Counter
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.gallery.gallery import VIDEOS_SCHEMA, Gallery, feature_matrix, frames_table
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from tests.conftest import people_features
from tests.jobs.test_jobs import command


@pytest.fixture
def killed(toy_gallery: Gallery) -> Gallery:
    """A gallery in which ingests were killed: a shard of which one video was committed, the others again by the next ingest, and
    shards that nobody committed; one video was replaced, and two were forgotten.
    """
    videos = people_features(4, 1, 24, seed=9)
    names, lengths = [f"k{i}" for i in range(4)], [len(features) for _, features in videos]
    steps = np.concatenate([np.arange(length) for length in lengths])
    frames = frames_table(names, lengths, steps, steps / 10, np.concatenate([features for _, features in videos]))
    firsts = np.cumsum(lengths) - lengths
    toy_gallery.write_shard(frames)
    for committed in ([1], [0, 2, 3], [3]):
        shard = toy_gallery.write_shard(frames)
        rows = [
            {"video_id": names[i], "source_id": names[i], "shard": shard, "first_row": firsts[i], "sampled_frames": lengths[i]}
            for i in committed
        ]
        toy_gallery.commit(VIDEOS_SCHEMA.empty_table().from_pylist(rows, schema=VIDEOS_SCHEMA))
    forget(toy_gallery, Selection(("v000", "k2")), "asked to")
    return toy_gallery


def counted(gallery: Gallery) -> Counter[str]:
    """Frames of each video, one by one by our own reader."""
    return Counter({row["video_id"]: len(gallery.read_video(row)) for row in gallery.snapshot().videos.to_pylist()})


def test_a_plain_read_of_the_folder_counts_what_does_not_count(killed: Gallery) -> None:
    plain = ds.dataset(Path(killed.location.path, "frames")).count_rows()
    assert plain > counted(killed).total()
    compact(killed)
    whole = [path for path in Path(killed.location.path, "frames").iterdir() if path.name in str(killed.snapshot().live)]
    assert ds.dataset(whole).count_rows() == counted(killed).total()


def test_the_gallery_gives_readers_what_counts(killed: Gallery) -> None:
    uri = killed.location.uri
    expected = counted(killed)
    videos = pipeline.open_gallery(uri).snapshot().videos.to_pandas()
    assert dict(zip(videos["video_id"], videos["sampled_frames"], strict=True)) == dict(expected)
    assert Counter(pipeline.open_gallery(uri).frames().read_pandas()["video_id"]) == expected
    assert Counter(pipeline.open_gallery(uri).frames().read_all()["video_id"].to_pylist()) == expected
    frames = pipeline.open_gallery(uri).frames()  # noqa: F841 - DuckDB finds it by its name
    found = duckdb.sql("select video_id, count(*) from frames group by video_id").fetchall()
    assert dict(found) == dict(expected)
    row = killed.snapshot().videos.to_pylist()[3]
    some = killed.snapshot().videos.slice(3, 1)
    assert np.array_equal(feature_matrix(killed.frames(some).read_all()), feature_matrix(killed.read_video(row)))  # float32


def test_a_listing_lets_them_read_it_without_this_code(killed: Gallery, tmp_path: Path) -> None:
    g, listing = killed.location.path, str(tmp_path / "videos.parquet")
    assert command("status", "--gallery", g, "--listing", listing).code == 0
    expected = counted(killed)
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    query, concatenation = (
        re.search(rf"^    ({begin}.*?)$(?!\n      )", readme, re.MULTILINE | re.DOTALL)[1]
        .replace("G/frames", f"{g}/frames")
        .replace("L.parquet", listing)
        for begin in (r"select f\.\*", r"pd\.concat")
    )
    by_duckdb = duckdb.sql(query).fetchall()
    assert Counter(row[0] for row in by_duckdb) == expected and len(by_duckdb[0]) >= 4
    assert Counter(eval(concatenation, {"pd": pd})["video_id"]) == expected  # noqa: S307 - our own line
    rows = pq.read_table(listing).to_pylist()
    tables = [pq.read_table(f"{g}/frames/{v['shard']}").slice(v["first_row"], v["sampled_frames"]) for v in rows]
    assert Counter(name for table in tables for name in table["video_id"].to_pylist()) == expected
