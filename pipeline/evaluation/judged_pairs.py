"""Which pairs of a query and a video count, by the field's rule, and which are of one person."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.datasets.labelled import LabelledData
from pipeline.errors import UsageError
from pipeline.evaluation.metrics import left_out

NO_CAMERA = "not given"


@dataclass(frozen=True)
class Split:
    """One division of a data set. queries: video ids, None for every labelled video; gallery: video ids, None for all.

    sources: source ids of the data set's catalog; other videos of the index take no part.
    """

    queries: tuple[str, ...] | None
    gallery: frozenset[str] | None
    sources: frozenset[str]

    @classmethod
    def of(cls, labelled: LabelledData) -> "Split":
        """What a data set, or one of its splits, asks."""
        return cls(labelled.queries, labelled.gallery, frozenset(labelled.catalog.table["source_id"].to_pylist()))


@dataclass(frozen=True)
class JudgedPairs:
    """Which pairs count, and which are of the same person. One row a query of a split, one column a labelled video.

    query_rows int64 [Q], gallery_rows int64 [G]: rows of Index.videos. valid, same: bool [Q, G]. splits: int64 [Q], from 0.
    persons [Q], query_cameras [Q], gallery_cameras [G]: labels; NO_CAMERA where there is none. missing: videos that the splits
    name but that the index does not have, or not with a label.
    """

    query_rows: NDArray[np.int64]
    gallery_rows: NDArray[np.int64]
    valid: NDArray[np.bool_]
    same: NDArray[np.bool_]
    splits: NDArray[np.int64]
    persons: NDArray[np.str_]
    query_cameras: NDArray[np.str_]
    gallery_cameras: NDArray[np.str_]
    missing: int


def judged_pairs(videos: pa.Table, splits: Sequence[Split], data: str = "the data") -> JudgedPairs:
    """The pairs to judge, of all splits one after another; videos: Index.videos.

    Raises UsageError, which calls them `data`, when no query has a match.
    """
    ids, sources = videos["video_id"].to_pylist(), videos["source_id"].to_pylist()
    persons, cameras = videos["person_id"].to_pylist(), videos["camera_id"].to_pylist()
    row_of = {video_id: row for row, video_id in enumerate(ids) if persons[row] is not None}
    missing: set[str] = set()
    members: list[set[int]] = []
    query_rows: list[int] = []
    of_split: list[int] = []
    for number, split in enumerate(splits):
        inside = {video_id: row for video_id, row in row_of.items() if sources[row] in split.sources}
        named = sorted(inside) if split.queries is None else list(split.queries)
        gallery = inside.keys() if split.gallery is None else split.gallery
        missing |= {video_id for video_id in (*named, *(split.gallery or ())) if video_id not in row_of}
        query_rows += [row_of[video_id] for video_id in named if video_id in row_of]
        members.append({row_of[video_id] for video_id in gallery if video_id in row_of})
        of_split += [number] * (len(query_rows) - len(of_split))
    gallery_rows = np.array(sorted(set().union(*members), key=ids.__getitem__), np.int64)
    rows, belongs = np.array(query_rows, np.int64), np.array(of_split, np.int64)
    _, person = np.unique([name or "" for name in persons], return_inverse=True)
    names = np.array([NO_CAMERA if camera is None else camera for camera in cameras], np.str_)
    camera = np.where(pc.is_valid(videos["camera_id"]), np.unique(names, return_inverse=True)[1], -1)
    listed = np.array([[row in inside for row in gallery_rows.tolist()] for inside in members], np.bool_)
    same = person[rows][:, None] == person[gallery_rows]
    valid = listed.reshape(len(splits), len(gallery_rows))[belongs] & (rows[:, None] != gallery_rows)
    valid &= ~left_out(same, camera[rows][:, None], camera[gallery_rows])
    if not (valid & same).any():
        raise UsageError(f"{data}: no query has a match in its ranking; each person needs a second video, under another camera")
    labels = np.array([name or "" for name in persons], np.str_)[rows]
    return JudgedPairs(rows, gallery_rows, valid, same, belongs, labels, names[rows], names[gallery_rows], len(missing))
