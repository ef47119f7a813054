"""Scoring beside its peers and its limit: pairs of target and candidate segments, from float16 keys and values in memory.

    python -m benchmarks.scoring

For 1, 8 and 64 target segments: this code (`pipeline.scoring.scores.candidate_logits`) against (a) METHOD's definition as
vectorised PyTorch, (b) a loop over candidate videos doing the same, (c) the two matrix products alone, and reading the arrays
alone; the slower of the two is the limit. All take turns, and medians count. Products alone are torch's on float32 copies that
lie ready; the share of the limit exceeds 1 where this code's own products are faster than the library's for so narrow a matrix,
so the share of the machine's arithmetic, as a square product of the library reaches it, is given beside it.

All that is done for this processor and, in turn with it, for lesser ones (`--processor`): the kernel is compiled for x86-64-v3
(AVX2) and x86-64-v2 (SSE4.2), and PyTorch with its libraries is kept to the same instructions, in a process of its own.

Errors are of scores, against the definition in float64 on unrounded features. The last line is the same as JSON.
"""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import numpy as np
import torch
import typer
from torch import Tensor

from jobs.command_line import run
from pipeline.backbone.shipped import WEIGHTS
from pipeline.coattention.head import load_head
from pipeline.coattention.network import Coattention
from pipeline.scoring import compiled, pair_kernel
from pipeline.scoring.scores import TargetEncoding, candidate_logits, encode_target, frame_band, segment_rows
from pipeline.scoring.video_scores import video_scores
from pipeline.segments import segment_starts

LENGTH, STRIDE = 8, 4
BLOCK = 4096  # pairs of segments of the vectorised definition at a time: its encodings, 3 MB then, fit the cache
ORACLE_SEGMENTS = 2000
TARGETS = (1, 8, 64)
LEAST_S = 0.1  # a turn: what is short is repeated, since PyTorch's threads spin on for a while after the work before
COLUMNS = ("this code", "definition", "loop", "products", "reading")
LESSER = {  # processors, what this one must have to be one of them (`torch.backends.cpu`), and what keeps PyTorch to them
    "x86-64-v3": (("AVX2", "AVX512"), ("avx2", "AVX2", "AVX2")),
    "x86-64-v2": (("DEFAULT", "AVX2", "AVX512"), ("default", "SSE4_2", "SSE41")),
}
LIMITS = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")  # environment variables of these libraries


def processors() -> list[str]:
    """What kernels can be compiled for and run here: this processor, and lesser ones."""
    if platform.machine() != "x86_64":
        return ["native"]
    found = torch.backends.cpu.get_cpu_capability()
    return ["native", *(name for name, (at_least, _) in LESSER.items() if found in at_least)]


class Candidates:
    """Made-up candidates: people seen in several videos, frames that drift, some of them hidden."""

    def __init__(self, head: Coattention, videos: int, frames: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = head.config.feature_width

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator) / width**0.5

        self.frames = frames
        people, occluders = noise(max(videos // 5, 1), width), noise(8, width)
        common = noise(width)
        of_video = common + people[torch.randint(len(people), (videos,), generator=generator)] + 0.4 * noise(videos, width)
        features = of_video[:, None] + 0.4 * noise(videos, frames, width)
        hidden = torch.rand(videos, frames, generator=generator) < 0.1
        features[hidden] = common + occluders[torch.randint(8, (int(hidden.sum()),), generator=generator)]
        self.features = torch.nn.functional.normalize(features, dim=2).flatten(0, 1)
        with torch.inference_mode():
            self.exact = head.keys(self.features), head.values(self.features)
        self.keys, self.values = (part.half() for part in self.exact)
        after = torch.arange(frames - 1, -1, -1).repeat(videos)
        weight = head.score_row()[0].detach()
        self.bands = {
            torch.float16: frame_band(weight, self.values, after, LENGTH).half(),
            torch.float32: frame_band(weight, self.exact[1], after, LENGTH),
        }
        starts = torch.from_numpy(segment_starts(frames, LENGTH, STRIDE))
        first = torch.arange(videos)[:, None] * frames
        self.start, self.last = (first + starts).flatten(), (first + frames - 1).repeat(1, len(starts)).flatten()
        self.of_a_video = len(starts)
        self.rows = segment_rows(self.start, self.last, LENGTH)

    def target(self, head: Coattention, segments: int, seed: int = 1) -> tuple[Tensor, TargetEncoding]:
        """Features [N, T, D] of target segments, those of candidates with noise of their own, and their encoding."""
        generator = torch.Generator().manual_seed(seed)
        rows = self.rows[torch.randint(len(self.rows), (segments,), generator=generator)]
        features = self.features[rows] + 0.3 * torch.randn(*rows.shape, self.features.shape[1], generator=generator) / 22
        return features, encode_target(head, features)


def definition(target: TargetEncoding, keys: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """Logits [N, K] as METHOD section 1 says: an encoding for each pair of segments."""
    parts = []
    for block in rows.split(max(1, BLOCK // len(target.encodings))):
        seen = values[block].to(target.bias.dtype)  # [k, T, d_v]
        heat = keys[block].to(target.bias.dtype) @ target.query_vectors.T  # [k, T, N]
        if target.agreement:  # less what belongs to the target alone, which cancels
            heat += target.agreement * (
                (seen.square() @ target.weight)[..., None] - 2 * seen @ (target.weight * target.encodings).T
            )
        encodings = heat.softmax(dim=1).mT @ seen  # [k, N, d_v]
        parts.append((target.bias + (target.encodings - encodings).square() @ target.weight).T)
    return torch.cat(parts, dim=1)


def video_by_video(target: TargetEncoding, candidates: Candidates) -> Tensor:
    """The same, one candidate video after another."""
    rows = candidates.rows.split(candidates.of_a_video)
    return torch.cat([definition(target, candidates.keys, candidates.values, of_video) for of_video in rows], dim=1)


def products(keys: Tensor, values: Tensor, target: TargetEncoding) -> None:
    """The two matrix products alone, in blocks that stay in the cache, on float32 copies."""
    for k, v in zip(keys.split(4096), values.split(4096), strict=True):
        torch.mm(k, target.query_vectors.T)
        torch.mm(v, target.encodings.T)


def reading(candidates: Candidates) -> None:
    """All bytes that scoring reads, read once, by all threads."""
    for array in (candidates.keys, candidates.values, candidates.bands[torch.float16]):
        flat = array.flatten()
        flat[: len(flat) // 4 * 4].view(torch.int64).sum()


class Bench:
    """What is measured for one processor, in a process of its own."""

    def __init__(self, processor: str, videos: int, frames: int, head: Path | None, threads: int) -> None:
        compiled.PROCESSOR = processor
        torch.set_num_threads(threads)
        self.head = load_head(str(head or WEIGHTS / "heads" / "osnet_x0_25_distilled"))
        self.candidates = candidates = Candidates(self.head, videos, frames)
        self.floats = candidates.keys.float(), candidates.values.float()
        self.arrays = (candidates.keys, candidates.values, candidates.bands[torch.float16], candidates.start, candidates.last)
        self.targets = {segments: candidates.target(self.head, segments)[1] for segments in TARGETS}
        self.square = torch.randn(2048, 2048)

    def about(self) -> dict[str, Any]:
        """Sizes and what is correct."""
        candidates = self.candidates
        found: dict[str, Any] = {
            "kernel": pair_kernel.available(),
            "lanes": {segments: pair_kernel.lanes(segments) for segments in TARGETS} if pair_kernel.available() else {},
            "threads": torch.get_num_threads(),
            "frames": len(candidates.keys),
            "pairs": len(candidates.start),
            "bytes": sum(array.nbytes for array in self.arrays[:3]),
            "widths": candidates.keys.shape[1] + candidates.values.shape[1],
        }
        for kind, (error, ranked) in errors(self.head, candidates, 8).items():
            name = str(kind).removeprefix("torch.")
            found |= {f"max_abs_error_{name}": error, f"first_100_as_defined_{name}": ranked}
        return found

    def turn(self, segments: int, names: tuple[str, ...]) -> dict[str, float]:
        """Seconds of each, for one turn."""
        target, candidates = self.targets[segments], self.candidates
        work: dict[str, Callable[[], object]] = {
            "this code": lambda: candidate_logits(target, *self.arrays, LENGTH),
            "products": lambda: products(*self.floats, target),
            "reading": lambda: reading(candidates),
            "square": lambda: self.square @ self.square,
            "definition": lambda: definition(target, candidates.keys, candidates.values, candidates.rows),
            "loop": lambda: video_by_video(target, candidates),
        }
        taken = {}
        for name in names:
            runs: list[float] = []
            while sum(runs) < LEAST_S:
                began = time.perf_counter()
                work[name]()
                runs.append(time.perf_counter() - began)
            taken[name] = statistics.median(runs)
        return taken


_bench: Bench  # of a process that measures


def _begin(*settings: Any) -> None:
    global _bench
    _bench = Bench(*settings)


def _about() -> dict[str, Any]:
    return _bench.about()


def _turn(segments: int, names: tuple[str, ...]) -> dict[str, float]:
    return _bench.turn(segments, names)


def started(processor: str, *settings: Any) -> ProcessPoolExecutor:
    """A process that measures for a processor."""
    limits = dict(zip(LIMITS, LESSER[processor][1], strict=True)) if processor in LESSER else {}
    spawn = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, limits):
        pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_begin, initargs=(processor, *settings))
        pool.submit(time.time).result()
    return pool


def medians(
    pools: dict[str, ProcessPoolExecutor], segments: int, names: tuple[str, ...], repeats: int
) -> dict[str, dict[str, float]]:
    """Seconds of each by processor, in turn; the first turn does not count."""
    turns: dict[str, list[dict[str, float]]] = {processor: [] for processor in pools}
    for _ in range(repeats + 1):
        for processor, pool in pools.items():
            turns[processor].append(pool.submit(_turn, segments, names).result())
    return {
        processor: {name: statistics.median(turn[name] for turn in found[1:]) for name in names}
        for processor, found in turns.items()
    }


def errors(head: Coattention, candidates: Candidates, segments: int) -> dict[torch.dtype, tuple[float, bool]]:
    """Largest error of a score by storage type, and whether the first 100 videos are the definition's, but for near ties."""
    features, target = candidates.target(head, segments)
    some = slice(0, ORACLE_SEGMENTS // candidates.of_a_video * candidates.of_a_video)
    double = head.double()
    wide = encode_target_in_float64(double, features)
    with torch.inference_mode():
        keys, values = double.keys(candidates.features.double()), double.values(candidates.features.double())
    head.float()
    truth = definition(wide, keys, values, candidates.rows[some]).sigmoid()
    offsets = np.arange(0, truth.shape[1] + 1, candidates.of_a_video)
    true_scores = video_scores(truth.numpy(), offsets)
    found = {}
    for kind, arrays in ((torch.float16, (candidates.keys, candidates.values)), (torch.float32, candidates.exact)):
        logits = candidate_logits(target, *arrays, candidates.bands[kind], candidates.start[some], candidates.last[some], LENGTH)
        scores = logits.sigmoid().T
        error = float((scores.double() - truth).abs().max())
        mine = video_scores(scores.numpy(), offsets)
        order = np.argsort(-mine, kind="stable")[:100]
        in_order = bool((np.diff(true_scores[order]) <= 2 * error).all())
        among = true_scores[order].min() >= np.sort(true_scores)[-100:].min() - 2 * error
        found[kind] = (error, in_order and bool(among))
    return found


def encode_target_in_float64(head: Coattention, features: Tensor) -> TargetEncoding:
    """`encode_target` without its rounding to float32."""
    with torch.inference_mode():
        queries = head.query_vectors(features.double())
        attention = head.attention(queries, head.keys(features.double()))
        encodings = head.encode(attention, head.values(features.double()))
        weight, bias = (part.detach() for part in head.score_row())
    agreement = float(head.agreement.detach().clamp_min(0))
    return TargetEncoding(queries, encodings, attention, weight, bias, encodings.mean(dim=0), agreement)


def scoring(
    videos: Annotated[int, typer.Option(help="Candidate videos.")] = 4000,
    frames: Annotated[int, typer.Option(help="Frames a video.")] = 40,
    repeats: Annotated[int, typer.Option(help="Turns whose median counts.")] = 7,
    head: Annotated[Path | None, typer.Option(help="Folder of a head [default: the one that ships].")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads [default: as PyTorch chooses].")] = None,
    processor: Annotated[list[str] | None, typer.Option(help="native, x86-64-v3 or x86-64-v2 [default: all].")] = None,
) -> None:
    """Measure scoring beside its peers and its limit, for this processor and lesser ones, and print a table."""
    asked = processor or processors()
    pools = {name: started(name, videos, frames, head, threads or torch.get_num_threads()) for name in asked}
    figures = {name: pool.submit(_about).result() for name, pool in pools.items()}
    first = figures[asked[0]]
    size = f"{first['pairs']} segments, {first['bytes'] / 1e6:.0f} MB"
    print(f"{videos} videos of {frames} frames, {size}, {first['threads']} threads; {_model()}")
    for name, taken in medians(pools, 1, ("square",), 3).items():
        figures[name]["peak_gflops"] = 2 * 2048**3 / taken["square"] / 1e9
    print(f"{'processor':<12}{'segments':>9}{'lanes':>6}" + "".join(f"{name:>12}" for name in COLUMNS) + "   us a frame")
    for segments in TARGETS:
        times = medians(pools, segments, COLUMNS, repeats)
        for name, found in figures.items():
            found |= _ratios(found, segments, times[name])
            found[f"times_{asked[0]}_{segments}"] = times[name]["this code"] / times[asked[0]]["this code"]
            row = "".join(f"{seconds / found['frames'] * 1e6:>12.4f}" for seconds in times[name].values())
            print(f"{name:<12}{segments:>9}{found['lanes'].get(segments, '-'):>6}{row}")
    for name, found in figures.items():
        for segments in TARGETS:
            print(
                f"{name}, {segments} segments: {found[f'speedup_vs_textbook_{segments}']:.1f} x the definition, "
                f"{found[f'speedup_vs_loop_{segments}']:.1f} x the loop, {found[f'share_of_limit_{segments}']:.2f} of the limit "
                f"({found[f'bound_by_{segments}']}), {found[f'share_of_peak_{segments}']:.2f} of the arithmetic, "
                f"{found[f'gbytes_per_s_{segments}']:.1f} GB/s, "
                f"{found[f'times_{asked[0]}_{segments}']:.2f} x the time of {asked[0]}"
            )
        wrong = ", ".join(f"{found[f'max_abs_error_{kind}']:.1e} {kind}" for kind in ("float16", "float32"))
        print(f"{name}: largest error {wrong}")
    for pool in pools.values():
        pool.shutdown()
    print(json.dumps(first | {"processor": _model(), "lesser": {name: figures[name] for name in asked[1:]}}))


def _model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _ratios(found: dict[str, Any], segments: int, times: dict[str, float]) -> dict[str, Any]:
    """What the seconds of one processor mean."""
    mine, limit = times["this code"], max(times["products"], times["reading"])
    operations = 2 * found["widths"] * segments * found["frames"]
    figures = {
        "us_a_frame": mine / found["frames"] * 1e6,
        "speedup_vs_textbook": times["definition"] / mine,
        "speedup_vs_loop": times["loop"] / mine,
        "share_of_limit": limit / mine,
        "share_of_peak": operations / mine / found["peak_gflops"] / 1e9,
        "gbytes_per_s": found["bytes"] / mine / 1e9,
        "flops_per_byte": operations / found["bytes"],
        "bound_by": "products" if times["products"] > times["reading"] else "reading",
    }
    return {f"{name}_{segments}": figure for name, figure in figures.items()}


if __name__ == "__main__":
    run(scoring)
