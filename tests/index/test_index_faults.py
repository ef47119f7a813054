"""An index whose checksums and seal are right and whose numbers are not: each is named, and none is opened."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pytest

from pipeline.gallery.gallery import REJECTS_SCHEMA, VIDEOS_SCHEMA, Gallery
from pipeline.index.build import build_index
from pipeline.index.partition_store import read_videos, write_videos
from pipeline.index.version_files import index_versions
from pipeline.retention import verify as verification
from pipeline.retention.verify import verify_gallery
from pipeline.settings import IndexSettings
from pipeline.storage.location import resolve
from pipeline.storage.seals import sealed, unsealed

Forge = Callable[[Any], Any]


@pytest.fixture
def indexed(toy_gallery: Gallery) -> Gallery:
    build_index(toy_gallery, IndexSettings(8, 4, partition_videos=15))
    assert verify_gallery(toy_gallery) == []
    return toy_gallery


def manifest_file(gallery: Gallery) -> Path:
    return Path(gallery.location.path, "index", index_versions(gallery)[-1], "manifest.json")


def change_manifest(gallery: Gallery, forge: Forge) -> None:
    """As somebody writes it who knows the format: with its seal."""
    file = manifest_file(gallery)
    manifest = unsealed(file.read_bytes())
    file.write_bytes(sealed(forge(manifest) or manifest))


def change_file(gallery: Gallery, name: str, forge: Callable[[Path], None]) -> None:
    """Change a file of the second partition, or of the version where it lies in a folder, and what the manifest says of it."""
    part = unsealed(manifest_file(gallery).read_bytes())["partitions"][1]
    folder = manifest_file(gallery).parent if "/" in name else Path(gallery.location.path, "index/partitions", part["id"])
    forge(folder / name)
    content = (folder / name).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def named(manifest: dict[str, Any]) -> None:
        (manifest if "/" in name else manifest["partitions"][1])["files"][name] = entry

    change_manifest(gallery, named)


def column(name: str, forge: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        table = read_videos(resolve(str(path.parent)))
        changed = pa.array(forge(np.array(table[name])))
        content = table.set_column(table.schema.get_field_index(name), name, changed)
        path.unlink()  # the table is mapped
        write_videos(content, path)

    return write


def array(forge: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        np.save(path, forge(np.load(path)))

    return write


def plus(row: int, more: int) -> Callable[[np.ndarray], np.ndarray]:
    def forge(numbers: np.ndarray) -> np.ndarray:
        numbers = numbers.copy()
        numbers[row] += more
        return numbers

    return forge


FORGED = {
    "a first frame past the file": ("videos.arrow", column("first_frame", plus(-1, 10**9)), "says first_frame"),
    "a first frame before the file": ("videos.arrow", column("first_frame", plus(0, -5)), "says first_frame -5"),
    "a first frame of a fraction": ("videos.arrow", column("first_frame", lambda numbers: numbers + 0.5), "no whole number"),
    "another video's first frame": ("videos.arrow", column("first_frame", lambda n: n[::-1].copy()), "says first_frame"),
    "a first segment past the file": ("videos.arrow", column("first_segment", plus(3, 10**6)), "says first_segment"),
    "more segments than frames give": ("videos.arrow", column("segments", plus(2, 1)), "says segments"),
    "more frames": ("videos.arrow", column("sampled_frames", plus(2, 1)), "other videos or frames"),
    "frames below none": ("videos.arrow", column("sampled_frames", lambda n: n * 0 - 1), "other videos or frames"),
    "keys of another type": ("keys.npy", array(lambda rows: rows.astype(np.float64)), "holds float64"),
    "keys columns first": ("keys.npy", array(np.asfortranarray), "columns first"),
    "fewer values": ("values.npy", array(lambda rows: rows[:-1]), "holds float16"),
    "narrower values": ("values.npy", array(lambda rows: rows[:, :-1].copy()), "holds float16"),
    "a band of another width": ("band.npy", array(lambda rows: rows[:, :-2].copy()), "holds float16"),
    "frame numbers as floats": ("frame_index.npy", array(lambda numbers: numbers.astype(np.float32)), "holds float32"),
    "times for fewer frames": ("time_s.npy", array(lambda times: times[1:]), "holds float32"),
    "a cohort for fewer segments": ("cohort_mean.npy", array(lambda means: means[1:]), "holds float32"),
    "a visibility for fewer segments": ("visibility.npy", array(lambda shown: shown[1:]), "holds float32"),
    "a segment of no visibility": ("visibility.npy", array(lambda shown: shown * 0), "not above 0"),
    "a visibility that is no number": ("visibility.npy", array(lambda shown: shown * np.nan), "not above 0"),
    "encodings of fewer videos": ("video_encodings.npy", array(lambda rows: rows[1:]), "holds float16"),
    "spreads of more videos": ("video_spread.npy", array(lambda spread: np.append(spread, spread[:1])), "holds float32"),
    "a query of another width": ("cohort/query.npy", array(lambda query: query[1:]), "holds float32"),
    "a query that is no number": ("cohort/query.npy", array(lambda query: query * np.nan), "not finite"),
    "a cohort of videos not there": ("cohort/video.npy", array(plus(0, 10**6)), "names videos that are not there"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_range_is_named_and_the_index_is_not_opened(
    indexed: Gallery, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, forge, words = FORGED[name]
    change_file(indexed, file, forge)
    monkeypatch.setattr(verification, "open_index", lambda *arguments: pytest.fail("opened"))
    (fault,) = verify_gallery(indexed)
    assert words in fault, fault


def fewer_vectors(path: Path) -> None:
    index = faiss.read_index(str(path))
    index.remove_ids(np.arange(1))
    faiss.write_index(index, str(path))


def another_width(path: Path) -> None:
    index = faiss.read_index(str(path))
    other = faiss.IndexFlat(index.d + 1, index.metric_type)
    other.add(np.zeros((index.ntotal, index.d + 1), np.float32))
    faiss.write_index(other, str(path))


def another_kind(path: Path) -> None:
    index = faiss.read_index(str(path))
    other = faiss.IndexHNSWFlat(index.d, 4, index.metric_type)
    other.add(index.reconstruct_n(0, index.ntotal))
    faiss.write_index(other, str(path))


def ids_past_the_end(path: Path) -> None:
    index = faiss.read_index(str(path))
    vectors = index.reconstruct_n(0, index.ntotal)
    other = faiss.index_factory(index.d, "IVF2,Flat", index.metric_type)
    other.train(vectors)
    other.add_with_ids(vectors, np.arange(index.ntotal) + 1)
    faiss.write_index(other, str(path))


@pytest.mark.parametrize(
    ("forge", "words"),
    [
        (fewer_vectors, "vectors of"),
        (another_width, "vectors of"),
        (another_kind, "of a kind that no index has"),
        (ids_past_the_end, "segments that are not there"),
    ],
)
def test_a_forged_prefilter_is_named(indexed: Gallery, forge: Callable[[Path], None], words: str) -> None:
    change_file(indexed, "prefilter.faiss", forge)
    (fault,) = verify_gallery(indexed)
    assert "prefilter.faiss" in fault and words in fault, fault


def test_inverted_lists_of_all_segments_are_sound(indexed: Gallery) -> None:
    def compressed(path: Path) -> None:
        index = faiss.read_index(str(path))
        vectors = index.reconstruct_n(0, index.ntotal)
        other = faiss.index_factory(index.d, "IVF2,Flat", index.metric_type)
        other.train(vectors)
        other.add(vectors)
        faiss.write_index(other, str(path))

    change_file(indexed, "prefilter.faiss", compressed)
    assert verify_gallery(indexed) == []


def test_a_manifest_that_leads_out_of_the_index_is_named_and_nothing_is_read_there(indexed: Gallery, tmp_path: Path) -> None:
    sound = manifest_file(indexed).read_bytes()
    elsewhere = {"bytes": 1, "sha256": "0" * 64}
    for forge, words in (
        (lambda m: m["partitions"][0].update(id="../../../outside"), "partition of no index"),
        (lambda m: m["partitions"][0]["files"].update({"../../x.npy": elsewhere}), "'../../x.npy'"),
        (lambda m: m["files"].update({"cohort/../../../x.npy": elsewhere}), "'../../../x.npy'"),
        (lambda m: m["files"].update({"/etc/passwd": elsewhere}), "belongs to no index"),
        (lambda m: m.update(version="../other"), "another version"),
        (lambda m: m["partitions"][1].update(first_video=0), "do not follow each other"),
        (lambda m: m["partitions"][1].update(videos=10**6), "do not follow each other"),
        (lambda m: m["partitions"][1].update(frames=-1), "whole numbers"),
        (lambda m: m["partitions"][1].update(frames=1.5), "whole numbers"),
        (lambda m: m["settings"].update(stride=0), "stride"),
        (lambda m: m.update(partitions={"id": 1}), "damaged"),
        (lambda m: m["partitions"][0].pop("files"), "damaged"),
    ):
        manifest = json.loads(json.dumps(unsealed(sound)))
        forge(manifest)
        manifest_file(indexed).write_bytes(sealed(manifest))
        (fault,) = verify_gallery(indexed)
        assert words in fault, fault


def test_a_row_of_videos_that_names_no_rows_of_a_shard_is_named(toy_gallery: Gallery) -> None:
    row = toy_gallery.snapshot().videos.to_pylist()[0]
    wrong = {"below": {"first_row": -3}, "none": {"sampled_frames": 0}, "negative": {"sampled_frames": -2}}
    rows = [{**row, "video_id": name, "source_id": name, **fields} for name, fields in wrong.items()]
    toy_gallery.commit(pa.Table.from_pylist(rows, schema=VIDEOS_SCHEMA), REJECTS_SCHEMA.empty_table())
    faults = "\n".join(verify_gallery(toy_gallery))
    assert all(f"the row of {name} in videos/ names no rows" in faults for name in wrong)
