"""Recordings that come one after another: a growing folder or prefix is looked at again and again."""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipeline.catalog.inputs import read_catalog
from pipeline.cluster import Cluster, connected
from pipeline.decoding.sampling import Sampling
from pipeline.errors import EmptyInputError, PipelineError, UsageError
from pipeline.footage.recordings import Clocks, NamePattern, Plan, plan_recordings
from pipeline.footage.run import ingest_footage
from pipeline.footage.summary import FootageSummary
from pipeline.gallery.gallery import Gallery
from pipeline.storage.faults import StorageError


@dataclass(frozen=True)
class Recordings:
    """Where recordings are found, now and later. source, roots, endpoints: see `read_catalog`."""

    source: str
    pattern: NamePattern | None = None
    clocks: Clocks = field(default_factory=Clocks)
    roots: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()

    def plan(self) -> Plan:
        """What is there now. Raises UsageError as `read_catalog` and `plan_recordings` do."""
        return plan_recordings(read_catalog(self.source, roots=self.roots, endpoints=self.endpoints), self.pattern, self.clocks)


def watch_footage(
    inputs: Recordings,
    gallery: Gallery,
    sampling: Sampling,
    detector: str,
    workers: int | None = None,
    address: Cluster | str | None = None,
    *,
    every_s: float = 60.0,
    rounds: int | None = None,
    told: Callable[[str], None] = lambda _: None,
    **how: Any,
) -> Iterator[FootageSummary]:
    """Take in what is new in a growing folder or prefix, again and again; a summary each time that something was.

    A recording counts as finished once it has not been modified for `how`'s quiet_period, or for every_s where that is not given.
    rounds: how often to look, None: until the caller stops. Ray runs from the first recording on. `how` as for `ingest_footage`.

    An input in which nothing is yet is waited for; so is one that goes away later, and storage that does not answer. told is
    given a sentence when that begins and when it is over. Raises what `Recordings.plan` and `ingest_footage` do: of the input and
    of storage at the first look only.
    """
    how |= {"quiet_period": how.get("quiet_period") or every_s}
    waits, is_first = _Waits(inputs.source, every_s, told), True
    with contextlib.ExitStack() as stack:
        for number in itertools.count(1):
            began = time.monotonic()
            try:
                if (plan := _plan_if_there(inputs, waits, number)) is not None:
                    if is_first:
                        stack.enter_context(connected(address))
                    summary = ingest_footage(plan, gallery, sampling, detector, None, workers, source=inputs.source, **how)
                    waits.end()
                    if summary.done or summary.corrected or summary.moved or is_first:
                        yield summary
                    is_first = False
            except StorageError as error:
                if number == 1:
                    raise
                waits.begin(error)
            if number == rounds:
                return
            time.sleep(max(0.0, every_s - (time.monotonic() - began)))


def _plan_if_there(inputs: Recordings, waits: "_Waits", number: int) -> Plan | None:
    """What is there now; None where that is nothing, or, after the first look, where the input has gone away."""
    try:
        return inputs.plan()
    except UsageError as error:
        if number == 1 and not isinstance(error, EmptyInputError):
            raise
        waits.begin(error)
        return None


class _Waits:
    """Says once what is waited for, and when it is there: not each minute, however long it takes."""

    def __init__(self, source: str, every_s: float, told: Callable[[str], None]) -> None:
        self.source, self.every_s, self.told = source, every_s, told
        self.since: float | None = None
        self.said: set[str] = set()

    def begin(self, error: PipelineError) -> None:
        """Something keeps the next recordings from being taken in. Another kind of obstacle is said too."""
        self.since = time.monotonic() if self.since is None else self.since
        kind = f"{type(error).__name__} {getattr(error, 'kind', '')}"
        if kind not in self.said:
            self.said.add(kind)
            self.told(f"waiting, and looking again every {self.every_s:g} s: {error}")

    def end(self) -> None:
        """Recordings could be listed and taken in."""
        if self.since is not None:
            minutes = (time.monotonic() - self.since) / 60
            self.told(f"going on after {minutes:.1f} minutes: {self.source} has recordings, and all storage answers")
        self.since, self.said = None, set()
