"""Boxes files: where each tracked person is in the frames of a video, as trackers and annotators write it.

The common ground is the text format of the MOT challenge (https://arxiv.org/abs/1603.00831), or a header names the columns.
"""

import io
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from pipeline.decoding.boxes_columns import COLUMNS, Layout, invalid, number_in, plain, read_layout, shown, split, text_lines
from pipeline.errors import VideoError
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location

_NOT_CONSIDERED = "marked not to be considered (conf 0)"
_OTHER_CLASSES = "of other classes than people"
_MOT_PEOPLE = (1, 2, 7)  # pedestrian, person on vehicle, static person
_PEOPLE = frozenset(("person", "persons", "people", "pedestrian", "pedestrians", "human", "man", "woman", "child", "boy", "girl"))


class Track(NamedTuple):
    """One track: frames, int64 [n], from 0 and strictly ascending; boxes, float32 [n, 4], (x, y, w, h) in pixels."""

    frames: np.ndarray
    boxes: np.ndarray


class Tracks(dict[int, Track]):
    """The tracks of a boxes file by track id, ascending.

    left_out: how many boxes of the file are in no track, by why, in words. first_frame: the number of the video's first frame
    in the file, 1 or 0. `boxes_remarks` says both in sentences.
    """

    def __init__(self, tracks: Mapping[int, Track], left_out: Mapping[str, int], first_frame: int) -> None:
        super().__init__(tracks)
        self.left_out = dict(left_out)
        self.first_frame = first_frame


def read_boxes(source: Location | bytes) -> Tracks:
    """The tracks of a boxes file.

    Lines are `frame,id,x,y,w,h[,more columns]`: frame counts from 1, x and y are the left upper corner, all in pixels of
    the full frame, which a box may leave. Columns are separated by commas, semicolons, tabs or blanks; blank lines, any line
    ends, blanks around numbers and a byte order mark are tolerated.

    A first line without numbers is a header, and names the columns: in any order, boxes as x, y, w, h (left, top, width, height,
    ...), as corners (x1, y1, x2, y2; xmin, ymin, xmax, ymax; ...) or as cx, cy, w, h. Frames count from 0 in a column named
    frame_index or frame_idx, whatever it holds, and from 1 in all others.

    Left out and counted (`Tracks.left_out`) are, by what the whole file holds:

    - In ground truth of the MOT challenge (MOT16, 17 and 20, CVAT, and results of BoxMOT), rows with conf 0 and of other classes
      than 1, 2 and 7, or, where class 0 occurs, than 0. It is told by nine columns, or those names: the seventh, conf, is 0 or 1,
      the eighth, class, a whole number, the ninth, visibility, within 0 and 1. Other files without a header are read whole.
    - With a header, rows with conf 0 where conf is 0 in some rows and 1 in all others: a mark, no score. Rows whose class is not
      a word for a person, or, in numbers, not 0 where class 0 occurs (COCO's 80 classes), else not 1. Classes that are all empty
      or negative say nothing.

    Raises VideoError "boxes_missing" when a Location cannot be read, and "boxes_invalid", naming the line, for: no rows,
    rows of different or fewer than six columns, what is not a finite number, a frame below the first, a negative id (a detection
    without a track), a width or height that is not positive, two boxes of a track in one frame. "boxes_invalid" also for a header
    that lacks a column, normalised coordinates, files of other formats where they can be told, and when all rows are left out.
    """
    if isinstance(source, Location):
        try:
            if source.is_local and source.exists() and not source.info().is_file:  # reading a pipe would wait for ever
                raise VideoError("boxes_missing", f"the boxes file {source.uri} is not a file")
            source = source.read_bytes()
        except StorageError as error:
            reason = "unavailable" if error.reject_reason("") == "unavailable" else "boxes_missing"
            raise VideoError(reason, f"the boxes file cannot be read: {error}") from error
    layout = read_layout(source)
    rows, words = _read_rows(source, layout)
    if len(rows) == 0:
        raise invalid("the boxes file has no rows")
    lines, left_out = _select_people(words, layout, len(rows))  # lines: the places of the selected rows in the file
    rows = rows[lines]
    boxes = _checked_boxes(rows, lines, source, layout)
    frames, ids = rows[:, 0].astype(np.int64) - layout.first_frame, rows[:, 1].astype(np.int64)

    order = np.lexsort((frames, ids))  # stable: of two equal rows, the later line comes second
    frames, ids, boxes = frames[order], ids[order], boxes[order]
    twice = np.flatnonzero((np.diff(frames) == 0) & (np.diff(ids) == 0))
    if len(twice):
        at = min(int(order[place + 1]) for place in twice)
        raise _fault(source, layout, lines[at], f"gives track {rows[at, 1]:.0f} a second box in frame {rows[at, 0]:.0f}")
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    rows_by_track = zip(np.split(frames, starts[1:]), np.split(boxes, starts[1:]), strict=True)
    tracks = {int(track): Track(*rows) for track, rows in zip(ids[starts], rows_by_track, strict=True)}
    return Tracks(tracks, left_out, layout.first_frame)


def boxes_remarks(tracks: Tracks) -> list[str]:
    """Sentences, without a full stop, on what was left out of a boxes file and what was concluded from its header.

    >>> boxes_remarks(Tracks({}, {"marked not to be considered (conf 0)": 200, "of other classes than people": 12}, 1))
    ['212 boxes of the boxes file were left out: 200 marked not to be considered (conf 0), 12 of other classes than people']
    """
    remarks = []
    if tracks.left_out:
        remarks.append(_describe(tracks.left_out))
    if tracks.first_frame == 0:
        remarks.append("frames of the boxes file were counted from 0, since their column is named an index")
    return remarks


def clip_box(
    box: np.ndarray | tuple[float, float, float, float], width: int, height: int, min_side: int = 2
) -> tuple[int, int, int, int] | None:
    """The part of a box inside the frame as pixel edges (x0, y0, x1, y1), as in frame[y0:y1, x0:x1].

    box: (x, y, w, h) in pixels, finite; edges go to the nearest pixel edge. None when less than min_side x min_side
    pixels of it lie inside.

    >>> clip_box((-10, 20.4, 30, 50), width=64, height=48)
    (0, 20, 20, 48)
    """
    x, y, w, h = (float(value) for value in box)
    x0, x1 = (math.floor(min(max(edge, 0.0), width) + 0.5) for edge in (x, x + w))
    y0, y1 = (math.floor(min(max(edge, 0.0), height) + 0.5) for edge in (y, y + h))
    return (x0, y0, x1, y1) if x1 - x0 >= min_side and y1 - y0 >= min_side else None


def cropped(picture: np.ndarray, box: np.ndarray | tuple[float, float, float, float], min_side: int) -> np.ndarray | None:
    """The part of a picture, uint8 [height, width, 3], inside a box; see `clip_box`."""
    edges = clip_box(box, picture.shape[1], picture.shape[0], min_side)
    return None if edges is None else picture[edges[1] : edges[3], edges[0] : edges[2]]


class _Words(NamedTuple):
    """A column of text: its distinct values, and int [n], the place of each row's value among them."""

    values: list[bytes]
    codes: np.ndarray

    def numbers(self) -> list[float] | None:
        """The distinct values; None if one is no number."""
        numbers = [number for value in self.values if (number := number_in(value)) is not None]
        return numbers if len(numbers) == len(self.values) else None


def _read_rows(data: bytes, layout: Layout) -> tuple[np.ndarray, dict[str, _Words]]:
    """float64 [n, 6], the needed columns as they stand, and the columns of words by role."""
    numbers, words = ([f"f{place}" for place in places] for places in (layout.numbers, layout.words.values()))
    types = {**dict.fromkeys(numbers, pa.float64()), **dict.fromkeys(words, pa.dictionary(pa.int32(), pa.binary()))}
    try:
        table = csv.read_csv(
            io.BytesIO(_single_blanks(data) if layout.separator == b" " else data),
            csv.ReadOptions(autogenerate_column_names=True, skip_rows=layout.header),
            csv.ParseOptions(delimiter=layout.separator.decode(), quote_char=False),
            csv.ConvertOptions(include_columns=[*numbers, *words], column_types=types, null_values=[]),
        )
    except pa.ArrowException:
        # Either there is a fault, which has to be named with its line, or something that Arrow does not tolerate.
        return _read_rows_slowly(data, layout)
    rows = np.column_stack([table[name].to_numpy() for name in numbers])
    return rows, {role: _words(table[name].combine_chunks()) for role, name in zip(layout.words, words, strict=True)}


def _single_blanks(data: bytes) -> bytes:
    """One blank between two columns, and none where lines begin and end: Arrow takes every blank for a separator."""
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\t", b" ")
    while b"  " in data:
        data = data.replace(b"  ", b" ")
    for end in (b"\n", b"\r"):
        data = data.replace(b" " + end, end).replace(end + b" ", end)
    return data.strip(b" ")


def _read_rows_slowly(data: bytes, layout: Layout) -> tuple[np.ndarray, dict[str, _Words]]:
    rows: list[list[float]] = []
    words: dict[str, list[bytes]] = {role: [] for role in layout.words}
    for number, line in text_lines(data, layout.header):
        fields = split(line, layout.separator)
        if len(fields) != layout.columns:
            expected = f"the rows before have {layout.columns}" if rows else f"the header has {layout.columns}"
            raise invalid(f"line {number} of the boxes file has {len(fields)} columns; {expected}")
        values = [number_in(fields[place]) for place in layout.numbers]
        for name, value, place in zip(layout.names, values, layout.numbers, strict=True):
            if value is None:
                raise invalid(f"line {number} of the boxes file: {name} is '{shown(fields[place])}', not a number")
        rows.append([value for value in values if value is not None])
        for role, place in layout.words.items():
            words[role].append(fields[place])
    encoded = {role: _words(pa.array(fields, pa.binary()).dictionary_encode()) for role, fields in words.items()}
    return np.array(rows, np.float64).reshape(-1, len(COLUMNS)), encoded


def _words(column: pa.DictionaryArray) -> _Words:
    return _Words(column.dictionary.to_pylist(), column.indices.to_numpy())


def _select_people(words: dict[str, _Words], layout: Layout, rows: int) -> tuple[np.ndarray, dict[str, int]]:
    """int64 [m], the rows that count, and how many of the others there are by why; the rule is `read_boxes`'s."""
    ground_truth = _is_ground_truth(words)
    if not layout.header and not ground_truth:
        _refuse_visdrone(words)
        return np.arange(rows), {}
    selected, left_out = np.ones(rows, bool), {}
    if "conf" in words:
        conf = words["conf"].numbers()
        if conf is not None and (ground_truth or set(conf) == {0, 1}):
            selected = np.array(conf)[words["conf"].codes] != 0
            left_out[_NOT_CONSIDERED] = rows - int(selected.sum())
    if "class" in words and selected.any():
        people, why = _people_among(words["class"], selected, ground_truth)
        left_out[why] = int(selected.sum() - people.sum())
        selected = people
    left_out = {why: count for why, count in left_out.items() if count}
    if not selected.any():
        classes = ", ".join(map(shown, words["class"].values[:9]))
        raise invalid(f"{_describe(left_out)}; none is left (classes: {classes}): give boxes of people, or no column of classes")
    return np.flatnonzero(selected), left_out


def _people_among(classes: _Words, selected: np.ndarray, ground_truth: bool) -> tuple[np.ndarray, str]:
    """bool [n], the selected rows of people, and in words why the other selected ones are left out."""
    numbers = {int(code): number_in(classes.values[code]) for code in np.unique(classes.codes[selected])}
    if all(number < 0 if number is not None else not classes.values[code].strip() for code, number in numbers.items()):
        return selected, _OTHER_CLASSES
    people = (0,) if 0 in numbers.values() else _MOT_PEOPLE if ground_truth else (1,)
    is_person = np.zeros(len(classes.values), bool)
    for code, number in numbers.items():
        is_person[code] = number in people if number is not None else plain(classes.values[code]) in _PEOPLE
    guessed = people != _MOT_PEOPLE and set(numbers.values()) != {None}  # which number means people: so it is said
    return selected & is_person[classes.codes], _OTHER_CLASSES + (f" (taken to be class {people[0]})" if guessed else "")


def _is_ground_truth(words: dict[str, _Words]) -> bool:
    conf, classes, visibility = (words[role].numbers() if role in words else None for role in ("conf", "class", "visibility"))
    if conf is None or classes is None or visibility is None:
        return False
    whole = all(number >= 0 and number.is_integer() for number in classes)
    return whole and set(conf) <= {0, 1} and all(0 <= number <= 1 for number in visibility)


def _refuse_visdrone(words: dict[str, _Words]) -> None:
    """VisDrone's ten columns end in score, category (11 of them, vehicles from 3), truncation and occlusion, all in numbers."""
    ranges = {"conf": range(2), "class": range(12), "truncation": range(2), "occlusion": range(3)}
    seen = {role: set(column.numbers() or [math.nan]) for role, column in words.items()}
    if seen.keys() == ranges.keys() and all(seen[role] <= set(ranges[role]) for role in ranges) and max(seen["class"]) > 2:
        raise invalid("the boxes file looks like annotations of VisDrone; give its rows of categories 1 and 2 (people) only")


def _describe(left_out: Mapping[str, int]) -> str:
    total = sum(left_out.values())
    boxes = "1 box of the boxes file was" if total == 1 else f"{total:,} boxes of the boxes file were"
    return f"{boxes} left out: {', '.join(f'{count:,} {why}' for why, count in left_out.items())}"


def _checked_boxes(rows: np.ndarray, lines: np.ndarray, data: bytes, layout: Layout) -> np.ndarray:
    """float32 [n, 4], (x, y, w, h), of float64 [n, 6]. Raises VideoError for the first line with a value that cannot be meant."""
    counts, places, sides = rows[:, :2], rows[:, 2:4], rows[:, 4:]
    with np.errstate(over="ignore", invalid="ignore"):
        if "right" in layout.form:
            sides = sides - places
        elif "cx" in layout.form:
            places = places - sides / 2
        boxes = np.column_stack([places, sides]).astype(np.float32)
    first = layout.first_frame
    remedy = ": add 1 to each, or name the column frame_index in a header" if first else ""
    checks = {
        "holds a value that is not finite": ~(np.isfinite(counts).all(1) & np.isfinite(boxes).all(1)),
        "has a frame or id that is not a whole number": ((counts != np.floor(counts)) | (counts >= 2**53)).any(1),
        f"has a frame below {first}; frames count from {first}{remedy}": counts[:, 0] < first,
        "has a negative id: a detection that belongs to no track": counts[:, 1] < 0,
        "has a width or height that is not positive": (boxes[:, 2:] <= 0).any(1),
    }
    faults = [(int(np.argmax(wrong)), sentence) for sentence, wrong in checks.items() if wrong.any()]
    if faults:
        row, sentence = min(faults, key=lambda fault: fault[0])
        raise _fault(data, layout, lines[row], sentence)
    if (np.abs(boxes) <= 1).all():  # boxes of a pixel could not be used either
        raise invalid("the boxes file looks like normalised coordinates (YOLO), no x, y, w or h is above 1; give pixels")
    return boxes


def _fault(data: bytes, layout: Layout, row: int, sentence: str) -> VideoError:
    line = next(number for place, (number, _) in enumerate(text_lines(data, layout.header)) if place == row)
    return invalid(f"line {line} of the boxes file {sentence}")
