"""iLIDS-VID (Wang et al., ECCV 2014): 300 people, each once under two cameras, and 10 published splits into halves.

PATH/i-LIDS-VID/sequences/cam{1,2}/person<3 digits>/cam<1|2>_person<3 digits>_<frame>.png
PATH/train-test people splits/train_test_splits_ilidsvid.mat    ls_set: 10 x 300, places in the sorted list of people, from 1
"""

import re

import numpy as np

from pipeline.datasets.files import read_mat, subfolders
from pipeline.datasets.labelled import LabelledData, LabelledVideo, labelled_data
from pipeline.errors import UsageError
from pipeline.storage.location import Location

LAYOUT = (
    "iLIDS-VID is expected as PATH/i-LIDS-VID/sequences/cam1 and cam2 with a folder a person, and "
    "PATH/train-test people splits/train_test_splits_ilidsvid.mat"
)
PERSON_FOLDER = re.compile(r"person(\d{3})")
CAMERAS = ("cam1", "cam2")
HALVES = ("train", "test")


def read_ilids_vid(root: Location, part: str, split: int = 0, first_half: str = "test") -> LabelledData:
    """One sequence a person and camera; ids are "cam1_person001", person_id "001", camera_id "cam1" or "cam2".

    part: "train", "test" (queries cam1, gallery cam2) or "all". split: 0 to 9; the field reports the mean of all ten.
    first_half: what the first half of a split's row is for, on which the field is not of one mind: "test" in Torchreid,
    jiyanggao, AP3D and SINet, "train" in Chen et al. 2018 (this method) and TF-CLIP. So the same split number means opposite
    people. Raises UsageError.
    """
    if first_half not in HALVES:
        raise UsageError(f"first_half must be train or test, not {first_half!r}")
    sequences = root.join("i-LIDS-VID", "sequences")
    people = {camera: [n for n in subfolders(sequences.join(camera), LAYOUT) if PERSON_FOLDER.fullmatch(n)] for camera in CAMERAS}
    if people["cam1"] != people["cam2"]:
        only = sorted(set(people["cam1"]) ^ set(people["cam2"]))
        raise UsageError(f"{sequences.uri} has {only[0]} under one camera only; {LAYOUT}")
    chosen, name, notes = people["cam1"], "iLIDS-VID all", []
    if part != "all":
        first, second = split_halves(root, split, len(chosen))
        half = first if part == first_half else second
        chosen = [people["cam1"][place] for place in half.tolist()]
        name = f"iLIDS-VID {part}, split {split}, first half for {'training' if first_half == 'train' else 'testing'}"
        notes = ["which half of a split's row trains differs between codes: compare with results of the same convention only"]
    videos = {
        camera: [
            LabelledVideo(f"{camera}_{person}", sequences.join(camera, person).uri, person.removeprefix("person"), camera)
            for person in chosen
        ]
        for camera in CAMERAS
    }
    queries, gallery = ([video.video_id for video in videos[camera]] if part == "test" else None for camera in CAMERAS)
    return labelled_data(name, root, videos["cam1"] + videos["cam2"], queries, gallery, notes)


def split_halves(root: Location, split: int, people: int) -> tuple[np.ndarray, np.ndarray]:
    """First and second half of a split's row: int64 [people / 2] each, places in the sorted list of people, from 0."""
    file = root.join("train-test people splits", "train_test_splits_ilidsvid.mat")
    rows = read_mat(file, "ls_set", LAYOUT)
    if rows.ndim != 2 or not 0 <= split < len(rows):
        raise UsageError(f"{file.uri} has {len(rows)} splits, numbered from 0; there is no split {split}")
    row = np.sort(rows[split])
    if not np.array_equal(row, np.arange(1, len(row) + 1)):
        raise UsageError(f"split {split} in {file.uri} does not name each of {len(row)} people once, counted from 1")
    if len(row) != people:
        raise UsageError(f"{file.uri} splits {len(row)} people, but {root.join('i-LIDS-VID', 'sequences').uri} has {people}")
    return rows[split, : len(row) // 2] - 1, rows[split, len(row) // 2 :] - 1
