"""An index of more videos than the disk has room for features of: the gallery is written part by part, and each part indexed.

    python -m benchmarks.in_parts --work FOLDER --videos 10000000 --part 200000

Each part is written as benchmarks.synthetic_gallery does (shorter videos: of ten segments), and added to the index in a process
of its own. Then the features of its shards go, but for the first part's, of which the targets are: no addition reads an old video
again where a part fills its partitions. It ends before a part where the disk has no room for three of them, and says so. Killed
and run again it goes on. In the end searches are timed. Figures are added to FOLDER/in_parts.jsonl; the last line is the same as
JSON.
"""

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow.compute as pc
import torch
import typer

from benchmarks.process_figures import PeakMemory, in_own_process, memory_of_tree, size_on_disk
from benchmarks.scale_searches import quantile
from benchmarks.synthetic_gallery import SyntheticSettings, write_shard
from jobs.command_line import run
from pipeline.coattention.head import untrained_head
from pipeline.errors import UsageError
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index
from pipeline.index.freshness import extensible_index
from pipeline.index.samples import sample_features
from pipeline.index.version_files import index_versions
from pipeline.index.versions import open_index
from pipeline.search.partitions import opened_partitions
from pipeline.search.search import search
from pipeline.search.targets import gallery_target
from pipeline.settings import IndexSettings, SearchSettings

TEN_SEGMENTS = (40, 48)  # frames, at 8 a segment and a stride of 4: 9 to 11 segments
KEY_WIDTH, VALUE_WIDTH = 64, 192  # of the heads that ship
PARTITION_VIDEOS = 20_000
SEARCHES = 50


def in_parts(
    work: Annotated[str, typer.Option(help="Folder for gallery and index.")],
    videos: Annotated[int, typer.Option(help="Videos in all.", min=1)],
    part: Annotated[int, typer.Option(help="Videos of a part; whole partitions.", min=1)] = 200_000,
    width: Annotated[int, typer.Option(help="Numbers of a feature.", min=1)] = 256,
    threads: Annotated[int, typer.Option(help="Of each process.", min=1)] = 2,
) -> None:
    """Write, index and search; print a line a part and the searches."""
    if part % PARTITION_VIDEOS or videos % part:
        raise UsageError(f"a part is a multiple of {PARTITION_VIDEOS} videos, and all of them a multiple of a part")
    settings = SyntheticSettings(videos, width=width, frames=TEN_SEGMENTS, shard_videos=PARTITION_VIDEOS // 4)
    folder = Path(work)
    place = str(folder / "gallery")
    Gallery.open_or_create(place, settings.gallery)
    figures: dict[str, Any] = {"videos": 0}
    opened = Gallery.open(place)
    done = len(open_index(opened).videos) // part if index_versions(opened) else 0
    for number in range(done, videos // part):
        taken = size_on_disk(folder)
        if number and shutil.disk_usage(folder).free < 3 * taken / number:
            print(f"the disk has no room for more than {number * part} videos", file=sys.stderr)
            break
        figures = in_own_process(one_part, place, settings, number, part, threads)
        with (folder / "in_parts.jsonl").open("a") as log:
            log.write(json.dumps(figures) + "\n")
        print(json.dumps(figures), flush=True)
    figures |= in_own_process(searches, place, threads)
    with (folder / "in_parts.jsonl").open("a") as log:
        log.write(json.dumps(figures) + "\n")
    print(json.dumps(figures))


def one_part(place: str, settings: SyntheticSettings, number: int, part: int, threads: int) -> dict[str, Any]:
    """Write what is missing of a part, add it to the index, and let its features go."""
    torch.set_num_threads(threads)
    gallery, began = Gallery.open(place), time.monotonic()
    shards = range(number * part // settings.shard_videos, (number + 1) * part // settings.shard_videos)
    there = len(gallery.snapshot().videos) // settings.shard_videos
    for shard in shards:
        if shard >= there:
            write_shard(place, settings, shard)
    written = time.monotonic()
    index_settings = IndexSettings(partition_videos=PARTITION_VIDEOS, prefilter="compressed")
    videos = gallery.snapshot().videos
    if index_versions(gallery):
        head = open_index(gallery).head
    else:
        head = untrained_head(sample_features(gallery, videos), KEY_WIDTH, VALUE_WIDTH)
    with PeakMemory() as memory:
        index = build_index(gallery, index_settings, head, base=extensible_index(gallery, index_settings, head))
    built = time.monotonic()
    if number:
        of_part = pc.is_in(videos["video_id"], index.videos["video_id"].slice(number * part).combine_chunks())
        for shard_file in pc.unique(videos["shard"].filter(of_part)).to_pylist():
            gallery.location.join("frames", shard_file).delete()
    return {
        "videos": len(index.videos),
        "segments": index.manifest["segments"],
        "write_seconds": round(written - began, 1),
        "build_seconds": round(built - written, 1),
        "build_peak_anonymous_mb": memory.peak["anonymous"] // 1_000_000,
        "build_peak_mb": memory.peak["total"] // 1_000_000,
        "index_bytes_a_video": round(size_on_disk(Path(place, "index")) / len(index.videos), 1),
    }


def searches(place: str, threads: int) -> dict[str, Any]:
    """Seconds of searches of the whole index, each target once to warm it and once measured, and what the process holds."""
    torch.set_num_threads(threads)
    gallery, began = Gallery.open(place), time.monotonic()
    index = open_index(gallery)
    opened = time.monotonic() - began
    targets = [gallery_target(gallery, f"v{number:09d}") for number in np.linspace(0, PARTITION_VIDEOS - 1, SEARCHES).astype(int)]
    seconds: dict[str, list[float]] = {"first": [], "warm": []}
    settings = replace(SearchSettings(), evidence=True)
    with opened_partitions(gallery, index, actors=0) as partitions:
        for times in seconds.values():
            for target in targets:
                started = time.monotonic()
                search(gallery, index, partitions, target, settings)
                times.append(time.monotonic() - started)
        held = memory_of_tree(os.getpid())
    figures = {
        f"{name}_p{round(100 * share)}": round(quantile(times, share), 3)
        for name, times in seconds.items()
        for share in (0.5, 0.95)
    }
    held_mb = {f"search_{name}_mb": size // 1_000_000 for name, size in held.items()}
    return {"open_seconds": round(opened, 1), **figures, **held_mb}


if __name__ == "__main__":
    run(in_parts)
