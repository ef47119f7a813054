"""LS-VID (Li et al., ICCV 2019): 15 cameras; tracklets are given by what their images' names begin with.

    PATH/list_sequence/list_seq_{train,val,test}.txt    a line: path that the images' names begin with, blank, person
    PATH/test/data/info_test.mat                        MATLAB 7.3; query: lines of list_seq_test.txt, from 1
    PATH/tracklet_{train,val,test}/...                  <word>_<word>_<camera>_<word>.jpg

Some copies keep the lists in info/list_sequence, the queries in info/data/info_test.mat or, as arrays, in test/query.npy with
test/info_test.npy, whose column 3 (from 0) is the camera.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.catalog.image_folders import image_names, matches
from pipeline.datasets.files import first_existing, read_lines, read_mat, read_npy
from pipeline.datasets.labelled import LabelledData, LabelledVideo, labelled_data
from pipeline.errors import UsageError
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location

LAYOUT = "LS-VID is expected as PATH/list_sequence/list_seq_{train,val,test}.txt, PATH/test/data/info_test.mat and the images"
LINE = re.compile(r"(\S.*?)\s+(-?\d+)")
IMAGE_NAME = re.compile(r"[^_]+_[^_]+_(\d+)_.+\.(?:jpg|png)")
CAMERA_FIELD = 2  # of the fields of an image's name, from 0
ENDS = ("_*.jpg", "*.jpg", "_*.png", "*.png")
JUNK = -1


@dataclass(frozen=True)
class _Tracklet:
    """A line of a list. start: what the uris of its images begin with, relative to the data set."""

    start: str
    person: int


def read_ls_vid(root: Location, part: str) -> LabelledData:
    """Tracklets as image patterns; ids are what their images' names begin with, person_id "0001", camera_id "C1" to "C15".

    part: "train"; "val" and "test", where each query is ranked against all tracklets of the part, the other queries included
    (val: all of its tracklets are queries where the copy has no info_val.mat); or "all". Raises UsageError.
    """
    parts = ("train", "val", "test") if part == "all" else (part,)
    lists = {name: _read_list(root, name) for name in parts}
    end = _names_end(root, lists[parts[0]])
    ids = _ids([tracklet for name in parts for tracklet in lists[name]])
    videos, notes = [], []
    for name in parts:
        cameras = _cameras(root, name, lists[name], end)
        for tracklet, camera in zip(lists[name], cameras, strict=True):
            if tracklet.person != JUNK:
                uri = root.join(tracklet.start + end).uri
                videos.append(LabelledVideo(ids[tracklet.start], uri, f"{tracklet.person:04d}", f"C{camera}"))
    if junk := sum(tracklet.person == JUNK for tracklets in lists.values() for tracklet in tracklets):
        notes.append(f"{junk} junk tracklets are left out")
    queries = None
    if part in ("val", "test"):
        queries = [ids[lists[part][row].start] for row in _query_rows(root, part, lists[part])] or None
        notes.append("a query is ranked against all tracklets of the part, the other queries included, as is usual on LS-VID")
    gallery = [video.video_id for video in videos] if queries else None
    return labelled_data(f"LS-VID {part}", root, videos, queries, gallery, notes)


def _read_list(root: Location, part: str) -> list[_Tracklet]:
    name = f"list_seq_{part}.txt"
    file = first_existing([root.join("list_sequence", name), root.join("info", "list_sequence", name)], LAYOUT)
    tracklets = []
    for number, line in enumerate(read_lines(file, LAYOUT), start=1):
        match = LINE.fullmatch(line)
        start = posixpath.normpath(match[1]) if match else ""
        if match is None or start.startswith(("/", "..")) or int(match[2]) < JUNK:
            raise UsageError(
                f"line {number} of {file.uri} is {line[:80]!r}; a path below {root.uri}, a blank and a number are needed"
            )
        tracklets.append(_Tracklet(start, int(match[2])))
    starts = [tracklet.start for tracklet in tracklets]
    if not starts or len(set(starts)) < len(starts):
        raise UsageError(f"{file.uri} is empty or names a tracklet twice")
    return tracklets


def _names_end(root: Location, tracklets: Sequence[_Tracklet]) -> str:
    """What follows a tracklet's path in the names of its images, as a pattern; found from the first tracklet's images."""
    folder, start = posixpath.split(tracklets[0].start)
    try:
        names = image_names(root.join(folder) if folder else root)
    except StorageError as error:
        if error.kind != "missing":
            raise
        raise UsageError(f"{root.join(folder).uri} is missing, where the first tracklet of the list is; {LAYOUT}") from error
    for end in ENDS:
        if any(matches(name, start + end) for name in names):
            return end
    raise UsageError(
        f"{root.join(folder).uri} has no image whose name begins with {start}, the first tracklet of the list; {LAYOUT}"
    )


def _cameras(root: Location, part: str, tracklets: Sequence[_Tracklet], end: str) -> list[int]:
    """The camera of each tracklet: from its path, else from the copy's table, else from the name of an image."""
    fields = [posixpath.basename(tracklet.start).split("_") for tracklet in tracklets]
    whole = CAMERA_FIELD + (1 if end.startswith("_") else 2)  # so many fields, and the camera's is not cut off
    if all(len(names) >= whole and names[CAMERA_FIELD].isdecimal() for names in fields):
        return [int(names[CAMERA_FIELD]) for names in fields]
    table = root.join("test", "info_test.npy")
    if part == "test" and table.exists():
        rows = read_npy(table, LAYOUT)
        if rows.ndim != 2 or rows.shape[1] < 4 or len(rows) != len(tracklets):
            raise UsageError(
                f"{table.uri} has the shape {rows.shape}; {len(tracklets)} rows with the camera in column 3 are needed"
            )
        return [int(camera) for camera in rows[:, 3]]
    return [_camera_of_images(root, tracklet, end) for tracklet in tracklets]


def _camera_of_images(root: Location, tracklet: _Tracklet, end: str) -> int:
    folder, start = posixpath.split(tracklet.start)
    try:
        names = image_names(root.join(folder) if folder else root, start + end)
    except StorageError as error:
        if error.kind != "missing":
            raise
        names = []
    match = IMAGE_NAME.fullmatch(names[0]) if names else None
    if match is None:
        raise UsageError(
            f"{root.join(tracklet.start + end).uri} names {names[0] if names else 'no image'}; "
            "names such as 0001_0001_03_0001.jpg are expected, with the camera in the third place"
        )
    return int(match[1])


def _query_rows(root: Location, part: str, tracklets: Sequence[_Tracklet]) -> list[int]:
    """Rows of the part's list that are queries, from 0; none where a copy has no queries for validation."""
    mats = [root.join(*path, f"info_{part}.mat") for path in ((part, "data"), ("test", "data"), ("info", "data"))]
    arrays = [root.join(part, "query.npy")]
    if part == "val" and not any(file.exists() for file in mats + arrays):
        return []
    file = first_existing(mats + arrays, LAYOUT)
    values = read_npy(file, LAYOUT) if file in arrays else read_mat(file, "query", LAYOUT)
    rows = values.ravel() - 1
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(tracklets) or len(np.unique(rows)) < len(rows):
        raise UsageError(f"the queries in {file.uri} must be different lines, 1 to {len(tracklets)}, of list_seq_{part}.txt")
    if any(tracklets[row].person == JUNK for row in rows.tolist()):
        raise UsageError(f"{file.uri} names a junk tracklet as a query")
    return rows.tolist()


def _ids(tracklets: Sequence[_Tracklet]) -> dict[str, str]:
    """Start of a tracklet -> its video id: the last part of the path where that tells all apart, else the whole path."""
    short = [posixpath.basename(tracklet.start).rstrip("_") for tracklet in tracklets]
    if len(set(short)) < len(short):
        short = [tracklet.start.replace("/", "_").rstrip("_") for tracklet in tracklets]
    return {tracklet.start: name for tracklet, name in zip(tracklets, short, strict=True)}
