"""How much of a gallery each upper bound leaves to be scored for the true first k, and what exact answers cost on one thread.

    python -m benchmarks.exact --gallery GALLERY [--targets 24] [--top 10] [--repeats 5]

The gallery needs an index with an exact prefilter in one partition and a head without a weight above 0. Targets are videos of the
gallery, themselves left out. "Left": share whose bound is not below the k-th best score, so what any search by that bound has to
score. "In the convex hull" needs all value products and says what more of them could buy: with them a score is nearly there. The
last line is the same as JSON.
"""

import functools
import json
import statistics
import time
from collections import defaultdict
from typing import Annotated

import faiss
import numpy as np
import torch
import typer

from jobs.command_line import run
from pipeline.coattention.cohort import CohortStatistics
from pipeline.errors import PipelineError
from pipeline.gallery.gallery import Gallery
from pipeline.index.prefilter import PrefilterMetric, PrefilterQuery, stored_vectors
from pipeline.index.versions import open_index
from pipeline.scoring.bounds import (
    Projection,
    attention_logits,
    ball_logits,
    certified_top,
    radii,
    video_bounds,
)
from pipeline.scoring.scores import TargetEncoding, segment_distances, segment_rows
from pipeline.search.partition import STAGES, Partition
from pipeline.search.shortlist import segmented
from pipeline.search.targets import read_targets, target_decoder
from pipeline.settings import SearchSettings

DIRECTIONS = (16, 32, 64)
HULL_STEPS = (0, 2, 5)
SCALES = (0.5, 0.25, 0.125)


def exact(
    gallery: Annotated[str, typer.Option(help="Gallery with an index.")],
    targets: Annotated[int, typer.Option(help="Videos searched for.")] = 24,
    top: Annotated[int, typer.Option(help="Leads that are to be certain.")] = 10,
    repeats: Annotated[int, typer.Option(help="Times each is timed, in turns.")] = 5,
) -> None:
    """Print the shares and times."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    place = Gallery.open(gallery)
    index = open_index(place)
    part = Partition(index, 0)
    ids = np.asarray(index.videos["video_id"].to_pylist(), np.str_)
    chosen = np.random.default_rng(0).permutation(len(ids))[:targets]
    settings = SearchSettings().score
    everything = np.arange(len(ids))
    parts = Parts(part)
    videos, pairs = defaultdict(list), defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    scored, agree = [], 0
    for target, own in zip(read_targets([f"id:{ids[i]}" for i in chosen], place, target_decoder(place)), chosen, strict=True):
        segments = segmented(target, index)
        others = np.delete(everything, own)
        allowed = everything != own

        def score(videos, segments=segments):
            return part.candidates(videos).scores([segments], settings)[0]

        stages = [functools.partial(part.bounds, segments, settings=settings, stage=stage) for stage in range(STAGES)]

        def shortlisted(segments=segments, allowed=allowed, score=score):
            found, _ = part.shortlist(PrefilterQuery(segments.encoding), max(top, len(ids) // 100), allowed)
            return found, score(np.sort(found))

        def certified(others=others, stages=stages, score=score, shortlisted=shortlisted):
            return certified_top(top, others, ids, shortlisted()[0], stages, score)

        ways = {"shortlist of 1 %": shortlisted, "everything": functools.partial(score, others), "certified": certified}
        times = defaultdict(list)
        for _ in range(repeats + 1):
            for name, way in ways.items():
                began = time.perf_counter()
                way()
                times[name].append(time.perf_counter() - began)
        for name, spent in times.items():
            seconds[name].append(statistics.median(spent[1:]))
        scores = score(everything)
        scores[own] = -1
        answer = certified()
        threshold = np.sort(scores)[-top]
        agree += answer.threshold == threshold and set(np.flatnonzero(scores > threshold)) <= set(answer.videos[:top])
        scored.append(len(answer.videos) / len(ids))
        candidate = CohortStatistics(part.cohort_mean, part.cohort_spread)
        cohort = (segments.cohort, candidate) if segments.cohort is not None else ()
        for name, logits in parts.bounds(segments.encoding).items():
            bound = video_bounds(logits, parts.offsets, settings, *cohort)
            if name[0] != "(" and (bound[others] < scores[others]).any():
                raise PipelineError(f"{name}: a score of {ids[own]} exceeds its bound")
            videos[name].append(float((bound[others] >= threshold).mean()))
            pair = video_bounds(logits, np.arange(logits.shape[1] + 1), settings, *cohort)
            pairs[name].append(float((pair[parts.owner != own] >= threshold).mean()))
    print(f"{len(ids)} videos, {len(parts.frames)} segments, {len(chosen)} targets, k = {top}: the floor is {top / len(ids):.2%}")
    print(f"{'bound':<46}{'videos left':>12}{'worst':>9}{'segments left':>15}")
    for name, shares in videos.items():
        print(f"{name:<46}{np.mean(shares):>12.2%}{max(shares):>9.2%}{np.mean(pairs[name]):>15.2%}")
    medians = {name: statistics.median(spent) for name, spent in seconds.items()}
    for name, spent in medians.items():
        print(f"{name:<20}{spent * 1e3:>9.2f} ms{spent / len(parts.frames) * 1e6:>9.3f} us a segment")
    print(f"certified: {np.mean(scored):.2%} of the videos scored, {agree} of {len(chosen)} as by scoring everything")
    figures = {
        "videos": len(ids),
        "top": top,
        "videos_left": {name: float(np.mean(shares)) for name, shares in videos.items()},
        "segments_left": {name: float(np.mean(shares)) for name, shares in pairs.items()},
        "seconds": medians,
        "scored_share": float(np.mean(scored)),
        "certified_to_shortlist_time": medians["certified"] / medians["shortlist of 1 %"],
        "everything_to_shortlist_time": medians["everything"] / medians["shortlist of 1 %"],
        "agree": int(agree),
        "targets": len(chosen),
    }
    print(json.dumps(figures))


class Parts:
    """The tables of a whole partition, in memory, as stored and with the values in their principal directions."""

    def __init__(self, part: Partition) -> None:
        self.frames = segment_rows(*part.candidates(np.arange(len(part.frames))).cut(), part.length)
        self.offsets = np.concatenate([[0], np.cumsum(part.segments)])
        self.owner = part.video_of_segment
        self.keys, self.values = part.keys, part.values
        self.means = torch.from_numpy(np.array(stored_vectors(part.prefilter)))
        self.table = segment_distances(-part.band, self.frames)
        self.radius = radii(self.table, self.means)
        self.rotated: tuple[Projection, torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def bounds(self, target: TargetEncoding) -> dict[str, torch.Tensor]:
        """Upper bounds [N, K] of logits by name; a name in brackets is of a gallery that is not this one."""
        metric = PrefilterMetric.of_target(target)
        own = torch.from_numpy(metric.queries(target.encodings.numpy()))
        found = {"ball": ball_logits(target, self.means, self.radius)}
        for scale in SCALES:
            found[f"(ball, values of a segment {scale} as far apart)"] = ball_logits(target, self.means, self.radius * scale)
        found["ball, true attention"] = attention_logits(target, self.means, self.keys, self.table, self.frames)
        own_values = self.values.float() * torch.sqrt(-target.weight)
        axes = Projection.of_axes(own_values)
        tables = axes.rotated_target(target), self.means[:, axes.order], self.keys, self.table, self.frames
        for width in DIRECTIONS:
            found[f"true attention, {width} stored coordinates"] = attention_logits(*tables, own_values[:, axes.order[:width]])
        if self.rotated is None:
            scaled = self.values.float() * torch.sqrt(-target.weight)
            projection = Projection.of_sample(scaled[:: max(1, len(scaled) // 20_000)])
            values = (scaled @ projection.basis).half()
            means = values.float()[self.frames].mean(dim=1)
            square = torch.cdist(values.float()[self.frames], values.float()[self.frames]).square().half()
            self.rotated = projection, values, means, square.float()
        projection, values, means, table = self.rotated
        turned = projection.rotated_target(target)
        for width in DIRECTIONS:
            name = f"true attention, {width} principal directions"
            found[name] = attention_logits(turned, means, self.keys, table, self.frames, values[:, :width])
        for steps, logits in self._hull(own, target):
            found["supporting plane" if steps == 0 else f"convex hull, {steps} Frank-Wolfe steps"] = logits
        return found

    def _hull(self, own: torch.Tensor, target: TargetEncoding) -> list[tuple[int, torch.Tensor]]:
        """No point of the hull is nearer than min_t <x(e) - y, x(e) - x(v_t)> / |x(e) - y|, for any y in it."""
        scaled = (self.values.float() * torch.sqrt(-target.weight))[self.frames] - self.means[:, None]  # [K, T, d_v]
        gram = scaled @ scaled.mT
        cross = torch.einsum("nd,ktd->nkt", own, scaled) - torch.einsum("kd,ktd->kt", self.means, scaled)
        square = torch.cdist(own, self.means).square()  # [N, K]
        mix = torch.full_like(cross, 1 / cross.shape[2])
        best, found = torch.zeros_like(square), []
        for step in range(max(HULL_STEPS) + 1):
            inner = torch.einsum("ktu,nku->nkt", gram, mix)
            slope = cross - inner  # <x(e) - y, x(v_t) - m>
            length = (square - 2 * (cross * mix).sum(dim=2) + (inner * mix).sum(dim=2)).clamp_min(1e-6)
            gap = slope.amax(dim=2) - (slope * mix).sum(dim=2)
            best = torch.maximum(best, (length - gap).clamp_min(0) / length.sqrt())
            if step in HULL_STEPS:
                found.append((step, target.bias - best.square() + 1e-4))
            move = torch.nn.functional.one_hot(slope.argmax(dim=2), mix.shape[2]).float() - mix
            bend = (torch.einsum("ktu,nku->nkt", gram, move) * move).sum(dim=2).clamp_min(1e-9)
            mix = mix + ((slope * move).sum(dim=2) / bend).clamp(0, 1)[..., None] * move
        return found


if __name__ == "__main__":
    run(exact)
