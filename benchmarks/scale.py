"""Building, opening and searching galleries of growing size: time, memory, disk and recall, on synthetic features or a gallery.

    python -m benchmarks.scale --work FOLDER --videos 10000 --videos 100000 --videos 1000000
    python -m benchmarks.scale --work FOLDER --gallery GALLERY [--head HEAD]

Each size is written, built and searched in processes of its own, so that memory is that of the step alone; what is finished is
used again when the command is repeated (--rebuild makes the indexes anew). Figures are added to FOLDER/results.jsonl, those of a
step at once to FOLDER/steps.jsonl. The size on disk is that of the gallery's whole index folder.

Searches run in one process (--actors N: on Ray), with the evidence that a person would get. "First time": the first search for
each target, with whatever of the index the page cache holds. "Warm": the second search for it in the same process. "Cold": the
index's files were dropped from the page cache (posix_fadvise DONTNEED on each, none of them mapped) before the index was opened;
opening is not in the time. Searches leave off where their shortlists bring no more leads, as those of users do; "all scored":
those that do not. Recall is that of what such searches find. The exhaustive top 10 is that of the same search with the whole
gallery as its shortlist. FAISS alone: its own ranking by the best segment, which is the shortlist of ten videos; and its
ranking by one vector a video, the mean of the segments' mean values in the score's own metric, in a flat index.

The head of synthetic galleries is trained by jobs.train on a synthetic gallery of other people and cameras, with the widths and
the recipe of those that ship (--untrained: the one without training). The last line is the same as JSON.
"""

import cProfile
import gc
import json
import os
import pstats
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from benchmarks.process_figures import (
    PeakMemory,
    bytes_read,
    drop_from_cache,
    in_own_process,
    machine,
    memory_of_tree,
    size_on_disk,
)
from benchmarks.scale_recall import recall_step
from benchmarks.scale_report import BATCH, growths, report
from benchmarks.scale_searches import (
    BEST,
    USUAL_SHARE,
    Plan,
    latencies,
    median,
    quantile,
    shortlist_of,
    some_targets,
    timed,
    whole_shortlist,
)
from benchmarks.synthetic_gallery import SyntheticSettings, comparison, cosine_statistics, write_gallery
from jobs.command_line import run
from pipeline.coattention.head import load_head, untrained_head
from pipeline.coattention.network import Coattention
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.freshness import current_index
from pipeline.index.heads import find_head
from pipeline.index.samples import sample_features
from pipeline.index.versions import Index, open_index
from pipeline.search.partitions import Partitions, opened_partitions
from pipeline.search.search import search, search_many
from pipeline.search.targets import Target
from pipeline.settings import IndexSettings, SearchSettings

KEY_WIDTH, VALUE_WIDTH = 64, 192  # of the heads that ship
TRAINED_ON = SyntheticSettings(3000, cameras=40, seed=1)


def index_folder(gallery: Gallery) -> Path:
    """Where the files of all index versions lie."""
    return Path(gallery.location.path, "index")


def make_head(work: str, width: int, trained: bool) -> dict[str, Any]:
    """The folder of the head for synthetic galleries, made unless it is there."""
    folder = Path(work, f"head-{width}")
    if not trained:
        return {"head": None, "head_made": "untrained"}
    settings = replace(TRAINED_ON, width=width)
    began = time.monotonic()
    if not (folder / "head" / "model.json").exists():
        gallery = write_gallery(Path(work, f"training-{width}"), settings, workers=0)
        widths = ["--key-width", str(KEY_WIDTH), "--value-width", str(VALUE_WIDTH)]
        recipe = ["--epochs", "10", "--batches", "60", "--set", "ratio=0.2"]
        command = [sys.executable, "-m", "jobs.train", "--data", gallery.location.path, "--out", str(folder), *widths, *recipe]
        subprocess.run(command, check=True)
    words = f"trained on {settings.persons} other synthetic people, 10 epochs of 60 batches"
    return {"head": str(folder / "head"), "head_made": words, "head_seconds": time.monotonic() - began}


def head_of(gallery: Gallery, folder: str | None, synthetic: bool) -> tuple[Coattention, Any]:
    """The head that an index is built with, and its calibration."""
    if not synthetic:
        head, calibration = find_head(folder, gallery)
        if head is not None:
            return head, calibration
    if folder is not None:
        return load_head(folder), None
    sample = sample_features(gallery, gallery.snapshot().videos)
    return untrained_head(sample, KEY_WIDTH, min(VALUE_WIDTH, gallery.feature_width)), None


def write_step(place: str, settings: SyntheticSettings, like: str | None) -> dict[str, Any]:
    """Write a synthetic gallery; its time and memory are those of the run that wrote all of it, if one did."""
    began, record = time.monotonic(), Path(place, "write.json")
    already: list[int] = []

    def progress(done: int, total: int) -> None:
        already.append(done)
        print(f"{settings.videos} videos: {done} of {total} shards, {time.monotonic() - began:.0f} s", file=sys.stderr)

    with PeakMemory() as memory:
        gallery = write_gallery(place, settings, progress=progress)
    seconds = time.monotonic() - began
    if like is not None:
        print(comparison(cosine_statistics(gallery), cosine_statistics(Gallery.open(like))), flush=True)
    if already[0] == 0:
        record.write_text(json.dumps({"write_seconds": seconds, "write_peak_bytes": memory.peak["total"]}))
    return json.loads(record.read_text()) if record.exists() else {}


def build_step(plan: Plan, synthetic: bool, rebuild: bool) -> dict[str, Any]:
    """Build the index and measure it, or give the figures of one that is there."""
    gallery = Gallery.open(plan.gallery)
    record = Path(gallery.location.path, "build.json")
    head, calibration = head_of(gallery, plan.head, synthetic)
    if not rebuild and record.exists():
        index = current_index(gallery, IndexSettings(), head, calibration)
        figures = json.loads(record.read_text())
        if index is not None and index.version == figures["index_version"]:
            return figures
    if synthetic:
        shutil.rmtree(index_folder(gallery), ignore_errors=True)
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        print(f"built {done} of {total} videos, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    with PeakMemory() as memory:
        index = build_index(gallery, IndexSettings(), head, progress, calibration)
    seconds = time.monotonic() - began
    raw = 2 * index.manifest["frames"] * (head.config.key_width + head.config.value_width)
    size = size_on_disk(index_folder(gallery))
    figures = {
        "index_version": index.version,
        "videos": len(index.videos),
        "frames": index.manifest["frames"],
        "segments": index.manifest["segments"],
        "model": index.model,
        "prefilter": index.manifest.get("prefilter"),
        "build_seconds": seconds,
        "build_peak_bytes": memory.peak["total"],
        "build_peak_anonymous_bytes": memory.peak["anonymous"],
        "index_bytes": size,
        "index_to_raw": size / raw,
        "gallery_bytes": size_on_disk(Path(gallery.location.path, "frames")),
    }
    record.write_text(json.dumps(figures))
    return figures


def open_step(plan: Plan) -> dict[str, Any]:
    """Seconds to open the index and its partitions, cold."""
    gallery = Gallery.open(plan.gallery)
    drop_from_cache(index_folder(gallery))
    began, read = time.monotonic(), bytes_read()
    index = open_index(gallery)
    opened = time.monotonic() - began
    with opened_partitions(gallery, index, plan.actors):
        seconds = time.monotonic() - began
    return {"open_index_seconds": opened, "open_seconds": seconds, "open_read_bytes": bytes_read() - read}


def cold_step(plan: Plan) -> dict[str, Any]:
    """Latencies of the first search after the index was dropped from the page cache, for 1 target and for a batch."""
    gallery = Gallery.open(plan.gallery)
    index = open_index(gallery)
    targets = some_targets(gallery, index, plan.cold * (1 + BATCH), plan.seed + 1)
    settings = shortlist_of(index, USUAL_SHARE)
    warm_up(gallery, index, targets, plan.actors)  # imports and thread pools, so that what is measured is the disk
    figures: dict[str, Any] = {}
    for name, size in (("cold_1", 1), (f"cold_{BATCH}", BATCH)):
        seconds, read = [], []
        for _ in range(plan.cold):
            batch, targets = targets[:size], targets[size:]
            gc.collect()
            drop_from_cache(index_folder(gallery))
            with opened_partitions(gallery, index, plan.actors) as partitions:
                before, began = bytes_read(), time.monotonic()
                search_many(gallery, index, partitions, batch, settings)
                seconds.append(time.monotonic() - began)
                read.append(bytes_read() - before)
            del partitions
        figures |= {f"{name}_p50": median(seconds), f"{name}_p95": quantile(seconds, 0.95)}
        figures[f"{name}_read_bytes"] = int(median(read))
    return figures


def warm_up(gallery: Gallery, index: Index, targets: Sequence[Target], actors: int) -> None:
    with opened_partitions(gallery, index, actors) as partitions:
        search_many(gallery, index, partitions, targets[:1], SearchSettings(shortlist=1, shortlist_share=0.0))


def warm_step(plan: Plan) -> dict[str, Any]:
    """Warm latencies, where the time goes, a narrow filter, and memory after it all."""
    gallery = Gallery.open(plan.gallery)
    index = open_index(gallery)
    settings = shortlist_of(index, USUAL_SHARE)
    targets = some_targets(gallery, index, max(plan.targets, BATCH), plan.seed)
    figures: dict[str, Any] = {}
    with opened_partitions(gallery, index, plan.actors) as partitions:
        search(gallery, index, partitions, targets[0], replace(settings, shortlist=BEST))  # starts what a first search starts
        before = bytes_read()
        figures |= latencies("new_1", [timed(search, gallery, index, partitions, target, settings) for target in targets])
        figures["new_1_read_bytes"] = (bytes_read() - before) // len(targets)
        one = [timed(search, gallery, index, partitions, target, settings) for target in targets]
        figures |= latencies("warm_1", one)
        held = memory_of_tree(os.getpid())
        figures |= {"search_1_anonymous_bytes": held["anonymous"], "search_1_resident_bytes": held["total"]}
        batches = [
            np.roll(np.arange(len(targets)), -shift)[:BATCH] for shift in range(0, len(targets), max(1, len(targets) // 5))
        ]
        many = [timed(search_many, gallery, index, partitions, [targets[i] for i in batch], settings) for batch in batches]
        figures |= latencies(f"warm_{BATCH}", many)
        figures["targets"], figures["target_segments"] = len(targets), median([result.target_segments for _, result in one])
        figures["shortlist"] = settings.shortlist
        figures["scored"] = float(np.mean([result.scored for _, result in one]))
        whole = whole_shortlist(settings)
        for _ in range(2):  # the second is warm
            figures |= latencies("warm_1_all", [timed(search, gallery, index, partitions, target, whole) for target in targets])
        thousandth = [timed(search, gallery, index, partitions, target, shortlist_of(index, 0.001)) for target in targets]
        figures |= latencies("warm_1_shortlist_0.001", thousandth)
        alone = replace(settings, shortlist=BEST, top=BEST, evidence=False)
        figures |= latencies("faiss_segments", [timed(search, gallery, index, partitions, t, alone) for t in targets])
        figures |= narrow_filter(gallery, index, partitions, targets, settings)
        figures["stages"], figures["functions"] = where_time_goes(gallery, index, partitions, targets, settings)
        memory = memory_of_tree(os.getpid())
    return figures | {"search_anonymous_bytes": memory["anonymous"], "search_resident_bytes": memory["total"]}


def narrow_filter(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], settings: SearchSettings
) -> dict[str, Any]:
    """One camera a target, the first time and warm, and how often fewer leads came back than there are videos."""
    cameras = np.asarray(index.videos["camera_id"].to_pylist(), np.str_)
    names, counts = np.unique(cameras, return_counts=True)
    chosen = np.random.default_rng(0).integers(len(names), size=len(targets))
    asked = [replace(settings, cameras=(str(names[camera]),)) for camera in chosen]
    first = [timed(search, gallery, index, partitions, *pair) for pair in zip(targets, asked, strict=True)]
    warm = [timed(search, gallery, index, partitions, *pair) for pair in zip(targets, asked, strict=True)]
    short = 0
    for target, camera, (_, result) in zip(targets, chosen, warm, strict=True):
        there = int(counts[camera]) - int(target.video.camera_id == names[camera])
        short += len(result.leads) < min(settings.top, there)
    figures = {**latencies("one_camera_new", first), **latencies("one_camera", warm)}
    return {**figures, "one_camera_videos": float(np.median(counts)), "one_camera_too_few": short}


class Stopwatch:
    """Partitions that note how long each of their methods took."""

    def __init__(self, partitions: Partitions) -> None:
        self.partitions = partitions
        self.seconds: dict[str, float] = defaultdict(float)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.partitions, name)
        if not callable(method):
            return method

        def measured(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return measured


def where_time_goes(
    gallery: Gallery, index: Index, partitions: Partitions, targets: Sequence[Target], settings: SearchSettings
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds a search by stage (methods of the partitions, the rest), and by function under a profiler: own time, the top 12."""
    watch = Stopwatch(partitions)
    began = time.perf_counter()
    for target in targets:
        search(gallery, index, watch, target, settings)  # type: ignore[arg-type]
    whole = time.perf_counter() - began
    stages = {**watch.seconds, "the rest": whole - sum(watch.seconds.values())}
    profile = cProfile.Profile()
    profile.enable()
    for target in targets:
        search(gallery, index, partitions, target, settings)
    profile.disable()
    own = {
        f"{Path(file).name}:{name}" if file != "~" else name: spent
        for (file, _, name), (_, _, spent, _, _) in pstats.Stats(profile).stats.items()  # type: ignore[attr-defined]
    }
    top = sorted(own.items(), key=lambda item: -item[1])[:12]
    return {n: s / len(targets) for n, s in stages.items()}, {n: s / len(targets) for n, s in top}


def measure(plan: Plan, work: Path, synthetic: bool, rebuild: bool) -> dict[str, Any]:
    """All figures of one gallery that is written."""
    built = in_own_process(build_step, plan, synthetic, rebuild)
    means = work / f"video-means-{built['index_version']}.npy"
    figures: dict[str, Any] = {}
    for step, more in ((open_step, ()), (warm_step, ()), (cold_step, ()), (recall_step, (str(means),))):
        began = time.monotonic()
        found = in_own_process(step, plan, *more)
        with (work / "steps.jsonl").open("a") as file:  # what a run has that is cut short
            file.write(json.dumps({"videos": built["videos"], "step": step.__name__, **found}) + "\n")
        figures |= found
        print(f"{built['videos']} videos: {step.__name__} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return built | figures


def scale(
    work: Annotated[Path, typer.Option(help="Folder for galleries, indexes and results.jsonl; what is finished is used again.")],
    videos: Annotated[list[int] | None, typer.Option(help="Videos of a synthetic gallery; may be repeated.")] = None,
    gallery: Annotated[list[str] | None, typer.Option(help="A gallery to measure; gets an index. May be repeated.")] = None,
    head: Annotated[
        str | None, typer.Option(help="Folder of the head [default: the one that ships, or is trained here].")
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Synthetic galleries: a head without training.")] = False,
    width: Annotated[int, typer.Option(help="Synthetic galleries: width of a frame feature (D).")] = SyntheticSettings.width,
    cameras: Annotated[int, typer.Option(help="Synthetic galleries: cameras.")] = SyntheticSettings.cameras,
    targets: Annotated[int, typer.Option(help="Targets of warm latencies.")] = 20,
    judged: Annotated[int, typer.Option(help="Targets whose exhaustive top 10 is found.")] = 16,
    exact: Annotated[int, typer.Option(help="Targets of exact searches (--exact).")] = 8,
    cold: Annotated[int, typer.Option(help="Cold searches, and cold batches.")] = 5,
    actors: Annotated[int, typer.Option(help="Ray actors that search; 0: this process.")] = 0,
    like: Annotated[str | None, typer.Option(help="A gallery whose cosines synthetic ones are compared with.")] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Build the indexes again.")] = False,
    keep: Annotated[bool, typer.Option(help="Keep galleries and indexes of finished sizes.")] = True,
) -> None:
    """Measure building, opening and searching at each size, and print a table."""
    work.mkdir(parents=True, exist_ok=True)
    results = []
    made: dict[str, Any] = {"head": head}
    if videos and head is None:
        made = in_own_process(make_head, str(work), width, not untrained)
    for size in sorted(videos or []):
        place = work / f"{size}-{width}"
        settings = SyntheticSettings(size, cameras=cameras, width=width)
        written = in_own_process(write_step, str(place), settings, like)
        plan = Plan(str(place), made["head"], targets, judged, exact, cold, actors)
        results.append({"gallery": "synthetic", **made, **written, **measure(plan, work, True, rebuild)})
        _keep(work, results[-1])
        if not keep:
            shutil.rmtree(place)
    for name in gallery or []:
        plan = Plan(name, head, targets, judged, exact, cold, actors)
        results.append({"gallery": name, **measure(plan, work, False, rebuild)})
        _keep(work, results[-1])
    print(report(results))
    print(json.dumps({"machine": machine(), "sizes": results, "growth": growths(results)}))


def _keep(work: Path, figures: dict[str, Any]) -> None:
    line = {"measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine(), **figures}
    with (work / "results.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    run(scale)
