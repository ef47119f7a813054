"""Compressed inverted lists, scanned for the best segment of each video by a small C kernel (`pipeline.scoring.compiled`).

FAISS makes the lists, and would answer with the nearest codes of each query: of every partition a long heap a query, each query's
sums made by themselves. A video search needs less: the smallest distance of each video over all segments of the target. So these
are the lanes of a vector here, one pass over the lists that any of them is near to serves all, and a video keeps one number.
Distances are FAISS's own (asymmetric, by the same codebook), added up in 16 bits.
"""

import ctypes
import logging
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import faiss
import numpy as np

from pipeline.errors import PipelineError
from pipeline.scoring import compiled

log = logging.getLogger(__name__)

_NAME = "list_scan"
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = [_SIZE, *3 * [_POINTER], _SIZE, _POINTER, _SIZE, _POINTER, _SIZE, _POINTER]  # of the C function, as they stand there
LARGEST = 65_000  # a sum of rounded numbers stays below what 16 bits hold
LANES = (8, 16)
NO_SUCH_SEGMENT = "the index is damaged: its prefilter names a segment that is not there; run jobs.index --rebuild"
NOWHERE = np.iinfo(np.uint16).max  # the distance of a video without a segment in the lists


@dataclass(frozen=True)
class DistanceTable:
    """Distances of up to 16 queries from the codebook, of which a code adds up one number a byte.

    rows: uint16 [M, 256, lanes], aligned; a distance is `smallest` + `unit` times the sum.
    """

    rows: np.ndarray
    smallest: float
    unit: float

    @classmethod
    def of(cls, quantizer: Any, queries: np.ndarray, prices: np.ndarray | float = 0.0) -> "DistanceTable":
        """Of FAISS's product quantizer (8 bits) and float32 [n, d] of 1 to 16 queries.

        prices: [n], by which each of them is farther from all. Raises PipelineError for a damaged quantizer.
        """
        count, parts = len(queries), quantizer.M
        exact = np.empty((count, parts, 256), np.float32)
        queries = np.ascontiguousarray(queries, np.float32)
        quantizer.compute_distance_tables(count, faiss.swig_ptr(queries), faiss.swig_ptr(exact))
        if not np.isfinite(exact).all():
            raise PipelineError("the index is damaged: its prefilter measures no distances; run jobs.index --rebuild")
        exact[:, 0] += np.reshape(prices, (-1, 1))
        least, most = exact.min(axis=(0, 2)), exact.max(axis=(0, 2))
        unit = float((most - least).sum()) / LARGEST or 1.0
        lanes = LANES[0] if count <= LANES[0] else LANES[1]
        rows = _aligned((parts, 256, lanes))
        exact -= least[:, None]
        rows[..., :count] = np.rint(exact.transpose(1, 2, 0) / unit)
        rows[..., count:] = rows[..., :1]  # lanes to spare ask for the first query once more
        return cls(rows, float(least.sum()), unit)


class ListScan:
    """The lists of one index, where they lie in memory (mapped from its file). Make it by `of`."""

    def __init__(self, index: faiss.Index, codes: np.ndarray, ids: np.ndarray, size: np.ndarray) -> None:
        self._owner = index  # of the memory
        self.index: Any = faiss.downcast_index(index)
        self.codes, self.ids, self.size = codes, ids, size

    @property
    def lists(self) -> int:
        """How many there are."""
        return len(self.size)

    @classmethod
    def of(cls, index: faiss.Index) -> "ListScan | None":
        """None where FAISS's own search serves: without a kernel, for other codes than bytes of a product quantizer, for another
        metric, and where this release of FAISS lays out mapped lists in a way that is not known.

        Raises PipelineError for a damaged index.
        """
        found: Any = faiss.downcast_index(index)
        if not isinstance(found, faiss.IndexIVFPQ) or found.metric_type != faiss.METRIC_L2 or found.by_residual:
            return None
        if found.pq.nbits != 8 or compiled.library(_NAME) is None:
            return None
        invlists: Any = found.invlists
        lists: Any = faiss.downcast_InvertedLists(invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists) and not _layout_is_known():
            return None
        if (found.pq.M, found.pq.d, lists.nlist) != (found.code_size, found.d, found.nlist):
            raise PipelineError("the index is damaged: its prefilter contradicts itself; run jobs.index --rebuild")
        return cls(index, *_addresses(lists, found.nlist, found.code_size))

    def nearest(
        self,
        lists: np.ndarray,
        table: DistanceTable,
        video_of_segment: np.ndarray,
        allowed: np.ndarray | None = None,
        limit: float = math.inf,
    ) -> np.ndarray:
        """The smallest distance of each video in these lists, float32 [V]; infinite for one that has no segment there.

        lists: int64, each once. video_of_segment: int32 [S], ascending from 0. allowed: bool [V], or None for all videos. limit:
        farther videos may be told to be infinitely far, which saves up to half of the work. Raises PipelineError for a damaged
        list.
        """
        most = min(max(math.ceil((limit - table.smallest) / table.unit + 1), 0), NOWHERE) if limit < math.inf else NOWHERE
        best = np.full(int(video_of_segment[-1]) + 1, NOWHERE, np.uint16)
        if allowed is not None:
            best[~allowed] = 0
        lists = lists[self.size[lists] > 0]
        arrays = [np.ascontiguousarray(array[lists]) for array in (self.codes, self.ids, self.size)]
        owners = np.ascontiguousarray(video_of_segment, np.int32)
        parts, _, lanes = table.rows.shape
        library: Any = compiled.library(_NAME)
        scan_lists = compiled.function(library, f"scan_lists_{lanes}", _ARGUMENTS)
        failed = scan_lists(
            len(lists),
            *(array.ctypes.data for array in arrays),
            *(parts, table.rows.ctypes.data),
            *(len(owners), owners.ctypes.data),
            *(most, best.ctypes.data),
        )
        if failed:
            raise PipelineError(NO_SUCH_SEGMENT)
        there = best != NOWHERE
        if allowed is not None:
            there &= allowed
        return np.where(there, np.float32(table.smallest) + np.float32(table.unit) * best, np.float32(np.inf))


@cache
def _layout_is_known() -> bool:
    """Whether `_addresses` reads of mapped lists what FAISS says, tried on three made-up ones; a log line says so if not."""
    try:
        lists: Any = faiss.OnDiskInvertedLists()
        lists.nlist, lists.code_size, lists.totsize = 3, 5, 1000
        for size, capacity, offset in ((1, 4, 64), (3, 7, 200), (0, 2, 500)):
            one: Any = faiss.OnDiskOneList()
            one.size, one.capacity, one.offset = size, capacity, offset
            lists.lists.push_back(one)
        known = np.array_equal(_addresses(lists, 3, 5), _told(lists, 3))
    except (AttributeError, TypeError, PipelineError):
        known = False
    if not known:
        log.warning(
            "FAISS %s lays out mapped lists in a way that is not known here, so its own slower search serves; "
            "install a release that pyproject.toml names",
            faiss.__version__,
        )
    return known


def _told(lists: Any, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_addresses` as FAISS gives them, one by one."""
    every = [(int(lists.get_codes(i) or 0), int(lists.get_ids(i) or 0), lists.list_size(i)) for i in range(count)]
    codes, ids, size = np.array(every, np.int64).T
    return codes, ids, size


def _addresses(lists: Any, count: int, code_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the codes and the ids of each list begin, and its size: int64 [count] each. lists: downcast."""
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        return _told(lists, count)
    # A search of many partitions has no time to be told one by one.
    of_lists: Any = lists.lists
    fields = (ctypes.c_int64 * (3 * count)).from_address(int(of_lists.data().this))
    size, capacity, offset = np.array(fields).reshape(count, 3).T
    if ((size < 0) | (size > capacity) | (offset < 0) | (offset + capacity * (code_size + 8) > lists.totsize)).any():
        raise PipelineError("the index is damaged: its prefilter has lists beyond its end; run jobs.index --rebuild")
    base = int(lists.get_codes(0)) - offset[0]
    return base + offset, base + offset + capacity * code_size, size


def _aligned(shape: tuple[int, ...]) -> np.ndarray:
    """uint16 zeros that begin on a cache line."""
    size = 2 * int(np.prod(shape))
    memory = np.zeros(size + 64, np.uint8)
    skip = -memory.ctypes.data % 64
    return memory[skip : skip + size].view(np.uint16).reshape(shape)
