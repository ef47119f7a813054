"""The log of a gallery: commits in one order, and checkpoints that stand for many of them.

    commits/0000000001.json      one commit: a JSON document with its rows, or, where they are many, with the names of their files
    checkpoints/0000000001.json  what the commits up to some number say together, in a few parts

A commit has happened when its file is there. Its number is won by a single conditional write (`Location.create`): who finds it
taken reads the newcomer and tries the next one, so there are no gaps, and the numbers are the order, whatever clocks say. A
number is never free again: a compaction empties the files of old commits and leaves them.

Who wins a multiple of CHECKPOINT_COMMITS merges what came since the last checkpoint. Parts are like those of a log-structured
merge tree: each stands for at least PART_RATIO times the rows of the next, so there are few of them and a row is rewritten a few
times only. To open a gallery is to list the checkpoints, to read the newest one with its parts, and to ask for the numbers after
it until one is missing, several at a time.

Galleries of older versions have commits that are named by time, and read as a set (`_old_order`). The first commit of this
version adopts them: it names those that count, in their order. One that an older version writes afterwards is not in the log.
"""

import logging
import re
import uuid
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import PipelineError
from pipeline.gallery.forgotten import Forgotten
from pipeline.gallery.state import Entry, known_files, merged
from pipeline.gallery.tables import TABLES
from pipeline.storage.formats import check_format
from pipeline.storage.hashing import sha256
from pipeline.storage.location import Location, StorageError
from pipeline.storage.seals import sealed, unsealed

OLDEST_COMMIT, COMMIT_FORMAT = 1, 3  # 3: in the log
CHECKPOINT_COMMITS = 8
PART_RATIO = 4
INLINE_ROWS = 256  # of a table in a commit's own document
AT_ONCE = 8  # requests
READ_TRIES = 5
EMPTIED = "emptied"  # kind of a commit of which only the number is left

_COMMIT = re.compile(r"\d{10}\.json")
_OLD_COMMIT = re.compile(r"(\d{20}-[0-9a-f]{8})\.json")
_LOGGER = logging.getLogger("coattention.gallery")


class Log:
    """The log of the gallery at a location; holds no data but the number of the newest commit that it has met."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.met = 0
        self._conditional = False

    def read(self, kinds: Collection[str] = tuple(TABLES)) -> tuple[list[Entry], int | tuple[str, ...]]:
        """All entries with their tables of these kinds, oldest first, and the number of the newest commit; where an older version
        wrote all, the names of its commits. Raises PipelineError naming the file when one is missing or damaged.
        """
        for _ in range(READ_TRIES):
            slot = self.newest_checkpoint()
            try:
                return self._read(slot, kinds)
            except PipelineError as error:
                if slot == self.newest_checkpoint():
                    raise
                overtaken = error  # a compaction took files away that its checkpoint stands for
        raise overtaken

    def _read(self, slot: int, kinds: Collection[str]) -> tuple[list[Entry], int | tuple[str, ...]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            checkpoint = self._checkpoint(slot)
            parts = [pool.submit(self._entry, part, f"checkpoint {slot}", kinds) for part in checkpoint["parts"]]
            commits = self._commits(pool, checkpoint["number"])
            entries = [entry.result() for entry in parts] + self._loaded(pool, commits, kinds)
            if number := checkpoint["number"] + len(commits):
                return entries, number
            names = self.old_names()
            return self._loaded(pool, _old_order(self._old_documents(pool, names)), kinds), tuple(names) or 0

    def since(self, position: int | Collection[str], kinds: Collection[str] = tuple(TABLES)) -> list[Entry]:
        """Entries after a position that `read` gave, and perhaps older ones; only those tables of them."""
        if isinstance(position, int) and position:
            if not self.has(position + 1):
                return []
            if position >= self.checkpointed():
                with ThreadPoolExecutor(AT_ONCE) as pool:
                    return self._loaded(pool, self._commits(pool, position), kinds)
        elif not isinstance(position, int) and not self.has(1):
            names = [name for name in self.old_names() if name not in position]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return self._loaded(pool, list(self._old_documents(pool, names).values()), kinds)
        return self.read(kinds)[0]  # of commits that a checkpoint stands for nothing else may be left

    def is_newest(self, position: int | Collection[str]) -> bool:
        """Whether nothing was committed after it."""
        if isinstance(position, int):
            return not self.has(position + 1) and (position > 0 or not self.old_names())
        return set(self.old_names()) <= set(position) and not self.has(1)

    def has(self, number: int) -> bool:
        return self._file(number).exists()

    def head(self) -> int:
        """Number of the newest commit, 0 without any."""
        if not self.met or self.has(self.met + 1) or not self.has(self.met):  # the last: somebody took the file away
            self.met = self.checkpointed()
            while self.has(self.met + 1):
                self.met += 1
        return self.met

    def append(self, document: dict[str, Any], tables: dict[str, pa.Table], checked: int | None = None) -> int:
        """Commit a document and tables (of TABLES); returns the number.

        checked: position up to which the shards that the rows name were seen to be there. Raises PipelineError where one is to be
        deleted since, and where the store knows no conditional write; StorageError.
        """
        self._check_conditional()
        full = {"format": COMMIT_FORMAT, **document, **self._written(tables)}
        named = known_files([Entry(document, tables)])
        number = (self.head() if checked is None else checked) + 1
        if number == 1:
            number += self.adopt()
        while True:
            full |= {"number": number, "committed_at": datetime.now(UTC).isoformat()}
            if self._file(number).create(sealed(full)):
                break
            newcomer = self._document(self._file(number))
            gone = named.intersection(newcomer.get("retired", ()))
            if newcomer.get("kind") == EMPTIED:  # and perhaps more of them: what is known now counts
                number = self.head()
                retired = {file for entry in self.read([])[0] for file in entry.document.get("retired", ())}
                gone = {name for name in named if name in retired or not self.location.join(name).exists()}
            if gone:
                raise PipelineError(f"{min(gone)} went away before it was committed; run the ingest again")
            number += 1
        self.met = max(self.met, number)
        if number % CHECKPOINT_COMMITS == 0 and tables:
            self._try_checkpoint()
        return number

    def adopt(self) -> bool:
        """Take commits into the log that an older version wrote; returns whether there were any.

        What they name, and they themselves, can be deleted from then on.
        """
        number = self.head() + 1  # of which nobody else knows more
        with ThreadPoolExecutor(AT_ONCE) as pool:
            names = self.strays() if number > 1 else self.old_names()
            if not names:
                return False
            documents = self._old_documents(pool, names)
            counting = _old_order(documents)
            replaced = [one for one in documents.values() if all(one is not other for other in counting)]
            files = {f"commits/{name}.json" for name in names}
            files |= _files(documents.values())
            files |= known_files(self._loaded(pool, replaced)) - known_files(self._loaded(pool, counting))
        order = [name for one in counting for name in names if documents[name] is one]
        document = {"format": COMMIT_FORMAT, "kind": "adopt", "adopted": order, "stale": sorted(files)}
        document |= {"rows": {}, "tables": {}, "committed_at": datetime.now(UTC).isoformat()}
        if not self._file(number).create(sealed({**document, "number": number, "changed": number})):
            return self.adopt()  # somebody else did, or committed
        self.met = number
        self._try_checkpoint()
        return True

    def old_names(self) -> list[str]:
        """Names of commits of older versions, oldest first by their writers' clocks."""
        matches = map(_OLD_COMMIT.fullmatch, self.location.join("commits").names())
        return [match[1] for match in matches if match]

    def checkpoint(self, *, whole: bool = False) -> bool:
        """Merge what came since the newest checkpoint into its last parts; whole: into one part. False: another one came first.

        What the former checkpoint needed stays until the next one, for whoever reads at this moment.
        """
        slot = self.newest_checkpoint()
        former = self._checkpoint(slot)
        parts: list[dict[str, Any]] = list(former["parts"])
        with ThreadPoolExecutor(AT_ONCE) as pool:
            commits = self._commits(pool, former["number"])
            entries = self._loaded(pool, commits)
        number = former["number"] + len(commits)
        if number == 0 or (not commits and (not whole or len(parts) == 1)):
            return True
        rows = sum(entry.rows for entry in entries)
        while parts and (whole or parts[-1]["size"] < PART_RATIO * rows):
            part = parts.pop()
            rows += part["size"]
            entries.insert(0, self._entry(part, f"checkpoint {slot}"))
        entry = merged(entries, first=not parts)
        stale = sorted({*entry.document.get("stale", ()), *_files(commits)})
        part = {"format": COMMIT_FORMAT, **entry.document, "stale": stale, "size": entry.rows}
        part |= self._written(dict(entry.tables), inline=0)
        dropped = sorted(_files(former["parts"]) - _files(parts))
        document = {"format": COMMIT_FORMAT, "number": number, "parts": [*parts, part], "dropped": dropped}
        won = self._slot(slot + 1).create(sealed(document))
        self._remove_older(slot, former["dropped"] if won else _files([part]))
        return won

    def _try_checkpoint(self) -> None:
        try:
            self.checkpoint()
        except PipelineError as error:  # the commit stands, and the next writer's checkpoint has it
            _LOGGER.warning("no checkpoint was written: %s", error)

    def is_whole(self) -> bool:
        """Whether the newest checkpoint is one part, and no commit since brought rows of any kind."""
        checkpoint = self._checkpoint(self.newest_checkpoint())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            later = self._commits(pool, checkpoint["number"])
        return len(checkpoint["parts"]) < 2 and not any(one["rows"] or one["tables"] for one in later)

    def files(self) -> set[str]:
        """Names of the files of rows that the newest checkpoint and the commits after it need, or did until lately."""
        checkpoint = self._checkpoint(self.newest_checkpoint())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {*checkpoint["dropped"], *_files([*checkpoint["parts"], *self._commits(pool, checkpoint["number"])])}

    def strays(self) -> list[str]:
        """Names of commits that an older version wrote after the log had begun, and that are not in it."""
        if not self.head():
            return []
        entries, _ = self.read([])
        known = {file for entry in entries for kind in ("stale", "deleted") for file in entry.document.get(kind, ())}
        return [name for name in self.old_names() if f"commits/{name}.json" not in known]

    def missing(self) -> list[int]:
        """Numbers without a commit before others that have one: somebody took the file away, and nobody sees what came later."""
        numbers = {int(name[:10]) for name in self.location.join("commits").names() if _COMMIT.fullmatch(name)}
        return sorted(set(range(1, max(numbers, default=0) + 1)) - numbers)

    def forget_history(self, emptied: int) -> int:
        """Keep of all that the newest checkpoint stands for only the checkpoint; returns up to which number there is no more.

        emptied: the number that this gave the last time. The commits' own files of rows are stale in the checkpoint.
        """
        slot = self.newest_checkpoint()
        checkpoint = self._checkpoint(slot)
        document = sealed({"format": COMMIT_FORMAT, "kind": EMPTIED})
        numbers = range(emptied + 1, checkpoint["number"] + 1)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda number: self._file(number).write_atomically(document), numbers))
        self._remove_older(slot, checkpoint["dropped"])
        return checkpoint["number"]

    def _remove_older(self, slot: int, files: Iterable[str]) -> None:
        """Remove checkpoints before a slot, and files that only they needed."""
        for name in self._checkpoint_names():
            if name < self._slot(slot).name:
                self.location.join("checkpoints", name).delete()
        self._delete(files)

    def _delete(self, files: Iterable[str]) -> None:
        for file in files:
            self.location.join(file).delete()

    def _check_conditional(self) -> None:
        """Raise PipelineError where the store writes over what is there though it is asked not to."""
        if not self._conditional:
            settings = self.location.join("gallery.json")
            if not self.location.is_local and not settings.keeps_existing(settings.read_bytes()):
                raise PipelineError(
                    f"the store of {self.location.uri} does not know conditional writes (If-None-Match), so two writers could "
                    "undo each other; keep the gallery in a store that does, or on a disk"
                )
            self._conditional = True

    def _file(self, number: int) -> Location:
        return self.location.join("commits", f"{number:010d}.json")

    def _slot(self, slot: int) -> Location:
        return self.location.join("checkpoints", f"{slot:010d}.json")

    def _checkpoint_names(self) -> list[str]:
        return [name for name in self.location.join("checkpoints").names() if _COMMIT.fullmatch(name)]

    def newest_checkpoint(self) -> int:
        """Its slot, 0 without any. Slots are won one after another, as the numbers of commits are: so each checkpoint follows
        from the one before it, and none names a file that another one has done without.
        """
        return max((int(name[:10]) for name in self._checkpoint_names()), default=0)

    def checkpointed(self) -> int:
        """Number of the last commit that the newest checkpoint stands for."""
        return int(self._checkpoint(self.newest_checkpoint())["number"])

    def _checkpoint(self, slot: int) -> dict[str, Any]:
        """The document in a slot; in slot 0, that of no commits."""
        if slot == 0:
            return {"number": 0, "parts": [], "dropped": []}
        document = self._document(self._slot(slot), "the checkpoint")
        if missing := {"number", "parts", "dropped"} - document.keys():
            raise PipelineError(f"the checkpoint {self._slot(slot).uri} is damaged: it lacks {', '.join(sorted(missing))}")
        return document

    def _commit(self, number: int) -> dict[str, Any]:
        """The document of a commit. Raises PipelineError for one that was emptied, StorageError where there is none."""
        document = self._document(self._file(number))
        if document.get("kind") == EMPTIED:
            raise PipelineError(
                f"the commit {number} of {self.location.uri} was folded into a checkpoint meanwhile; run it again"
            )
        if document.get("number") != number:
            raise PipelineError(f"the commit {self._file(number).uri} is damaged: its number is {document.get('number')!r}")
        return document

    def _document(self, file: Location, what: str = "the commit") -> dict[str, Any]:
        content = file.read_bytes()
        try:
            document = unsealed(content)
            check_format(f"{what} {file.uri}", document.get("format", 1), OLDEST_COMMIT, COMMIT_FORMAT, "ingest its videos anew")
        except (ValueError, KeyError, TypeError) as error:
            raise PipelineError(f"{what} {file.uri} is damaged: {error}") from error
        return document

    def _commits(self, pool: ThreadPoolExecutor, start: int) -> list[dict[str, Any]]:
        """Documents of the commits after a number, in their order, asked for AT_ONCE at a time until one is missing."""
        found: list[dict[str, Any]] = []
        size = 1 if self.location.is_local else AT_ONCE
        while True:
            asked = range(start + len(found) + 1, start + len(found) + 1 + size)
            for document in list(pool.map(self._commit_or_none, asked)):
                if document is None:
                    self.met = max(self.met, start + len(found))
                    return found
                found.append(document)
            size = AT_ONCE

    def _commit_or_none(self, number: int) -> dict[str, Any] | None:
        try:
            return self._commit(number)
        except StorageError as error:
            if error.kind != "missing":
                raise
            return None

    def _loaded(
        self, pool: ThreadPoolExecutor, documents: Iterable[dict[str, Any]], kinds: Collection[str] = tuple(TABLES)
    ) -> list[Entry]:
        """The entries of documents, in place of an adoption those that it names."""
        futures: list[Future[Entry]] = []
        for document in documents:
            if adopted := document.get("adopted"):
                old = self._old_documents(pool, adopted)
                futures += [pool.submit(self._entry, old[name], name, kinds) for name in adopted]
            futures.append(pool.submit(self._entry, document, f"commit {document.get('number')}", kinds))
        return [future.result() for future in futures]

    def _entry(self, document: dict[str, Any], what: str, kinds: Collection[str] = tuple(TABLES)) -> Entry:
        """An entry with its tables. what: of which it is, for the sentence of an error."""
        tables: dict[str, pa.Table] = {}
        try:
            for kind in kinds:
                if rows := document.get("rows", {}).get(kind):
                    tables[kind] = _from_rows(rows, TABLES[kind])
                for name in _named_tables(document).get(kind, ()):
                    table = self._table(name, document.get("sha256", {}).get(name), TABLES[kind])
                    tables[kind] = pa.concat_tables([tables[kind], table]) if kind in tables else table
        except (ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
            raise PipelineError(f"{what} of {self.location.uri} is damaged: {error}") from error
        return _modern(document, tables)

    def _table(self, name: str, expected: str | None, schema: pa.Schema) -> pa.Table:
        """Rows of a file. expected: its sha256; None: commits of the first version have none."""
        location = self.location.join(name)
        try:
            content = location.read_bytes()
            if expected is not None and sha256(content) != expected:
                raise ValueError("its checksum differs")
            return pq.read_table(pa.BufferReader(content), schema=schema)
        except (OSError, ValueError, pa.ArrowException, StorageError) as error:
            raise PipelineError(f"{location.uri} is committed but cannot be read: {error}") from error

    def _written(self, tables: dict[str, pa.Table], inline: int = INLINE_ROWS) -> dict[str, Any]:
        """Entries of a document that hold the tables; those with more rows than `inline` are written to files of their own."""
        rows: dict[str, Any] = {}
        named: dict[str, list[str]] = {}
        sums: dict[str, str] = {}
        for kind, table in tables.items():
            if len(table) <= inline:
                rows[kind] = _to_rows(table)
                continue
            name = f"{kind}/{uuid.uuid4().hex}.parquet"
            pq.write_table(table, sink := pa.BufferOutputStream(), compression="zstd")
            content = sink.getvalue().to_pybytes()
            self.location.join(name).write_atomically(content)
            named[kind], sums[name] = [name], sha256(content)
        return {"rows": rows, "tables": named, "sha256": sums}

    def _old_documents(self, pool: ThreadPoolExecutor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Commits of older versions: name -> document."""
        files = [self.location.join("commits", f"{name}.json") for name in names]
        documents = list(pool.map(self._document, files))
        for file, document in zip(files, documents, strict=True):
            if not all(isinstance(document.get(kind), list) for kind in ("videos", "rejects")):
                raise PipelineError(f"the commit {file.uri} is damaged: it does not list its tables")
        return dict(zip(names, documents, strict=True))


def _old_order(documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Commits of older versions that count, in the order in which they do: compactions first, then by name.

    A compaction said what was so when it began: whatever it does not supersede is newer, and so is what began later.
    """
    superseded = {name for document in documents.values() for name in document.get("supersedes", ())}

    def order(item: tuple[str, dict[str, Any]]) -> tuple[bool, str, str]:
        compaction = item[1].get("kind") == "compact"
        return not compaction, max(item[1].get("supersedes", ()), default="") if compaction else "", item[0]

    return [document for name, document in sorted(documents.items(), key=order) if name not in superseded]


def _named_tables(document: dict[str, Any]) -> dict[str, list[str]]:
    """Kind of TABLES -> names of the files that hold its rows."""
    if document.get("format", 1) >= COMMIT_FORMAT:
        return document.get("tables", {})
    named = {kind: document[kind] for kind in ("videos", "rejects", "recordings", "forgotten_boxes") if document.get(kind)}
    if document.get("kind") == "correct" and "videos" in named:
        named["corrections"] = named.pop("videos")
    return named


def _files(documents: Iterable[dict[str, Any]]) -> set[str]:
    """The files that hold rows of documents."""
    return {file for document in documents for files in _named_tables(document).values() for file in files}


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
