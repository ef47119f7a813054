"""The log of a gallery: commits in one order, and checkpoints that stand for many of them.

    commits/0000000001.json      one commit: a JSON document with its rows, or, where they are many, with the names of their files
    checkpoints/0000000001.json  what the commits up to some number say together (`pipeline.gallery.checkpoints`)

A commit has happened when its file is there. Its number is won by a single conditional write (`Location.create`): who finds it
taken reads the newcomer and tries the next one, so there are no gaps, and the numbers are the order, whatever clocks say. A
number is never free again: a compaction empties the files of old commits and leaves them.

Who wins a multiple of CHECKPOINT_COMMITS merges what came since the last checkpoint. To open a gallery is to list the
checkpoints, to read the newest one with its parts, and to ask for the numbers after it until one is missing, several at a time.

Galleries of older versions have commits that are named by time, and read as a set (`_old_order`). The first commit of this
version adopts them: it names those that count, in their order. One that an older version writes afterwards is not in the log.
"""

import logging
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.gallery.checkpoints import Checkpoints
from pipeline.gallery.entries import COMMIT_FORMAT, NUMBERED, files_of, read_document, read_entry, written
from pipeline.gallery.state import Entry, known_files
from pipeline.gallery.tables import TABLES
from pipeline.storage.faults import StorageError
from pipeline.storage.location import Location
from pipeline.storage.seals import sealed

CHECKPOINT_COMMITS = 8
AT_ONCE = 8  # requests
READ_TRIES = 5
EMPTIED = "emptied"  # kind of a commit of which only the number is left

_OLD_COMMIT = re.compile(r"(\d{20}-[0-9a-f]{8})\.json")
_LOGGER = logging.getLogger("coattention.gallery")


class Log:
    """The log of the gallery at a location; holds no data but the number of the newest commit that it has met."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.checkpoints = Checkpoints(location)
        self.met = 0
        self._conditional = False

    def read(self, kinds: Collection[str] = tuple(TABLES)) -> tuple[list[Entry], int | tuple[str, ...]]:
        """All entries with their tables of these kinds, oldest first, and the number of the newest commit; where an older version
        wrote all, the names of its commits. Raises PipelineError naming the file when one is missing or damaged.
        """
        for _ in range(READ_TRIES):
            slot = self.checkpoints.newest()
            try:
                return self._read(slot, kinds)
            except PipelineError as error:
                if slot == self.checkpoints.newest():
                    raise
                overtaken = error  # a compaction took files away that its checkpoint stands for
        raise overtaken

    def _read(self, slot: int, kinds: Collection[str]) -> tuple[list[Entry], int | tuple[str, ...]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            checkpoint = self.checkpoints.read(slot)
            parts = [pool.submit(self.checkpoints.entry, slot, part, kinds) for part in checkpoint["parts"]]
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
        full = {"format": COMMIT_FORMAT, **document, **written(self.location, tables)}
        named = known_files([Entry(document, tables)])
        number = (self.head() if checked is None else checked) + 1
        if number == 1:
            number += self.adopt()
        while True:
            full |= {"number": number, "committed_at": datetime.now(UTC).isoformat()}
            if self._file(number).create(sealed(full)):
                break
            newcomer = read_document(self._file(number))
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
            files |= files_of(documents.values())
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
        """Write a checkpoint of what came since the newest one; whole: of one part. False: another one came first."""
        slot = self.checkpoints.newest()
        former = self.checkpoints.read(slot)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            commits = self._commits(pool, former["number"])
            entries = self._loaded(pool, commits)
        return self.checkpoints.follow(slot, former, commits, entries, whole)

    def _try_checkpoint(self) -> None:
        try:
            self.checkpoint()
        except PipelineError as error:  # the commit stands, and the next writer's checkpoint has it
            _LOGGER.warning("no checkpoint was written: %s", error)

    def is_whole(self) -> bool:
        """Whether the newest checkpoint is one part, and no commit since brought rows of any kind."""
        checkpoint = self.checkpoints.read(self.checkpoints.newest())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            later = self._commits(pool, checkpoint["number"])
        return len(checkpoint["parts"]) < 2 and not any(one["rows"] or one["tables"] for one in later)

    def files(self) -> set[str]:
        """Names of the files of rows that the newest checkpoint and the commits after it need, or did until lately."""
        checkpoint = self.checkpoints.read(self.checkpoints.newest())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return {*checkpoint["dropped"], *files_of([*checkpoint["parts"], *self._commits(pool, checkpoint["number"])])}

    def strays(self) -> list[str]:
        """Names of commits that an older version wrote after the log had begun, and that are not in it."""
        if not self.head():
            return []
        entries, _ = self.read([])
        known = {file for entry in entries for kind in ("stale", "deleted") for file in entry.document.get(kind, ())}
        return [name for name in self.old_names() if f"commits/{name}.json" not in known]

    def missing(self) -> list[int]:
        """Numbers without a commit before others that have one: somebody took the file away, and nobody sees what came later."""
        numbers = {int(name[:10]) for name in self.location.join("commits").names() if NUMBERED.fullmatch(name)}
        return sorted(set(range(1, max(numbers, default=0) + 1)) - numbers)

    def forget_history(self, emptied: int) -> int:
        """Keep of all that the newest checkpoint stands for only the checkpoint; returns up to which number there is no more.

        emptied: the number that this gave the last time. The commits' own files of rows are stale in the checkpoint.
        """
        slot = self.checkpoints.newest()
        checkpoint = self.checkpoints.read(slot)
        document = sealed({"format": COMMIT_FORMAT, "kind": EMPTIED})
        numbers = range(emptied + 1, checkpoint["number"] + 1)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda number: self._file(number).write_atomically(document), numbers))
        self.checkpoints.remove_older(slot, checkpoint["dropped"])
        return checkpoint["number"]

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

    def checkpointed(self) -> int:
        """Number of the last commit that the newest checkpoint stands for."""
        return int(self.checkpoints.read(self.checkpoints.newest())["number"])

    def _commit(self, number: int) -> dict[str, Any]:
        """The document of a commit. Raises PipelineError for one that was emptied, StorageError where there is none."""
        document = read_document(self._file(number))
        if document.get("kind") == EMPTIED:
            raise PipelineError(
                f"the commit {number} of {self.location.uri} was folded into a checkpoint meanwhile; run it again"
            )
        if document.get("number") != number:
            raise PipelineError(f"the commit {self._file(number).uri} is damaged: its number is {document.get('number')!r}")
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
                futures += [pool.submit(read_entry, self.location, old[name], name, kinds) for name in adopted]
            futures.append(pool.submit(read_entry, self.location, document, f"commit {document.get('number')}", kinds))
        return [future.result() for future in futures]

    def _old_documents(self, pool: ThreadPoolExecutor, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Commits of older versions: name -> document."""
        files = [self.location.join("commits", f"{name}.json") for name in names]
        documents = list(pool.map(read_document, files))
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
