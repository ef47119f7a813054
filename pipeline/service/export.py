"""Exports of cases: packages that are made in the background, recorded, and kept for a while to be taken away."""

import logging
import secrets
import shutil
import tempfile
import threading
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.service.access import Token
from pipeline.service.casebook import Case, Casebook, ConflictError, NotNowError
from pipeline.service.searches import BusyError
from pipeline.storage.hashing import file_sha256

KEPT = 8  # the newest, of all people
WAITING = 4
_logger = logging.getLogger("coattention.service")


@dataclass
class Export:
    """A package of a case. state: queued, running, done or failed; error: why it failed; sha256: of the zip, bytes: its size."""

    export_id: str
    case: Case
    person: str
    path: Path
    made_at: datetime
    state: str = "queued"
    error: str | None = None
    sha256: str | None = None
    bytes: int | None = None


@dataclass
class Exports:
    """The newest exports of a service, made one after the other. casebook: where they are recorded."""

    casebook: Casebook
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "export"))
    _kept: OrderedDict[str, Export] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @cached_property
    def folder(self) -> Path:
        """Where they lie; nobody else may look into it."""
        return Path(tempfile.mkdtemp(prefix="resight-exports-"))

    def check(self, case: Case, asking: Token) -> None:
        """Raise NotNowError where this person may still confirm what an export shows."""
        if any(one.hidden_from(asking) for one in case.judged.values()):
            raise NotNowError("an export shows what others decided; confirm the leads that wait for you first")

    def begin(self, case: Case, asking: Token, reason: str | None, write: Callable[[Path], dict[str, str]]) -> Export:
        """Make a package by `write`, which gives the hashes of its files; it is there once the record of it is written.

        Raises BusyError where others wait.
        """
        with self._lock:
            if sum(one.state in ("queued", "running") for one in self._kept.values()) >= WAITING:
                raise BusyError(f"{WAITING} exports are being made already; try again when one is done")
            export_id = secrets.token_urlsafe(9)
            made = Export(export_id, case, asking.person, self.folder / f"{export_id}.zip", datetime.now(UTC))
            self._kept[export_id] = made
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)[1].path.unlink(missing_ok=True)
        self._thread.submit(self._make, made, asking, reason, write)
        return made

    def of(self, case: Case, export_id: str) -> Export | None:
        """An export of the case; None for what is gone, and for one that shows somebody who was forgotten since."""
        found = self._kept.get(export_id)
        if found is None or (found.case.gallery, found.case.name) != (case.gallery, case.name):
            return None
        if not found.case.shown.isdisjoint(case.gallery.snapshot().forgotten):
            found.path.unlink(missing_ok=True)
            return None
        return found

    def close(self) -> None:
        """Make nothing more, and remove all of them; what is being made is waited for, so that its record is whole."""
        self._thread.shutdown(cancel_futures=True)
        if "folder" in vars(self):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self, export: Export, asking: Token, reason: str | None, write: Callable[[Path], dict[str, str]]) -> None:
        export.state = "running"
        try:
            files = write(export.path)
            with export.path.open("rb") as opened:
                digest = file_sha256(opened)
            said = {"export": export.export_id, "reason": reason, "files": files, "package_sha256": digest}
            self.casebook.exported(export.case, asking, said)
            export.sha256, export.bytes, export.state = digest, export.path.stat().st_size, "done"
        except (PipelineError, ConflictError, OSError) as refused:
            export.error, export.state = str(refused), "failed"
        except Exception:
            export.error, export.state = "the export failed by a fault of the program; its error output says more", "failed"
            _logger.exception("export failed", extra={"export": export.export_id})
            traceback.print_exc()
        if export.state == "failed":
            export.path.unlink(missing_ok=True)
