"""MARS (Zheng et al., ECCV 2016): tracklets from its name files and .mat tables, and the field's two protocols over them.

    PATH/bbox_train/<person>/*.jpg    PATH/bbox_test/<person>/*.jpg    0001C1T0001F001.jpg: person, camera, tracklet, frame
    PATH/info/{train_name.txt, test_name.txt, tracks_train_info.mat, tracks_test_info.mat, query_IDX.mat}

A row of the tables is a tracklet: first and last line of the name file (from 1, both inclusive), person and camera. Person 0 are
distractors, which stay in the gallery; person -1 is junk, which is dropped.
"""

import re
from collections.abc import Sequence

import numpy as np

from pipeline.catalog.image_folders import image_names
from pipeline.datasets.files import read_lines, read_mat, subfolders
from pipeline.datasets.labelled import LabelledData, LabelledVideo, labelled_data
from pipeline.errors import UsageError
from pipeline.storage.location import Location

LAYOUT = "MARS is expected as PATH/bbox_train, PATH/bbox_test and PATH/info with its name files and .mat tables"
IMAGE_NAME = re.compile(r"((\d{4}|00-1)C([1-6])T\d{4})F\d{3,}\.jpg")
JUNK, DISTRACTOR = -1, 0
PROTOCOLS = {
    "official": "a query is ranked against all test tracklets, the other queries included",
    "torchreid": "a query is ranked against the test tracklets that are no queries, as Torchreid and its offspring do",
}


def read_mars(root: Location, part: str, protocol: str = "official") -> LabelledData:
    """Tracklets as image patterns; ids are "0001C1T0001", person_id "0001", camera_id "C1".

    part: "train", "test" (with a protocol) or "all" (every tracklet, each a query unless it is a distractor). protocol:
    "official" (the data set's own code; AP3D, TCLNet, SINet, PSTA, TF-CLIP too) or "torchreid" (Torchreid, jiyanggao). The files
    are not listed: the name files say what there is. Without info/ the tracklets are grouped by their file names, one listing a
    person, which serves "train" and "all" only. Raises UsageError.
    """
    if protocol not in PROTOCOLS:
        raise UsageError(f"{protocol!r} is no protocol of MARS; choose one of {', '.join(PROTOCOLS)}")
    if not root.join("info").exists():
        return _from_file_names(root, part)
    if part == "test":
        return _test(root, protocol)
    sides = ("train",) if part == "train" else ("train", "test")
    videos, notes = [], []
    for side in sides:
        tracks = _read_tracks(root, side)
        kept = np.flatnonzero(tracks[:, 2] != JUNK)
        if len(kept) < len(tracks):
            notes.append(f"{len(tracks) - len(kept)} junk tracklets are left out")
        videos += list(_videos(root, side, tracks, kept).values())
    return labelled_data(f"MARS {part}", root, videos, _queries_of_all(videos), None, notes)


def _test(root: Location, protocol: str) -> LabelledData:
    tracks = _read_tracks(root, "test")
    index = read_mat(root.join("info", "query_IDX.mat"), "query_IDX", LAYOUT).ravel()
    try:
        queries, gallery = mars_protocol(tracks, index, protocol)
    except ValueError as error:
        raise UsageError(f"{root.join('info', 'query_IDX.mat').uri} does not fit tracks_test_info.mat: {error}") from error
    videos = _videos(root, "test", tracks, np.union1d(queries, gallery))
    notes = [
        f"{protocol} protocol: {PROTOCOLS[protocol]}",
        f"{np.count_nonzero(tracks[:, 2] == JUNK)} junk tracklets are left out; "
        f"{np.count_nonzero(tracks[:, 2] == DISTRACTOR)} distractors (person 0000) are in the gallery and never queries",
    ]
    ids = {row: video.video_id for row, video in videos.items()}
    return labelled_data(
        f"MARS test, {protocol} protocol",
        root,
        list(videos.values()),
        [ids[row] for row in queries.tolist()],
        [ids[row] for row in gallery.tolist()],
        notes,
    )


def mars_protocol(tracks: np.ndarray, query_index: np.ndarray, protocol: str) -> tuple[np.ndarray, np.ndarray]:
    """The test protocol, from the published tables alone: (queries, gallery), int64 rows of `tracks`, from 0.

    tracks: int [n, 4], first and last line, person, camera. query_index: int [q], rows from 1, as published. Raises ValueError
    for indices that are no rows, stand twice, or name junk or a distractor.
    """
    queries = np.asarray(query_index, np.int64) - 1
    if len(queries) == 0 or queries.min() < 0 or queries.max() >= len(tracks):
        raise ValueError(f"its indices must lie in 1 to {len(tracks)}")
    if len(np.unique(queries)) < len(queries):
        raise ValueError("an index stands in it twice")
    if np.any(tracks[queries, 2] <= DISTRACTOR):
        raise ValueError("it names a junk or distractor tracklet as a query")
    in_gallery = tracks[:, 2] != JUNK
    if protocol == "torchreid":
        in_gallery[queries] = False
    return queries, np.flatnonzero(in_gallery)


def tracklet_names(names: Sequence[str], tracks: np.ndarray, rows: np.ndarray) -> list[str]:
    """The tracklets' names ("0001C1T0001") in the order of `rows`, int [m] into `tracks`, int [n, 4].

    names: all lines of the name file. Raises ValueError when the file and the table do not belong together.
    """
    expected = int(tracks[:, 1].max(initial=0))
    if len(names) != expected:
        raise ValueError(f"it has {len(names)} lines, the table needs {expected}")
    found = []
    for first, last, person, camera in tracks[rows].tolist():
        match = IMAGE_NAME.fullmatch(names[first - 1])
        if match is None or (match[2], match[3]) != (f"{person:04d}", str(camera)):
            raise ValueError(
                f"line {first} is {names[first - 1][:80]!r}, the table has person {person:04d} and camera {camera} there"
            )
        start = match[1] + "F"
        for line in range(first, last + 1):
            if not names[line - 1].startswith(start):
                raise ValueError(f"line {line} is {names[line - 1][:80]!r}, which is no frame of {match[1]}")
        found.append(match[1])
    return found


def _read_tracks(root: Location, side: str) -> np.ndarray:
    """int64 [n, 4]: first and last line, person, camera."""
    file = root.join("info", f"tracks_{side}_info.mat")
    tracks = read_mat(file, f"track_{side}_info", LAYOUT)
    if tracks.ndim != 2 or tracks.shape[1] != 4 or len(tracks) == 0:
        raise UsageError(f"track_{side}_info in {file.uri} must have 4 columns (first and last line, person, camera)")
    wrong = (tracks[:, 0] < 1) | (tracks[:, 1] < tracks[:, 0]) | (tracks[:, 2] < JUNK)
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise UsageError(
            f"row {row + 1} of track_{side}_info in {file.uri} is {tracks[row].tolist()}, which is no range of lines"
        )
    return tracks


def _videos(root: Location, side: str, tracks: np.ndarray, rows: np.ndarray) -> dict[int, LabelledVideo]:
    """row of `tracks` -> its video."""
    folder = _images(root, side)
    file = root.join("info", f"{side}_name.txt")
    try:
        names = tracklet_names(read_lines(file, LAYOUT), tracks, rows)
    except ValueError as error:
        raise UsageError(f"{file.uri} does not fit tracks_{side}_info.mat: {error}") from error
    return {row: _video(folder, name) for row, name in zip(rows.tolist(), names, strict=True)}


def _video(folder: Location, name: str) -> LabelledVideo:
    """folder: bbox_train or bbox_test. name: "0001C1T0001"."""
    return LabelledVideo(name, folder.join(name[:4], f"{name}F*.jpg").uri, name[:4], name[4:6])


def _images(root: Location, side: str) -> Location:
    """bbox_train or bbox_test; the archives unpack to a folder of that name, so it may be there twice."""
    folder = root.join(f"bbox_{side}")
    if not folder.exists():
        raise UsageError(f"{folder.uri} is missing; {LAYOUT}")
    inner = folder.join(f"bbox_{side}")
    return inner if inner.exists() else folder


def _queries_of_all(videos: Sequence[LabelledVideo]) -> list[str] | None:
    queries = [video.video_id for video in videos if video.person_id != f"{DISTRACTOR:04d}"]
    return queries if len(queries) < len(videos) else None


def _from_file_names(root: Location, part: str) -> LabelledData:
    if part == "test":
        raise UsageError(
            f"{root.join('info').uri} is missing, without which MARS has no test protocol (part all does without); {LAYOUT}"
        )
    sides = ["train"] if part == "train" else [side for side in ("train", "test") if root.join(f"bbox_{side}").exists()]
    videos, others = [], 0
    for side in sides or ["train"]:
        folder = _images(root, side)
        for person in subfolders(folder, LAYOUT):
            found, foreign = _grouped(image_names(folder.join(person)), person)
            others += foreign
            videos += [_video(folder, name) for name in sorted(found)]
    notes = ["there is no info folder: tracklets are grouped by their file names"]
    if others:
        notes.append(
            f"{others} images are left out: junk (00-1), or not named like 0001C1T0001F001.jpg in a folder of their person"
        )
    return labelled_data(f"MARS {part}, from file names", root, videos, _queries_of_all(videos), None, notes)


def _grouped(names: Sequence[str], person: str) -> tuple[set[str], int]:
    """The tracklets of a person's images, and how many images belong to none."""
    matches = [match for name in names if (match := IMAGE_NAME.fullmatch(name)) and match[2] == person != "00-1"]
    return {match[1] for match in matches}, len(names) - len(matches)
