"""Long work as jobs: what a search, an export and an ingest share, from the queue to the end.

A job counts its changes, so that whoever watches it looks at a number. Its work says how far it is (`Job.at`) and stops there
once somebody has ended the job; what it brings holds by one step at its end, or not at all.
"""

import asyncio
import logging
import secrets
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, Literal, TypeVar

from pipeline.errors import PipelineError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import Gallery
from pipeline.stopping import CANCELLED, StoppedError

Kind = Literal["search", "export", "ingest"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
OPEN: tuple[State, ...] = ("queued", "running")
SOON = 5  # seconds, until one that waits may be done
SERVICE_ENDED = "the service ended before it was done"
_logger = logging.getLogger("coattention.service")


class BusyError(Exception):
    """There is too much at once; the sentence says of what. seconds: after which it may be tried again."""

    def __init__(self, sentence: str, seconds: int = SOON) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass(kw_only=True, eq=False)
class Job:
    """Long work of a person in a gallery. gallery_name: as people see it.

    stage: what is being done, in a word; done, total: how much of it, None where that is not known. error: why it failed, a
    sentence. changes: how often any of this has changed. lock: held while the state changes.
    """

    kind: ClassVar[Kind]
    person: str
    gallery: Gallery
    gallery_name: str
    job_id: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    made_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    state: State = "queued"
    error: str | None = None
    stage: str | None = None
    done: int | None = None
    total: int | None = None
    changes: int = 0
    future: Future[None] | None = None
    lock: Any = field(default_factory=threading.RLock)

    @property
    def is_open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in OPEN

    @property
    def about(self) -> str:
        """What it is about, for people."""
        raise NotImplementedError

    @property
    def address(self) -> str | None:
        """Where what it makes is, below /api/v1; None where that is the gallery."""
        raise NotImplementedError

    @property
    def outcome(self) -> str | None:
        """What it brought, in words, where there is more to say than that it is done."""
        return None

    def fields(self) -> dict[str, Any]:
        """What records of what is done with it say of it."""
        raise NotImplementedError

    def stop(self) -> None:
        """End what runs beside this process for it; the rest stops by itself (`at`)."""

    def discard(self) -> None:
        """Remove what it has left: it failed, was ended, or gives way to newer ones."""

    def at(self, stage: str, done: int | None = None, total: int | None = None) -> None:
        """Say how far the work is. Raises StoppedError once somebody has ended the job."""
        with self.lock:
            if not self.is_open:
                raise StoppedError(self.error or CANCELLED)
            if (stage, done, total) != (self.stage, self.done, self.total):
                self.stage, self.done, self.total = stage, done, total
                self.changes += 1

    def end(self, state: State, error: str | None = None) -> None:
        """Make this its end, unless it has ended."""
        with self.lock:
            if not self.is_open:
                return
            self.state, self.error = state, error
            self.changes += 1
        if self.future is not None:
            self.future.cancel()
        self.stop()

    def cancel(self, person: str) -> None:
        """End it because a person asks for that, once it is on record; nothing where it has ended."""
        with self.lock:
            if not self.is_open:
                return
            said = {"job": self.job_id, "kind": self.kind, **self.fields()}
            append_record(self.gallery, "cancel", {**on_behalf_of(person), **said})
            self.end("cancelled")

    async def ended(self, seconds: float) -> None:
        """Wait for its end, so long at most."""
        if self.future is not None and self.is_open:
            await asyncio.wait([asyncio.wrap_future(self.future)], timeout=seconds)


AnyJob = TypeVar("AnyJob", bound=Job)
Work = Callable[[], Callable[[], object] | None]
"""What a job does. It returns what makes its outcome hold, which is called unless the job was ended meanwhile, and during which
nobody can end it.
"""


class Jobs(Generic[AnyJob]):
    """Jobs of one kind, `at_once` at a time in the order in which they were asked for; the newest `kept` that ended are known."""

    def __init__(self, name: str, at_once: int, kept: int) -> None:
        self._threads = ThreadPoolExecutor(at_once, name)
        self._kept: OrderedDict[str, AnyJob] = OrderedDict()
        self._lock = threading.Lock()
        self.kept = kept

    def queue(self, job: AnyJob, work: Work, check: Callable[[list[AnyJob]], object] = lambda _waiting: None) -> AnyJob:
        """Queue a job. check: told those that wait or run, before; it raises what keeps this one from being queued."""
        with self._lock:
            check([one for one in self._kept.values() if one.is_open])
            self._kept[job.job_id] = job
            ended = [one for one in self._kept.values() if not one.is_open]
            for old in ended[: max(0, len(self._kept) - self.kept)]:
                del self._kept[old.job_id]
                old.discard()
            job.future = self._threads.submit(_run, job, work)
        return job

    def known(self, job_id: str) -> AnyJob | None:
        """A job of anybody; None for what is gone."""
        return self._kept.get(job_id)

    def all(self) -> list[AnyJob]:
        """Those that are known, the newest first."""
        with self._lock:
            return list(reversed(self._kept.values()))

    def close(self) -> None:
        """End all of them, and wait until their work has stopped, so that what they record is whole."""
        for job in self.all():
            job.end("failed", SERVICE_ENDED)
        self._threads.shutdown(cancel_futures=True)


def _run(job: Job, work: Work) -> None:
    with job.lock:
        if job.state != "queued":
            return
        job.state = "running"
        job.changes += 1
    state, error = _worked(job, work)
    if state != "done":
        job.end(state, error)
        job.discard()


def _worked(job: Job, work: Work) -> tuple[State, str | None]:
    """How the work of a job ended, and the sentence that it failed with."""
    began = time.monotonic()
    try:
        hold = work()
        with job.lock:
            if not job.is_open:
                raise StoppedError(job.error or CANCELLED)
            if hold is not None:
                hold()
            job.end("done")
        return "done", None
    except StoppedError:
        return "cancelled", None
    except PipelineError as refused:
        return "failed", str(refused)
    except Exception:
        said = {"job": job.job_id, "seconds": round(time.monotonic() - began, 3)}
        _logger.exception("%s failed", job.kind, extra=said)
        traceback.print_exc()
        return "failed", f"the {job.kind} failed by a fault of the program; its error output says more"
