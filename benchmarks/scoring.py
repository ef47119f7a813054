"""Scoring beside its peers and its limit: pairs of target and candidate segments, from float16 keys and values in memory.

    python -m benchmarks.scoring

For 1, 8 and 64 target segments: this code (`pipeline.scoring.candidate_logits`) against (a) METHOD's definition as vectorised
PyTorch, (b) a loop over candidate videos doing the same, (c) the two matrix products alone, and reading the arrays alone; the
slower of the two is the limit. All take turns, and medians count. Products alone are torch's on float32 copies that lie ready;
the share of the limit exceeds 1 where this code's own products are faster than the library's for so narrow a matrix, so the share
of the machine's arithmetic, as a square product of the library reaches it, is given beside it.

Errors are of scores, against the definition in float64 on unrounded features. The last line is the same as JSON.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from torch import Tensor

from jobs.command_line import run
from pipeline import pair_kernel
from pipeline.coattention import Coattention
from pipeline.head import load_head
from pipeline.scoring import TargetEncoding, candidate_logits, encode_target, frame_band, segment_rows, video_scores
from pipeline.segments import segment_starts
from pipeline.weights import FOLDER

LENGTH, STRIDE = 8, 4
BLOCK = 4096  # pairs of segments of the vectorised definition at a time: its encodings, 3 MB then, fit the cache
ORACLE_SEGMENTS = 2000


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
        attention = (keys[block].to(target.bias.dtype) @ target.query_vectors.T).softmax(dim=1)  # [k, T, N]
        encodings = attention.mT @ values[block].to(target.bias.dtype)  # [k, N, d_v]
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


def medians(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, taking turns."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats + 1):
        for name, function in work.items():
            began = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken[1:]) for name, taken in times.items()}


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
    return TargetEncoding(queries, encodings, attention, weight, bias, encodings.mean(dim=0))


def scoring(
    videos: Annotated[int, typer.Option(help="Candidate videos.")] = 4000,
    frames: Annotated[int, typer.Option(help="Frames a video.")] = 40,
    repeats: Annotated[int, typer.Option(help="Runs whose median counts.")] = 7,
    head: Annotated[Path | None, typer.Option(help="Folder of a head [default: the one that ships].")] = None,
) -> None:
    """Measure scoring beside its peers and its limit, and print a table."""
    model = load_head(str(head or FOLDER / "heads" / "osnet_x0_25_distilled"))
    candidates = Candidates(model, videos, frames)
    floats = candidates.keys.float(), candidates.values.float()
    square = torch.randn(2048, 2048)
    peak = 2 * 2048**3 / medians({"square": lambda: square @ square}, 3)["square"]
    figures: dict[str, object] = {
        "kernel": pair_kernel.available(),
        "threads": torch.get_num_threads(),
        "peak_gflops": peak / 1e9,
    }
    count, pairs = len(candidates.keys), len(candidates.start)
    widths = candidates.keys.shape[1] + candidates.values.shape[1]
    size = sum(array.nbytes for array in (candidates.keys, candidates.values, candidates.bands[torch.float16]))
    print(f"{videos} videos of {frames} frames, {pairs} segments, {size / 1e6:.0f} MB, {os.cpu_count()} cores")
    print(
        f"{'':16}"
        + "".join(f"{name:>13}" for name in ("this code", "definition", "loop", "products", "reading"))
        + "   us a frame"
    )
    for segments in (1, 8, 64):
        _, target = candidates.target(model, segments)
        arrays = (candidates.keys, candidates.values, candidates.bands[torch.float16], candidates.start, candidates.last)
        work: dict[str, Callable[[], object]] = {
            "this code": lambda t=target, a=arrays: candidate_logits(t, *a, LENGTH),
            "products": lambda t=target: products(*floats, t),
            "reading": lambda: reading(candidates),
        }
        times = medians(work, repeats)
        slow: dict[str, Callable[[], object]] = {
            "this code": work["this code"],
            "definition": lambda t=target: definition(t, candidates.keys, candidates.values, candidates.rows),
            "loop": lambda t=target: video_by_video(t, candidates),
        }
        beside = medians(slow, repeats)
        limit = max(times["products"], times["reading"])
        row = [times["this code"], beside["definition"], beside["loop"], times["products"], times["reading"]]
        print(f"{segments:>4} segments   " + "".join(f"{seconds / count * 1e6:>13.4f}" for seconds in row))
        operations = 2 * widths * segments * count
        figures |= {
            f"speedup_vs_textbook_{segments}": beside["definition"] / beside["this code"],
            f"speedup_vs_loop_{segments}": beside["loop"] / beside["this code"],
            f"share_of_limit_{segments}": limit / times["this code"],
            f"share_of_peak_{segments}": operations / times["this code"] / peak,
            f"gbytes_per_s_{segments}": size / times["this code"] / 1e9,
            f"flops_per_byte_{segments}": operations / size,
            f"bound_by_{segments}": "products" if times["products"] > times["reading"] else "reading",
        }
    for kind, (error, ranked) in errors(model, candidates, 8).items():
        name = str(kind).removeprefix("torch.")
        figures |= {f"max_abs_error_{name}": error, f"first_100_as_defined_{name}": ranked}
    for segments in (1, 8, 64):
        print(
            f"{segments:>4} segments: {figures[f'speedup_vs_textbook_{segments}']:.1f} x the definition, "
            f"{figures[f'speedup_vs_loop_{segments}']:.1f} x the loop, {figures[f'share_of_limit_{segments}']:.2f} of the limit "
            f"({figures[f'bound_by_{segments}']}), {figures[f'share_of_peak_{segments}']:.2f} of the arithmetic, "
            f"{figures[f'gbytes_per_s_{segments}']:.1f} GB/s, {figures[f'flops_per_byte_{segments}']:.1f} operations a byte"
        )
    print(f"largest error {figures['max_abs_error_float16']:.1e} float16, {figures['max_abs_error_float32']:.1e} float32")
    print(json.dumps(figures))


if __name__ == "__main__":
    run(scoring)
