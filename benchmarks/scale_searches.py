"""What the steps of benchmarks.scale share: what is measured, targets, settings of searches, and how these are timed."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index
from pipeline.search.results import SearchResult
from pipeline.search.targets import Target, stored_target
from pipeline.settings import SearchSettings

BEST = 10
USUAL_SHARE = 0.01


@dataclass(frozen=True)
class Plan:
    """What is measured on one gallery. targets: for warm latencies; judged: for recall, since each is scored exhaustively; exact:
    for exact searches; cold: searches and batches after the cache was dropped.
    """

    gallery: str
    head: str | None
    targets: int
    judged: int
    exact: int
    cold: int
    actors: int
    seed: int = 0


def some_targets(gallery: Gallery, index: Index, count: int, seed: int) -> list[Target]:
    """Videos of the index as targets, chosen at random."""
    chosen = np.random.default_rng([seed, len(index.videos)]).permutation(len(index.videos))[:count]
    targets = []
    for row in index.videos.take(pa.array(chosen)).to_pylist():
        targets.append(stored_target(row, gallery.read_video(row)))
    return targets


def shortlist_of(index: Index, share: float) -> SearchSettings:
    return SearchSettings(top=BEST, shortlist=max(BEST, math.ceil(share * len(index.videos))), shortlist_share=0.0)


def whole_shortlist(settings: SearchSettings) -> SearchSettings:
    """The same, but all of the shortlist is scored."""
    return replace(settings, patience=None)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


def latencies(name: str, runs: Sequence[tuple[float, Any]]) -> dict[str, float]:
    seconds = [spent for spent, _ in runs]
    return {f"{name}_p50": median(seconds), f"{name}_p95": quantile(seconds, 0.95)}


def median(numbers: Sequence[float]) -> float:
    return float(np.median(numbers))


def quantile(numbers: Sequence[float], share: float) -> float:
    return float(np.quantile(numbers, share))


def ids_of(result: SearchResult) -> list[str]:
    return [lead.video.video_id for lead in result.leads]
