"""Checkpoints of a gallery's log: what its commits up to some number say together, in a few parts.

    checkpoints/0000000001.json  the number, and the parts: documents like a commit's, with their tables in files

Parts are like those of a log-structured merge tree: each stands for at least PART_RATIO times the rows of the next, so there are
few of them and a row is rewritten a few times only. Slots are won one after another, as the numbers of commits are: so each
checkpoint follows from the one before it, and none names a file that another one has done without.
"""

from collections.abc import Collection, Iterable
from typing import Any

from pipeline.errors import PipelineError
from pipeline.gallery.entries import COMMIT_FORMAT, NUMBERED, files_of, read_document, read_entry, written
from pipeline.gallery.state import Entry, merged
from pipeline.gallery.tables import TABLES
from pipeline.storage.location import Location
from pipeline.storage.seals import sealed

PART_RATIO = 4


class Checkpoints:
    """Those of the gallery at a location."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def newest(self) -> int:
        """The newest one's slot, 0 without any."""
        return max((int(name[:10]) for name in self._names()), default=0)

    def read(self, slot: int) -> dict[str, Any]:
        """The document in a slot; in slot 0, that of no commits. Raises PipelineError where it is damaged."""
        if slot == 0:
            return {"number": 0, "parts": [], "dropped": []}
        document = read_document(self._file(slot), "the checkpoint")
        if missing := {"number", "parts", "dropped"} - document.keys():
            raise PipelineError(f"the checkpoint {self._file(slot).uri} is damaged: it lacks {', '.join(sorted(missing))}")
        return document

    def entry(self, slot: int, part: dict[str, Any], kinds: Collection[str] = tuple(TABLES)) -> Entry:
        """What a part of the checkpoint in a slot says; see `entries.read_entry`."""
        return read_entry(self.location, part, f"checkpoint {slot}", kinds)

    def follow(self, slot: int, former: dict[str, Any], commits: list[dict[str, Any]], entries: list[Entry], whole: bool) -> bool:
        """Write the one after a slot: commits are merged into the last parts of the former; whole: all into one part.

        former: the document in the slot; entries: what the commits say. False: another one came first. What the former one needed
        stays until the next one, for whoever reads at this moment.
        """
        parts, entries = list(former["parts"]), list(entries)
        number = former["number"] + len(commits)
        if number == 0 or (not commits and (not whole or len(parts) == 1)):
            return True
        rows = sum(entry.rows for entry in entries)
        while parts and (whole or parts[-1]["size"] < PART_RATIO * rows):
            part = parts.pop()
            rows += part["size"]
            entries.insert(0, self.entry(slot, part))
        entry = merged(entries, first=not parts)
        stale = sorted({*entry.document.get("stale", ()), *files_of(commits)})
        part = {"format": COMMIT_FORMAT, **entry.document, "stale": stale, "size": entry.rows}
        part |= written(self.location, dict(entry.tables), inline=0)
        dropped = sorted(files_of(former["parts"]) - files_of(parts))
        document = {"format": COMMIT_FORMAT, "number": number, "parts": [*parts, part], "dropped": dropped}
        won = self._file(slot + 1).create(sealed(document))
        self.remove_older(slot, former["dropped"] if won else files_of([part]))
        return won

    def remove_older(self, slot: int, files: Iterable[str]) -> None:
        """Remove those before a slot, and files that only they needed."""
        for name in self._names():
            if name < self._file(slot).name:
                self.location.join("checkpoints", name).delete()
        for file in files:
            self.location.join(file).delete()

    def _file(self, slot: int) -> Location:
        return self.location.join("checkpoints", f"{slot:010d}.json")

    def _names(self) -> list[str]:
        return [name for name in self.location.join("checkpoints").names() if NUMBERED.fullmatch(name)]
