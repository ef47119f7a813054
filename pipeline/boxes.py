"""Boxes files: where each tracked person is in the frames of a video, in the text format of the MOT challenge."""

import io
import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import csv

from pipeline.errors import VideoError
from pipeline.storage import Location, StorageError

_COLUMNS = ("frame", "id", "x", "y", "w", "h")


class Track(NamedTuple):
    """One track: frames, int64 [n], from 0 and strictly ascending; boxes, float32 [n, 4], (x, y, w, h) in pixels."""

    frames: np.ndarray
    boxes: np.ndarray


Tracks = dict[int, Track]


def read_boxes(source: Location | bytes) -> Tracks:
    """The tracks of a boxes file by track id, ascending.

    Lines are `frame,id,x,y,w,h[,more columns]`: frame counts from 1, x and y are the left upper corner, all in pixels of
    the full frame, which a box may leave. One header line, blank lines, any line ends and blanks around numbers are
    tolerated; further columns are not read.

    Raises VideoError "boxes_missing" when a Location cannot be read, and "boxes_invalid", naming the line, for: no rows,
    rows of different or fewer than six columns, what is not a finite number, a frame below 1, a negative id (a detection
    without a track), a width or height that is not positive, two boxes of a track in one frame.
    """
    if isinstance(source, Location):
        try:
            if source.is_local and source.exists() and not source.info().is_file:  # reading a pipe would wait for ever
                raise VideoError("boxes_missing", f"the boxes file {source.uri} is not a file")
            source = source.read_bytes()
        except StorageError as error:
            reason = "unavailable" if error.reject_reason("") == "unavailable" else "boxes_missing"
            raise VideoError(reason, f"the boxes file cannot be read: {error}") from error
    rows = _parse(source)
    if len(rows) == 0:
        raise VideoError("boxes_invalid", "the boxes file has no rows")
    boxes = _checked_boxes(rows, source)
    frames, ids = rows[:, 0].astype(np.int64) - 1, rows[:, 1].astype(np.int64)

    order = np.lexsort((frames, ids))  # stable: of two equal rows, the later line comes second
    frames, ids, boxes = frames[order], ids[order], boxes[order]
    twice = np.flatnonzero((np.diff(frames) == 0) & (np.diff(ids) == 0))
    if len(twice):
        at = min(int(order[place + 1]) for place in twice)
        raise _fault(source, at, f"gives track {rows[at, 1]:.0f} a second box in frame {rows[at, 0]:.0f}")
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))
    pieces = zip(np.split(frames, starts[1:]), np.split(boxes, starts[1:]), strict=True)
    return {int(ids[start]): Track(*piece) for start, piece in zip(starts, pieces, strict=True)}


def clip_box(
    box: np.ndarray | tuple[float, float, float, float], width: int, height: int, min_side: int = 2
) -> tuple[int, int, int, int] | None:
    """The part of a box inside the frame as pixel edges (x0, y0, x1, y1), as in frame[y0:y1, x0:x1].

    box: (x, y, w, h) in pixels, finite; edges go to the nearest pixel edge. None when less than min_side x min_side
    pixels of it lie inside.
    """
    x, y, w, h = (float(value) for value in box)
    x0, x1 = (math.floor(min(max(edge, 0.0), width) + 0.5) for edge in (x, x + w))
    y0, y1 = (math.floor(min(max(edge, 0.0), height) + 0.5) for edge in (y, y + h))
    return (x0, y0, x1, y1) if x1 - x0 >= min_side and y1 - y0 >= min_side else None


def _parse(data: bytes) -> np.ndarray:
    """float64 [n, 6], the six columns as they stand."""
    names = [f"f{column}" for column in range(len(_COLUMNS))]
    try:
        table = csv.read_csv(
            io.BytesIO(data),
            csv.ReadOptions(autogenerate_column_names=True, skip_rows=_header_lines(data)),
            csv.ParseOptions(quote_char=False),
            csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.float64()), null_values=[]),
        )
        return np.column_stack([table[name].to_numpy() for name in names])
    except pa.ArrowException:
        # Either there is a fault, which has to be named with its line, or something that Arrow does not tolerate.
        return _parse_slowly(data)


def _parse_slowly(data: bytes) -> np.ndarray:
    rows: list[list[float]] = []
    columns = 0
    header = _header_lines(data)
    for number, line in enumerate(_lines(data), start=1):
        fields = line.split(b",")
        if number <= header or not line.strip():
            continue
        columns = columns or len(fields)
        if len(fields) != columns or columns < len(_COLUMNS):
            expected = f"the rows before have {columns}" if rows else "frame,id,x,y,w,h are needed"
            raise VideoError("boxes_invalid", f"line {number} of the boxes file has {len(fields)} columns; {expected}")
        values = [_number(field) for field in fields[: len(_COLUMNS)]]
        for name, value, field in zip(_COLUMNS, values, fields, strict=False):
            if value is None:
                text = field.decode(errors="replace").strip()[:40]
                raise VideoError("boxes_invalid", f"line {number} of the boxes file: {name} is {text!r}, not a number")
        rows.append([value for value in values if value is not None])
    return np.array(rows, np.float64).reshape(-1, len(_COLUMNS))


def _checked_boxes(rows: np.ndarray, data: bytes) -> np.ndarray:
    """float32 [n, 4] of float64 [n, 6]. Raises VideoError for the first line with a value that cannot be meant."""
    with np.errstate(over="ignore"):
        boxes = rows[:, 2:].astype(np.float32)
    counts = rows[:, :2]
    checks = {
        "holds a value that is not finite": ~(np.isfinite(counts).all(1) & np.isfinite(boxes).all(1)),
        "has a frame or id that is not a whole number": ((counts != np.floor(counts)) | (counts >= 2**53)).any(1),
        "has a frame below 1; frames count from 1": counts[:, 0] < 1,
        "has a negative id: a detection that belongs to no track": counts[:, 1] < 0,
        "has a width or height that is not positive": (boxes[:, 2:] <= 0).any(1),
    }
    faults = [(int(np.argmax(wrong)), sentence) for sentence, wrong in checks.items() if wrong.any()]
    if faults:
        raise _fault(data, *min(faults, key=lambda fault: fault[0]))
    return boxes


def _fault(data: bytes, row: int, sentence: str) -> VideoError:
    header = _header_lines(data)
    numbers = (number for number, line in enumerate(_lines(data), start=1) if number > header and line.strip())
    line = next(number for place, number in enumerate(numbers) if place == row)
    return VideoError("boxes_invalid", f"line {line} of the boxes file {sentence}")


def _header_lines(data: bytes) -> int:
    """How many lines to leave out: up to the first line with text, if that holds no number where numbers belong."""
    for number, line in enumerate(_lines(data[: 2**16]), start=1):
        if line.strip():
            fields = line.split(b",")[: len(_COLUMNS)]
            return number if len(fields) == len(_COLUMNS) and all(_number(field) is None for field in fields) else 0
    return 0


def _lines(data: bytes) -> list[bytes]:
    return data.removeprefix(b"\xef\xbb\xbf").splitlines()


def _number(field: bytes) -> float | None:
    try:
        return None if b"_" in field else float(field)  # Python reads 1_000, the format does not
    except ValueError:
        return None
