"""Nothing of a forgotten video stays on disk: all bytes are searched for its features and what an index makes of them."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.gallery.gallery import Gallery, feature_matrix, frames_table
from pipeline.index.build import build_index
from pipeline.index.partition_files import encode_videos, segment_means
from pipeline.retention.compact import compact
from pipeline.retention.forget import Selection, forget
from pipeline.retention.remains import files_with_forgotten
from pipeline.segments import segment_frames, segment_starts
from pipeline.settings import IndexSettings
from tests.jobs.commands import command

GONE = ("v003", "v017", "v038")


def traces(gallery: Gallery) -> dict[str, list[np.ndarray]]:
    """Kind -> vectors of the videos GONE, as the files of a gallery and of its index hold them."""
    index = build_index(gallery, IndexSettings(partition_videos=16))
    found: dict[str, list[np.ndarray]] = {"features": [], "keys": [], "values": [], "means": []}
    for row in gallery.snapshot().videos.to_pylist():
        if row["video_id"] in GONE:
            features = feature_matrix(gallery.read_video(row))
            keys, values = encode_videos(index.heads, features, np.array([len(features)]), [row["camera_id"]])
            cut = segment_frames(segment_starts(len(features), 8, 4), 8, len(features))
            found["features"] += list(features)
            found["keys"] += list(keys)
            found["values"] += list(values)
            found["means"] += list(segment_means(values, cut, index.heads.unit_encodings))
    return found


def files_with_rows(gallery: Gallery, rows: Sequence[np.ndarray]) -> list[str]:
    """Uris of all files of the gallery whose bytes hold any of these arrays, in Parquet files any row of their features.

    rows: vectors as they would be stored (float16 or float32).
    """
    needles = {np.ascontiguousarray(row).tobytes() for row in rows}
    found = []
    for file, _ in gallery.location.infos(recursive=True):
        data = file.read_bytes()
        if any(needle in data for needle in needles) or (file.name.endswith(".parquet") and stored_rows(data) & needles):
            found.append(file.uri)
    return found


def stored_rows(data: bytes) -> set[bytes]:
    table = pq.read_table(pa.BufferReader(data))
    return {row.tobytes() for row in feature_matrix(table)} if "feature" in table.schema.names and len(table) else set()


def test_after_forget_and_compact_no_file_holds_a_forgotten_feature_key_value_or_mean(toy_gallery: Gallery) -> None:
    vectors = traces(toy_gallery)
    for kind, rows in vectors.items():
        assert files_with_rows(toy_gallery, rows), kind  # the search finds what is there
    forget(toy_gallery, Selection(video_ids=GONE), "asked to")
    held = files_with_forgotten(toy_gallery)
    kinds = {uri.removeprefix(toy_gallery.location.uri).split("/")[1]: uri for uri in held}
    assert kinds.keys() == {"frames", "commits", "index"} and max(held.values()) <= len(GONE)
    assert any("cohort" in uri for uri in held) and any("partitions" in uri for uri in held)
    compact(toy_gallery, timedelta(0))
    assert files_with_forgotten(toy_gallery) == {}
    assert {kind: files_with_rows(toy_gallery, rows) for kind, rows in vectors.items()} == {kind: [] for kind in vectors}
    build_index(toy_gallery, IndexSettings(partition_videos=16))
    assert {kind: files_with_rows(toy_gallery, rows) for kind, rows in vectors.items()} == {kind: [] for kind in vectors}


def test_a_copy_under_any_name_and_an_uncommitted_shard_are_found(toy_gallery: Gallery) -> None:
    row = next(row for row in toy_gallery.snapshot().videos.to_pylist() if row["video_id"] == GONE[0])
    features = feature_matrix(toy_gallery.read_video(row))
    forget(toy_gallery, Selection(video_ids=GONE), "asked to")
    compact(toy_gallery, timedelta(0))
    index = np.arange(len(features))
    shard = toy_gallery.write_shard(frames_table([GONE[0]], [len(features)], index, index / 10, features))
    copy = Path(toy_gallery.location.path, "copy.bin")
    copy.write_bytes(b"before" + features[0].tobytes() + b"after")
    assert files_with_forgotten(toy_gallery) == {toy_gallery.location.join("frames", shard).uri: 1}
    assert set(files_with_rows(toy_gallery, list(features))) == {toy_gallery.location.join("frames", shard).uri, str(copy)}


def test_a_file_that_cannot_be_read_is_not_called_clean(toy_gallery: Gallery) -> None:
    forget(toy_gallery, Selection(video_ids=GONE), "asked to")
    shard = sorted(Path(toy_gallery.location.path, "frames").iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-9])
    assert files_with_forgotten(toy_gallery)[str(shard)] == 0


def test_status_verify_says_whether_forgotten_videos_are_still_on_disk(toy_gallery: Gallery) -> None:
    build_index(toy_gallery)
    asked = ("status", "--gallery", toy_gallery.location.uri, "--verify")
    assert "on disk" not in command(*asked).out
    forget(toy_gallery, Selection(video_ids=GONE), "asked to")
    ended = command(*asked)
    assert ended.code == 0 and "jobs.compact removes them" in ended.out
    for folder in ("frames", "index"):
        assert f"{toy_gallery.location.uri}/{folder}/" in ended.out
    compact(toy_gallery)
    ended = command(*asked)
    assert ended.code == 0 and "no file holds a forgotten video" in ended.out


def test_status_tells_the_head_of_the_log_and_checks_one_that_was_kept(toy_gallery: Gallery) -> None:
    forget(toy_gallery, Selection(video_ids=GONE[:1]), "asked to")
    gallery = ("--gallery", toy_gallery.location.uri)
    line = next(line for line in command("status", *gallery).out.splitlines() if "audit log" in line)
    kept = line.split()[-1]
    assert command("status", *gallery, "--verify", "--audit-head", kept).code == 0
    other = kept[:-1] + ("0" if kept[-1] != "0" else "1")
    assert command("status", *gallery, "--verify", "--audit-head", other).code == 1
