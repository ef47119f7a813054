"""Rows in files are scored as those that are mapped, in the page cache or not, and searches give the same leads."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.versions import Index
from pipeline.scoring import compiled, pair_kernel
from pipeline.scoring.frame_rows import FileRows, RowFiles
from pipeline.scoring.scores import TargetEncoding, candidate_logits, file_logits
from pipeline.search import local_partitions
from pipeline.search.local_partitions import LocalPartitions
from pipeline.search.search import search_many
from pipeline.search.targets import gallery_target
from pipeline.segments import segment_starts
from pipeline.settings import IndexSettings, SearchSettings


def mapped(folder: Path, frames: int, seed: int = 0) -> dict[str, np.memmap]:
    rng = np.random.default_rng([frames, seed])
    folder.mkdir(exist_ok=True)
    arrays = {"keys": (frames, 5), "values": (frames, 3), "band": (frames, 7)}
    for name, shape in arrays.items():
        np.save(folder / f"{name}.npy", rng.normal(size=shape).astype(np.float16))
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in arrays}


def target_of(targets: int, key_width: int, value_width: int) -> TargetEncoding:
    generator = torch.Generator().manual_seed(targets)
    queries, encodings = (torch.randn(targets, width, generator=generator) for width in (key_width, value_width))
    weight = -torch.rand(value_width, generator=generator)
    return TargetEncoding(queries, encodings, torch.empty(0), weight, torch.tensor(0.5), encodings.mean(dim=0))


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(("targets", "dropped"), [(1, True), (9, False), (9, True), (40, True)])
@pytest.mark.parametrize(("length", "stride"), [(8, 4), (8, 11), (3, 1), (1, 1)])
def test_logits_from_files_are_those_of_mapped_rows(
    tmp_path: Path, targets: int, length: int, stride: int, dropped: bool
) -> None:
    rng = np.random.default_rng(targets)
    frames = rng.integers(1, 60, size=150)
    frames[70] = 4097  # longer than what else is copied at a time
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
        rows = (torch.from_numpy(np.load(str(part[name].filename))) for name in ("keys", "values", "band"))
        expected.append(candidate_logits(target, *rows, torch.from_numpy(start), torch.from_numpy(last), length))
        owner += [place] * len(videos)
        chosen += videos.tolist()
    counts = np.array([len(starts[v]) for v in chosen])
    lie = np.array(chosen)
    files = FileRows([RowFiles(part) for part in parts], np.array(owner))
    if dropped:
        drop(files.files[1].descriptors["values"])
    logits = file_logits(target, files, first[lie], frames[lie], counts, length, stride)
    assert logits.numpy().tobytes() == torch.cat(expected).numpy().tobytes()


@pytest.mark.parametrize("ahead", [0, 20_000])
def test_more_videos_than_are_asked_for_at_a_time_are_scored_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Of two partitions, one is not in the page cache; what is asked for of it is waited for before the other's videos end."""
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, f"-DAHEAD={ahead}"))
    compiled._library.cache_clear()
    if not pair_kernel.available():
        pytest.skip(f"no kernel: {pair_kernel.why_not()}")
    frames = np.tile(np.random.default_rng(0).integers(1, 60, size=150), 2)
    first = np.tile(np.cumsum(frames[:150]) - frames[:150], 2)
    parts = [_with_band(tmp_path / name, int(frames[:150].sum()), 8, seed) for seed, name in enumerate(("one", "two"))]
    files = FileRows([RowFiles(part) for part in parts], np.repeat([1, 0], 150))
    counts = np.array([len(segment_starts(int(count), 8, 4)) for count in frames])
    whole = file_logits(target_of(9, 5, 3), files, first, frames, counts, 8, 4)
    drop(files.files[1].descriptors["keys"])
    assert torch.equal(file_logits(target_of(9, 5, 3), files, first, frames, counts, 8, 4), whole)
    compiled._library.cache_clear()


@pytest.fixture
def some_rows(tmp_path: Path) -> tuple[dict[str, np.memmap], Callable[..., torch.Tensor]]:
    """Arrays of 400 videos of 30 frames, and what gives the logits of them all from their files."""
    if not pair_kernel.available():
        pytest.skip(f"no kernel: {pair_kernel.why_not()}")
    frames = np.full(400, 30)
    first, counts = np.cumsum(frames) - frames, np.full(400, len(segment_starts(30, 8, 4)))
    part = _with_band(tmp_path, 12_000, 8, 0)
    files = RowFiles(part)

    def logits(target: TargetEncoding, segments: np.ndarray = counts) -> torch.Tensor:
        return file_logits(target, FileRows([files], np.zeros(400, np.int64)), first, frames, segments, 8, 4)

    return part, logits


def test_a_file_that_became_too_short_or_went_away_is_one_sentence(
    tmp_path: Path, some_rows: tuple[dict[str, np.memmap], Callable[..., torch.Tensor]]
) -> None:
    part, logits = some_rows
    logits(target_of(3, 5, 3))
    os.truncate(tmp_path / "values.npy", 40_000)
    with pytest.raises(PipelineError, match=r"values\.npy cannot be read: it ends too early"):
        logits(target_of(3, 5, 3))
    (tmp_path / "keys.npy").unlink()
    with pytest.raises(PipelineError, match=r"keys\.npy cannot be read: No such file"):
        RowFiles(part)


def test_rows_of_other_widths_and_more_segments_than_rows_are_refused(
    some_rows: tuple[dict[str, np.memmap], Callable[..., torch.Tensor]],
) -> None:
    _, logits = some_rows
    with pytest.raises(ValueError, match=r"have \(5, 3, 7\) numbers"):
        logits(target_of(3, 5, 4))
    with pytest.raises(ValueError, match="not more of them than frames"):
        logits(target_of(3, 5, 3), np.full(400, 31))


def drop(file: int) -> None:
    """Drop a file from the page cache, where nothing maps it; skips the test where the system does not."""
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(BlockingIOError):
        os.preadv(file, [bytearray(1)], 8192, os.RWF_NOWAIT)
        pytest.skip("this system keeps in memory what it is told to drop")


def _with_band(folder: Path, frames: int, length: int, seed: int) -> dict[str, np.memmap]:
    arrays = mapped(folder, frames, seed)
    band = np.random.default_rng(seed).random((frames, length - 1)).astype(np.float16)
    np.save(folder / "band.npy", -band)
    return {**arrays, "band": np.load(folder / "band.npy", mmap_mode="r")}


def test_segments_of_one_frame_are_searched_from_files_too(toy_gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    index = build_index(toy_gallery, IndexSettings(1, 1))
    target = gallery_target(toy_gallery, "v003")
    asked = SearchSettings(top=3, shortlist=8, shortlist_share=0.0)
    found = []
    for sparse in (0.0, 1.0):
        monkeypatch.setattr(local_partitions, "SPARSE", sparse)
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
    with pytest.raises(PipelineError, match=r"damaged: band holds float.* instead of float16 \[\d+, 7\]"):
        search_many(toy_gallery, index, partitions, [gallery_target(toy_gallery, "v003")], SearchSettings(shortlist=4))


@pytest.fixture
def partitioned(toy_gallery: Gallery) -> Index:
    return build_index(toy_gallery, IndexSettings(8, 4, partition_videos=9))


@pytest.mark.parametrize("together", [0, 40, 1_000_000])
@pytest.mark.parametrize("ask", [{}, {"shortlist": 12, "shortlist_share": 0.0}, {"exact": True}])
def test_leads_do_not_depend_on_where_rows_are(
    toy_gallery: Gallery, partitioned: Index, monkeypatch: pytest.MonkeyPatch, together: int, ask: dict[str, object]
) -> None:
    targets = [gallery_target(toy_gallery, name) for name in ("v003", "v010", "v021")]
    asked = SearchSettings(top=15, **ask)  # type: ignore[arg-type]

    def leads() -> list[tuple[str, float, list[float]]]:
        partitions = LocalPartitions(partitioned, range(len(partitioned.manifest["partitions"])))
        results = search_many(toy_gallery, partitioned, partitions, targets, asked)
        assert partitions.large == (local_partitions.MAPPED_BYTES == 0)
        found = [lead for result in results for lead in result.leads]
        return [(lead.video.video_id, lead.score, [pair.score for pair in lead.best_pairs]) for lead in found]

    monkeypatch.setattr(local_partitions, "SPARSE", 0.0)
    mapped = leads()
    monkeypatch.setattr(local_partitions, "MAPPED_BYTES", 0)
    monkeypatch.setattr(local_partitions, "TOGETHER", together)
    assert leads() == mapped
