"""PRID2011 (Hirzer et al., SCIA 2011): two cameras, the first 200 people under both, and 10 splits of 178 of them.

PATH/prid_2011/multi_shot/cam_{a,b}/person_<4 digits>/<4 digits>.png
PATH/splits_prid2011.json    10 times {"train": [person_0001, ...], "test": [...]}; it comes with Torchreid, not with the images
"""

import re

from pipeline.datasets.files import read_json, subfolders
from pipeline.datasets.labelled import LabelledData, LabelledVideo, labelled_data
from pipeline.errors import UsageError
from pipeline.storage.location import Location

LAYOUT = (
    "PRID2011 is expected as PATH/prid_2011/multi_shot/cam_a and cam_b with a folder a person, and "
    "PATH/splits_prid2011.json (from the page on data sets in Torchreid's documentation)"
)
PERSON_FOLDER = re.compile(r"person_(\d{4})")
CAMERAS = ("cam_a", "cam_b")
SHARED_PEOPLE = 200  # from number 201 on, the same number under the other camera is another person


def read_prid2011(root: Location, part: str, split: int = 0) -> LabelledData:
    """One sequence a person and camera; ids are "cam_a_person_0001", person_id "0001", camera_id "cam_a" or "cam_b".

    part: "train", "test" (queries cam_a, gallery cam_b) or "all" (every sequence; people of one camera only have person_id
    "cam_b 0201"). split: 0 to 9; the field reports the mean of all ten. Raises UsageError.
    """
    folder = root.join("prid_2011", "multi_shot")
    there = {camera: [n for n in subfolders(folder.join(camera), LAYOUT) if PERSON_FOLDER.fullmatch(n)] for camera in CAMERAS}
    chosen, name = there, "PRID2011 all"
    if part != "all":
        people = split_people(root, part, split)
        for camera in CAMERAS:
            missing = sorted(set(people) - set(there[camera]))
            if missing:
                raise UsageError(f"{folder.join(camera, missing[0]).uri} is missing, which split {split} names; {LAYOUT}")
        chosen, name = dict.fromkeys(CAMERAS, people), f"PRID2011 {part}, split {split}"
    videos = {camera: [_video(folder, camera, person) for person in chosen[camera]] for camera in CAMERAS}
    queries, gallery = ([video.video_id for video in videos[camera]] if part == "test" else None for camera in CAMERAS)
    return labelled_data(name, root, videos["cam_a"] + videos["cam_b"], queries, gallery)


def split_people(root: Location, part: str, split: int) -> list[str]:
    """Names of the people's folders in one half of a split."""
    file = root.join("splits_prid2011.json")
    splits = read_json(file, LAYOUT)
    if not isinstance(splits, list) or not 0 <= split < len(splits):
        count = len(splits) if isinstance(splits, list) else 0
        raise UsageError(f"{file.uri} has {count} splits, numbered from 0; there is no split {split}")
    people = splits[split].get(part) if isinstance(splits[split], dict) else None
    if not isinstance(people, list) or not all(isinstance(name, str) and PERSON_FOLDER.fullmatch(name) for name in people):
        raise UsageError(f"split {split} in {file.uri} has no list {part!r} of folder names such as person_0001")
    return people


def _video(folder: Location, camera: str, person: str) -> LabelledVideo:
    number = person.removeprefix("person_")
    label = number if int(number) <= SHARED_PEOPLE else f"{camera} {number}"
    return LabelledVideo(f"{camera}_{person}", folder.join(camera, person).uri, label, camera)
