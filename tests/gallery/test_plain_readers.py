"""pandas, pyarrow and DuckDB read what counts and nothing else, also where ingests were killed, by the lines of README.md and of
docs/recordings.md.
"""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, feature_matrix, frames_table
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from tests.conftest import people_features
from tests.footage.made_up import footage_gallery, walk, write_recordings
from tests.jobs.commands import command


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


def test_a_list_of_recordings_lets_them_read_the_detections_that_count(tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    write_recordings(gallery, walk(seed=1), (20.0, 40.0))
    write_recordings(gallery, walk(seed=2), (20.0, 40.0), commit=False)  # of a killed ingest
    write_recordings(gallery, walk(seed=3), (20.0, 40.0), only=(1,))  # taken in again
    g, listing = gallery.location.path, str(tmp_path / "recordings.parquet")
    assert not list(Path(g).glob("recordings/*"))  # so few stand in the log itself
    assert command("status", "--gallery", g, "--list-recordings", listing).code == 0
    rows = gallery.snapshot().recordings.to_pylist()
    expected = Counter(
        (
            row["camera_id"],
            row["start_time"] + timedelta(seconds=round(one["time_s"], 3)),
            round(one["x"], 3),
            round(one["score"], 4),
        )
        for row in rows
        for one in gallery.read_detections(row["shard"]).to_pylist()
    )
    docs = (Path(__file__).parents[2] / "docs/recordings.md").read_text()
    query, concatenation = (
        re.search(rf"^    ({begin}.*?)$(?!\n    f)", docs, re.MULTILINE | re.DOTALL)[1]
        .replace("G/detections", f"{g}/detections")
        .replace("R.parquet", listing)
        for begin in (r"select r\.camera_id", r"pd\.concat")
    )
    found = duckdb.sql(query).df()
    at = [time.to_pydatetime().astimezone(UTC) for time in found["at"].dt.round("ms")]
    rows = zip(found["camera_id"], at, found["x"].astype(float).round(3), found["score"].astype(float).round(4), strict=True)
    assert Counter(rows) == expected and expected.total() > 100
    table = eval(concatenation, {"pd": pd})  # noqa: S307 - our own line
    assert Counter(table["score"].astype(float).round(4)) == Counter(round(score, 4) for *_, score in expected.elements())
    assert set(table["camera_id"]) == {"gate"}


def test_a_list_of_rejects_says_which_file_and_why(tmp_path: Path) -> None:
    gallery = footage_gallery(tmp_path / "gallery")
    rows = [{"video_id": f"r{n}", "source_id": f"r{n}", "uri": f"/nvr/{n}.mp4", "reason": "truncated"} for n in range(7)]
    at = datetime(2026, 3, 1, tzinfo=UTC)
    rows = [
        row | {"message": f"{row['uri']} ends too early", "rejected_at": at + timedelta(hours=n)} for n, row in enumerate(rows)
    ]
    gallery.commit(None, pa.Table.from_pylist(rows, REJECTS_SCHEMA))
    for name in ("rejects.parquet", "rejects.csv"):
        ended = command("status", "--gallery", gallery.location.path, "--list-rejects", str(tmp_path / name))
        assert ended.code == 0, ended.err
    assert set(pq.read_table(tmp_path / "rejects.parquet")["uri"].to_pylist()) == {row["uri"] for row in rows}
    as_text = pd.read_csv(tmp_path / "rejects.csv")
    assert dict(zip(as_text["uri"], as_text["message"], strict=True)) == {row["uri"]: row["message"] for row in rows}
    newest = [f"    /nvr/{n}.mp4: truncated: /nvr/{n}.mp4 ends too early" for n in (6, 5, 4, 3, 2)]
    rest = f"    and 2 more; jobs.status --gallery {gallery.location.path} --list-rejects FILE writes all of them"
    lines = ended.out.splitlines()
    start = lines.index(newest[0])
    assert lines[start - 1] == "        7 truncated" and lines[start : start + 6] == [*newest, rest]
