"""What the work counts and times, through ray.util.metrics where Ray runs: METRICS is the one list of names.

    count("coattention_ingest_videos", 3)
    observe("coattention_ingest_seconds", 0.2, stage="write")
    with timed("coattention_search_seconds", stage="score"): ...
    gauge("coattention_partitions_open", 12)

Each is safe anywhere: without a running Ray it does nothing, unless the process shows its metrics itself (`registry`), and Ray is
never imported for it. Ray's Prometheus endpoint gives
names the prefix ray_ and counters a suffix _total; cluster/grafana-dashboard.json shows them.
"""

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Item = TypeVar("Item")

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # bounds of the histograms' buckets


@dataclass(frozen=True)
class Metric:
    """One metric: its kind, what it says (with the unit), and its tags with the values that occur ((): any)."""

    kind: Literal["counter", "histogram", "gauge"]
    description: str
    tags: dict[str, tuple[str, ...]]

    def series(self, name: str) -> tuple[str, ...]:
        """Names of its time series in Prometheus."""
        if self.kind == "histogram":
            return tuple(f"ray_{name}_{part}" for part in ("bucket", "sum", "count"))
        return (f"ray_{name}_total",) if self.kind == "counter" else (f"ray_{name}",)


INGEST_STAGES = ("decode", "embed", "write", "commit")
INDEX_STAGES = ("draw", "partition", "publish")
SEARCH_STAGES = ("shortlist", "score", "evidence", "all")

METRICS = {
    "coattention_ingest_videos": Metric("counter", "Candidates that were committed to a gallery.", {}),
    "coattention_ingest_frames": Metric("counter", "Sampled frames that were embedded.", {}),
    "coattention_ingest_rejects": Metric("counter", "Candidates that were rejected, by reason.", {"reason": ()}),
    "coattention_ingest_seconds": Metric("histogram", "Seconds of one step of a stage of an ingest.", {"stage": INGEST_STAGES}),
    "coattention_index_videos": Metric("counter", "Videos that were written into an index.", {}),
    "coattention_index_seconds": Metric(
        "histogram", "Seconds of an index build: to draw what is shared, of one partition, to publish.", {"stage": INDEX_STAGES}
    ),
    "coattention_searches": Metric(
        "counter", "Targets searched for, by how it ended.", {"outcome": ("done", "failed", "cancelled")}
    ),
    "coattention_search_seconds": Metric("histogram", "Seconds of a stage of one search.", {"stage": SEARCH_STAGES}),
    "coattention_partitions_open": Metric("gauge", "Partitions of an index that a process holds open.", {}),
    "coattention_audit_records": Metric("counter", "Records appended to audit logs, by action.", {"action": ()}),
}

_made: dict[str, Any] = {}
_shown: "dict[str, _Own]" = {}
_registry: Any = None
_lock = threading.Lock()


class _Own:
    """A metric of this process, with the methods of Ray's."""

    def __init__(self, name: str, metric: Metric, registry: Any) -> None:
        import prometheus_client

        how: dict[str, Any] = {"buckets": SECONDS} if metric.kind == "histogram" else {}
        kind = getattr(prometheus_client, metric.kind.capitalize())
        self.made = kind(name, metric.description, tuple(metric.tags), registry=registry, **how)

    def inc(self, number: float, tags: dict[str, str]) -> None:
        self._of(tags).inc(number)

    def observe(self, seconds: float, tags: dict[str, str]) -> None:
        self._of(tags).observe(seconds)

    def set(self, value: float, tags: dict[str, str]) -> None:
        self._of(tags).set(value)

    def _of(self, tags: dict[str, str]) -> Any:
        return self.made.labels(**tags) if tags else self.made


def _own(name: str, metric: Metric) -> _Own:
    with _lock:
        if name not in _shown:
            _shown[name] = _Own(name, metric, _registry)
        return _shown[name]


def registry() -> Any:
    """The metrics of this process, a prometheus_client.CollectorRegistry, with those of the process itself; counted from the
    first call on, by the same names as in Ray's endpoint without its prefix.
    """
    global _registry
    with _lock:
        if _registry is None:
            import prometheus_client

            _registry = prometheus_client.CollectorRegistry()
            prometheus_client.ProcessCollector(registry=_registry)
    return _registry


def count(name: str, number: float = 1, **tags: str) -> None:
    """Add to a counter of METRICS. Raises KeyError for a name that is not there, as all functions here do."""
    if number > 0 and (metric := _metric(name, tags)) is not None:
        metric.inc(number, tags)


def observe(name: str, seconds: float, **tags: str) -> None:
    """Put one duration into a histogram of METRICS."""
    if (metric := _metric(name, tags)) is not None:
        metric.observe(seconds, tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Say what a gauge of METRICS is now."""
    if (metric := _metric(name, tags)) is not None:
        metric.set(value, tags)


@contextmanager
def timed(name: str, **tags: str) -> Iterator[None]:
    """Time the block into a histogram of METRICS, also when it raises."""
    began = time.perf_counter()
    try:
        yield
    finally:
        observe(name, time.perf_counter() - began, **tags)


def timed_items(items: Iterable[Item], name: str, **tags: str) -> Iterator[Item]:
    """The items, the time that each takes to make put into a histogram; what the consumer does meanwhile does not count."""
    iterator = iter(items)
    while True:
        began = time.perf_counter()
        try:
            item = next(iterator)
        except StopIteration:
            return
        observe(name, time.perf_counter() - began, **tags)
        yield item


def _metric(name: str, tags: dict[str, str]) -> Any:
    """The metric made in this process, or None where no Ray runs in it and it shows none itself."""
    known = METRICS[name]
    if known.tags.keys() != tags.keys():
        raise KeyError(f"{name} has the tags {sorted(known.tags)}, not {sorted(tags)}")
    ray = sys.modules.get("ray")
    if ray is None or not getattr(ray, "is_initialized", bool)():
        return None if _registry is None else _own(name, known)
    if name not in _made:
        from ray.util import metrics

        settings: dict[str, Any] = {"description": known.description, "tag_keys": tuple(known.tags)}
        if known.kind == "histogram":
            settings["boundaries"] = list(SECONDS)
        _made[name] = getattr(metrics, known.kind.capitalize())(name, **settings)
    return _made[name]
