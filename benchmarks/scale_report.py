"""The figures of benchmarks.scale as tables for people."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.process_figures import machine

BATCH = 16
SHARES = (0.001, 0.01, 0.05)


def growth(small: dict[str, Any], large: dict[str, Any], name: str) -> float:
    """How many times longer it takes when the gallery grows ten times, on the line through two sizes in logarithms."""
    exponent = math.log(large[name] / small[name]) / math.log(large["videos"] / small["videos"])
    return 10**exponent


def growths(results: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Between neighbouring synthetic sizes, what ten times the gallery does to each time."""
    sizes = [result for result in results if result["gallery"] == "synthetic"]
    names = ("warm_1_p50", f"warm_{BATCH}_p50", "cold_1_p50", "exhaustive_1_seconds", "build_seconds")
    return [
        {"from": small["videos"], "to": large["videos"], **{name: growth(small, large, name) for name in names}}
        for small, large in itertools.pairwise(sizes)
    ]


def report(results: Sequence[dict[str, Any]]) -> str:
    """The figures as tables for people, a column a size."""
    gb, mb, ms = 1e9, 1e6, 1e-3
    rows: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("frames, segments (million)", lambda r: f"{r['frames'] / 1e6:.2f}, {r['segments'] / 1e6:.2f}"),
        ("gallery written (s)", lambda r: f"{r['write_seconds']:.0f}" if "write_seconds" in r else "-"),
        ("index built (s)", lambda r: f"{r['build_seconds']:.1f}"),
        (
            "  peak memory, anonymous of it (MB)",
            lambda r: f"{r['build_peak_bytes'] / mb:.0f}, {r['build_peak_anonymous_bytes'] / mb:.0f}",
        ),
        ("index on disk (GB)", lambda r: f"{r['index_bytes'] / gb:.3f}"),
        ("  of raw float16 keys + values", lambda r: f"{r['index_to_raw']:.3f}"),
        ("opened, cold (s): index, with partitions", lambda r: f"{r['open_index_seconds']:.2f}, {r['open_seconds']:.2f}"),
        (
            "memory after searches for 1: resident, anon. (MB)",
            lambda r: f"{r['search_1_resident_bytes'] / mb:.0f}, {r['search_1_anonymous_bytes'] / mb:.0f}",
        ),
        (
            "memory after all searches: resident, anon. (MB)",
            lambda r: f"{r['search_resident_bytes'] / mb:.0f}, {r['search_anonymous_bytes'] / mb:.0f}",
        ),
        ("first time, 1 target, 1 %: p50, p95 (ms)", lambda r: _two(r, "new_1", ms)),
        ("  read from disk, on average (MB)", lambda r: f"{r['new_1_read_bytes'] / mb:.0f}"),
        ("warm, 1 target, 1 %: p50, p95 (ms)", lambda r: _two(r, "warm_1", ms)),
        ("  videos scored in full of the shortlist", lambda r: f"{r['scored']:.0f} of {r['shortlist']}"),
        ("  all scored: p50, p95 (ms)", lambda r: _two(r, "warm_1_all", ms)),
        (f"warm, {BATCH} targets, 1 %: p50, p95 (ms)", lambda r: _two(r, f"warm_{BATCH}", ms)),
        ("warm, 1 target, 0.1 %: p50, p95 (ms)", lambda r: _two(r, "warm_1_shortlist_0.001", ms)),
        ("cold, 1 target, 1 %: p50, p95 (ms)", lambda r: _two(r, "cold_1", ms)),
        ("  read from disk (MB)", lambda r: f"{r['cold_1_read_bytes'] / mb:.0f}"),
        (f"cold, {BATCH} targets, 1 %: p50, p95 (ms)", lambda r: _two(r, f"cold_{BATCH}", ms)),
        ("one camera, first time: p50, p95 (ms)", lambda r: _two(r, "one_camera_new", ms)),
        ("one camera, warm: p50, p95 (ms)", lambda r: _two(r, "one_camera", ms)),
        ("  its videos; searches with too few leads", lambda r: f"{r['one_camera_videos']:.0f}; {r['one_camera_too_few']}"),
        ("exhaustive, 1 target (s)", lambda r: f"{r['exhaustive_1_seconds']:.2f}"),
        (f"exhaustive, of {BATCH} together, a target (s)", lambda r: f"{r['exhaustive_batch_seconds_a_target']:.2f}"),
        ("exact, 1 target: p50, p95 (ms)", lambda r: _two(r, "exact", ms) if "exact_p50" in r else "-"),
        ("  of the time of the 1 % shortlist", lambda r: _one(r, "exact_to_shortlist_time", ".2f")),
        ("  recall of the exhaustive top 10", lambda r: _one(r, "exact_is_exhaustive", ".3f")),
        ("FAISS alone, best segment: p50, p95 (ms)", lambda r: _two(r, "faiss_segments", ms)),
        ("FAISS alone, means of videos (ms)", lambda r: f"{r['faiss_videos_seconds'] / ms:.1f}"),
    ]
    shares = {str(share): f"{share:.1%}" for share in SHARES}
    for kind, words in (("segments", "best segment"), ("videos", "mean of video")):
        for share, percent in shares.items():
            rows.append(
                (
                    f"recall in {percent} by {words}",
                    lambda r, k=kind, s=share: f"{r[f'recall_{k}'][s]:.3f} ({r['shortlist_sizes'][s]})",
                )
            )
        if kind == "segments":
            rows.append(("  in 1.0%, all scored", lambda r: _one(r, "recall_whole_shortlist", ".3f")))
        rows.append((f"recall of FAISS's own top by {words}", lambda r, k=kind: f"{r[f'faiss_{k}_recall']:.3f}"))
    for name in ("exhaustive", "shortlist", "faiss_segments", "faiss_videos"):
        rows.append((f"same person in the top 10: {name}", lambda r, n=name: f"{r['same_person_in_top'][n]:.3f}"))
    titles = [f"{r['videos']:,} videos" for r in results]
    lines = [machine(), "".join([f"{'':<52}", *(f"{title:>22}" for title in titles)])]
    lines += ["".join([f"{words:<52}", *(f"{cell(r):>22}" for r in results)]) for words, cell in rows]
    for r in results:
        lines += [
            "",
            f"One search of {r['videos']:,} videos, shortlist {r['shortlist']}, {r['target_segments']:.0f} target segments (ms)",
        ]
        lines += [f"  {name:<60}{seconds / ms:>10.2f}" for name, seconds in r["stages"].items()]
        lines += ["  under a profiler, own time (ms)"]
        lines += [f"    {name[:57]:<58}{seconds / ms:>10.2f}" for name, seconds in r["functions"].items()]
    for step in growths(results):
        words = ", ".join(f"{name} x{factor:.2f}" for name, factor in step.items() if name not in ("from", "to"))
        lines += ["", f"Ten times the gallery, from {step['from']:,} to {step['to']:,} videos: {words}"]
    return "\n".join(lines)


def _one(result: dict[str, Any], name: str, how: str) -> str:
    return f"{result[name]:{how}}" if name in result else "-"


def _two(result: dict[str, Any], name: str, unit: float) -> str:
    return f"{result[f'{name}_p50'] / unit:.1f}, {result[f'{name}_p95'] / unit:.1f}"
