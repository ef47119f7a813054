"""Which videos are worth scoring in full: FAISS over an encoding of each segment, in the metric of the score itself.

m is the mean of a candidate segment's values, each frame by its visibility, or of a hidden segment that of its whole video
(`pipeline.scoring.whole.or_whole`). Under that attention the score of a target's encoding e is
sigmoid(c + sum_d w_d (e_d - m_d)^2). With w <= 0 and x = sqrt(-w) * vector that is sigmoid(c - ||x(e) - x(m)||^2): the nearest
neighbours in plain L2 are the segments of the highest score. With w of both signs it is an inner product,
<(-2 w * e, 1), (m, sum_d w_d m_d^2)>, plus what the target adds. Cohort normalisation is left to the full scores.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from pipeline.errors import PipelineError
from pipeline.index import list_codes
from pipeline.index.list_scan import LANES, NO_SUCH_SEGMENT, DistanceTable, ListScan
from pipeline.scoring.scores import TargetEncoding

FLAT_SEGMENTS = 500_000  # up to here every vector is compared: 0.1 s on two cores, and nothing is lost
MOST_LISTS = 4096
SEED = 1234  # of the quantisers' training
PROBED, LEAST_PROBES = 1 / 16, 128  # share of the lists that a search looks into, and how many at least
DEEP = 2  # segments that FAISS is asked for, for each video that is wanted
KEPT_TABLES = 64  # of a target, half a MB each; beyond, tables are made anew for each partition
EVERY_BLOCK = 16_384  # segments compared at a time where all are


@dataclass(frozen=True)
class PrefilterMetric:
    """The space that segments and targets are compared in. weight: float32 [d_v]; bias: c."""

    weight: np.ndarray
    bias: float

    @classmethod
    def of_target(cls, target: TargetEncoding) -> "PrefilterMetric":
        return cls(target.weight.cpu().numpy(), float(target.bias.detach()))

    @property
    def is_distance(self) -> bool:
        """Whether plain L2 serves (no weight above 0); otherwise inner product."""
        return bool((self.weight <= 0).all())

    def empty_index(self) -> faiss.Index:
        """An exact FAISS index of this metric."""
        return faiss.IndexFlatL2(len(self.weight)) if self.is_distance else faiss.IndexFlatIP(len(self.weight) + 1)

    def stored(self, means: np.ndarray) -> np.ndarray:
        """What the index holds of encodings of segments [S, d_v]: float32 [S, d_v], or [S, d_v + 1] for inner products."""
        means = np.asarray(means, np.float32)
        if self.is_distance:
            return means * np.sqrt(-self.weight)
        return np.column_stack([means, means**2 @ self.weight]).astype(np.float32)

    def queries(self, encodings: np.ndarray) -> np.ndarray:
        """What is asked for target encodings [N, d_v]: float32, as wide as `stored`."""
        if self.is_distance:
            return encodings * np.sqrt(-self.weight)
        return np.column_stack([-2 * self.weight * encodings, np.ones(len(encodings))]).astype(np.float32)

    def logits(self, found: np.ndarray, encodings: np.ndarray) -> np.ndarray:
        """FAISS's numbers [N, k] as logits of the encodings that it holds [N, k]."""
        if self.is_distance:
            return self.bias - found
        return self.bias + (encodings**2 @ self.weight)[:, None] + found


def is_flat(index: faiss.Index) -> bool:
    """Whether the index compares with every vector itself."""
    return not isinstance(faiss.downcast_index(index), faiss.IndexIVF)


def stored_vectors(index: faiss.Index) -> np.ndarray:
    """What a flat index holds, float32 [S, d], in its own memory."""
    flat: Any = faiss.downcast_index(index)
    return faiss.rev_swig_ptr(flat.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)


def compressed_index(metric: PrefilterMetric, means: np.ndarray, segments: int) -> faiss.Index:
    """A trained, empty inverted-file index for galleries of about `segments` segments: what each partition adds its own to.

    means: mean segment values float32 [n, d_v] of a sample. Vectors are product-quantised, a byte for three numbers, and not as
    residuals of their lists' centres: those need a table for each list and query, or 13 GB of tables at a million videos. Where
    the width does not divide by three (inner product) they are a byte a number. Lists: 2 sqrt(segments) as a power of two, at
    most what the sample trains with 39 vectors each.
    """
    vectors = metric.stored(means)
    width = vectors.shape[1]
    wanted = min(max(2 * math.sqrt(segments), 16), MOST_LISTS, max(len(vectors) / 39, 1))
    lists = 2 ** int(math.log2(wanted))
    code = f"PQ{width // 3}x8" if width % 3 == 0 and len(vectors) >= 256 else "SQ8"
    kind = faiss.METRIC_L2 if metric.is_distance else faiss.METRIC_INNER_PRODUCT
    index = faiss.index_factory(width, f"IVF{lists},{code}", kind)
    found: Any = faiss.downcast_index(index)  # FAISS types the base class only
    found.cp.seed = SEED
    found.by_residual = False
    list_codes.train(index, vectors, SEED)
    return index


def described(index: faiss.Index) -> str:
    """What the prefilter is, in words."""
    found: Any = faiss.downcast_index(index)
    if not isinstance(found, faiss.IndexIVF):
        return "exact L2" if found.metric_type == faiss.METRIC_L2 else "exact inner product"
    return f"{found.nlist} inverted lists, {found.code_size} bytes a segment, {_probes(found.nlist, 1.0)} lists probed"


def _probes(lists: int, share: float) -> int:
    """Lists to look into where a filter leaves `share` of the segments: as many candidates for a narrow filter as for none."""
    return min(lists, math.ceil(max(LEAST_PROBES, lists * PROBED) / max(share, 1e-9)))


class PrefilterQuery:
    """A target as the prefilters of an index version are asked for it: what these share is computed once.

    encodings: float32 [N, d_v]; vectors: float32 [N, width], what FAISS is asked for; prices: float32 [N], off their logits.
    """

    def __init__(self, target: TargetEncoding) -> None:
        self.metric = PrefilterMetric.of_target(target)
        self.encodings = target.encodings.cpu().numpy()
        self.vectors = np.ascontiguousarray(self.metric.queries(self.encodings), np.float32)
        self.prices = np.zeros(len(self.vectors), np.float32) if target.prices is None else target.prices.cpu().numpy()
        self._lists: dict[tuple[bytes, int], tuple[np.ndarray, np.ndarray]] = {}
        self._unions: dict[tuple[bytes, int], list[np.ndarray]] = {}
        self._tables: dict[tuple[bytes, int], DistanceTable] = {}

    def logits(self, found: np.ndarray) -> np.ndarray:
        """FAISS's numbers of each encoding [N, k] as logits, less its price."""
        return self.metric.logits(found, self.encodings) - self.prices[:, None]

    def lists(self, index: Any, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's numbers float32 and the `probes` nearest lists int64 of an inverted file, [N, probes] each.

        Asking the copy of each partition for the same took as long as the rest of the search.
        """
        key = _quantizer_of(index), probes
        if key not in self._lists:
            self._lists[key] = index.quantizer.search(self.vectors, probes)
        return self._lists[key]

    def scans(self, index: Any, probes: int) -> Iterator[tuple[np.ndarray, DistanceTable]]:
        """What a `ListScan` of an index is asked for, so many vectors at a time: all lists near any of them, and their table."""
        key = _quantizer_of(index)
        parts = [slice(first, first + LANES[-1]) for first in range(0, len(self.vectors), LANES[-1])]
        if (key, probes) not in self._unions:
            _, near = self.lists(index, probes)
            self._unions[key, probes] = [np.unique(near[part]) for part in parts]
        for number, part in enumerate(parts):
            table = self._tables.get((key, number)) or DistanceTable.of(index.pq, self.vectors[part], self.prices[part])
            if number < KEPT_TABLES:
                self._tables[key, number] = table
            yield self._unions[key, probes][number], table


def shortlist(
    index: faiss.Index,
    query: PrefilterQuery,
    video_of_segment: np.ndarray,
    count: int,
    allowed: np.ndarray | None = None,
    scan: ListScan | None = None,
    least: float = -math.inf,
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` videos with the best segment: those of the highest prefilter logit, exactly where the index is flat.

    video_of_segment: int [S], ascending from 0. allowed: bool [V], or None for all videos. scan: `ListScan.of(index)`, the faster
    way through its lists. Returns (videos int64 [m], logits float32 [m]), best first, equal ones by position; m = count unless
    fewer are allowed. Equal logits at the end of the list are all returned (m may exceed count), so that a merge of several
    partitions can order them by id. An inverted file is asked for all its lists before fewer videos than `count` are returned,
    unless `least` is given, a logit below which nothing is of interest: a scan then leaves out what is below.
    Raises PipelineError where the index names segments that are not there.
    """
    if count < 1 or not len(video_of_segment) or (allowed is not None and not allowed.any()):
        return np.empty(0, np.int64), np.empty(0, np.float32)
    if scan is not None:
        share = 1.0 if allowed is None else np.count_nonzero(allowed) / len(allowed)
        return _scanned(scan, query, video_of_segment, count, allowed, share, least)
    segments_allowed = None if allowed is None else allowed[video_of_segment]
    total = len(video_of_segment) if segments_allowed is None else int(segments_allowed.sum())
    if is_flat(index) and 8 * count >= total:
        return _best(_every_logit(index, query, video_of_segment), count, allowed)
    searched = _Searched(index, query, segments_allowed, total / len(video_of_segment))
    k = min(total, DEEP * count)
    while True:
        found, segments = searched.nearest(k)
        if segments.max() >= len(video_of_segment):
            raise PipelineError(NO_SUCH_SEGMENT)
        logits = query.logits(found)
        best = np.full(int(video_of_segment[-1]) + 1, -np.inf, np.float32)
        real = segments >= 0  # FAISS fills up with -1 where it finds no more
        np.maximum.at(best, video_of_segment[segments[real]], logits[real])
        full = int((best > -np.inf).sum()) >= count
        if is_flat(index):
            unseen = logits[:, -1].max()  # no segment that was not returned has a higher logit
            if k == total or (full and np.partition(best, -count)[-count] > unseen):
                return _best(best, count, allowed)
        elif full or (k == total and searched.exhausted):
            return _best(best, count, allowed)
        else:
            searched.widen()
        k = min(total, 4 * k)


def _scanned(
    scan: ListScan,
    query: PrefilterQuery,
    video_of_segment: np.ndarray,
    count: int,
    allowed: np.ndarray | None,
    share: float,
    least: float,
) -> tuple[np.ndarray, np.ndarray]:
    """`shortlist` by a scan of lists, of more each time too little was found."""
    probes = _probes(scan.lists, share)
    limit = query.metric.bias - least
    while True:
        distances = np.full(int(video_of_segment[-1]) + 1, np.inf, np.float32)
        for lists, table in query.scans(scan.index, probes):
            distances = np.minimum(distances, scan.nearest(lists, table, video_of_segment, allowed, limit))
        if probes == scan.lists or limit < math.inf or int(np.isfinite(distances).sum()) >= count:
            return _best(query.metric.bias - distances, count, allowed)
        probes = min(scan.lists, 4 * probes)


class _Searched:
    """One index as it is asked for one target: with the filter, and with more lists each time too little was found."""

    def __init__(self, index: faiss.Index, query: PrefilterQuery, allowed: np.ndarray | None, share: float) -> None:
        found: Any = faiss.downcast_index(index)
        self.index = found
        self.query = query
        self.lists = 0 if is_flat(index) else self.index.nlist
        self.probes = _probes(self.lists, share)
        self.selector = None
        if allowed is not None:
            # FAISS keeps a pointer only: the bitmap must outlive the searches.
            self.bitmap = np.packbits(allowed, bitorder="little")
            self.selector = faiss.IDSelectorBitmap(len(allowed), faiss.swig_ptr(self.bitmap))

    @property
    def exhausted(self) -> bool:
        return self.probes >= self.lists

    def widen(self) -> None:
        self.probes = min(self.lists, 4 * self.probes)

    def nearest(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(FAISS's numbers, segments) of the k nearest of each query, float32 and int64 [N, k]."""
        vectors = self.query.vectors
        parameters: Any = faiss.SearchParametersIVF() if self.lists else faiss.SearchParameters()
        if self.selector is not None:
            parameters.sel = self.selector
        if not self.lists:
            return self.index.search(vectors, k, params=parameters)
        parameters.nprobe = self.probes
        near, lists = self.query.lists(self.index, self.probes)
        found, segments = np.empty((len(vectors), k), np.float32), np.empty((len(vectors), k), np.int64)
        asked, answered = (map(faiss.swig_ptr, arrays) for arrays in ((lists, near), (found, segments)))
        # The method of the same name without _c takes no selector.
        self.index.search_preassigned_c(len(vectors), faiss.swig_ptr(vectors), k, *asked, *answered, False, parameters)
        return found, segments


def _quantizer_of(index: Any) -> bytes:
    """What tells the quantizers of an inverted file from others: partitions of a version have copies of the same."""
    return index.quantizer.reconstruct(0).tobytes()


def _every_logit(index: faiss.Index, query: PrefilterQuery, video_of_segment: np.ndarray) -> np.ndarray:
    """The best logit of each video float32 [V], from all vectors of a flat index: no list of nearest ones is kept."""
    vectors, metric, queries = stored_vectors(index), query.metric, query.vectors
    best = np.empty(index.ntotal, np.float32)
    squares = (queries**2).sum(axis=1)
    for first in range(0, index.ntotal, EVERY_BLOCK):
        block = vectors[first : first + EVERY_BLOCK]
        products = block @ queries.T  # [s, N]
        if metric.is_distance:
            products = squares - 2 * products + (block**2).sum(axis=1)[:, None]
        best[first : first + len(block)] = query.logits(products.T).max(axis=0)
    starts = np.flatnonzero(np.diff(video_of_segment, prepend=-1))
    return np.maximum.reduceat(best, starts)


def _best(logits: np.ndarray, count: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The best `count` videos of logits [V], and those equal to the last of them; -inf and not allowed ones are not there."""
    there = logits > -np.inf if allowed is None else (logits > -np.inf) & allowed
    videos = np.flatnonzero(there)
    if len(videos) > count:
        least = np.partition(logits[videos], -count)[-count]
        videos = videos[logits[videos] >= least]
    videos = videos[np.argsort(-logits[videos], kind="stable")]
    return videos, logits[videos]
