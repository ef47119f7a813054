"""The gallery keeps its promises: whole or not at all, nothing lost, nothing twice."""

from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery, GallerySettings, feature_matrix, frames_table
from pipeline.retention.compact import compact
from pipeline.storage.seals import sealed, unsealed
from tests.conftest import add_videos, people_features, toy_spec

NO_REJECTS = REJECTS_SCHEMA.empty_table()
NO_VIDEOS = VIDEOS_SCHEMA.empty_table()


def reject(video_id: str) -> pa.Table:
    row = {
        "uri": f"/videos/{video_id}.mp4",
        "video_id": video_id,
        "source_id": video_id,
        "reason": "empty",
        "message": "is empty",
    }
    return pa.Table.from_pylist([row], schema=REJECTS_SCHEMA)


def row_of(gallery: Gallery, video_id: str) -> dict:
    return next(row for row in gallery.snapshot().videos.to_pylist() if row["video_id"] == video_id)


def test_what_was_written_is_read_back_exactly(toy_gallery: Gallery) -> None:
    videos = people_features(10, 4, 24, seed=1)
    for i in (0, 6, 7, 39):
        frames = toy_gallery.read_video(row_of(toy_gallery, f"v{i:03d}"))
        assert np.array_equal(feature_matrix(frames), videos[i][1])
        assert frames["frame_index"].to_pylist() == list(range(len(videos[i][1])))


def test_videos_follow_the_data_contract(toy_gallery: Gallery) -> None:
    contract = (
        "video_id uri camera_id start_time fps source_frames width height person_id sampled_frames shard first_row backbone"
    )
    assert {*contract.split(), "ingested_at"} <= set(toy_gallery.snapshot().videos.column_names)
    shard = next(Path(toy_gallery.location.path, "frames").glob("*.parquet"))
    schema = pq.read_schema(shard)
    assert schema.names == ["video_id", "frame_index", "time_s", "feature"]
    assert schema.field("feature").type == pa.list_(pa.float16(), 24)


def test_pandas_and_duckdb_read_shards_without_this_code(toy_gallery: Gallery) -> None:
    frames = Path(toy_gallery.location.path, "frames")
    total = sum(toy_gallery.snapshot().videos["sampled_frames"].to_pylist())
    assert sum(len(pd.read_parquet(shard)) for shard in frames.glob("*.parquet")) == total
    row = row_of(toy_gallery, "v003")
    query = f"select feature from '{frames}/{row['shard']}' where video_id = 'v003' order by frame_index limit 1"  # noqa: S608
    stored = feature_matrix(toy_gallery.read_video(row))[0]
    assert np.array_equal(np.array(duckdb.sql(query).fetchall()[0][0], np.float16), stored)


def test_a_shard_counts_only_once_it_is_committed(toy_gallery: Gallery) -> None:
    before = toy_gallery.snapshot()
    ((_, features),) = people_features(1, 1, 24, seed=5)
    steps = np.arange(len(features))
    toy_gallery.write_shard(frames_table(["new"], [len(features)], steps, steps / 10, features))
    assert toy_gallery.snapshot() == before


def test_two_writers_of_the_same_rows_do_not_share_a_file(toy_gallery: Gallery) -> None:
    ((_, features),) = people_features(1, 1, 24, seed=5)
    steps = np.arange(len(features))
    names = {toy_gallery.write_shard(frames_table(["v"], [len(features)], steps, steps / 10, features)) for _ in range(2)}
    assert len(names) == 2


def test_a_video_is_read_without_reading_its_shard(tmp_path: Path) -> None:
    gallery = Gallery.open_or_create(tmp_path / "g", GallerySettings(toy_spec(), 10.0, None))
    features = np.random.default_rng(0).normal(size=(5000, 24)).astype(np.float16)
    shard = gallery.write_shard(
        frames_table([f"v{i}" for i in range(5)], [1000] * 5, np.arange(5000), np.arange(5000) / 10, features)
    )
    assert pq.ParquetFile(gallery.location.join("frames", shard).path).num_row_groups >= 4
    for first, rows in ((0, 1000), (1000, 1000), (1023, 2), (4000, 1000), (4999, 1), (0, 5000)):
        assert np.array_equal(feature_matrix(gallery.read_shard(shard, first, rows)), features[first : first + rows])


def test_iterating_gives_every_video_once_with_its_own_frames(toy_gallery: Gallery) -> None:
    written = people_features(10, 4, 24, seed=1)
    videos = toy_gallery.snapshot().videos.take(list(range(0, 40, 3)))
    seen = {}
    for positions, frames in toy_gallery.iter_features(videos):
        start, matrix = 0, feature_matrix(frames)
        for position in positions:
            row = videos.slice(int(position), 1).to_pylist()[0]
            seen[row["video_id"]] = matrix[start : start + row["sampled_frames"]]
            start += row["sampled_frames"]
    assert sorted(seen) == videos["video_id"].to_pylist()
    assert all(np.array_equal(features, written[int(video_id[1:])][1]) for video_id, features in seen.items())


def test_iterating_by_video_gives_each_its_row_and_its_frames(toy_gallery: Gallery) -> None:
    videos = toy_gallery.snapshot().videos.take(list(range(39, 0, -3)))
    seen = dict(toy_gallery.iter_videos(videos))
    assert sorted(seen) == list(range(len(videos)))
    for position, frames in seen.items():
        assert frames.equals(toy_gallery.read_video(videos.slice(position, 1).to_pylist()[0]))


def test_the_newest_commit_decides_on_a_source(toy_gallery: Gallery) -> None:
    toy_gallery.commit(NO_VIDEOS, reject("late"))
    assert toy_gallery.snapshot().rejects["video_id"].to_pylist() == ["late"]
    assert "late" in toy_gallery.snapshot().finished_sources()
    row = {**row_of(toy_gallery, "v000"), "video_id": "late", "source_id": "late"}
    toy_gallery.commit(pa.Table.from_pylist([row], schema=VIDEOS_SCHEMA), NO_REJECTS)
    snapshot = toy_gallery.snapshot()
    assert snapshot.rejects["video_id"].to_pylist() == []
    assert snapshot.videos["video_id"].to_pylist().count("late") == 1


def test_a_source_committed_twice_by_two_ingests_is_there_once(toy_gallery: Gallery) -> None:
    before = toy_gallery.snapshot().videos
    add_videos(toy_gallery, people_features(10, 4, 24, seed=1))
    after = toy_gallery.snapshot().videos
    assert after.drop_columns("shard").equals(before.drop_columns("shard"))
    assert set(after["shard"].to_pylist()).isdisjoint(before["shard"].to_pylist())


def test_a_gallery_of_an_older_version_lacks_only_the_newest_column(toy_gallery: Gallery) -> None:
    now = toy_gallery.snapshot().videos
    toy_gallery.commit(now.drop_columns("ingested_hash"), NO_REJECTS)
    then = toy_gallery.snapshot().videos
    assert then.schema.equals(VIDEOS_SCHEMA) and then["ingested_hash"].null_count == len(then) == len(now)


def test_forgotten_videos_are_gone_at_once_and_count_as_finished(toy_gallery: Gallery) -> None:
    toy_gallery.commit(NO_VIDEOS, NO_REJECTS, kind="forget", forgotten=Forgotten(frozenset({"v003"})))
    assert "v003" not in toy_gallery.snapshot().videos["video_id"].to_pylist()
    assert toy_gallery.forgotten() == {"v003"}


def test_other_settings_are_refused_in_words(toy_gallery: Gallery) -> None:
    with pytest.raises(UsageError, match=r"sample rate 5\.0 instead of 10\.0"):
        Gallery.open_or_create(toy_gallery.location.uri, GallerySettings(toy_spec(), 5.0, None))
    with pytest.raises(UsageError, match="backbone toy@"):
        Gallery.open_or_create(toy_gallery.location.uri, GallerySettings(toy_spec(32), 10.0, None))


def test_a_folder_that_is_no_gallery_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(UsageError, match="not empty and not a gallery"):
        Gallery.open_or_create(tmp_path, GallerySettings(toy_spec(), 10.0, None))
    (tmp_path / "videos" / "holiday.mp4").unlink()
    (tmp_path / "videos").rmdir()
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty and not a gallery"):
        Gallery.open_or_create(tmp_path, GallerySettings(toy_spec(), 10.0, None))
    with pytest.raises(UsageError, match="is a file"):
        Gallery.open_or_create(tmp_path / "mine.txt", GallerySettings(toy_spec(), 10.0, None))
    with pytest.raises(UsageError, match="is not a gallery"):
        Gallery.open(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_damaged_files_are_named(toy_gallery: Gallery) -> None:
    root = Path(toy_gallery.location.path)
    shard = root / "frames" / row_of(toy_gallery, "v000")["shard"]
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(PipelineError, match=shard.name):
        toy_gallery.read_video(row_of(toy_gallery, "v000"))
    commit = max((root / "commits").glob("*.json"))
    content = commit.read_bytes()
    commit.write_text("{")
    with pytest.raises(PipelineError, match=commit.name):
        toy_gallery.snapshot()
    commit.write_bytes(content)
    toy_gallery.log.checkpoint()
    table = next((root / "videos").glob("*.parquet"))
    content = table.read_bytes()
    table.write_bytes(content[:100] + b"!" + content[101:])
    with pytest.raises(PipelineError, match=f"{table.name} is committed but cannot be read: its checksum differs"):
        toy_gallery.snapshot()
    table.unlink()
    with pytest.raises(PipelineError, match=table.name):
        toy_gallery.snapshot()
    next((root / "checkpoints").glob("*.json")).write_text("{}")
    with pytest.raises(PipelineError, match=r"checkpoints/0000000001\.json is damaged"):
        toy_gallery.snapshot()


def test_a_gallery_of_another_format_is_refused(toy_gallery: Gallery) -> None:
    path = Path(toy_gallery.location.path, "gallery.json")
    path.write_bytes(sealed({**unsealed(path.read_bytes()), "format": 99}))
    with pytest.raises(PipelineError, match="format 99"):
        Gallery.open(toy_gallery.location.uri)


def test_what_a_compaction_has_moved_is_found_again(toy_gallery: Gallery) -> None:
    before = toy_gallery.snapshot().videos
    features = {row["video_id"]: feature_matrix(toy_gallery.read_video(row)) for row in before.to_pylist()}
    compact(toy_gallery)
    for row in before.to_pylist():
        assert np.array_equal(feature_matrix(toy_gallery.read_video(row)), features[row["video_id"]])
    found = {}
    for positions, frames in toy_gallery.iter_features(before):
        ends = np.cumsum([before["sampled_frames"][int(position)].as_py() for position in positions])
        for position, part in zip(positions, np.split(feature_matrix(frames), ends[:-1]), strict=True):
            found[before["video_id"][int(position)].as_py()] = part
    assert found.keys() == features.keys()
    assert all(np.array_equal(found[video_id], features[video_id]) for video_id in features)


def test_a_shard_that_is_lost_and_not_moved_is_named(toy_gallery: Gallery) -> None:
    row = toy_gallery.snapshot().videos.to_pylist()[0]
    toy_gallery.location.join("frames", row["shard"]).delete()
    with pytest.raises(PipelineError, match=row["shard"]):
        toy_gallery.read_video(row)
    with pytest.raises(PipelineError, match=row["shard"]):
        list(toy_gallery.iter_features(toy_gallery.snapshot().videos))
