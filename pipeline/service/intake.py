"""Ingests as jobs: each in a process of its own (`pipeline.service.ingest_child`), which ends when its input is closed.

So a job that is cancelled, a service that ends and one that is killed end it alike: as an interrupted jobs.ingest, with all that
was committed by then, and nothing else.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.errors import PipelineError, UsageError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import Gallery
from pipeline.service.answers import IngestAsked
from pipeline.service.work import BusyError, Job, Jobs, Kind
from pipeline.storage.reach import inside_checker
from pipeline.storage.uris import canonical_uri

KEPT = 20
WAITING = 4
CHILD = (sys.executable, "-m", "pipeline.service.ingest_child")
GRACE_S = 30.0  # for an ingest to end by itself once it is told to


@dataclass(kw_only=True, eq=False)
class Ingest(Job):
    """What a person has taken into a gallery. brought: what came of it, in words."""

    kind: ClassVar[Kind] = "ingest"
    asked: IngestAsked
    brought: str | None = None
    process: "subprocess.Popen[str] | None" = None

    @property
    def about(self) -> str:
        return self.asked.source

    @property
    def address(self) -> None:
        return None

    @property
    def outcome(self) -> str | None:
        return self.brought

    def fields(self) -> dict[str, Any]:
        return {"source": self.asked.source, "detector": self.asked.detector}

    def stop(self) -> None:
        """Close the input of its process, which then ends itself; one that does not is killed, with all that it began."""
        if self.process is None or self.process.poll() is not None or self.process.stdin is None:
            return
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        last = threading.Timer(GRACE_S, _kill, (self.process,))
        last.daemon = True
        last.start()

    def run(self) -> None:
        """Take the videos in. Raises PipelineError with the sentence that it failed with."""
        gallery, asked = self.gallery.location.uri, self.asked.model_dump(exclude={"reason"})
        request = json.dumps({"gallery": gallery, "person": self.person, "asked": asked})
        with subprocess.Popen(CHILD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            with self.lock:
                self.process = process
                is_open = self.is_open
            with contextlib.suppress(OSError):  # it may have died at once
                process.stdin.write(request + "\n")  # type: ignore[union-attr] # it is a pipe
                process.stdin.flush()  # type: ignore[union-attr]
            if not is_open:
                self.stop()
            error = None
            try:
                for line in process.stdout or ():
                    said = json.loads(line)
                    self.brought, error = said.get("brought", self.brought), said.get("error", error)
                    if "stage" in said:
                        self.at(said["stage"], said["done"], said["total"])
            finally:
                self.stop()
        if error is not None:
            raise PipelineError(error)
        if process.returncode and self.is_open:
            how = f"by signal {-process.returncode}" if process.returncode < 0 else f"with code {process.returncode}"
            raise PipelineError(f"the ingest ended {how}; what it had committed stays: ask for it again to go on")


class Ingests(Jobs[Ingest]):
    """The ingests of a service, one at a time."""

    def __init__(self) -> None:
        super().__init__("ingest", 1, KEPT)

    def begin(self, gallery: Gallery, gallery_name: str, person: str, asked: IngestAsked) -> Ingest:
        """Queue an ingest, once it is on record. Raises BusyError where others wait."""
        made = Ingest(person=person, gallery=gallery, gallery_name=gallery_name, asked=asked)

        def recorded(waiting: list[Ingest]) -> None:
            if len(waiting) >= WAITING:
                raise BusyError(f"{WAITING} ingests wait already; try again when one is done", 60)
            append_record(gallery, "ingest", {**on_behalf_of(person), "job": made.job_id, **asked.model_dump()})

        return self.queue(made, made.run, recorded)


def check_source(gallery: Gallery, asked: IngestAsked) -> None:
    """Raise UsageError for a source that does not lie below the gallery's roots, and for what cannot be meant of recordings."""
    from pipeline.footage.detector_spec import detector_names
    from pipeline.footage.recordings import name_pattern, read_clocks

    if not gallery.settings.roots:
        raise UsageError(
            "this gallery has no roots, so that a source could be any file of the service: ingest by jobs.ingest; the first one "
            "says with --root FOLDER what may be taken in here"
        )
    if not asked.source.startswith("/") and "://" not in asked.source:
        raise UsageError("a source is an absolute path, or the uri of a bucket")
    if not inside_checker(gallery.settings.roots)(canonical_uri(asked.source)):
        raise UsageError(f"a source lies below {' or '.join(gallery.settings.roots)}, which this one does not")
    if asked.detector is None and (asked.pattern is not None or asked.zone != "UTC"):
        raise UsageError("a pattern and a zone are for recordings: name a detector")
    if asked.detector is not None and asked.detector not in detector_names():
        raise UsageError(f"a detector is one of {', '.join(detector_names())}")
    if asked.pattern is not None:
        name_pattern(asked.pattern)
    read_clocks(None, asked.zone)


def _kill(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it began a session of its own
