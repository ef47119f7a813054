"""The scan of compressed lists gives each video's smallest distance, as FAISS measures it, and never leaves its lists."""

import ctypes
import dataclasses
import multiprocessing
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.index import list_scan, prefilter
from pipeline.index.list_scan import DistanceTable, ListScan
from pipeline.index.partition_files import load_prefilter
from pipeline.index.prefilter import PrefilterMetric, PrefilterQuery, compressed_index, shortlist
from pipeline.scoring import compiled
from pipeline.scoring.scores import TargetEncoding
from pipeline.search.local_partitions import LocalPartitions
from pipeline.storage.location import resolve

METRIC = PrefilterMetric(np.full(24, -0.5, np.float32), 1.5)

needs_compiler = pytest.mark.skipif(
    compiled.library("list_scan") is None, reason=f"no compiled kernel: {compiled.why_not('list_scan')}"
)


@cache
def trained() -> faiss.Index:
    """A compressed index, empty. Training takes seconds."""
    return compressed_index(METRIC, made(0)[0], 3600)


def filled(seed: int) -> tuple[faiss.Index, np.ndarray, np.ndarray]:
    """A compressed index of some people's segments, the means of these, and the video of each."""
    means, video_of_segment = made(seed)
    index = faiss.clone_index(trained())
    index.add(METRIC.stored(means))
    return index, means, video_of_segment


def made(seed: int, videos: int = 900) -> tuple[np.ndarray, np.ndarray]:
    """Means float32 [S, 24] of some people's segments, and the video of each, int32 [S]."""
    rng = np.random.default_rng(seed)
    video_of_segment = np.repeat(np.arange(videos, dtype=np.int32), rng.integers(1, 8, size=videos))
    persons = rng.normal(size=(videos // 5, 24))
    means = (persons[video_of_segment % len(persons)] + 0.4 * rng.normal(size=(len(video_of_segment), 24))).astype(np.float32)
    return means, video_of_segment


def target(means: np.ndarray) -> TargetEncoding:
    empty = torch.empty(0)
    return TargetEncoding(empty, torch.from_numpy(means), empty, torch.from_numpy(METRIC.weight), torch.tensor(1.5), empty)


def scan_of(index: faiss.Index) -> ListScan:
    scan = ListScan.of(index)
    assert scan is not None
    return scan


def every_distance(index: faiss.Index, queries: np.ndarray) -> np.ndarray:
    """FAISS's distances float32 [N, S] of the queries from all codes."""
    found: Any = faiss.downcast_index(index)
    found.nprobe = found.nlist
    near, segments = found.search(queries, found.ntotal)
    distances = np.empty_like(near)
    np.put_along_axis(distances, segments, near, axis=1)
    return distances


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("count", [1, 3, 8, 9, 16, 17, 40])
@pytest.mark.parametrize("mapped", [False, True])
def test_it_measures_as_faiss_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, mapped: bool) -> None:
    monkeypatch.setattr(prefilter, "KEPT_TABLES", 1)
    index, means, video_of_segment = filled(count)
    if mapped:
        faiss.write_index(index, str(tmp_path / "lists.faiss"))
        index = load_prefilter(resolve(tmp_path / "lists.faiss"))
    prices = np.random.default_rng(count).exponential(1, count).astype(np.float32)
    query = PrefilterQuery(dataclasses.replace(target(means[50 : 50 + count]), prices=torch.from_numpy(prices)))
    truth = np.full(video_of_segment[-1] + 1, np.inf)
    np.minimum.at(truth, video_of_segment, (every_distance(index, query.vectors) + prices[:, None]).min(axis=0))
    scan = scan_of(index)
    scans = list(query.scans(scan.index, scan.lists))
    mine = np.minimum.reduce([scan.nearest(lists, table, video_of_segment) for lists, table in scans])
    assert np.abs(mine - truth).max() < 4 * max(table.unit for _, table in scans)  # eight rounded numbers a code
    videos, logits = shortlist(index, query, video_of_segment, 30, scan=scan)
    assert (np.diff(logits) <= 0).all()
    assert np.allclose(logits, 1.5 - mine[videos])


@needs_compiler
def test_only_the_lists_that_are_asked_for_are_looked_into() -> None:
    index, means, video_of_segment = filled(2)
    scan = scan_of(index)
    table = DistanceTable.of(scan.index.pq, METRIC.queries(means[:5]))
    for wanted in ([0], [3, 5, 1], []):
        lists = np.array(wanted, np.int64)
        inside = [faiss.rev_swig_ptr(scan.index.invlists.get_ids(n), scan.index.invlists.list_size(n)) for n in wanted]
        there = np.zeros(video_of_segment[-1] + 1, bool)
        there[video_of_segment[np.concatenate([np.empty(0, np.int64), *inside])]] = True
        assert np.array_equal(np.isfinite(scan.nearest(lists, table, video_of_segment)), there)


@needs_compiler
def test_a_filter_takes_nothing_from_those_it_allows() -> None:
    index, means, video_of_segment = filled(3)
    scan = scan_of(index)
    table = DistanceTable.of(scan.index.pq, METRIC.queries(means[:5]))
    every = scan.nearest(np.arange(scan.lists), table, video_of_segment)
    allowed = np.random.default_rng(0).random(len(every)) < 0.2
    some = scan.nearest(np.arange(scan.lists), table, video_of_segment, allowed)
    assert np.array_equal(some, np.where(allowed, every, np.inf))


@needs_compiler
@pytest.mark.parametrize("count", [1, 16])
def test_a_limit_takes_nothing_from_those_within(count: int) -> None:
    index, means, video_of_segment = filled(9)
    scan = scan_of(index)
    table = DistanceTable.of(scan.index.pq, METRIC.queries(means[20 : 20 + count]))
    every = scan.nearest(np.arange(scan.lists), table, video_of_segment)
    for limit in (-1.0, every.min(), *np.quantile(every, [0.01, 0.3, 0.9]), every.max(), 1e9):
        some = scan.nearest(np.arange(scan.lists), table, video_of_segment, limit=float(limit))
        within = every <= limit
        assert np.array_equal(some[within], every[within])
        assert (some[~within] >= every[~within]).all()
        assert np.isinf(some[every > max(limit, table.smallest) + 2 * table.unit]).all()


@needs_compiler
@pytest.mark.parametrize("first_ones_nearer", [False, True])
def test_the_best_of_many_partitions_are_those_of_each_asked_alone(first_ones_nearer: bool) -> None:
    """Also where the first partitions are the nearest, and what they do not name is less than what is asked for."""
    means, video_of_segment = made(10, videos=1200)
    if first_ones_nearer:
        means[video_of_segment >= 200] += 3.0
    query = target(means[:7])
    parts, logits = [], []
    for first in range(0, 1200, 100):
        own = slice(*np.searchsorted(video_of_segment, (first, first + 100)))
        index = faiss.clone_index(trained())
        index.add(METRIC.stored(means[own]))
        part = PartitionOf(index, scan_of(index), video_of_segment[own] - first)
        parts.append(part)
        found, mine = part.shortlist(PrefilterQuery(query), 100, None)
        logits.append(np.full(100, -np.inf))
        logits[-1][found] = mine
    partitions = LocalPartitions.__new__(LocalPartitions)
    partitions.first, partitions.count, partitions.threads = np.arange(0, 1200, 100), np.full(12, 100), None
    partitions.opened = dict(enumerate(parts))  # type: ignore[assignment, arg-type]
    alone = np.concatenate(logits)
    for count in (1, 30, 500, 1100):
        videos, found = partitions.shortlist(query, count, None)
        assert len(set(videos.tolist())) == len(videos) >= count
        best = np.argsort(-found, kind="stable")[:count]
        assert np.allclose(found[best], np.sort(alone)[::-1][:count])
        assert np.array_equal(found, alone[videos].astype(np.float32))
    assert all(max(part.limits) > -np.inf for part in parts[2:])  # they were asked with a limit
    assert first_ones_nearer == (sum(limit == -np.inf for limit in parts[-1].limits) > 2)  # and again where that was too tight


@dataclass
class PartitionOf:
    """What a search asks a partition for its shortlist by."""

    index: faiss.Index
    scan: ListScan
    video_of_segment: np.ndarray
    limits: list[float] = field(default_factory=list)

    def shortlist(
        self, query: PrefilterQuery, count: int, allowed: np.ndarray | None, least: float = -np.inf
    ) -> tuple[np.ndarray, np.ndarray]:
        self.limits.append(least)
        return shortlist(self.index, query, self.video_of_segment, count, allowed, self.scan, least)


@needs_compiler
def test_equal_means_everywhere_are_one_distance() -> None:
    means, video_of_segment = made(4)
    same = faiss.clone_index(trained())
    same.add(METRIC.stored(np.repeat(means[:1], len(means), axis=0)))
    query = PrefilterQuery(target(means[:1]))
    videos, logits = shortlist(same, query, video_of_segment, 5, scan=scan_of(same))
    assert len(videos) == video_of_segment[-1] + 1
    assert np.ptp(logits) == 0


@needs_compiler
def test_a_segment_that_is_not_there_is_told() -> None:
    index, means, video_of_segment = filled(5)
    scan = scan_of(index)
    table = DistanceTable.of(scan.index.pq, METRIC.queries(means[:5]))
    with pytest.raises(PipelineError, match="a segment that is not there"):
        scan.nearest(np.arange(scan.lists), table, video_of_segment[:-1])


@needs_compiler
def test_lists_beyond_the_end_of_the_file_are_told(tmp_path: Path) -> None:
    index, _, _ = filled(6)
    faiss.write_index(index, str(tmp_path / "lists.faiss"))
    mapped = load_prefilter(resolve(tmp_path / "lists.faiss"))
    lists: Any = faiss.downcast_InvertedLists(faiss.downcast_index(mapped).invlists)
    field = ctypes.c_int64.from_address(int(lists.lists.data().this) + 3 * 24 + 16)
    assert field.value == lists.lists.at(3).offset
    field.value = lists.totsize
    with pytest.raises(PipelineError, match="lists beyond its end"):
        ListScan.of(mapped)


def test_mapped_lists_are_where_faiss_says(tmp_path: Path) -> None:
    index, _, _ = filled(6)
    faiss.write_index(index, str(tmp_path / "lists.faiss"))
    owner = load_prefilter(resolve(tmp_path / "lists.faiss"))
    mapped: Any = faiss.downcast_index(owner)
    lists: Any = faiss.downcast_InvertedLists(mapped.invlists)
    assert isinstance(lists, faiss.OnDiskInvertedLists)
    told = [(int(lists.get_codes(i)), int(lists.get_ids(i)), lists.list_size(i)) for i in range(mapped.nlist)]
    assert np.array_equal(list_scan._addresses(lists, mapped.nlist, mapped.code_size), np.transpose(told))
    assert sum(size for _, _, size in told) == index.ntotal


@needs_compiler
@pytest.mark.parametrize("change", [lambda lists: None, lambda lists: np.roll(lists, 1, axis=0)])
def test_another_layout_of_mapped_lists_leaves_them_to_faiss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, change: Callable[[Any], Any]
) -> None:
    """As if a release of FAISS had the numbers of a list in another order, or did not name them so."""
    index, means, video_of_segment = filled(6)
    faiss.write_index(index, str(tmp_path / "lists.faiss"))
    mapped = load_prefilter(resolve(tmp_path / "lists.faiss"))
    query = PrefilterQuery(target(means[:6]))
    scanned, _ = shortlist(mapped, query, video_of_segment, 50, scan=scan_of(mapped))
    addresses = list_scan._addresses
    monkeypatch.setattr(list_scan, "_addresses", lambda *lists: change(addresses(*lists)))
    list_scan._layout_is_known.cache_clear()
    try:
        assert ListScan.of(mapped) is None
        assert ListScan.of(mapped) is None
    finally:
        list_scan._layout_is_known.cache_clear()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"FAISS {faiss.__version__} lays out mapped lists in a way that is not known here")
    alone, _ = shortlist(mapped, query, video_of_segment, 50, scan=None)
    assert np.isin(alone, scanned).mean() > 0.9  # FAISS looks into fewer lists for each query


def damaged(whole: bytes, seed: int) -> bytes:
    """The file cut, or with a few bits of it flipped: anywhere, or near its ends, where it says how large what is."""
    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        return whole[: int(rng.integers(len(whole)))]
    data = bytearray(whole)
    for _ in range(rng.integers(1, 5)):
        place = int(rng.integers(len(data) if seed % 3 == 1 else 200))
        data[place if rng.random() < 0.6 else -1 - place] ^= 1 << int(rng.integers(8))
    return bytes(data)


def ask_damaged(
    file: Path, whole: bytes, seeds: range, queries: np.ndarray, video_of_segment: np.ndarray, scanned: bool = True
) -> Counter[str]:
    """What came of opening and asking each damaged file: an answer, or a sentence. Anything else is raised."""
    outcomes: Counter[str] = Counter()
    for seed in seeds:
        file.write_bytes(damaged(whole, seed))
        try:
            index = load_prefilter(resolve(file))
            scan = ListScan.of(index) if scanned else None
            videos, logits = shortlist(index, PrefilterQuery(target(queries)), video_of_segment, 30, scan=scan)
            assert len(videos) == len(logits) and len(set(videos.tolist())) == len(videos)
            outcomes["answer"] += 1
        except PipelineError as error:
            assert "damaged" in str(error)
            outcomes["sentence"] += 1
    return outcomes


@pytest.mark.parametrize(("scanned", "told"), [pytest.param(True, 150, marks=needs_compiler), (False, 100)])
def test_damaged_files_are_told_or_answer_and_never_crash(tmp_path: Path, scanned: bool, told: int) -> None:
    index, means, video_of_segment = filled(8)
    faiss.write_index(index, str(tmp_path / "whole.faiss"))
    asked = tmp_path / "damaged.faiss", (tmp_path / "whole.faiss").read_bytes(), range(300), means[50:60], video_of_segment
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        outcomes = alone.submit(ask_damaged, *asked, scanned).result(timeout=120)
    assert outcomes["answer"] > 30 and outcomes["sentence"] > told  # FAISS looks into fewer lists


def test_other_indexes_are_left_to_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    index, means, video_of_segment = filled(7)
    flat = METRIC.empty_index()
    flat.add(METRIC.stored(means))
    products = PrefilterMetric(np.linspace(-1, 1, 24, dtype=np.float32), 1.5)
    assert ListScan.of(flat) is None
    assert ListScan.of(compressed_index(products, means, len(means))) is None
    query = PrefilterQuery(target(means[:6]))
    scanned = None if (scan := ListScan.of(index)) is None else shortlist(index, query, video_of_segment, 50, scan=scan)[0]
    monkeypatch.setattr(list_scan.compiled, "library", lambda name: None)
    assert ListScan.of(index) is None
    alone, _ = shortlist(index, query, video_of_segment, 50)
    assert scanned is None or np.isin(alone, scanned).mean() > 0.9  # FAISS looks into fewer lists for each query
