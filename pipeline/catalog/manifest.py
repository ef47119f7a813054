"""Manifests: tables of candidate videos as people write them, in Parquet, CSV or JSONL, read strictly."""

import csv
import io
import itertools
import json
import operator
import posixpath
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from pipeline.errors import UsageError
from pipeline.storage.faults import explained
from pipeline.storage.location import Location
from pipeline.storage.uris import canonical_uri, is_utf8

MANIFEST_SUFFIXES = (".parquet", ".csv", ".jsonl", ".ndjson")
MANIFEST_COLUMNS = ("uri", "video_id", "camera_id", "start_time", "person_id", "boxes_uri", "frame_rate", "clock_offset")
# A file of a few bytes can claim any number of rows, and one long text in all of them.
MOST_ROWS = 20_000_000  # 4 GB of the temporary folder
MOST_BYTES = 8 << 30  # of the values that are read, written out
LARGEST_OFFSET = 100 * 366 * 86400.0  # seconds that a clock may be wrong by: one that was never set says 1970

_TEXT_MANIFEST = pa.schema([(name, pa.string()) for name in MANIFEST_COLUMNS])
_TIME = pa.timestamp("us", tz="UTC")
_NUMBER = re.compile(r"[0-9]*\.?[0-9]+|[0-9]+\.")
_SIGNED = re.compile(r"[+-]?([0-9]*\.?[0-9]+|[0-9]+\.)(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
_CHUNK_ROWS = 65536
_DELTA_ROWS = 64
_READ_BYTES = 1 << 20
_LONGEST_TEXT = 16384  # bytes; no path and no key of an object store is longer than 4,096
_LONGEST_ID = 200


def read_manifest(location: Location, folder: str, others: set[str]) -> Iterator[pa.Table]:
    """A manifest's rows, some at a time; others takes the names of the columns that are not read.

    folder: what relative uris start from, those of image patterns (tracklets/0001C1T0001F*.jpg) too. The tables have
    MANIFEST_COLUMNS: canonical uris, start_time as timestamp[us, UTC], frame_rate float64 (frames a second, above 0 and below
    1000), clock_offset float64 (seconds, up to LARGEST_OFFSET either way, and taken off start_time), the rest text; null where a
    row says nothing. Raises UsageError for a manifest without rows, with more than MOST_ROWS or MOST_BYTES, without the column
    uri or with a fault, which is named with its row, from 1.
    """
    suffix = posixpath.splitext(location.path)[1].lower()
    if suffix == ".parquet":
        parts = _read_parquet(location, others)
    else:
        parts = _read_text(location, _csv_records if suffix == ".csv" else _json_records, others)
    first = 0
    for part in parts:
        yield _canonical(part, folder, location.uri, first)
        first += len(part)
    if first == 0:
        raise UsageError(f"the manifest {location.uri} has no rows")


def _canonical(part: pa.Table, folder: str, manifest: str, first: int) -> pa.Table:
    """Rows of a manifest as `read_manifest` gives them. first: how many came before."""
    columns = {name: _empty_to_null(part[name]) for name in MANIFEST_COLUMNS if name != "start_time"}
    _check_ids(columns["video_id"], manifest, first)
    for name in ("uri", "boxes_uri"):
        columns[name] = pa.chunked_array([pa.array(_canonical_uris(columns[name], folder, manifest, name, first), pa.string())])
    columns["start_time"] = _utc_times(part["start_time"], manifest, first)
    columns["frame_rate"] = _frame_rates(columns["frame_rate"], manifest, first)
    columns["clock_offset"] = _clock_offsets(columns["clock_offset"], manifest, first)
    columns["start_time"] = _by_right_clocks(columns["start_time"], columns["clock_offset"], manifest, first)
    return pa.table({name: columns[name] for name in MANIFEST_COLUMNS})


def _read_parquet(location: Location, others: set[str]) -> Iterator[pa.Table]:
    try:
        with location.open_input() as opened:
            file = parquet.ParquetFile(opened)
            schema = file.schema_arrow
            _check_header(schema.names, location.uri)
            chosen = [name for name in MANIFEST_COLUMNS if name in schema.names]
            for name in chosen:
                _check_type(schema.field(name).type, name, location.uri)
            encodings = _check_claims(file.metadata, chosen, location.uri)
            # A text that stands once in the file for many rows is measured before it is written out for each of them; where texts
            # are told by how they differ from the one before, which pyarrow writes out at once, few rows are read at a time.
            whole = [name for name in chosen if any(encoding.startswith("DELTA") for encoding in encodings[name])]
            file = parquet.ParquetFile(opened, read_dictionary=[name for name in chosen if name not in whole])
            plain = pa.schema([(name, _value_type(schema.field(name).type)) for name in chosen])
            others.update(_others(schema.names))
            size = 0
            for batch in file.iter_batches(_DELTA_ROWS if whole else _CHUNK_ROWS, columns=chosen):
                size += sum(_written_out(column, name, location.uri) for name, column in zip(chosen, batch.columns, strict=True))
                _check_size(size, location.uri)
                table = pa.table([column.cast(kind) for column, kind in zip(batch.columns, plain.types, strict=True)], plain)
                table.validate(full=True)
                yield _with_all_columns(table, location.uri)
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{location.uri} cannot be read as Parquet: {' '.join(str(error).split())}") from error


def _with_all_columns(table: pa.Table, manifest: str) -> pa.Table:
    absent = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    columns = {name: table[name] if name in table.schema.names else absent for name in MANIFEST_COLUMNS}
    texts = {name: _text_column(column, f"{name} in {manifest}") for name, column in columns.items() if name != "start_time"}
    return pa.table({**texts, "start_time": columns["start_time"]})


def _check_claims(metadata: parquet.FileMetaData, names: Collection[str], manifest: str) -> dict[str, set[str]]:
    """Refuse a file that is too large by what it says of itself, and give each column's encodings; nothing is decoded."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    places = [place for place in range(metadata.num_columns) if metadata.schema.column(place).path in names]
    chunks = [group.column(place) for group in groups for place in places]
    rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    _check_size(sum(chunk.total_uncompressed_size for chunk in chunks), manifest, rows)
    encodings: dict[str, set[str]] = {name: set() for name in names}
    for chunk in chunks:
        encodings[chunk.path_in_schema] |= set(chunk.encodings)
    return encodings


def _written_out(column: pa.Array, name: str, manifest: str) -> int:
    """Bytes of a column when each row has its own text. Raises UsageError for a text that is too long."""
    texts = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not _is_text(texts.type) or pa.types.is_null(texts.type):
        return column.nbytes
    lengths = pc.binary_length(texts.cast(pa.string())).cast(pa.int64())
    if (longest := pc.max(lengths).as_py() or 0) > _LONGEST_TEXT:
        raise UsageError(f"the column {name} of {manifest} holds a text of {longest} bytes; at most {_LONGEST_TEXT} are read")
    return pc.sum(lengths if texts is column else lengths.take(column.indices)).as_py() or 0


def _value_type(kind: pa.DataType) -> pa.DataType:
    """What the values of a column are read as: text of any kind as string, a dictionary's values as they are."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if _is_text(kind) else kind


def _check_size(size: int, manifest: str, rows: int = 0) -> None:
    if rows > MOST_ROWS or size > MOST_BYTES:
        what = (
            f"{rows} rows; at most {MOST_ROWS}" if rows > MOST_ROWS else f"{size >> 20} MiB of values; at most {MOST_BYTES >> 20}"
        )
        raise UsageError(f"the manifest {manifest} has {what} are read at once: split it into several")


def _check_type(kind: pa.DataType, name: str, manifest: str) -> None:
    kind = _value_type(kind)
    if name == "start_time":
        if not (_is_text(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            raise UsageError(f"the column start_time of {manifest} is of type {kind}; ISO 8601 text or timestamps are needed")
    elif not (_is_text(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise UsageError(f"the column {name} of {manifest} is of type {kind}; text or numbers are needed")


def _text_column(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """The column as text; whole numbers in any type become their plain digits."""
    kind = column.type
    if not pa.types.is_floating(kind) and not pa.types.is_decimal(kind):
        return column.cast(pa.string())
    encoded = pc.dictionary_encode(column.combine_chunks())
    texts = [_plain_text(value, where) for value in encoded.dictionary.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string()).take(encoded.indices)])


_Records = Iterator[tuple[str | None, ...]]


def _read_text(
    location: Location, records_of: Callable[[BinaryIO, str, set[str]], _Records], others: set[str]
) -> Iterator[pa.Table]:
    names: set[str] = set()
    rows = 0
    try:
        with location.open_input() as opened, explained("read", location.uri):
            records = records_of(io.BufferedReader(opened, _READ_BYTES), location.uri, names)
            while chunk := list(itertools.islice(records, _CHUNK_ROWS)):
                columns = [pa.array(values, pa.string()) for values in zip(*chunk, strict=True)]
                rows += len(chunk)
                _check_size(0, location.uri, rows)
                _check_header(sorted(names), location.uri)
                yield pa.table(columns, _TEXT_MANIFEST)
    except UnicodeDecodeError as error:
        raise UsageError(f"{location.uri} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    others.update(_others(sorted(names)))


def _csv_records(file: BinaryIO, manifest: str, names: set[str]) -> _Records:
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


def _json_records(file: BinaryIO, manifest: str, names: set[str]) -> _Records:
    for number, line in enumerate(file, start=1):
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        if not text.strip():
            continue
        try:
            row = json.loads(text, parse_float=Decimal)
        except (ValueError, ArithmeticError, RecursionError) as error:  # ArithmeticError: an exponent past what Decimal takes
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


def _canonical_uris(column: pa.ChunkedArray, folder: str, manifest: str, name: str, first: int) -> list[Any]:
    """Canonical uris, None where the column has none (not allowed for the column uri)."""
    uris: list[str | None] = []
    for row, text in enumerate(column.to_pylist(), start=first + 1):
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


def _check_ids(ids: pa.ChunkedArray, manifest: str, first: int) -> None:
    wrong = pc.or_(pc.greater(pc.utf8_length(ids), _LONGEST_ID), pc.match_substring_regex(ids, r"[#\p{Cc}]|^[\s\p{Z}]*$"))
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise UsageError(
            f"row {first + row + 1} of {manifest}: video_id {ids[row].as_py()[:80]!r} cannot be used: it must have 1 to "
            f"{_LONGEST_ID} characters, not only blanks, without # (which marks tracks) and control characters"
        )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)


def _utc_times(column: pa.ChunkedArray, manifest: str, first: int) -> pa.ChunkedArray:
    """timestamp[us, UTC] of ISO 8601 texts, timestamps or dates; what has no zone is UTC."""
    kind = column.type
    if _is_text(kind):
        return _parsed_times(_empty_to_null(column.cast(pa.string())), manifest, first)
    zone = getattr(kind, "tz", None)
    try:
        times = pc.cast(column, options=pc.CastOptions(pa.timestamp("us", zone), allow_time_truncate=True))
    except pa.ArrowException as error:
        raise UsageError(f"the column start_time of {manifest} holds a time out of range: {error}") from error
    times = times.cast(_TIME) if zone else pc.assume_timezone(times, "UTC")
    _check_years(times, manifest, first)
    return times


def _check_years(times: pa.ChunkedArray, manifest: str, first: int) -> None:
    # Not for the whole module: the first scalar that pyarrow makes loads pandas, also in decoders, which read no manifests.
    least, most = (pa.scalar(time.replace(tzinfo=UTC), _TIME) for time in (datetime.min, datetime.max))
    wrong = pc.or_(pc.less(times, least), pc.greater(times, most))
    if (row := pc.index(wrong, True).as_py()) >= 0:
        raise UsageError(f"row {first + row + 1} of {manifest}: start_time lies outside the years 1 to 9999")


def _by_right_clocks(times: pa.ChunkedArray, ahead: pa.ChunkedArray, manifest: str, first: int) -> pa.ChunkedArray:
    """Start times with what their clocks are ahead, float64 seconds, taken off."""
    if ahead.null_count == len(ahead):
        return times
    microseconds = pc.round(pc.multiply(pc.fill_null(ahead, 0.0), 1e6)).cast(pa.int64())
    moved = pc.subtract(times.cast(pa.int64()), microseconds).cast(_TIME)
    _check_years(moved, manifest, first)
    return moved


def _parsed_times(texts: pa.ChunkedArray, manifest: str, first: int) -> pa.ChunkedArray:
    encoded = pc.dictionary_encode(texts.combine_chunks())
    times = []
    for text in encoded.dictionary.to_pylist():
        try:
            time = datetime.fromisoformat(text)
            times.append(time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC))
        except (ValueError, OverflowError) as error:
            row = first + pc.index(texts, text).as_py() + 1
            raise UsageError(
                f"row {row} of {manifest}: start_time {text[:80]!r} is not an ISO 8601 time such as 2026-05-01T12:00:00Z"
            ) from error
    return pa.chunked_array([pa.array(times, _TIME).take(encoded.indices)])


def _frame_rates(texts: pa.ChunkedArray, manifest: str, first: int) -> pa.ChunkedArray:
    """float64 of texts that are positive numbers below 1000."""

    def is_one(text: str) -> bool:
        return bool(_NUMBER.fullmatch(text)) and 0 < float(text) < 1000

    return _numbers(
        texts, is_one, f"of {manifest}: frame_rate", "is not a number of frames a second above 0 and below 1000", first
    )


def _clock_offsets(texts: pa.ChunkedArray, manifest: str, first: int) -> pa.ChunkedArray:
    """float64 of texts that are seconds by which a clock may be wrong."""

    def is_one(text: str) -> bool:
        return bool(_SIGNED.fullmatch(text)) and abs(float(text)) <= LARGEST_OFFSET

    return _numbers(texts, is_one, f"of {manifest}: clock_offset", "is no number of seconds that a clock is wrong by", first)


def _numbers(texts: pa.ChunkedArray, is_one: Callable[[str], bool], what: str, not_one: str, first: int) -> pa.ChunkedArray:
    """float64 of texts. is_one: of one without blanks around it. Raises UsageError that names the row of one that is none."""
    encoded = pc.dictionary_encode(texts.combine_chunks())
    numbers = []
    for text in encoded.dictionary.to_pylist():
        if not is_one(text.strip()):
            row = first + pc.index(texts, text).as_py() + 1
            raise UsageError(f"row {row} {what} {text[:80]!r} {not_one}")
        numbers.append(float(text))
    return pa.chunked_array([pa.array(numbers, pa.float64()).take(encoded.indices)])
