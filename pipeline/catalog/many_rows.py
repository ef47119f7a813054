"""Tables of any number of rows: a few in memory, many in a mapped file of the temporary folder, which goes with the table."""

import mmap
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import IO

import pyarrow as pa

from pipeline.storage.faults import explained

IN_MEMORY = 200_000  # rows of a gathered table that are not written to disk
STEP_ROWS = 200_000  # that are worked on at a time

_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


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
        if self._writer is not None or sum(map(len, self._parts)) > IN_MEMORY:
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
    """The table in slices. With each, all pages of mapped tables leave this process; the system may keep them."""
    for start in range(0, len(table), rows):
        yield table.slice(start, rows)
        for mapped in list(_mapped):
            mapped.madvise(mmap.MADV_DONTNEED)
