"""Searches as jobs, two at a time in the order in which they were asked for; the newest stay in memory, with their leads."""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

from pipeline.errors import PipelineError
from pipeline.gallery.audit import append_record, on_behalf_of
from pipeline.gallery.gallery import Gallery, Position
from pipeline.search.results import Lead, SearchResult
from pipeline.search.run import Answer
from pipeline.service.answers import Decision, SearchAsked
from pipeline.service.work import BusyError, Job, Jobs, Kind

KEPT = 200  # the newest searches, of all people
THREADS = 2  # so that a long search does not hold up all others; each uses all cores
WAITING = 16  # searches that wait or run, of all people
WAITING_OF_ONE = 4  # of one person
A_MINUTE = 60  # of one person


@dataclass(kw_only=True, eq=False)
class Search(Job):
    """One search of a person.

    known: names of the gallery's commits from before the search read anything. decisions: of this person, by rank.
    """

    kind: ClassVar[Kind] = "search"
    asked: SearchAsked
    answer: Answer | None = None
    known: Position = 0
    decisions: dict[int, Decision] = field(default_factory=dict)
    viewed: bool = False

    @property
    def search_id(self) -> str:
        return self.job_id

    @property
    def about(self) -> str:
        return self.asked.target

    @property
    def address(self) -> str:
        return f"/searches/{self.job_id}"

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

    def fields(self) -> dict[str, Any]:
        """What records of what is done with the search say of it."""
        head = None if self.result is None else self.result.record.audit_head  # names the record of the search
        of: dict[str, Any] = {"search": self.search_id, "search_audit_head": head, "target": self.asked.target}
        of |= {"further_targets": [one.target for one in self.asked.further_targets]} if self.asked.further_targets else {}
        return {**on_behalf_of(self.person), **of, "reason": self.asked.reason, "case": self.asked.case}


class Searches(Jobs[Search]):
    """All searches of a service."""

    def __init__(self) -> None:
        super().__init__("search", THREADS, KEPT)
        self._loading: list[Future[None]] = []
        self._begun: dict[str, deque[float]] = {}

    def prepare(self, open_index: Callable[[], object]) -> None:
        """Load, in the background, what takes a second or more, before somebody waits for it; a search says what fails."""
        self._loading.append(self._threads.submit(_load, open_index))

    def begin(self, gallery: Gallery, person: str, asked: SearchAsked, run: Callable[[Search], Answer]) -> Search:
        """Queue a search; `run` makes it. Raises BusyError where too many wait already, or came within a minute."""

        def work() -> Callable[[], None]:
            search.known = gallery.position()
            answer = run(search).with_hashes(partial(search.at, "hashes"))
            return lambda: setattr(search, "answer", answer)

        def check(waiting: list[Search]) -> None:
            begun, at = self._begun.setdefault(person, deque(maxlen=A_MINUTE)), time.monotonic()
            if len(begun) == A_MINUTE and (left := begun[0] + 60 - at) > 0:
                raise BusyError(f"these are {A_MINUTE} searches of yours within a minute", math.ceil(left))
            if sum(one.person == person for one in waiting) >= WAITING_OF_ONE:
                raise BusyError(f"{WAITING_OF_ONE} searches of yours wait already; try again when one is done")
            if len(waiting) >= WAITING:
                raise BusyError(f"{WAITING} searches wait already; try again when some are done")
            begun.append(at)

        search = Search(person=person, gallery=gallery, gallery_name=asked.gallery, asked=asked)
        return self.queue(search, work, check)

    def of(self, person: str, search_id: str) -> Search | None:
        """A search of this person; None for those of others and for what is gone."""
        found = self.known(search_id)
        return found if found is not None and found.person == person else None

    def all_of(self, person: str) -> list[Search]:
        """The searches of this person, the newest first."""
        return [one for one in self.all() if one.person == person]

    @property
    def is_prepared(self) -> bool:
        """Whether nothing is being loaded that a first search waits for."""
        return all(one.done() for one in self._loading)


def _load(open_index: Callable[[], object]) -> None:
    import pipeline.search.follow  # noqa: F401

    with contextlib.suppress(PipelineError):
        open_index()
