"""Searches as jobs, two at a time in the order in which they were asked for; the newest stay in memory, with their leads."""

import contextlib
import logging
import math
import secrets
import threading
import time
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.errors import PipelineError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import Gallery, Position
from pipeline.search.results import Lead, SearchResult
from pipeline.search.run import Answer
from pipeline.service.answers import Decision, SearchAsked

KEPT = 200  # the newest searches, of all people
THREADS = 2  # so that a long search does not hold up all others; each uses all cores
WAITING = 16  # searches that wait or run, of all people
WAITING_OF_ONE = 4  # of one person
A_MINUTE = 60  # of one person
SOON = 5  # seconds, until one that waits may be done
_logger = logging.getLogger("coattention.service")


class BusyError(Exception):
    """There is too much at once; the sentence says of what. seconds: after which it may be tried again."""

    def __init__(self, sentence: str, seconds: int = SOON) -> None:
        super().__init__(sentence)
        self.seconds = seconds


@dataclass
class Search:
    """One search of a person. state: queued, running, done, failed or cancelled; error: why it failed, a sentence.

    known: names of the gallery's commits from before the search read anything. decisions: of this person, by rank.
    """

    search_id: str
    person: str
    gallery: Gallery
    asked: SearchAsked
    made_at: datetime
    state: str = "queued"
    error: str | None = None
    answer: Answer | None = None
    known: Position = 0
    decisions: dict[int, Decision] = field(default_factory=dict)
    viewed: bool = False
    future: Future[None] | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def result(self) -> SearchResult | None:
        """What was found, once it is done."""
        return None if self.answer is None else self.answer.results[0]

    def leads(self) -> list[Lead]:
        """The leads, best first, without those that were forgotten since."""
        if self.result is None:
            return []
        gone = self.gallery.forgotten(self.known)
        return [lead for lead in self.result.leads if lead.video.video_id not in gone]

    def view(self) -> None:
        """Record, once, that the person looks at the pictures. Raises PipelineError where the log cannot be written."""
        with self.lock:
            if not self.viewed:
                append_record(self.gallery, "view", self.fields() | {"results": [one.video.video_id for one in self.leads()]})
                self.viewed = True

    def decide(self, lead: Lead, decision: Decision | None) -> None:
        """Record what the person says of a lead (None: takes it back), and keep it."""
        with self.lock:
            said = {"video_id": lead.video.video_id, "decision": decision, "before": self.decisions.get(lead.rank)}
            append_record(self.gallery, "decision", self.fields() | said)
            self.keep(lead, decision)

    def keep(self, lead: Lead, decision: Decision | None) -> None:
        """Keep what was said of a lead, once it is recorded."""
        self.decisions.pop(lead.rank, None)
        if decision is not None:
            self.decisions[lead.rank] = decision

    def fields(self) -> dict[str, str | None]:
        """What records of what is done with the search say of it."""
        head = None if self.result is None else self.result.record.audit_head  # names the record of the search
        of = {"search": self.search_id, "search_audit_head": head, "target": self.asked.target}
        return {**on_behalf_of(self.person), **of, "reason": self.asked.reason, "case": self.asked.case}


class Searches:
    """All searches of a service."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "search")
        self._loading: list[Future[None]] = []
        self._begun: dict[str, deque[float]] = {}
        self._kept: OrderedDict[str, Search] = OrderedDict()
        self._lock = threading.Lock()

    def prepare(self, open_index: Callable[[], object]) -> None:
        """Load, in the background, what takes a second or more, before somebody waits for it; a search says what fails."""
        self._loading.append(self._threads.submit(_load, open_index))

    def begin(self, gallery: Gallery, person: str, asked: SearchAsked, run: Callable[[], Answer]) -> Search:
        """Queue a search; `run` makes it. Raises BusyError where too many wait already, or came within a minute."""
        with self._lock:
            begun, at = self._begun.setdefault(person, deque(maxlen=A_MINUTE)), time.monotonic()
            if len(begun) == A_MINUTE and (left := begun[0] + 60 - at) > 0:
                raise BusyError(f"these are {A_MINUTE} searches of yours within a minute", math.ceil(left))
            waiting = [one for one in self._kept.values() if one.state in ("queued", "running")]
            if sum(one.person == person for one in waiting) >= WAITING_OF_ONE:
                raise BusyError(f"{WAITING_OF_ONE} searches of yours wait already; try again when one is done")
            if len(waiting) >= WAITING:
                raise BusyError(f"{WAITING} searches wait already; try again when some are done")
            search_id, now = secrets.token_urlsafe(9), datetime.now(UTC)
            search = Search(search_id, person, gallery, asked, now)
            self._kept[search_id] = search
            ended = [key for key, one in self._kept.items() if one.state not in ("queued", "running")]
            for key in ended[: max(0, len(self._kept) - KEPT)]:
                del self._kept[key]
            search.future = self._threads.submit(_run, search, run)
            begun.append(at)
        return search

    def of(self, person: str, search_id: str) -> Search | None:
        """A search of this person; None for those of others and for what is gone."""
        found = self._kept.get(search_id)
        return found if found is not None and found.person == person else None

    def known(self, search_id: str) -> Search | None:
        """A search of anybody, for what is not theirs alone; None for what is gone."""
        return self._kept.get(search_id)

    def all_of(self, person: str) -> list[Search]:
        """The searches of this person, the newest first."""
        with self._lock:
            return [one for one in reversed(self._kept.values()) if one.person == person]

    def states(self) -> list[str]:
        """The state of each that is kept."""
        with self._lock:
            return [one.state for one in self._kept.values()]

    @property
    def is_prepared(self) -> bool:
        """Whether nothing is being loaded that a first search waits for."""
        return all(one.done() for one in self._loading)

    def close(self) -> None:
        """Begin nothing more; what runs is waited for, so that its record is whole."""
        self._threads.shutdown(cancel_futures=True)


def cancel(search: Search) -> None:
    """Take a search out of the queue; of one that runs the answer is thrown away, while its record stays."""
    with search.lock:
        if search.state in ("queued", "running"):
            search.state = "cancelled"
            if search.future is not None:
                search.future.cancel()


def _run(search: Search, run: Callable[[], Answer]) -> None:
    with search.lock:
        if search.state != "queued":
            return
        search.state = "running"
    state, error, answer = "failed", None, None
    try:
        search.known = search.gallery.position()
        answer = run().with_hashes()
        state = "done"
    except PipelineError as refused:
        error = str(refused)
    except Exception:
        error = "the search failed by a fault of the program; its error output says more"
        _logger.exception("search failed", extra={"search": search.search_id})
        traceback.print_exc()
    with search.lock:
        if search.state == "running":
            search.error, search.answer, search.state = error, answer, state


def _load(open_index: Callable[[], object]) -> None:
    import pipeline.search.follow  # noqa: F401

    with contextlib.suppress(PipelineError):
        open_index()
