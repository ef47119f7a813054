"""Rows that are read into memory are those that are mapped, and searches that read them give the same leads."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.scoring import candidates as candidates_module
from pipeline.scoring import compiled, frame_rows, pair_kernel
from pipeline.scoring.frame_rows import FileRows, Reading, RowFiles, Wanted
from pipeline.scoring.scores import TargetEncoding, cached_logits, candidate_logits
from pipeline.search import partitions as partitions_module
from pipeline.search.partitions import LocalPartitions
from pipeline.search.search import search_many
from pipeline.search.targets import gallery_target
from pipeline.segments import segment_starts
from pipeline.settings import IndexSettings, SearchSettings


@pytest.fixture(params=["compiled", "python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "python":
        monkeypatch.setattr(compiled, "library", lambda name: None)
    elif compiled.library("frame_rows") is None:
        pytest.skip(f"no compiled library: {compiled.why_not('frame_rows')}")


def mapped(folder: Path, frames: int, seed: int = 0) -> dict[str, np.memmap]:
    rng = np.random.default_rng([frames, seed])
    folder.mkdir(exist_ok=True)
    arrays = {"keys": (frames, 5), "values": (frames, 3), "band": (frames, 7)}
    for name, shape in arrays.items():
        np.save(folder / f"{name}.npy", rng.normal(size=shape).astype(np.float16))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


@pytest.mark.parametrize("piece", [1, 7, 64, 1 << 20])
@pytest.mark.usefixtures("reader")
def test_rows_in_memory_are_the_mapped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(frame_rows, "PIECE", piece)
    rng = np.random.default_rng(1)
    frames = rng.integers(1, 9, size=60)
    first = np.cumsum(frames) - frames
    parts = [mapped(tmp_path / name, int(frames.sum()), seed) for seed, name in enumerate(("one", "two", "three"))]
    memory: dict[str, np.ndarray] = {}
    for count in (1, 60, 2, 30):
        chosen = [np.sort(rng.choice(60, count, replace=False)) for _ in parts]
        wanted = [Wanted(RowFiles(part), first[videos], frames[videos]) for part, videos in zip(parts, chosen, strict=True)]
        reading = Reading(wanted, memory)
        rows = reading.rows()
        for arrays, videos, begin in zip(parts, chosen, reading.first, strict=True):
            for video, at in zip(videos, begin, strict=True):
                for name in arrays:
                    mine = getattr(rows, name)[at : at + frames[video]].numpy()
                    assert np.array_equal(mine, arrays[name][first[video] : first[video] + frames[video]])
        reused = all(reading.memory[name] is flat for name, flat in memory.items())
        assert reused == (count != 60)  # which needs more than there was
        memory = reading.memory


@given(st.lists(st.tuples(st.integers(0, 900), st.integers(1, 100)), min_size=1, max_size=20), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_pieces_cover_every_range_once_and_in_order(ranges: list[tuple[int, int]], piece: int) -> None:
    at, size = (np.array(column) for column in zip(*ranges, strict=True))
    usual, frame_rows.PIECE = frame_rows.PIECE, piece
    try:
        groups = frame_rows._pieces(np.arange(len(at)), at, size)
    finally:
        frame_rows.PIECE = usual
    read = [i for _, offsets, sizes, _ in groups for a, n in zip(offsets, sizes, strict=True) for i in range(a, a + n)]
    assert read == [i for a, n in ranges for i in range(a, a + n)]
    places = [to for *_, to in groups]
    assert places == np.cumsum([0, *(int(sizes.sum()) for *_, sizes, _ in groups)])[:-1].tolist()
    assert all(sizes.sum() < 2 * piece for *_, sizes, _ in groups)


@pytest.mark.usefixtures("reader")
def test_a_file_that_became_too_short_or_went_away_is_one_sentence(tmp_path: Path) -> None:
    arrays = mapped(tmp_path, 40)
    asked = [Wanted(RowFiles(arrays), np.array([0, 30]), np.array([10, 10]))]
    Reading(asked).rows()
    os.truncate(tmp_path / "values.npy", 200)
    with pytest.raises(PipelineError, match=r"values\.npy cannot be read: it ends"):
        Reading(asked).rows()
    (tmp_path / "keys.npy").unlink()
    with pytest.raises(PipelineError, match=r"keys\.npy cannot be read: No such file"):
        RowFiles(arrays)


def target_of(targets: int, key_width: int, value_width: int) -> TargetEncoding:
    generator = torch.Generator().manual_seed(targets)
    queries, encodings = (torch.randn(targets, width, generator=generator) for width in (key_width, value_width))
    weight = -torch.rand(value_width, generator=generator)
    return TargetEncoding(queries, encodings, torch.empty(0), weight, torch.tensor(0.5), encodings.mean(dim=0))


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("targets", [1, 9, 40])
@pytest.mark.parametrize(("length", "stride"), [(8, 4), (8, 11), (3, 1), (1, 1)])
def test_logits_from_files_are_those_of_mapped_rows(tmp_path: Path, targets: int, length: int, stride: int) -> None:
    rng = np.random.default_rng(targets)
    frames = rng.integers(1, 60, size=150)
    frames[70] = 4097  # longer than what is held of files
    first = np.cumsum(frames) - frames
    parts = [_with_band(tmp_path / name, int(frames.sum()), length, seed) for seed, name in enumerate(("one", "two"))]
    starts = [segment_starts(int(count), length, stride) for count in frames]
    target = target_of(targets, 5, 3)
    expected, owner, chosen = [], [], []
    for place, part in enumerate(parts):
        videos = np.sort(rng.choice(150, 120, replace=False))
        videos = np.unique([*videos, 70])
        start = np.concatenate([first[v] + starts[v] for v in videos])
        last = np.concatenate([np.full(len(starts[v]), first[v] + frames[v] - 1) for v in videos])
        rows = (torch.from_numpy(np.array(part[name])) for name in ("keys", "values", "band"))
        expected.append(candidate_logits(target, *rows, torch.from_numpy(start), torch.from_numpy(last), length))
        owner += [place] * len(videos)
        chosen += videos.tolist()
    counts = np.array([len(starts[v]) for v in chosen])
    lie = np.array(chosen)
    files = FileRows([RowFiles(part) for part in parts], np.array(owner))
    logits, left = cached_logits(target, files, first[lie], frames[lie], counts, length, stride)
    assert np.array_equal(left, lie == 70)
    there = torch.from_numpy(~np.repeat(left, counts))
    torch.testing.assert_close(logits[there], torch.cat(expected)[there], rtol=1e-5, atol=2e-5)


@pytest.mark.skipif(not pair_kernel.available(), reason=f"no kernel: {pair_kernel.why_not()}")
def test_what_the_page_cache_does_not_hold_is_left_out(tmp_path: Path) -> None:
    frames = np.full(400, 30)
    first = np.cumsum(frames) - frames
    part = _with_band(tmp_path, 12_000, 8, 0)
    files, target, counts = RowFiles(part), target_of(3, 5, 3), np.full(400, len(segment_starts(30, 8, 4)))
    everything = FileRows([files], np.zeros(400, np.int64)), first, frames, counts, 8, 4
    whole, left = cached_logits(target, *everything)
    assert not left.any()
    for descriptor in files.descriptors.values():
        os.fsync(descriptor)
    os.posix_fadvise(files.descriptors["values"], 40_000, 0, os.POSIX_FADV_DONTNEED)
    some, left = cached_logits(target, *everything)
    if not left.any():
        pytest.skip("this file system keeps in memory what it is told to drop")
    assert not left[:200].any()
    there = torch.from_numpy(~np.repeat(left, counts))
    torch.testing.assert_close(some[there], whole[there], rtol=0, atol=1e-6)
    assert not some[~there].any()
    os.truncate(tmp_path / "keys.npy", 1_000)  # the ordinary reading says what is wrong
    _, left = cached_logits(target, *everything)
    assert left[10:].all()
    with pytest.raises(ValueError, match=r"have \(5, 3, 7\) numbers"):
        cached_logits(target_of(3, 5, 4), *everything)


def _with_band(folder: Path, frames: int, length: int, seed: int) -> dict[str, np.memmap]:
    arrays = mapped(folder, frames, seed)
    band = np.random.default_rng(seed).random((frames, length - 1)).astype(np.float16)
    np.save(folder / "band.npy", -band)
    return {**arrays, "band": np.load(folder / "band.npy", mmap_mode="r")}


@pytest.mark.parametrize("left_out", [False, True])
def test_segments_of_one_frame_are_searched_from_files_too(
    toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    index = build_index(toy_gallery, IndexSettings(1, 1))
    target = gallery_target(toy_gallery, "v003")
    asked = SearchSettings(top=3, shortlist=8, shortlist_share=0.0)
    cached = candidates_module.cached_logits

    def some_cached(*arguments: Any) -> tuple[torch.Tensor, np.ndarray]:
        logits, left = cached(*arguments)
        return logits, left | left_out

    monkeypatch.setattr(candidates_module, "cached_logits", some_cached)
    found = []
    for sparse in (0.0, 1.0):
        monkeypatch.setattr(partitions_module, "SPARSE", sparse)
        (result,) = search_many(toy_gallery, index, LocalPartitions(index, [0]), [target], asked)
        found.append([(lead.video.video_id, pytest.approx(lead.score, abs=1e-6)) for lead in result.leads])
        assert all(len(pair.candidate.frame_index) == 1 for lead in result.leads for pair in lead.best_pairs)
    assert found[0] == found[1] and len(found[0]) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda band: band.astype(np.float32),
        np.asfortranarray,
        lambda band: np.ascontiguousarray(band[:, :-1]),
        lambda band: np.concatenate([band, band[:, :1]], axis=1),
        lambda band: band.ravel(),
    ],
)
def test_rows_of_another_shape_or_type_are_one_sentence(toy_gallery: Gallery, damage: Callable[[np.ndarray], np.ndarray]) -> None:
    index = build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9))
    file = Path(index.partition_location(1).path, "band.npy")
    np.save(file, damage(np.load(file)))
    partitions = LocalPartitions(index, range(len(index.manifest["partitions"])))
    with pytest.raises(PipelineError, match="damaged: its band are not rows of 7 float16 numbers"):
        search_many(toy_gallery, index, partitions, [gallery_target(toy_gallery, "v003")], SearchSettings(shortlist=4))


@pytest.fixture
def partitioned(toy_gallery: Gallery) -> Index:
    return build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9))


@pytest.mark.parametrize(("read_bytes", "not_cached"), [(1, 1), (5_000, 1), (1 << 20, 1), (5_000, 2), (1 << 20, 0)])
@pytest.mark.parametrize("ask", [{}, {"shortlist": 12, "shortlist_share": 0.0}, {"exact": True}])
def test_leads_do_not_depend_on_where_rows_are(
    toy_gallery: Gallery,
    partitioned: Index,
    monkeypatch: pytest.MonkeyPatch,
    read_bytes: int,
    not_cached: int,
    ask: dict[str, object],
) -> None:
    """not_cached: every which video is not in the page cache, by what the kernel says; 0: none."""
    targets = [gallery_target(toy_gallery, name) for name in ("v003", "v010", "v021")]
    asked = SearchSettings(top=15, **ask)  # type: ignore[arg-type]

    def leads() -> tuple[list[str], np.ndarray]:
        partitions = LocalPartitions(partitioned, range(len(partitioned.manifest["partitions"])))
        results = search_many(toy_gallery, partitioned, partitions, targets, asked)
        assert partitions.large == (partitions_module.MAPPED_BYTES == 0)
        found = [lead for result in results for lead in result.leads]
        scores = [score for lead in found for score in (lead.score, *(pair.score for pair in lead.best_pairs))]
        return [lead.video.video_id for lead in found], np.array(scores)

    monkeypatch.setattr(partitions_module, "SPARSE", 0.0)
    ids, scores = leads()
    monkeypatch.setattr(partitions_module, "MAPPED_BYTES", 0)
    monkeypatch.setattr(partitions_module, "READ_BYTES", read_bytes)
    monkeypatch.setattr(partitions_module, "CACHED_BYTES", read_bytes)
    cached, told = candidates_module.cached_logits, []

    def some_cached(*arguments: Any) -> tuple[torch.Tensor, np.ndarray]:
        logits, left = cached(*arguments)
        if not_cached:
            left[::not_cached] = True
        told.extend(left)
        return logits, left

    monkeypatch.setattr(candidates_module, "cached_logits", some_cached)
    copied_ids, copied_scores = leads()
    if pair_kernel.available():
        assert {0: not all(told), 1: all(told), 2: len(set(told)) == 2}[not_cached]
    assert copied_ids == ids
    assert np.allclose(copied_scores, scores, atol=1e-6, rtol=0)  # the last bit depends on which frames are multiplied together
