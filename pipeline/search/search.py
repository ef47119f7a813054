"""Targets -> shortlists -> full scores -> leads with evidence, over partitions wherever they are (`pipeline.search.partitions`).

Every partition names its best videos by the prefilter, the shortlist is the best of those, every partition scores its share in
full, and the best are asked for their evidence. Several targets share the passes over the partitions. An exact search scores
all videos that are allowed, the shortlist first.

Nothing is recorded here: `pipeline.search.run` is the search that people make.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from pipeline import telemetry
from pipeline.gallery.gallery import Gallery
from pipeline.index.versions import Index
from pipeline.search.leads import leads
from pipeline.search.partitions import Partitions
from pipeline.search.results import SearchResult
from pipeline.search.scored import score_shortlists
from pipeline.search.shortlist import questions, shortlist
from pipeline.search.targets import Target
from pipeline.settings import SearchSettings
from pipeline.stopping import STOPPED


def search(gallery: Gallery, index: Index, partitions: Partitions, target: Target, settings: SearchSettings) -> SearchResult:
    """The leads for one target, best first; equal scores in the order of video ids.

    The target itself (its id or its uri without a track) and forgotten videos are never among them. Raises UsageError when the
    filters name a camera that the gallery does not have.
    """
    return search_many(gallery, index, partitions, [target], settings)[0]


def search_many(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], settings: SearchSettings
) -> list[SearchResult]:
    """`search` for several targets, which share the passes over the partitions; `seconds` is then of all of them."""
    with counted(len(targets)):
        return _search_many(gallery, index, partitions, targets, settings)


@contextlib.contextmanager
def counted(targets: int) -> Iterator[None]:
    """Count so many searches as done, or as cancelled or failed where the block raises."""
    try:
        yield
    except STOPPED:
        telemetry.count("coattention_searches", targets, outcome="cancelled")
        raise
    except BaseException:
        telemetry.count("coattention_searches", targets, outcome="failed")
        raise
    telemetry.count("coattention_searches", targets, outcome="done")


def _search_many(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], settings: SearchSettings
) -> list[SearchResult]:
    began = time.monotonic()
    asked = questions(gallery, index, targets, settings)
    with telemetry.timed("coattention_search_seconds", stage="shortlist"):
        shortlists = [shortlist(index, partitions, question, settings) for question in asked]
    with telemetry.timed("coattention_search_seconds", stage="score"):
        scored = score_shortlists(index, partitions, shortlists, settings)
    with telemetry.timed("coattention_search_seconds", stage="evidence"):
        results = [leads(gallery, index, partitions, one, settings) for one in scored]
    seconds = time.monotonic() - began
    telemetry.observe("coattention_search_seconds", seconds, stage="all")
    return [replace(result, seconds=seconds) for result in results]
