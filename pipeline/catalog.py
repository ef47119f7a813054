"""The catalog: which candidate videos there are, one row each, from a folder, a bucket prefix or a manifest.

Nothing is decoded here and no video is opened: a million rows read in seconds, and whether a uri of a manifest is a video
or a folder of images shows when it is decoded.
"""

import csv
import hashlib
import heapq
import io
import itertools
import json
import operator
import os
import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs
from pyarrow import parquet

from pipeline.errors import UsageError
from pipeline.storage import Location, StorageError, canonical_uri, inside_checker, is_utf8, resolve

REJECT_REASONS = {
    "missing": "there is no such file",
    "permission_denied": "the file or folder may not be read",
    "outside_roots": "it lies outside the folders and buckets that are allowed",
    "bad_name": "the file name is not UTF-8",
    "empty": "the file holds no bytes",
    "not_a_video": "the file is of another kind",
    "truncated": "the file ends too early",
    "undecodable": "it looks like a video, but its frames cannot be decoded",
    "unreadable_image": "an image of the folder cannot be decoded",
    "no_frames": "it holds no frames",
    "too_large": "it has more pixels or frames than the settings allow",
    "time_limit": "decoding took longer than the settings allow",
    "decoder_crash": "the decoder's process died on it",
    "boxes_missing": "its boxes file cannot be read",
    "boxes_invalid": "its boxes file has a fault",
    "boxes_outside_frame": "no box of the track lies inside the frame",
}
VIDEO_SUFFIXES = frozenset(
    {
        *(".3g2", ".3gp", ".264", ".265", ".asf", ".avi", ".divx", ".f4v", ".flv", ".h264", ".h265", ".hevc"),
        *(".ivf", ".m1v", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogg", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
    }
)
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".webp"})
MANIFEST_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
MANIFEST_COLUMNS = ("uri", "video_id", "camera_id", "start_time", "person_id", "boxes_uri")

# reject_reason and reject_message are set on rows that are refused before anything is decoded.
SOURCE_SCHEMA = pa.schema(
    [
        ("source_id", pa.string()),
        ("uri", pa.string()),
        ("kind", pa.string()),
        ("camera_id", pa.string()),
        ("start_time", pa.timestamp("us", tz="UTC")),
        ("person_id", pa.string()),
        ("boxes_uri", pa.string()),
        ("reject_reason", pa.string()),
        ("reject_message", pa.string()),
    ]
)
_TEXT_MANIFEST = pa.schema([(name, pa.string()) for name in MANIFEST_COLUMNS])
_TIME = SOURCE_SCHEMA.field("start_time").type
_FIRST_TIME, _LAST_TIME = (pa.scalar(time.replace(tzinfo=UTC), _TIME) for time in (datetime.min, datetime.max))
_NOT_READABLE = re.compile(r"[^A-Za-z0-9._-]+")
_CHUNK_ROWS = 65536
_LONGEST_ID = 200


@dataclass(frozen=True)
class Source:
    """One row of the catalog: a video file, a folder of numbered images, or ("auto") whichever of them the uri turns out to be.

    start_time is in UTC. With a boxes file the source holds one candidate a track (see candidate_id), else it is the
    candidate itself.
    """

    source_id: str
    uri: str
    kind: Literal["file", "images", "auto"]
    camera_id: str | None = None
    start_time: datetime | None = None
    person_id: str | None = None
    boxes_uri: str | None = None


@dataclass(frozen=True)
class Catalog:
    """What read_catalog found. table: SOURCE_SCHEMA, sorted by source_id. root: canonical uri of the input's folder.

    ignored: files below a folder input that belong to no candidate. ignored_columns: columns of a manifest that were not read.
    """

    table: pa.Table
    root: str
    ignored: int = 0
    ignored_columns: tuple[str, ...] = ()


def read_catalog(source: str | Path, *, roots: Sequence[str | Path] | None = None) -> Catalog:
    """The candidate videos of a folder or bucket prefix (searched recursively), a manifest, or one video file.

    In folders, files with one of VIDEO_SUFFIXES are candidates, and so is each folder of numbered images (a stem that ends in
    a digit) with no video in it and neither videos nor images below it. Names with a leading dot are skipped; links are
    followed once. A manifest has the column uri and may have the others of MANIFEST_COLUMNS; relative uris start from its
    folder, times without a zone are UTC, empty text is none. Rows without video_id get default_video_id.

    roots: folders and prefixes that uris and boxes_uris must lie in; rows that do not are marked with the reject reason
    "outside_roots". None or empty: anywhere.

    Raises UsageError for an input that is missing, holds nothing usable or has a fault, which is named with its row (rows of a
    manifest count from 1, without the header), and StorageError when the storage refuses.
    """
    location = resolve(source)
    info = location.info()
    if info.type == pafs.FileType.NotFound:
        raise UsageError(f"there is no file or folder {location.uri}")
    suffix = posixpath.splitext(location.path)[1].lower()
    if info.type == pafs.FileType.Directory:
        catalog = _read_folder(location)
    elif suffix in MANIFEST_SUFFIXES:
        catalog = _read_manifest(location, suffix)
    elif suffix in VIDEO_SUFFIXES:
        catalog = Catalog(_source_table([location.uri], ["file"]), _folder_uri(location))
    else:
        raise UsageError(
            f"{location.uri} is no input: give a folder, a manifest ({', '.join(MANIFEST_SUFFIXES)}) "
            "or a video file with a usual extension (.mp4, .mkv, ...)"
        )
    _refuse_duplicates(catalog.table, "uri", location.uri)
    _refuse_duplicates(catalog.table, "source_id", location.uri)
    table = _mark_outside(catalog.table, roots) if roots else catalog.table
    return Catalog(table.sort_by("source_id"), catalog.root, catalog.ignored, catalog.ignored_columns)


def source_from_row(row: dict[str, Any]) -> Source:
    """The Source of one row of a catalog's table, as `table.to_pylist()` gives it."""
    start_time = row["start_time"].astimezone(UTC) if row["start_time"] is not None else None
    same = ("source_id", "uri", "kind", "camera_id", "person_id", "boxes_uri")
    return Source(**{name: row[name] for name in same}, start_time=start_time)


def candidate_id(source_id: str, track_id: int | str) -> str:
    """The video_id of one track of a source that has a boxes file; "#" can stand in no source_id."""
    return f"{source_id}#{track_id}"


def default_video_id(uri: str) -> str:
    """A readable id that only this canonical uri has: its file's stem or folder's name and 12 hex digits of its SHA-256."""
    name = (uri if uri.startswith("/") else uri.partition("?")[0]).rpartition("/")[2]
    stem, dot, suffix = name.rpartition(".")
    readable = _NOT_READABLE.sub("_", stem if dot + suffix.lower() in VIDEO_SUFFIXES else name).strip("._-")[:60]
    return f"{readable or 'video'}-{hashlib.sha256(uri.encode()).hexdigest()[:12]}"


@dataclass
class _Folder:
    images: int = 0
    numbered: bool = False
    videos: int = 0


@dataclass
class _Listing:
    """What lies below the input, gathered name by name; folders are relative to the input, "" is the input itself."""

    root: Location
    uris: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # uri -> reason, message
    folders: dict[str, _Folder] = field(default_factory=dict)
    ignored: int = 0

    def add_file(self, folder: str, name: str) -> None:
        stem, suffix = posixpath.splitext(name)
        if suffix.lower() in VIDEO_SUFFIXES:
            self.folders.setdefault(folder, _Folder()).videos += 1
            self.add_source(posixpath.join(folder, name), "file")
        elif suffix.lower() in IMAGE_SUFFIXES:
            counts = self.folders.setdefault(folder, _Folder())
            counts.images += 1
            counts.numbered |= stem[-1:].isascii() and stem[-1:].isdigit()
        else:
            self.ignored += 1

    def add_source(self, path: str, kind: str, refused: tuple[str, str] | None = None) -> None:
        uri = self.root.join(path).uri if path else self.root.uri
        if not is_utf8(path):
            uri = Path(uri).as_uri()  # percent-encoded: the only way to name it in a table
            refused = ("bad_name", f"the name of {uri} is not UTF-8; rename it")
        self.uris.append(uri)
        self.kinds.append(kind)
        if refused:
            self.refused[uri] = refused

    def add_image_folders(self) -> None:
        """Turn the folders of images that were seen into sources; call it once, after all files."""
        inner: set[str] = set()  # folders with videos or images somewhere below them
        for folder in self.folders:
            while folder and (folder := posixpath.dirname(folder)) not in inner:
                inner.add(folder)
        for folder, counts in self.folders.items():
            if counts.numbered and not counts.videos and folder not in inner:
                self.add_source(folder, "images")
            else:
                self.ignored += counts.images


def _read_folder(location: Location) -> Catalog:
    listing = _Listing(location)
    if location.is_local:
        _walk(location.path, listing)
    else:
        for file in location.list(recursive=True):
            relative = file.path[len(location.path) + 1 :]
            if not any(part.startswith(".") for part in relative.split("/")):
                listing.add_file(*posixpath.split(relative))
    listing.add_image_folders()
    if not listing.uris:
        raise UsageError(
            f"{location.uri} holds no video and no folder of numbered images"
            + (f" ({listing.ignored} other files)" if listing.ignored else "")
        )
    return Catalog(_source_table(listing.uris, listing.kinds, refused=listing.refused), location.uri, ignored=listing.ignored)


def _walk(root: str, listing: _Listing) -> None:
    """Feed every file below a local folder to the listing.

    A folder is read once, by its own path rather than through a link where both lead to it: so links may form circles.
    """
    folders, links, seen = [""], list[str](), set[tuple[int, int]]()
    while folders or links:
        folder = folders.pop() if folders else heapq.heappop(links)
        path = posixpath.join(root, folder)
        try:
            status = os.stat(path)  # noqa: PTH116 - like scandir below, for the many folders of a large input
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = list(scan)
        except PermissionError as error:
            if not folder:
                raise StorageError(f"cannot list {root}: permission denied", "permission_denied") from error
            listing.add_source(folder, "images", ("permission_denied", f"the folder {path} may not be listed"))
        except FileNotFoundError:
            continue  # removed since its parent was read
        except OSError as error:
            raise StorageError(f"cannot list {path}: {error.strerror}", "other") from error
        else:
            for entry in entries:
                _add_entry(entry, folder, listing, folders, links)


def _add_entry(entry: os.DirEntry[str], folder: str, listing: _Listing, folders: list[str], links: list[str]) -> None:
    if entry.name.startswith("."):
        return
    try:
        is_folder, is_file = entry.is_dir(), entry.is_file()
    except OSError:  # a link to itself
        is_folder = is_file = False
    if is_folder and entry.is_symlink():
        heapq.heappush(links, posixpath.join(folder, entry.name))
    elif is_folder:
        folders.append(posixpath.join(folder, entry.name))
    elif is_file or (entry.is_symlink() and not Path(entry.path).exists()):
        # A link to nothing stays a candidate, so that it ends among the rejects, as missing.
        listing.add_file(folder, entry.name)
    else:
        listing.ignored += 1  # pipes and sockets: opening one could wait for ever


def _read_manifest(location: Location, suffix: str) -> Catalog:
    if suffix == ".parquet":
        manifest, ignored_columns = _read_parquet(location)
    else:
        manifest, ignored_columns = _read_text(location, _csv_records if suffix == ".csv" else _json_records)
    if manifest.num_rows == 0:
        raise UsageError(f"the manifest {location.uri} has no rows")
    columns = {name: _empty_to_null(manifest[name]) for name in MANIFEST_COLUMNS if name != "start_time"}
    folder = _folder_uri(location)
    uris = _canonical_uris(columns["uri"], folder, location.uri, "uri")
    _check_ids(columns["video_id"], location.uri)
    ids = [explicit or default_video_id(uri) for explicit, uri in zip(columns["video_id"].to_pylist(), uris, strict=True)]
    table = _source_table(
        uris,
        ["auto"] * len(uris),
        source_id=ids,
        camera_id=columns["camera_id"],
        start_time=_utc_times(manifest["start_time"], location.uri),
        person_id=columns["person_id"],
        boxes_uri=_canonical_uris(columns["boxes_uri"], folder, location.uri, "boxes_uri"),
    )
    return Catalog(table, folder, ignored_columns=ignored_columns)


def _read_parquet(location: Location) -> tuple[pa.Table, tuple[str, ...]]:
    try:
        with location.open_input() as opened:
            file = parquet.ParquetFile(opened)
            names = file.schema_arrow.names
            _check_header(names, location.uri)
            table = file.read(columns=[name for name in MANIFEST_COLUMNS if name in names])
            table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{location.uri} cannot be read as Parquet: {' '.join(str(error).split())}") from error
    columns = {}
    for name in MANIFEST_COLUMNS:
        column = table[name] if name in names else pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        columns[name] = column if name == "start_time" else _text_column(column, name, location.uri)
    return pa.table(columns), _others(names)


def _text_column(column: pa.ChunkedArray, name: str, manifest: str) -> pa.ChunkedArray:
    """The column as text; whole numbers in any type become their plain digits."""
    kind = column.type
    if _is_text(kind) or pa.types.is_integer(kind):
        return column.cast(pa.string())
    if not pa.types.is_floating(kind) and not pa.types.is_decimal(kind):
        raise UsageError(f"the column {name} of {manifest} is of type {kind}; text or numbers are needed")
    encoded = pc.dictionary_encode(column.combine_chunks())
    texts = [_plain_text(value, f"{name} in {manifest}") for value in encoded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string()).take(encoded.indices)])


_Records = Iterator[tuple[str | None, ...]]


def _read_text(
    location: Location, records_of: Callable[[io.BytesIO, str, set[str]], _Records]
) -> tuple[pa.Table, tuple[str, ...]]:
    names: set[str] = set()
    records = records_of(io.BytesIO(location.read_bytes()), location.uri, names)
    batches = []
    try:
        while chunk := list(itertools.islice(records, _CHUNK_ROWS)):
            columns = [pa.array(values, pa.string()) for values in zip(*chunk, strict=True)]
            batches.append(pa.RecordBatch.from_arrays(columns, schema=_TEXT_MANIFEST))
    except UnicodeDecodeError as error:
        raise UsageError(f"{location.uri} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    if batches:
        _check_header(sorted(names), location.uri)
    return pa.Table.from_batches(batches, _TEXT_MANIFEST), _others(sorted(names))


def _csv_records(file: io.BytesIO, manifest: str, names: set[str]) -> _Records:
    # Python's reader in strict mode refuses a quote that is never closed; Arrow's takes the rest of the file for one value.
    reader = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
        if not header:
            return
        _check_header(header, manifest)
        names.update(header)
        chosen = operator.itemgetter(*(header.index(name) if name in header else -1 for name in MANIFEST_COLUMNS))
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise UsageError(
                    f"line {reader.line_num} of {manifest} has {len(values)} values, the header has {len(header)} columns"
                )
            yield chosen([*values, None])
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num} of {manifest} is not CSV: {error}") from error


def _json_records(file: io.BytesIO, manifest: str, names: set[str]) -> _Records:
    for number, line in enumerate(file, start=1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if not text.strip():
            continue
        try:
            row = json.loads(text, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"line {number} of {manifest} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"line {number} of {manifest} is not a JSON object")
        names.update(row)
        yield tuple(_plain_text(row.get(name), f"{name} in line {number} of {manifest}") for name in MANIFEST_COLUMNS)


def _plain_text(value: object, where: str) -> str | None:
    """Text as it is and numbers in plain digits ("3" for 3.0, as pandas writes 3 in a column with gaps); NaN is none."""
    if value is None:
        return None
    if isinstance(value, str):
        if not is_utf8(value):
            raise UsageError(f"{where} holds half a character (a lone surrogate)")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise UsageError(f"{where} is {str(value)[:80]}; text or a number is needed")
    if isinstance(value, int):
        return str(value)
    number = Decimal(repr(value)) if isinstance(value, float) else value
    if number.is_nan():
        return None
    if number.is_infinite() or abs(number.adjusted()) > 40:
        raise UsageError(f"{where} is {str(value)[:80]}, too large or too small for a label")
    digits = format(abs(number) if number == 0 else number, "f")
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _check_header(names: Sequence[str], manifest: str) -> None:
    if "uri" not in names:
        raise UsageError(f"the manifest {manifest} has no column uri (columns: {', '.join(names)[:200] or 'none'})")
    twice = sorted({name for name in MANIFEST_COLUMNS if list(names).count(name) > 1})
    if twice:
        raise UsageError(f"the manifest {manifest} has the column {twice[0]} twice")


def _others(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in MANIFEST_COLUMNS)


def _empty_to_null(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column)


def _canonical_uris(column: pa.ChunkedArray, folder: str, manifest: str, name: str) -> list[Any]:
    """Canonical uris, None where the column has none (not allowed for the column uri)."""
    uris: list[str | None] = []
    for row, text in enumerate(column.to_pylist(), start=1):
        if text is None and name != "uri":
            uris.append(None)
            continue
        if text is None or not text.strip():
            raise UsageError(f"row {row} of {manifest} has a blank {name}")
        try:
            uris.append(canonical_uri(text, folder))
        except UsageError as error:
            raise UsageError(f"row {row} of {manifest}, {name}: {error}") from error
    return uris


def _check_ids(ids: pa.ChunkedArray, manifest: str) -> None:
    wrong = pc.or_(pc.greater(pc.utf8_length(ids), _LONGEST_ID), pc.match_substring_regex(ids, r"[#\p{Cc}]|^[\s\p{Z}]*$"))
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise UsageError(
            f"row {row + 1} of {manifest}: video_id {ids[row].as_py()[:80]!r} cannot be used: it must have 1 to "
            f"{_LONGEST_ID} characters, not only blanks, without # (which marks tracks) and control characters"
        )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)


def _utc_times(column: pa.ChunkedArray, manifest: str) -> pa.ChunkedArray:
    """timestamp[us, UTC] of ISO 8601 texts, timestamps or dates; what has no zone is UTC."""
    kind = column.type
    if _is_text(kind):
        return _parsed_times(_empty_to_null(column.cast(pa.string())), manifest)
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise UsageError(f"the column start_time of {manifest} is of type {kind}; ISO 8601 text or timestamps are needed")
    zone = getattr(kind, "tz", None)
    try:
        times = pc.cast(column, options=pc.CastOptions(pa.timestamp("us", zone), allow_time_truncate=True))
    except pa.ArrowException as error:
        raise UsageError(f"the column start_time of {manifest} holds a time out of range: {error}") from error
    times = times.cast(_TIME) if zone else pc.assume_timezone(times, "UTC")
    wrong = pc.or_(pc.less(times, _FIRST_TIME), pc.greater(times, _LAST_TIME))
    if (row := pc.index(wrong, True).as_py()) >= 0:
        raise UsageError(f"row {row + 1} of {manifest}: start_time lies outside the years 1 to 9999")
    return times


def _parsed_times(texts: pa.ChunkedArray, manifest: str) -> pa.ChunkedArray:
    encoded = pc.dictionary_encode(texts.combine_chunks())
    times = []
    for text in encoded.dictionary.to_pylist():
        try:
            time = datetime.fromisoformat(text)
            times.append(time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC))
        except (ValueError, OverflowError) as error:
            row = pc.index(texts, text).as_py() + 1
            raise UsageError(
                f"row {row} of {manifest}: start_time {text[:80]!r} is not an ISO 8601 time such as 2026-05-01T12:00:00Z"
            ) from error
    return pa.chunked_array([pa.array(times, _TIME).take(encoded.indices)])


def _source_table(
    uris: list[str], kinds: list[str], refused: dict[str, tuple[str, str]] | None = None, **columns: Any
) -> pa.Table:
    """SOURCE_SCHEMA, unsorted; columns that are not given are null, ids the default ones."""
    columns |= {"uri": uris, "kind": kinds}
    if "source_id" not in columns:
        columns["source_id"] = [default_video_id(uri) for uri in uris]
    if refused:
        for name, place in (("reject_reason", 0), ("reject_message", 1)):
            columns[name] = [refused[uri][place] if uri in refused else None for uri in uris]
    arrays = []
    for name, kind in zip(SOURCE_SCHEMA.names, SOURCE_SCHEMA.types, strict=True):
        values = columns.get(name)
        if values is None:
            arrays.append(pa.nulls(len(uris), kind))
        else:
            arrays.append(values if isinstance(values, pa.ChunkedArray) else pa.array(values, kind))
    return pa.table(arrays, schema=SOURCE_SCHEMA)


def _refuse_duplicates(table: pa.Table, name: str, source: str) -> None:
    counts = table.group_by(name).aggregate([([], "count_all")])
    twice = counts.filter(pc.greater(counts["count_all"], 1))[name].sort()
    if len(twice):
        what = "uri" if name == "uri" else "video_id"
        named = ", ".join(repr(value) for value in twice[:5].to_pylist()) + (", ..." if len(twice) > 5 else "")
        raise UsageError(f"{len(twice)} {what} values stand more than once in {source}: {named}")


def _mark_outside(table: pa.Table, roots: Sequence[str | Path]) -> pa.Table:
    is_inside = inside_checker(roots)
    reasons, messages = table["reject_reason"].to_pylist(), table["reject_message"].to_pylist()
    for row, places in enumerate(zip(table["uri"].to_pylist(), table["boxes_uri"].to_pylist(), strict=True)):
        outside = [place for place in places if place is not None and reasons[row] is None and not is_inside(place)]
        if outside:
            reasons[row], messages[row] = "outside_roots", f"{outside[0]} lies outside the allowed roots"
    for name, values in (("reject_reason", reasons), ("reject_message", messages)):
        table = table.set_column(table.schema.get_field_index(name), SOURCE_SCHEMA.field(name), pa.array(values, pa.string()))
    return table


def _folder_uri(location: Location) -> str:
    return canonical_uri("..", location.uri)
