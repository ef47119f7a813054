"""The columns of a boxes file: how they are separated, which is which, and whether the file is one of another format."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import VideoError

COLUMNS = ("frame", "id", "x", "y", "w", "h")

# What columns are called, the surest name first: "x" may be a place in the world beside "bb_left", "id" a row's number beside
# "track_id". Names are compared in lower case, letters and digits alone, without bb, bbox or box before them.
_NAMES = {
    "frame": ("frame", "frameid", "framenumber", "frameno", "framenum", "framenr", "frameindex", "frameidx"),
    "id": ("trackid", "trackerid", "trackingid", "trackletid", "targetid", "objectid", "objid", "track", "tid", "identity", "id"),
    "left": ("left", "xmin", "minx", "x1", "xtl", "x"),
    "top": ("top", "ymin", "miny", "y1", "ytl", "y"),
    "right": ("right", "xmax", "maxx", "x2", "xbr"),
    "bottom": ("bottom", "ymax", "maxy", "y2", "ybr"),
    "width": ("width", "w"),
    "height": ("height", "h"),
    "cx": ("cx", "xc", "xcenter", "xcentre", "centerx", "centrex"),
    "cy": ("cy", "yc", "ycenter", "ycentre", "centery", "centrey"),
    "conf": ("conf", "confidence", "score", "notignored"),
    "class": (
        *("classname", "categoryname", "labelname", "class", "category", "label", "cls", "type", "objecttype"),
        *("classid", "categoryid", "labelid"),
    ),
    "visibility": ("visibility", "vis"),
}
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FROM_ZERO = ("frameindex", "frameidx")
_FORMS = (("left", "top", "width", "height"), ("left", "top", "right", "bottom"), ("cx", "cy", "width", "height"))
_OTHER_FORMATS = {
    b"{": "JSON, as of COCO",
    b"[": "JSON",
    b"<": "XML, as of CVAT or Pascal VOC",
    b"PK\3\4": "a zip archive",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}


class Layout(NamedTuple):
    """How to read the lines.

    separator: b" " stands for any run of blanks. header: the number of its line, 0 without one. columns: how many a line has.
    names, numbers: what the six needed columns are called, and their places, in the order of frame, id and the box as in `form`.
    words: role -> place of further columns, which say whether a row counts. first_frame: the number of the video's first frame.
    """

    separator: bytes
    header: int
    columns: int
    names: tuple[str, ...]
    numbers: tuple[int, ...]
    words: dict[str, int]
    form: tuple[str, ...]
    first_frame: int


def read_layout(data: bytes) -> Layout:
    """The layout by the first two lines with text.

    Raises VideoError "boxes_invalid" for no line with text, fewer than six columns, a header that lacks a needed column or has
    another number of columns than the line after it, and for files of other formats that can be told by their beginning.
    """
    head = data[: 2**20]
    for start, what in _OTHER_FORMATS.items():
        if head.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(start):
            raise invalid(f"the boxes file looks like {what}; give a text file with lines of frame,id,x,y,w,h in pixels")
    lines = text_lines(head)
    number, line = next(lines, (0, b""))
    if not line:
        raise invalid("the boxes file has no rows")
    separator = _separator(line)
    fields = split(line, separator)
    if any(number_in(field) is not None for field in fields):
        return _layout_without_header(number, fields, separator)
    layout = _layout_of_header(number, split(line.lstrip().removeprefix(b"#"), separator), separator)
    number, line = next(lines, (0, b""))
    columns = len(split(line, separator))
    if line and columns != layout.columns:  # a column that the header does not name would shift all others
        raise invalid(f"line {number} of the boxes file has {columns} columns; the header has {layout.columns}")
    return layout


def _separator(line: bytes) -> bytes:
    separator = max((b",", b";", b"\t"), key=line.count)
    # Tabs among other blanks are blanks; a header whose names hold blanks is told by its tabs.
    return separator if line.count(separator) >= (len(COLUMNS) - 1 if separator == b"\t" else 1) else b" "


def shown(field: bytes) -> str:
    """A field as messages show it: its beginning, with escapes for what could steer a terminal."""
    return repr(field.decode(errors="replace").strip()[:40])[1:-1]


def split(line: bytes, separator: bytes) -> list[bytes]:
    """The fields of a line; see Layout.separator."""
    return line.split() if separator == b" " else line.split(separator)


def _layout_without_header(number: int, fields: list[bytes], separator: bytes) -> Layout:
    """The columns of the MOT challenge. Raises VideoError for too few, and for labels of YOLO and KITTI, told by one line."""
    values = [number_in(field) for field in fields]
    shares = [value for value in values[1:5] if value is not None and 0 <= value <= 1]
    if 5 <= len(fields) <= 7 and len(shares) == 4 and 0 < shares[0] < 1:  # no track id is a fraction
        raise invalid(
            f"line {number} of the boxes file looks like a label of YOLO (class x y w h, normalised); "
            "give frame,id,x,y,w,h in pixels, all frames in one file"
        )
    if separator == b" " and len(fields) >= 15 and None in (values[0], values[2]):
        raise invalid(f"line {number} of the boxes file looks like a label of KITTI; give frame,id,x,y,w,h in pixels")
    if len(fields) < len(COLUMNS):
        raise invalid(f"line {number} of the boxes file has {len(fields)} columns; frame,id,x,y,w,h are needed")
    words = {9: ("conf", "class", "visibility"), 10: ("conf", "class", "truncation", "occlusion")}.get(len(fields), ())
    if words and (values[6] not in (0, 1) or values[7] is None or values[7] < 0):  # no marks and classes: not worth the time
        words = ()
    places = {role: place for place, role in enumerate(words, start=len(COLUMNS))}
    return Layout(separator, 0, len(fields), COLUMNS, tuple(range(len(COLUMNS))), places, _FORMS[0], first_frame=1)


def _layout_of_header(number: int, fields: list[bytes], separator: bytes) -> Layout:
    names = [re.sub("^(boundingbox|bbox|bb|box)(?!id$)", "", plain(field)) for field in fields]  # a box id is no track id
    if "x0" in names:  # then x1 is the right edge
        names = [{"x0": "x1", "y0": "y1", "x1": "x2", "y1": "y2"}.get(name, name) for name in names]
    chosen = {role: next((name for name in spellings if name in names), None) for role, spellings in _NAMES.items()}
    form = next((form for form in _FORMS if all(chosen[role] for role in form)), None)
    header = f"line {number} of the boxes file, its header"
    given = ", ".join(map(shown, fields[:40]))
    missing = [*(role for role in ("frame", "id") if not chosen[role]), *(() if form else ("the box",))]
    if missing or form is None:
        raise invalid(
            f"{header}, names no column for {' and '.join(missing)}: it has {given}; needed are frame, id "
            "and x, y, w, h (or x1, y1, x2, y2, or cx, cy, w, h)"
        )
    places = {role: names.index(name) for role, name in chosen.items() if name is not None}
    for role in ("frame", "id", *form, "conf", "class"):
        if role in places and names.count(names[places[role]]) > 1:
            raise invalid(f"{header}, names {names[places[role]]} more than once: {given}; rename one")
    numbers = tuple(places[role] for role in ("frame", "id", *form))
    return Layout(
        separator,
        number,
        len(fields),
        tuple(shown(fields[place]) for place in numbers),
        numbers,
        {role: places[role] for role in ("conf", "class", "visibility") if role in places},
        form,
        first_frame=0 if chosen["frame"] in _FROM_ZERO else 1,
    )


def plain(field: bytes) -> str:
    """A name or word as it is compared: lower case, letters and digits alone."""
    return "".join(filter(str.isalnum, field.decode(errors="replace").lower()))


def invalid(message: str) -> VideoError:
    """The error for a boxes file with a fault."""
    return VideoError("boxes_invalid", message)


def text_lines(data: bytes, header: int = 0) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of the lines with text behind the header."""
    lines = data.removeprefix(_BYTE_ORDER_MARK).splitlines()
    return ((number, line) for number, line in enumerate(lines, start=1) if number > header and line.strip())


def number_in(field: bytes) -> float | None:
    """The number that a field holds, blanks around it aside, or None."""
    try:
        return None if b"_" in field else float(field)  # Python reads 1_000, the format does not
    except ValueError:
        return None
