"""Exports of cases: packages that are made in the background, recorded, and kept for a while to be taken away."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from pipeline.errors import PipelineError
from pipeline.service.access import Token
from pipeline.service.casebook import Case, Casebook, ConflictError, NotNowError
from pipeline.service.work import BusyError, Job, Jobs, Kind
from pipeline.storage.hashing import file_sha256

KEPT = 8  # the newest, of all people
WAITING = 4


@dataclass(kw_only=True, eq=False)
class Export(Job):
    """A package of a case. folder: in which its zip lies; sha256: of the zip, bytes: its size, once it is done."""

    kind: ClassVar[Kind] = "export"
    case: Case
    folder: Path
    sha256: str | None = None
    bytes: int | None = None

    @property
    def path(self) -> Path:
        return self.folder / f"{self.job_id}.zip"

    @property
    def about(self) -> str:
        return self.case.name

    @property
    def address(self) -> str:
        return f"/cases/{self.case.name}/exports/{self.job_id}"

    def fields(self) -> dict[str, Any]:
        return {"case": self.case.name, "export": self.job_id}

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


class Exports(Jobs[Export]):
    """The newest exports of a service, made one after the other. casebook: where they are recorded."""

    def __init__(self, casebook: Casebook) -> None:
        super().__init__("export", 1, KEPT)
        self.casebook = casebook

    @cached_property
    def folder(self) -> Path:
        """Where they lie; nobody else may look into it."""
        return Path(tempfile.mkdtemp(prefix="resight-exports-"))

    def check(self, case: Case, asking: Token) -> None:
        """Raise NotNowError where this person may still confirm what an export shows."""
        if any(one.hidden_from(asking) for one in case.judged.values()):
            raise NotNowError("an export shows what others decided; confirm the leads that wait for you first")

    def begin(self, case: Case, asking: Token, reason: str | None, write: Callable[[Export], dict[str, str]]) -> Export:
        """Make a package by `write`, which gives the hashes of its files; it is there once the record of it is written.

        Raises BusyError where others wait.
        """

        def room(waiting: list[Export]) -> None:
            if len(waiting) >= WAITING:
                raise BusyError(f"{WAITING} exports are being made already; try again when one is done")

        def work() -> Callable[[], None]:
            try:
                files = write(made)
                with made.path.open("rb") as opened:
                    digest = file_sha256(opened)
            except OSError as error:
                raise PipelineError(str(error)) from error
            said = {"export": made.job_id, "reason": reason, "files": files, "package_sha256": digest}
            return lambda: self._hold(made, asking, said)

        made = Export(person=asking.person, gallery=case.gallery, gallery_name=case.gallery_name, case=case, folder=self.folder)
        return self.queue(made, work, room)

    def of(self, case: Case, export_id: str) -> Export | None:
        """An export of the case; None for what is gone, and for one that shows somebody who was forgotten since."""
        found = self.known(export_id)
        if found is None or (found.case.gallery, found.case.name) != (case.gallery, case.name):
            return None
        if not found.case.shown.isdisjoint(case.gallery.snapshot().forgotten):
            found.discard()
            return None
        return found

    def all_of(self, case: Case) -> list[Export]:
        """Those of the case that are there or being made, of all people, the newest first."""
        return [one for made in self.all() if (one := self.of(case, made.job_id)) is not None]

    def close(self) -> None:
        """Make nothing more, and remove all of them."""
        super().close()
        if "folder" in vars(self):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _hold(self, made: Export, asking: Token, said: dict[str, Any]) -> None:
        try:
            made.bytes = made.path.stat().st_size
            self.casebook.exported(made.case, asking, said)
        except (ConflictError, OSError) as error:
            raise PipelineError(str(error)) from error
        made.sha256 = said["package_sha256"]
