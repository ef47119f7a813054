"""How an entry of the log lies in files: a sealed JSON document with its rows or, where they are many, the names of files."""

import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.state import Entry
from pipeline.gallery.tables import TABLES
from pipeline.storage.faults import StorageError
from pipeline.storage.formats import check_format
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location
from pipeline.storage.many_rows import STEP_ROWS, gathered, steps
from pipeline.storage.seals import unsealed

OLDEST_COMMIT, COMMIT_FORMAT = 1, 3  # 3: in the log
INLINE_ROWS = 256  # of a table in a commit's own document
NUMBERED = re.compile(r"\d{10}\.json")  # files of commits and checkpoints


def read_document(file: Location, what: str = "the commit") -> dict[str, Any]:
    """The document in a file. what: it is, for the sentence of an error. Raises PipelineError, StorageError for none."""
    content = file.read_bytes()
    try:
        document = unsealed(content)
        check_format(f"{what} {file.uri}", document.get("format", 1), OLDEST_COMMIT, COMMIT_FORMAT, "ingest its videos anew")
    except (ValueError, KeyError, TypeError) as error:
        raise PipelineError(f"{what} {file.uri} is damaged: {error}") from error
    return document


def read_entry(location: Location, document: dict[str, Any], what: str, kinds: Collection[str] = tuple(TABLES)) -> Entry:
    """An entry with its tables of these kinds, of the gallery at a location. what: of which it is, for the sentence of an error.

    Raises PipelineError naming the file when one is missing or damaged.
    """
    tables: dict[str, pa.Table] = {}
    try:
        for kind in kinds:
            if rows := document.get("rows", {}).get(kind):
                tables[kind] = _from_rows(rows, TABLES[kind])
            for name in _named_tables(document).get(kind, ()):
                table = _read_table(location, name, document.get("sha256", {}).get(name), TABLES[kind])
                tables[kind] = pa.concat_tables([tables[kind], table]) if kind in tables else table
    except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise PipelineError(f"{what} of {location.uri} is damaged: {error}") from error
    return _modern(document, tables)


def _read_table(location: Location, name: str, expected: str | None, schema: pa.Schema) -> pa.Table:
    """Rows of a file. expected: its sha256; None: commits of the first version have none."""
    file = location.join(name)
    try:
        content = file.read_bytes()
        if expected is not None and sha256(content) != expected:
            raise ValueError("its checksum differs")
        parquet = pq.ParquetFile(pa.BufferReader(content))
        there = [name for name in schema.names if name in parquet.schema_arrow.names]
        return gathered((_with_all(batch, schema) for batch in parquet.iter_batches(STEP_ROWS, columns=there)), schema)
    except (OSError, ValueError, pa.ArrowException, StorageError) as error:
        raise PipelineError(f"{file.uri} is committed but cannot be read: {error}") from error


def _with_all(batch: pa.RecordBatch, schema: pa.Schema) -> pa.Table:
    """A batch with all columns of a schema, null where an older version did not write them."""
    there = batch.schema.names
    columns = [batch[field.name] if field.name in there else pa.nulls(len(batch), field.type) for field in schema]
    return pa.Table.from_arrays([column.cast(kind) for column, kind in zip(columns, schema.types, strict=True)], schema=schema)


def written(location: Location, tables: dict[str, pa.Table], inline: int | None = None) -> dict[str, Any]:
    """What a document says of tables, after writing those of more rows than inline (by default INLINE_ROWS) to files."""
    rows: dict[str, Any] = {}
    named: dict[str, list[str]] = {}
    sums: dict[str, str] = {}
    for kind, table in tables.items():
        if len(table) <= (INLINE_ROWS if inline is None else inline):
            rows[kind] = _to_rows(table)
            continue
        name = f"{kind}/{uuid.uuid4().hex}.parquet"
        with pq.ParquetWriter(sink := pa.BufferOutputStream(), table.schema, compression="zstd") as writer:
            for part in steps(table):
                writer.write_table(part)
        content = sink.getvalue()
        location.join(name).write_atomically(partial(_write, content))
        named[kind], sums[name] = [name], sha256(content)
    return {"rows": rows, "tables": named, "sha256": sums}


def _write(content: pa.Buffer, file: IO[bytes]) -> None:
    file.write(content)


def files_of(documents: Iterable[dict[str, Any]]) -> set[str]:
    """The files that hold rows of documents."""
    return {file for document in documents for files in _named_tables(document).values() for file in files}


def _named_tables(document: dict[str, Any]) -> dict[str, list[str]]:
    """Kind of TABLES -> names of the files that hold its rows."""
    if document.get("format", 1) >= COMMIT_FORMAT:
        return document.get("tables", {})
    named = {kind: document[kind] for kind in ("videos", "rejects", "recordings", "forgotten_boxes") if document.get(kind)}
    if document.get("kind") == "correct" and "videos" in named:
        named["corrections"] = named.pop("videos")
    return named


def _modern(document: dict[str, Any], tables: dict[str, pa.Table]) -> Entry:
    """An entry; of a commit of an older version, what it says as those of the log say it."""
    if document.get("format", 1) >= COMMIT_FORMAT:
        return Entry(document, tables)
    tracked = document.get("tracked") or {"sources": [], "runs": {}}
    gone = Forgotten.of([document]).table()
    more = {"forgotten": gone, "mentions": mentions_of_tracks(tracked["sources"])}
    said = {"changed": int(bool(document["videos"] or document["rejects"] or tracked["sources"])), "runs": tracked["runs"]}
    return Entry(said | {"committed_at": document.get("committed_at")}, tables | {k: t for k, t in more.items() if len(t)})


def mentions_of_tracks(sources: Sequence[str]) -> pa.Table:
    """MENTIONS_SCHEMA of recordings whose tracks a commit replaces, whether or not there are any."""
    return pa.Table.from_pylist([{"source_id": one, "table": "videos"} for one in sources], TABLES["mentions"])


def _to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """Rows as JSON has them: times as ISO text, without what is null."""
    times = {field.name for field in table.schema if pa.types.is_timestamp(field.type)}
    return [
        {name: value.isoformat() if name in times else value for name, value in row.items() if value is not None}
        for row in table.to_pylist()
    ]


def _from_rows(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    times = [field.name for field in schema if pa.types.is_timestamp(field.type)]
    parsed = [row | {name: datetime.fromisoformat(row[name]) for name in times if name in row} for row in rows]
    return pa.Table.from_pylist(parsed, schema=schema)
