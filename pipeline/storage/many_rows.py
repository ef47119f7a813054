"""Tables of any number of rows: a few in memory, many in a mapped file of the temporary folder, which goes with the table."""

import contextlib
import ctypes
import functools
import mmap
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.storage.faults import explained

IN_MEMORY = 200_000  # rows of a gathered table that are not written to disk
STEP_ROWS = 200_000  # that are worked on at a time
SOUGHT_ROWS = 1_000_000  # that are looked through at a time: each time begins with a table of what is sought

_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_mapping = threading.Lock()


class Gathering:
    """A table that comes in parts. Raises StorageError where the temporary folder has no room for it."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.rows = schema, 0
        self._parts: list[pa.Table] = []
        self._file: IO[bytes] | None = None
        self._writer: pa.RecordBatchFileWriter | None = None

    def add(self, part: pa.Table) -> None:
        """Add rows of the schema."""
        self.rows += len(part)
        self._parts.append(part)
        if self._writer is not None or self.rows > IN_MEMORY:
            self._write()

    def table(self) -> pa.Table:
        """All rows that were added; no more are taken."""
        if self._writer is None or self._file is None:
            return pa.concat_tables([self.schema.empty_table(), *self._parts])
        with explained("write", tempfile.gettempdir()):
            self._writer.close()
            self._file.flush()
            mapped = mmap.mmap(self._file.fileno(), 0, prot=mmap.PROT_READ)
            self._file.close()
        with _mapping:
            _mapped.add(mapped)
        return pa.ipc.open_file(pa.py_buffer(mapped)).read_all()

    def _write(self) -> None:
        with explained("write", tempfile.gettempdir()):
            if self._writer is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - without a name: it goes with the process
                self._writer = pa.ipc.new_file(self._file, self.schema)
            for part in self._parts:
                self._writer.write_table(part)
        self._parts.clear()


def gathered(parts: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """The parts as one table, see `Gathering`."""
    gathering = Gathering(schema)
    for part in parts:
        gathering.add(part)
    return gathering.table()


def steps(table: pa.Table, rows: int = STEP_ROWS) -> Iterator[pa.Table]:
    """The table in slices. With each, all pages of mapped tables leave this process; the system may keep them. So does what
    Arrow has freed.
    """
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
        if len(table) > rows:
            pa.default_memory_pool().release_unused()
        with _mapping:
            for mapped in _mapped:
                mapped.madvise(mmap.MADV_DONTNEED)


def filtered(table: pa.Table, mask: np.ndarray) -> pa.Table:
    """The rows of which the mask (bool [n]) is true; the table itself where that is all of them."""
    if mask.all():
        return table
    if len(table) <= IN_MEMORY:
        return table.filter(pa.array(mask))
    numbers = np.arange(0, len(table), STEP_ROWS)
    parts = zip(numbers, steps(table, STEP_ROWS), strict=True)
    return gathered((part.filter(pa.array(mask[at : at + len(part)])) for at, part in parts), table.schema)


def holding(table: pa.Table, **values: pa.Array) -> pa.Table:
    """The rows that hold in one of these columns one of its values."""

    def of_part(part: pa.Table) -> pa.Table:
        return part.filter(functools.reduce(pc.or_, (pc.is_in(part[name], wanted) for name, wanted in values.items())))

    return gathered(map(of_part, steps(table, SOUGHT_ROWS)), table.schema)


def sorted_by(table: pa.Table, column: str) -> pa.Table:
    """The rows in the order of a column."""
    if len(table) <= IN_MEMORY:
        return table.sort_by(column)
    order = np.asarray(pc.sort_indices(table, [(column, "ascending")]))
    batches = table.to_batches()
    starts = np.cumsum([0, *map(len, batches)])
    turns = steps(pa.table({"row": order}), STEP_ROWS)
    return gathered((_taken(batches, starts, np.asarray(turn["row"])) for turn in turns), table.schema)


def _taken(batches: list[pa.RecordBatch], starts: np.ndarray, rows: np.ndarray) -> pa.Table:
    """Rows of batches by their numbers. pyarrow's `take` first copies all batches into one.

    starts: int64 [b + 1], of each batch its first row's number, and the number of all rows.
    """
    order = np.argsort(rows, kind="stable")
    ascending = rows[order].astype(np.int64)
    cuts = np.searchsorted(ascending, starts)
    spans = zip(batches, starts[:-1], cuts[:-1], cuts[1:], strict=True)
    parts = [batch.take(pa.array(ascending[a:b] - start)) for batch, start, a, b in spans if b > a]
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return pa.Table.from_batches(parts).combine_chunks().take(pa.array(back))


def release_memory() -> None:
    """Give back what allocators keep of memory that is free again. After much coming and going that is most of what a process
    seems to hold, and it grows.
    """
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(OSError, AttributeError):  # of the GNU C library alone
        ctypes.CDLL(None).malloc_trim(0)
