"""The MARS reader on the published tables and on real images: the counts that the field knows, and frames that decode."""

import json
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.datasets.files import read_mat
from pipeline.datasets.labelled import queries_without_match
from pipeline.datasets.mars import mars_protocol
from pipeline.datasets.read import read_labelled
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.storage.location import resolve
from tests.conftest import SHARED

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    folder = SHARED / "data/mars_info"
    if not folder.exists():
        pytest.skip("the published tables of MARS are not in ../shared/data/mars_info")
    keys = {"train": ("tracks_train_info.mat", "track_train_info"), "test": ("tracks_test_info.mat", "track_test_info")}
    keys["query"] = ("query_IDX.mat", "query_IDX")
    return {name: read_mat(resolve(folder / file), key, "") for name, (file, key) in keys.items()}


@pytest.fixture(scope="module")
def mini_mars() -> Path:
    folder = SHARED / "data/mini_mars"
    if not folder.exists():
        pytest.skip("the real images are not in ../shared/data/mini_mars")
    return folder


@pytest.fixture(scope="module")
def whole_mars(tables: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of MARS but its images: the published tables and name files made to fit them, tracklets counted a person."""
    root = tmp_path_factory.mktemp("mars")
    (root / "info").mkdir()
    for file in (SHARED / "data/mars_info").glob("*.mat"):
        (root / "info" / file.name).write_bytes(file.read_bytes())
    for side in ("train", "test"):
        (root / f"bbox_{side}").mkdir()
        tracklets: Counter[int] = Counter()
        with (root / f"info/{side}_name.txt").open("w", newline="") as names:
            for first, last, pid, camera in tables[side].tolist():
                tracklets[pid] += 1
                start = f"{'00-1' if pid < 0 else f'{pid:04d}'}C{camera}T{tracklets[pid]:04d}"
                names.writelines(f"{start}F{frame:03d}.jpg\r\n" for frame in range(1, last - first + 2))
    return root


@pytest.mark.parametrize(("protocol", "gallery", "unmatched"), [("official", 12180 - 870, 0), ("torchreid", 9330, 140)])
def test_the_protocols_on_the_published_tables(
    tables: dict[str, np.ndarray], protocol: str, gallery: int, unmatched: int
) -> None:
    tracks = tables["test"]
    queries, ranked = mars_protocol(tracks, tables["query"].ravel(), protocol)
    assert (len(queries), len(ranked)) == (1980, gallery)
    assert len(set(tracks[queries, 2].tolist())) == 626
    assert np.count_nonzero(tracks[ranked, 2] == 0) == 3248 and not np.any(tracks[ranked, 2] == -1)
    same_person = tracks[queries, 2, None] == tracks[None, ranked, 2]  # [1980, gallery]
    matches = same_person & (tracks[queries, 3, None] != tracks[None, ranked, 3])
    assert np.count_nonzero(~matches.any(axis=1)) == unmatched


@pytest.mark.parametrize(("protocol", "gallery", "unmatched"), [("official", 11310, 0), ("torchreid", 9330, 140)])
def test_the_whole_data_set_is_read_in_seconds(whole_mars: Path, protocol: str, gallery: int, unmatched: int) -> None:
    begun = time.process_time()
    data = read_labelled(f"mars:{whole_mars}", protocol=protocol)
    assert time.process_time() - begun < 20
    assert (len(data.queries), len(data.gallery), len(data.catalog.table)) == (1980, gallery, 11310)
    assert len(queries_without_match(data)) == unmatched
    assert f"{unmatched} queries without a match" in data.notes[0]
    person = dict(zip(data.catalog.table["source_id"].to_pylist(), data.catalog.table["person_id"].to_pylist(), strict=True))
    assert len({person[v] for v in data.gallery} - {"0000"}) == (634 if protocol == "official" else 620)
    assert Counter(person.values())["0000"] == 3248 and "00-1" not in person.values()


def test_the_training_part_has_its_625_people(whole_mars: Path) -> None:
    table = read_labelled(f"mars:{whole_mars}", part="train").catalog.table
    assert len(table) == 8298 and len(set(table["person_id"].to_pylist())) == 625
    cameras: dict[str, set[str]] = {}
    for person, camera in zip(table["person_id"].to_pylist(), table["camera_id"].to_pylist(), strict=True):
        cameras.setdefault(person, set()).add(camera)
    assert sum(len(seen) == 1 for seen in cameras.values()) == 6
    assert set().union(*cameras.values()) == {f"C{n}" for n in range(1, 7)}


def test_real_file_names_make_the_tracklets_that_are_published(mini_mars: Path, tables: dict[str, np.ndarray]) -> None:
    """Camera and length of each tracklet, in their order, as the table has them for that person."""
    listed = json.loads((mini_mars / "train.json").read_text())
    lengths = {Path(entry["img_paths"][0]).name.partition("F")[0]: len(entry["img_paths"]) for entry in listed}
    data = read_labelled(f"mars:{mini_mars}", part="train")
    assert data.catalog.table["source_id"].to_pylist() == sorted(lengths) and len(lengths) == 32
    of_person: dict[str, list[tuple[str, int]]] = {}
    for row in data.catalog.table.to_pylist():
        of_person.setdefault(row["person_id"], []).append((row["camera_id"], lengths[row["source_id"]]))
    assert len(of_person) == 16
    for person, tracklets in of_person.items():
        rows = tables["train"][tables["train"][:, 2] == int(person)]
        published = [(f"C{camera}", last - first + 1) for first, last, _, camera in rows.tolist()]
        assert tracklets == published[: len(tracklets)]


def test_real_tracklets_decode_to_the_listed_images_in_order(mini_mars: Path) -> None:
    listed = json.loads((mini_mars / "train.json").read_text())
    images = {Path(entry["img_paths"][0]).name.partition("F")[0]: entry["img_paths"] for entry in listed}
    data = read_labelled(f"mars:{mini_mars}", part="all")
    assert data.queries is None and data.gallery is None
    with Decoder(Sampling(height=128, width=64)) as decoder:
        for row in data.catalog.table.to_pylist():
            events = list(decoder.events(row["uri"]))
            assert not [event for event in events if isinstance(event, Rejected)]
            chunks = [event for event in events if isinstance(event, Chunk)]
            frames = np.concatenate([chunk.frames for chunk in chunks])
            paths = images[row["source_id"]]
            assert np.concatenate([chunk.frame_index for chunk in chunks]).tolist() == list(range(len(paths)))
            for number in (0, len(paths) // 2, len(paths) - 1):
                image = cv2.cvtColor(cv2.imread(str(mini_mars / paths[number])), cv2.COLOR_BGR2RGB)
                assert np.array_equal(frames[number], cv2.resize(image, (64, 128), interpolation=cv2.INTER_AREA))
            # The report reads single frames again, by the same uri.
            (again,) = decoder.frames(row["uri"], None, None, [len(paths) - 1]).values()
            assert np.array_equal(again, frames[-1])
