"""The field's data sets, each as a tiny tree in its exact layout; every trap of the layouts is a test."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import scipy.io

from pipeline.datasets.files import read_mat, read_npy
from pipeline.datasets.labelled import LabelledData, queries_without_match
from pipeline.datasets.read import read_labelled
from pipeline.decoding.decoder import Decoder
from pipeline.decoding.sampling import Sampling
from pipeline.decoding.video import Chunk, Rejected
from pipeline.errors import UsageError
from pipeline.storage.location import resolve
from tests.conftest import touch


def labels(data: LabelledData) -> dict[str, tuple[str, str, str]]:
    """video id -> (uri below the root, person, camera)."""
    rows = data.catalog.table.to_pylist()
    return {r["source_id"]: (r["uri"].removeprefix(data.catalog.root + "/"), r["person_id"], r["camera_id"]) for r in rows}


def refused(data: str, **arguments: object) -> str:
    with pytest.raises(UsageError) as raised:
        read_labelled(data, **arguments)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def save_mat_73(path: Path, **variables: list) -> None:
    """As MATLAB 7.3 does: HDF5 behind a block of 512 bytes, tables transposed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            file[name] = np.array(values, np.float64).T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


# Person 0 are distractors, -1 junk; the row's last number is the tracklet in the file name, which the tables do not have.
MARS_TRAIN = [(1, 3, 1, 1, 1), (4, 5, 1, 2, 2), (6, 6, 3, 1, 7)]
MARS_TEST = [
    (1, 2, -1, 1, 1),
    (3, 3, 0, 2, 1),
    (4, 5, 2, 1, 1),
    (6, 7, 2, 1, 2),
    (8, 9, 2, 4, 3),
    (10, 10, 4, 5, 1),
    (11, 12, 4, 6, 2),
]
MARS_QUERIES = [3, 5, 6, 7]  # rows from 1: 2C1, 2C4, 4C5, 4C6


def mars_names(rows: list[tuple[int, ...]]) -> list[str]:
    person = {-1: "00-1"}
    return [
        f"{person.get(pid, f'{pid:04d}')}C{camera}T{track:04d}F{frame:03d}.jpg"
        for first, last, pid, camera, track in rows
        for frame in range(1, last - first + 2)
    ]


@pytest.fixture
def mars(tmp_path: Path) -> Path:
    root = tmp_path / "mars"
    (root / "info").mkdir(parents=True)
    for side, rows in (("train", MARS_TRAIN), ("test", MARS_TEST)):
        names = mars_names(rows)
        touch(root, *(f"bbox_{side}/{name[:4]}/{name}" for name in names))
        (root / f"info/{side}_name.txt").write_bytes("".join(f"{name}\r\n" for name in names).encode())
        table = np.array([row[:4] for row in rows], np.int32)
        scipy.io.savemat(root / f"info/tracks_{side}_info.mat", {f"track_{side}_info": table})
    scipy.io.savemat(root / "info/query_IDX.mat", {"query_IDX": np.array([MARS_QUERIES], np.uint16)})
    return root


class TestMars:
    def test_train_tracklets_are_patterns_with_person_and_camera(self, mars: Path) -> None:
        data = read_labelled(f"mars:{mars}", part="train")
        assert labels(data) == {
            "0001C1T0001": ("bbox_train/0001/0001C1T0001F*.jpg", "0001", "C1"),
            "0001C2T0002": ("bbox_train/0001/0001C2T0002F*.jpg", "0001", "C2"),
            "0003C1T0007": ("bbox_train/0003/0003C1T0007F*.jpg", "0003", "C1"),
        }
        assert (data.name, data.queries, data.gallery, data.catalog.root) == ("MARS train", None, None, str(mars))
        assert "1 queries without a match" in data.notes[0]

    def test_the_official_gallery_holds_the_queries_and_distractors_and_no_junk(self, mars: Path) -> None:
        data = read_labelled(f"mars:{mars}")
        assert data.queries == ("0002C1T0001", "0002C4T0003", "0004C5T0001", "0004C6T0002")
        assert data.gallery == {*data.queries, "0000C2T0001", "0002C1T0002"} == set(labels(data))
        assert labels(data)["0000C2T0001"] == ("bbox_test/0000/0000C2T0001F*.jpg", "0000", "C2")
        assert data.name == "MARS test, official protocol" and queries_without_match(data) == []
        assert any("1 junk" in note and "1 distractors" in note for note in data.notes)

    def test_torchreids_gallery_has_no_queries_so_that_some_have_no_match(self, mars: Path) -> None:
        data = read_labelled(f"mars:{mars}", protocol="torchreid")
        assert data.gallery == {"0000C2T0001", "0002C1T0002"} and len(data.queries) == 4
        assert set(labels(data)) == {*data.queries, *data.gallery}
        assert queries_without_match(data) == ["0002C1T0001", "0004C5T0001", "0004C6T0002"]
        assert "3 queries without a match" in data.notes[0]

    def test_all_is_both_sides_and_distractors_are_no_queries(self, mars: Path) -> None:
        data = read_labelled(f"mars:{mars}", part="all")
        assert len(labels(data)) == 9 and data.gallery is None
        assert set(data.queries) == set(labels(data)) - {"0000C2T0001"}

    def test_without_the_tables_file_names_make_the_tracklets_and_junk_is_left_out(self, mars: Path) -> None:
        for file in (mars / "info").iterdir():
            file.unlink()
        (mars / "info").rmdir()
        touch(mars, "bbox_train/0001/._0001C1T0001F001.jpg", "bbox_train/0001/Thumbs.jpg", "bbox_train/0001/0003C1T0001F001.jpg")
        train, everything = (read_labelled(f"mars:{mars}", part=part) for part in ("train", "all"))
        assert list(labels(train)) == ["0001C1T0001", "0001C2T0002", "0003C1T0007"] and train.queries is None
        assert "grouped by their file names" in train.notes[1] and train.notes[2].startswith("2 images are left out")
        assert len(labels(everything)) == 9 and "0000C2T0001" not in everything.queries
        assert "info is missing, without which MARS has no test protocol" in refused(f"mars:{mars}")

    def test_a_folder_is_not_listed_where_name_files_say_what_there_is(self, mars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("listed")

        monkeypatch.setattr("pipeline.datasets.mars.image_names", refuse)
        monkeypatch.setattr("pipeline.datasets.mars.subfolders", refuse)
        assert len(labels(read_labelled(f"mars:{mars}"))) == 6

    def test_an_archive_that_unpacked_into_itself(self, mars: Path) -> None:
        (mars / "bbox_train").rename(mars / "inner")
        (mars / "bbox_train").mkdir()
        (mars / "inner").rename(mars / "bbox_train/bbox_train")
        assert labels(read_labelled(f"mars:{mars}", part="train"))["0001C1T0001"][0].startswith("bbox_train/bbox_train/0001/")

    @pytest.mark.parametrize("absent", ["info/test_name.txt", "info/tracks_test_info.mat", "info/query_IDX.mat", "bbox_test"])
    def test_what_is_missing_is_named_with_what_is_expected(self, mars: Path, absent: str) -> None:
        (mars / absent).rename(mars / "elsewhere")
        sentence = refused(f"mars:{mars}")
        assert sentence.startswith(f"{mars}/{absent} is missing") and "MARS is expected as" in sentence

    @pytest.mark.parametrize(
        ("change", "sentence"),
        [
            (lambda lines: lines[:-1], "it has 11 lines, the table needs 12"),
            (lambda lines: [*lines, lines[-1]], "it has 13 lines, the table needs 12"),
            (lambda lines: lines[1:] + lines[:1], "line 3 is '0002C1T0001F001.jpg', the table has person 0000 and camera 2"),
            (
                lambda lines: [*lines[:4], "0002C1T0009F002.jpg", *lines[5:]],
                "line 5 is '0002C1T0009F002.jpg', which is no frame of",
            ),
            (lambda lines: [*lines[:3], "x.jpg", *lines[4:]], "line 4 is 'x.jpg', the table has person 0002"),
        ],
    )
    def test_name_files_that_do_not_fit_the_table(self, mars: Path, change: Callable, sentence: str) -> None:
        (mars / "info/test_name.txt").write_text("\n".join(change(mars_names(MARS_TEST))))
        assert refused(f"mars:{mars}").startswith(f"{mars}/info/test_name.txt does not fit tracks_test_info.mat: {sentence}")

    @pytest.mark.parametrize(
        ("queries", "sentence"),
        [
            ([0, 3], "1 to 7"),
            ([3, 8], "1 to 7"),
            ([], "1 to 7"),
            ([3, 3], "twice"),
            ([1], "junk or distractor"),
            ([2], "distractor"),
        ],
    )
    def test_query_indices_that_cannot_be_meant(self, mars: Path, queries: list[int], sentence: str) -> None:
        scipy.io.savemat(mars / "info/query_IDX.mat", {"query_IDX": np.array([queries], np.int32)})
        assert sentence in refused(f"mars:{mars}")

    @pytest.mark.parametrize(
        "table", [[[1, 2, 3]], [[0, 2, 2, 1]], [[2, 1, 2, 1]], [[1, 2, -2, 1]], [[1.5, 2, 2, 1]], [[1, np.nan, 2, 1]], "text", 7]
    )
    def test_tables_that_cannot_be_meant(self, mars: Path, table: object) -> None:
        scipy.io.savemat(mars / "info/tracks_test_info.mat", {"track_test_info": table})
        assert f"track_test_info in {mars}/info/tracks_test_info.mat" in refused(f"mars:{mars}")

    def test_a_damaged_table_is_one_sentence_wherever_it_is_cut(self, mars: Path) -> None:
        file = mars / "info/tracks_test_info.mat"
        whole = file.read_bytes()
        for size in range(0, len(whole), 7):
            file.write_bytes(whole[:size])
            sentence = refused(f"mars:{mars}")
            assert f"{file} is damaged" in sentence or f"{file} has no variable track_test_info" in sentence

    def test_another_protocol_is_none(self, mars: Path) -> None:
        assert "official, torchreid" in refused(f"mars:{mars}", protocol="market")

    def test_a_bucket_serves_as_well(self, mars: Path, s3_options: str) -> None:
        for file in mars.rglob("*.*"):
            key = file.relative_to(mars).as_posix()
            resolve(f"s3://bucket/mars/{key}{s3_options}").write_atomically(file.read_bytes() or b"x")
        remote, local = read_labelled(f"mars:s3://bucket/mars{s3_options}"), read_labelled(f"mars:{mars}")
        assert (remote.queries, remote.gallery) == (local.queries, local.gallery)
        uri = dict(zip(remote.catalog.table["source_id"].to_pylist(), remote.catalog.table["uri"].to_pylist(), strict=True))
        assert uri["0002C1T0001"] == f"s3://bucket/mars/bbox_test/0002/0002C1T0001F*.jpg{s3_options}"


ILIDS_PEOPLE = ("person001", "person002", "person014", "person319")
ILIDS_ROWS = [[4, 1, 3, 2], [2, 3, 1, 4]]


@pytest.fixture
def ilids(tmp_path: Path) -> Path:
    root = tmp_path / "ilids-vid"
    for camera in (1, 2):
        for person in reversed(ILIDS_PEOPLE):
            folder = f"i-LIDS-VID/sequences/cam{camera}/{person}"
            touch(root, *(f"{folder}/cam{camera}_{person}_{frame:05d}.png" for frame in (317, 4, 25)))
    touch(root, "i-LIDS-VID/sequences/cam1/.DS_Store", "i-LIDS-VID/images/cam1/person001/cam1_person001.png")
    (root / "train-test people splits").mkdir()
    scipy.io.savemat(
        root / "train-test people splits/train_test_splits_ilidsvid.mat", {"ls_set": np.array(ILIDS_ROWS, np.uint16)}
    )
    return root


class TestIlidsVid:
    @pytest.mark.parametrize(
        ("split", "first_half", "train", "test"),
        [
            (0, "test", ("014", "002"), ("319", "001")),
            (0, "train", ("319", "001"), ("014", "002")),
            (1, "test", ("001", "319"), ("002", "014")),
        ],
    )
    def test_a_row_counts_people_in_sorted_order_from_1_and_the_flag_says_which_half_trains(
        self, ilids: Path, split: int, first_half: str, train: tuple[str, str], test: tuple[str, str]
    ) -> None:
        for part, people in (("train", train), ("test", test)):
            data = read_labelled(f"ilids-vid:{ilids}", part=part, split=split, first_half=first_half)
            assert {(person, camera) for _, person, camera in labels(data).values()} == {
                (person, camera) for person in people for camera in ("cam1", "cam2")
            }
            assert f"first half for {first_half}ing" in data.name

    def test_queries_are_camera_1_and_the_gallery_is_camera_2(self, ilids: Path) -> None:
        data = read_labelled(f"ilids-vid:{ilids}")
        assert data.queries == ("cam1_person319", "cam1_person001") and data.gallery == {"cam2_person319", "cam2_person001"}
        assert labels(data)["cam2_person319"] == ("i-LIDS-VID/sequences/cam2/person319", "319", "cam2")
        assert queries_without_match(data) == []

    def test_train_and_all_rank_everything(self, ilids: Path) -> None:
        train, everything = (read_labelled(f"ilids-vid:{ilids}", part=part) for part in ("train", "all"))
        assert (train.queries, train.gallery, everything.queries, everything.gallery) == (None,) * 4
        assert len(labels(train)) == 4 and len(labels(everything)) == 8

    def test_faults_are_one_sentence(self, ilids: Path) -> None:
        for split in (-1, 2):
            assert f"has 2 splits, numbered from 0; there is no split {split}" in refused(f"ilids-vid:{ilids}", split=split)
        assert "first_half must be train or test" in refused(f"ilids-vid:{ilids}", first_half="both")
        assert "no part val" in refused(f"ilids-vid:{ilids}", part="val")
        file = ilids / "train-test people splits/train_test_splits_ilidsvid.mat"
        for row, sentence in (
            ([0, 1, 2, 3], "each of 4 people once, counted from 1"),
            ([1, 2], "splits 2 people, but"),
            ([1, 1], "once"),
        ):
            scipy.io.savemat(file, {"ls_set": np.array([row])})
            assert sentence in refused(f"ilids-vid:{ilids}")
        scipy.io.savemat(file, {"other": np.array(ILIDS_ROWS)})
        assert f"{file} has no variable ls_set" in refused(f"ilids-vid:{ilids}")
        file.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
        assert f"{file} is damaged" in refused(f"ilids-vid:{ilids}")
        file.unlink()
        assert refused(f"ilids-vid:{ilids}").startswith(f"{file} is missing; iLIDS-VID is expected as")
        (ilids / "i-LIDS-VID/sequences/cam2/person014").rename(ilids / "elsewhere")
        assert "has person014 under one camera only" in refused(f"ilids-vid:{ilids}")
        (ilids / "i-LIDS-VID/sequences/cam1").rename(ilids / "gone")
        assert refused(f"ilids-vid:{ilids}").startswith(f"{ilids}/i-LIDS-VID/sequences/cam1 is missing")


@pytest.fixture
def prid(tmp_path: Path) -> Path:
    root = tmp_path / "prid2011"
    for camera, people in (("a", (1, 2, 3, 200, 201)), ("b", (1, 2, 3, 200, 201, 749))):
        touch(root, *(f"prid_2011/multi_shot/cam_{camera}/person_{p:04d}/{f:04d}.png" for p in people for f in (1, 2)))
    splits = [
        {"train": ["person_0001", "person_0200"], "test": ["person_0003", "person_0002"]},
        {"train": ["person_0002", "person_0003"], "test": ["person_0001", "person_0200"]},
    ]
    (root / "splits_prid2011.json").write_text(json.dumps(splits))
    return root


class TestPrid2011:
    def test_a_split_names_the_people_of_each_part(self, prid: Path) -> None:
        data = read_labelled(f"prid2011:{prid}")
        assert data.queries == ("cam_a_person_0003", "cam_a_person_0002")
        assert data.gallery == {"cam_b_person_0003", "cam_b_person_0002"}
        assert labels(data)["cam_b_person_0002"] == ("prid_2011/multi_shot/cam_b/person_0002", "0002", "cam_b")
        train = read_labelled(f"prid2011:{prid}", part="train", split=1)
        assert {person for _, person, _ in labels(train).values()} == {"0002", "0003"} and train.queries is None

    def test_from_number_201_on_the_same_number_is_another_person(self, prid: Path) -> None:
        data = read_labelled(f"prid2011:{prid}", part="all")
        assert {labels(data)[f"cam_{c}_person_0201"][1] for c in "ab"} == {"cam_a 0201", "cam_b 0201"}
        assert set(queries_without_match(data)) == {"cam_a_person_0201", "cam_b_person_0201", "cam_b_person_0749"}
        assert labels(data)["cam_a_person_0200"][1] == labels(data)["cam_b_person_0200"][1] == "0200"

    def test_faults_are_one_sentence(self, prid: Path) -> None:
        file = prid / "splits_prid2011.json"
        assert "has 2 splits, numbered from 0; there is no split 10" in refused(f"prid2011:{prid}", split=10)
        (prid / "prid_2011/multi_shot/cam_b/person_0002").rename(prid / "elsewhere")
        assert "cam_b/person_0002 is missing, which split 0 names" in refused(f"prid2011:{prid}")
        for content, sentence in (
            ("[{", "is damaged or not JSON"),
            ("{}", "has 0 splits"),
            ('[{"train": []}]', "has no list 'test'"),
            ('[{"test": ["../person_0001"]}]', "has no list 'test'"),
            ("[" * 100_000, "is damaged or not JSON"),
        ):
            file.write_text(content)
            assert f"{file}" in refused(f"prid2011:{prid}") and sentence in refused(f"prid2011:{prid}")
        file.unlink()
        assert refused(f"prid2011:{prid}").startswith(f"{file} is missing; PRID2011 is expected as")


# path that the images' names begin with -> person; the third field is the camera
LS_TEST = {
    "tracklet_test/0843/0843_0001_03": 843,
    "tracklet_test/0843/0843_0002_15": 843,
    "tracklet_test/0843/0843_0002_1": 843,
    "tracklet_test/0900/0900_0001_02": 900,
    "tracklet_test/0900/0900_0004_10": 900,
}
LS_TRAIN = {"tracklet_train/0001/0001_0001_01": 1, "tracklet_train/0001/0001_0002_02": 1}


def ls_list(starts: dict[str, int]) -> str:
    return "".join(f"{start} {person}\r\n" for start, person in starts.items())


@pytest.fixture
def ls_vid(tmp_path: Path) -> Path:
    root = tmp_path / "LS-VID"
    (root / "list_sequence").mkdir(parents=True)
    for part, starts in (("train", LS_TRAIN), ("test", LS_TEST)):
        (root / f"list_sequence/list_seq_{part}.txt").write_bytes(ls_list(starts).encode())
        touch(root, *(f"{start}_{frame:04d}.jpg" for start in starts for frame in (1, 2)))
    save_mat_73(root / "test/data/info_test.mat", query=[[1, 4]])
    return root


class TestLsVid:
    def test_a_tracklet_is_a_pattern_that_does_not_reach_into_another(self, ls_vid: Path) -> None:
        data = read_labelled(f"ls-vid:{ls_vid}")
        assert labels(data)["0843_0002_1"] == ("tracklet_test/0843/0843_0002_1_*.jpg", "0843", "C1")
        assert {camera for _, _, camera in labels(data).values()} == {"C3", "C15", "C1", "C2", "C10"}

    def test_queries_are_lines_from_1_and_stay_in_the_gallery(self, ls_vid: Path) -> None:
        data = read_labelled(f"ls-vid:{ls_vid}")
        assert data.queries == ("0843_0001_03", "0900_0001_02") and data.gallery == set(labels(data)) and len(data.gallery) == 5
        assert queries_without_match(data) == []

    def test_train_val_and_all(self, ls_vid: Path) -> None:
        train = read_labelled(f"ls-vid:{ls_vid}", part="train")
        assert list(labels(train)) == ["0001_0001_01", "0001_0002_02"] and (train.queries, train.gallery) == (None, None)
        assert "list_seq_val.txt" in refused(f"ls-vid:{ls_vid}", part="val")
        starts = {"tracklet_val/0700/0700_0001_01": 700, "tracklet_val/0700/0700_0002_02": 700}
        (ls_vid / "list_sequence/list_seq_val.txt").write_text(ls_list(starts))
        touch(ls_vid, *(f"{start}_0001.jpg" for start in starts))
        assert read_labelled(f"ls-vid:{ls_vid}", part="val").queries is None
        assert len(labels(read_labelled(f"ls-vid:{ls_vid}", part="all"))) == 9
        save_mat_73(ls_vid / "test/data/info_val.mat", query=[[2]])
        assert read_labelled(f"ls-vid:{ls_vid}", part="val").queries == ("0700_0002_02",)

    def test_copies_that_keep_lists_and_queries_elsewhere(self, ls_vid: Path) -> None:
        expected = read_labelled(f"ls-vid:{ls_vid}")
        (ls_vid / "info").mkdir()
        (ls_vid / "list_sequence").rename(ls_vid / "info/list_sequence")
        (ls_vid / "test/data").rename(ls_vid / "info/data")
        assert read_labelled(f"ls-vid:{ls_vid}") == expected
        (ls_vid / "info/data/info_test.mat").unlink()
        np.save(ls_vid / "test/query.npy", np.array([[1], [4]], np.float64))
        assert read_labelled(f"ls-vid:{ls_vid}") == expected

    @pytest.mark.parametrize("with_table", [True, False])
    def test_a_path_without_the_camera_takes_it_from_the_table_or_the_images(self, ls_vid: Path, with_table: bool) -> None:
        starts = {start.rpartition("_")[0]: person for start, person in list(LS_TEST.items())[:2] + list(LS_TEST.items())[3:]}
        (ls_vid / "list_sequence/list_seq_test.txt").write_text(ls_list(starts))
        (ls_vid / "tracklet_test/0843/0843_0002_1_0001.jpg").unlink()
        (ls_vid / "tracklet_test/0843/0843_0002_1_0002.jpg").unlink()
        if with_table:
            table = [[row + 1, row + 1, 0, camera] for row, camera in enumerate((4, 5, 6, 7))]
            np.save(ls_vid / "test/info_test.npy", np.array(table))
        cameras = {name: camera for name, (_, _, camera) in labels(read_labelled(f"ls-vid:{ls_vid}")).items()}
        found = ("C4", "C5", "C6", "C7") if with_table else ("C3", "C15", "C2", "C10")
        assert cameras == dict(zip(("0843_0001", "0843_0002", "0900_0001", "0900_0004"), found, strict=True))

    def test_a_path_that_ends_with_the_underscore(self, ls_vid: Path) -> None:
        (ls_vid / "list_sequence/list_seq_test.txt").write_text(ls_list({f"{start}_": p for start, p in LS_TEST.items()}))
        data = read_labelled(f"ls-vid:{ls_vid}")
        assert labels(data)["0843_0002_1"] == ("tracklet_test/0843/0843_0002_1_*.jpg", "0843", "C1")

    def test_names_that_two_folders_share_get_longer_ids(self, ls_vid: Path) -> None:
        starts = {f"tracklet_train/000{p}/a_0001_0{p}": p for p in (1, 2)} | {"tracklet_train/0002/a_0001_01": 2}
        (ls_vid / "list_sequence/list_seq_train.txt").write_text(ls_list(starts))
        touch(ls_vid, *(f"{start}_0001.jpg" for start in starts))
        ids = set(labels(read_labelled(f"ls-vid:{ls_vid}", part="train")))
        assert ids == {"tracklet_train_0001_a_0001_01", "tracklet_train_0002_a_0001_02", "tracklet_train_0002_a_0001_01"}

    def test_junk_is_left_out_but_counts_as_a_line(self, ls_vid: Path) -> None:
        starts = {"tracklet_test/junk/9_9_01": -1} | LS_TEST
        (ls_vid / "list_sequence/list_seq_test.txt").write_text(ls_list(starts))
        touch(ls_vid, "tracklet_test/junk/9_9_01_1.jpg")
        save_mat_73(ls_vid / "test/data/info_test.mat", query=[[2, 5]])
        data = read_labelled(f"ls-vid:{ls_vid}")
        assert data.queries == ("0843_0001_03", "0900_0001_02") and "9_9_01" not in data.gallery and len(labels(data)) == 5
        save_mat_73(ls_vid / "test/data/info_test.mat", query=[[1]])
        assert "junk tracklet as a query" in refused(f"ls-vid:{ls_vid}")

    def test_faults_are_one_sentence(self, ls_vid: Path) -> None:
        mat, names = ls_vid / "test/data/info_test.mat", ls_vid / "list_sequence/list_seq_test.txt"
        for queries in ([[0, 1]], [[6]], [[2, 2]]):
            save_mat_73(mat, query=queries)
            assert "must be different lines, 1 to 5, of list_seq_test.txt" in refused(f"ls-vid:{ls_vid}")
        save_mat_73(mat, other=[[1]])
        assert f"{mat} has no variable query" in refused(f"ls-vid:{ls_vid}")
        mat.write_bytes(mat.read_bytes()[:700])
        assert f"{mat} is damaged or no .mat file" in refused(f"ls-vid:{ls_vid}")
        mat.unlink()
        assert refused(f"ls-vid:{ls_vid}").startswith("none of ")
        np.save(ls_vid / "test/query.npy", np.array([1, {"code": "here"}], dtype=object), allow_pickle=True)
        assert "pickles are not read" in refused(f"ls-vid:{ls_vid}")
        for text, sentence in (
            ("tracklet_test/0843/0843_0001_03\n", "line 1 of"),
            ("../../etc/x_y_1 4\n", "line 1 of"),
            ("/etc/x_y_1 4\n", "line 1 of"),
            ("a 1\na 1\n", "names a tracklet twice"),
            ("\n", "is empty"),
            ("tracklet_test/0843/none_1_1 4\n", "no image whose name begins with none_1_1"),
            ("absent/none_1_1 4\n", f"{ls_vid}/absent is missing"),
        ):
            names.write_text(text)
            assert sentence in refused(f"ls-vid:{ls_vid}")


class TestOtherData:
    def test_a_manifest_with_labels_ranks_every_labelled_video_against_all(self, tmp_path: Path) -> None:
        (tmp_path / "m.csv").write_text(
            "uri,video_id,person_id,camera_id,role\na.mp4,a,1,x,query\nb.mp4,b,1,y,gallery\nc.mp4,c,,x,\nd.mp4,d,2,,\n"
        )
        data = read_labelled(str(tmp_path / "m.csv"))
        assert (data.queries, data.gallery, data.name) == (None, None, str(tmp_path / "m.csv"))
        assert data.notes[0] == (
            "4 videos; 3 queries, of 2 people, against 3 gallery videos; 1 queries without a match under another camera"
        )
        assert data.notes[1] == "1 videos have no person_id: they take no part" and "1 videos have no camera_id" in data.notes[2]
        assert "all of it is taken for train" in read_labelled(str(tmp_path / "m.csv"), part="train").notes[-1]

    def test_a_camera_that_is_not_known_is_another_one_as_in_an_evaluation(self, tmp_path: Path) -> None:
        """Without a match are p, alone, and the two of q, both under x."""
        lines = ["p1,p,", "q1,q,x", "q2,q,x", "r1,r,", "r2,r,", "s1,s,x", "s2,s,", "t1,t,x", "t2,t,y"]
        (tmp_path / "m.csv").write_text("uri,person_id,camera_id\n" + "\n".join(lines) + "\n")
        data = read_labelled(str(tmp_path / "m.csv"))
        names = dict(zip(data.catalog.table["source_id"].to_pylist(), data.catalog.table["uri"].to_pylist(), strict=True))
        assert {Path(names[query]).name for query in queries_without_match(data)} == {"p1", "q1", "q2"}
        assert "; 3 queries without a match" in data.notes[0]

    def test_names_that_are_no_data_set(self, tmp_path: Path) -> None:
        assert "mars, ilids-vid, prid2011, ls-vid" in refused(f"market:{tmp_path}")
        assert "mars, ilids-vid, prid2011, ls-vid" in refused("mars:")
        assert f"there is no folder {tmp_path}/absent" in refused(f"mars:{tmp_path}/absent")
        assert "there is no file or folder" in refused(f"{tmp_path}/absent")
        assert "train, val, test, all" in refused(f"mars:{tmp_path}", part="gallery")
        (tmp_path / "a:b").mkdir()
        touch(tmp_path, "a:b/1.mp4")
        assert len(read_labelled(f"{tmp_path}/a:b").catalog.table) == 1


class TestFiles:
    def test_both_kinds_of_mat_files_give_the_same_table(self, tmp_path: Path) -> None:
        table = [[1, 2, 3], [4, 5, 6]]
        save_mat_73(tmp_path / "new.mat", t=table)
        scipy.io.savemat(tmp_path / "old.mat", {"t": np.array(table, np.uint8)})
        for name in ("new.mat", "old.mat"):
            assert read_mat(resolve(tmp_path / name), "t", "").tolist() == table

    def test_a_pickle_named_as_an_array_is_not_run(self, tmp_path: Path) -> None:
        class Ran:
            def __reduce__(self) -> tuple:
                return (Path.touch, (tmp_path / "ran",))

        buffer = io.BytesIO()
        np.save(buffer, np.array([Ran()], dtype=object), allow_pickle=True)
        np.save(tmp_path / "plain.npy", np.arange(3))
        content = (tmp_path / "plain.npy").read_bytes()
        for data in (buffer.getvalue(), b"", content[:-1], content[:20], b"PK\x03\x04"):
            (tmp_path / "x.npy").write_bytes(data)
            with pytest.raises(UsageError, match=r"x\.npy is damaged"):
                read_npy(resolve(tmp_path / "x.npy"), "")
        assert not (tmp_path / "ran").exists()


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    with Decoder(Sampling(height=32, width=16)) as opened:
        yield opened


def test_the_frames_of_every_layout_come_in_order(tmp_path: Path, decoder: Decoder) -> None:
    sequences = {
        "i-LIDS-VID/sequences/cam1/person001/cam1_person001_{:05d}.png": "i-LIDS-VID/sequences/cam1/person001",
        "bbox_train/0001/0001C1T0001F{:03d}.jpg": "bbox_train/0001/0001C1T0001F*.jpg",
        "tracklet_test/0843/0843_0001_03_{:d}.jpg": "tracklet_test/0843/0843_0001_03_*.jpg",
    }
    for name, uri in sequences.items():
        for number in (12, 9, 10):
            path = tmp_path / name.format(number)
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.full((64, 32, 3), 10 * number, np.uint8))
        events = list(decoder.events(f"{tmp_path}/{uri}"))
        assert not [event for event in events if isinstance(event, Rejected)]
        (chunk,) = [event for event in events if isinstance(event, Chunk)]
        assert chunk.frames.mean(axis=(1, 2, 3)).round().tolist() == [90, 100, 120]
