"""Nodes, GPUs, storage and time for a number of videos, by arithmetic from unit costs: python -m benchmarks.capacity --videos 1e6

    python -m benchmarks.capacity [--videos N ...] [--seconds 30] [--set NAME=VALUE ...]
    python -m benchmarks.capacity --update docs/capacity.md      # writes the tables into the page

Nothing is measured here. UNIT_COSTS says of each figure what it is and which command it is from; --set puts another in its place.
The last line is the same as JSON.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jobs.command_line import run
from pipeline.errors import UsageError

HOUR, DAY, TB = 3600.0, 86400.0, 1e12
BEGIN, END = "<!-- tables: python -m benchmarks.capacity --update docs/capacity.md -->", "<!-- end of the tables -->"


@dataclass(frozen=True)
class UnitCost:
    """One figure. status: measured, assumption or choice."""

    value: float
    unit: str
    status: str
    source: str


UNIT_COSTS: dict[str, UnitCost] = {
    "source_rate": UnitCost(10, "frames/s of a video", "choice", "rendered clips have 10; cameras often 25"),
    "sample_rate": UnitCost(10, "sampled frames/s", "choice", "jobs.ingest --sample-rate"),
    "people": UnitCost(1, "candidates a video", "choice", "1 for clips of one person; tracks of a boxes file for full frames"),
    "decode_frames": UnitCost(2_900, "frames/s a core", "measured", "hand_written_loop: rendered clips, made 256 x 128"),
    "embed_frames": UnitCost(400, "frames/s a core", "measured", "hand_written_loop: the default backbone, 256 x 128"),
    "ingest_ratio": UnitCost(0.90, "of the loop's speed", "measured", "benchmarks.ingest: ratio, the lowest of three runs"),
    "gpu_embed_frames": UnitCost(
        9_800, "frames/s a GPU", "assumption", "no GPU was measured: 8.1 TFLOPS, 20 % used, 82 M mult-adds"
    ),
    "gallery_frame_bytes": UnitCost(529, "bytes a frame", "measured", "frames/ of 300 rendered clips (13,038 frames)"),
    "gallery_video_bytes": UnitCost(396, "bytes a candidate", "measured", "videos/ of 300 rendered clips"),
    "index_frame_bytes": UnitCost(563, "bytes a frame", "measured", "scale, 1,000,000 videos"),
    "index_frames": UnitCost(11_200, "frames/s a core", "measured", "scale, 100,000 videos, 179 s, two cores in one process"),
    "search_core_seconds": UnitCost(0.0070, "core s a million frames", "measured", "scale, 1,000,000 videos, 1 %, warm"),
    "search_frame_bytes": UnitCost(48, "bytes of memory a frame", "measured", "scale, 1,000,000 videos: resident / frames"),
    "camera_rate": UnitCost(25, "frames/s of a camera", "choice", "recordings of 1080p"),
    "look_rate": UnitCost(5, "frames/s looked at", "choice", "jobs.ingest --detector: its --sample-rate"),
    "camera_people": UnitCost(3, "people in a picture", "choice", "on average of day and night"),
    "camera_decode": UnitCost(4.7, "core ms a frame", "measured", "camera_day: H.264, 1080p, 4 Mbit/s"),
    "camera_detect": UnitCost(16.4, "core ms a frame looked at", "measured", "camera_day: YOLOX-nano, 416 x 416"),
    "camera_embed": UnitCost(2.6, "core ms a person", "measured", "camera_day: the default backbone, 256 x 128"),
    "camera_crop": UnitCost(0.4, "core ms a person", "measured", "camera_day: cutting out, writing detections"),
    "camera_track": UnitCost(0.12, "core ms a person", "measured", "camera_day: following"),
    "detection_bytes": UnitCost(543, "bytes a detection", "measured", "camera_day: detections/"),
    "node_cores": UnitCost(64, "cores a node", "choice", ""),
    "node_memory": UnitCost(256e9, "bytes a node", "choice", ""),
    "node_disk": UnitCost(8e12, "bytes a node", "choice", "local disk for partitions"),
    "ingest_days": UnitCost(7, "days for the first ingest", "choice", ""),
    "latency": UnitCost(1, "seconds a search", "choice", "one target, whole gallery, no filter"),
}


@dataclass(frozen=True)
class Capacity:
    """What a number of videos takes. Hours are of one core or GPU, bytes are of one copy.

    ingest_nodes: that ingest everything within ingest_days on CPUs; gpus, gpu_nodes: the same with GPUs that embed, and nodes
    whose cores only decode. index_hours: of wall time on the search nodes. searches_a_second: of the search nodes together.
    """

    videos: float
    candidates: float
    frames: float
    decode_core_hours: float
    embed_core_hours: float
    embed_gpu_hours: float
    ingest_nodes: int
    gpus: int
    gpu_nodes: int
    gallery_bytes: float
    index_bytes: float
    search_nodes: int
    search_nodes_for: str
    index_core_hours: float
    index_hours: float
    searches_a_second: float


def capacity(videos: float, seconds: float, costs: Mapping[str, float]) -> Capacity:
    """The arithmetic. videos: how many; seconds: length of one; costs: name in UNIT_COSTS -> value."""
    decoded = videos * seconds * costs["source_rate"]
    candidates = videos * costs["people"]
    frames = candidates * seconds * min(costs["sample_rate"], costs["source_rate"])
    decode = decoded / costs["decode_frames"] / costs["ingest_ratio"]
    embed = frames / costs["embed_frames"] / costs["ingest_ratio"]
    embed_gpu = frames / costs["gpu_embed_frames"]
    time = costs["ingest_days"] * DAY
    gallery = frames * costs["gallery_frame_bytes"] + candidates * costs["gallery_video_bytes"]
    index = frames * costs["index_frame_bytes"]
    search = frames / 1e6 * costs["search_core_seconds"]
    wanted = {
        "memory": frames * costs["search_frame_bytes"] / costs["node_memory"],
        "disk": index / costs["node_disk"],
        "time": search / costs["node_cores"] / costs["latency"],
    }
    reason = max(wanted, key=wanted.__getitem__)
    nodes = math.ceil(wanted[reason])
    building = frames / costs["index_frames"]
    return Capacity(
        videos,
        candidates,
        frames,
        decode / HOUR,
        embed / HOUR,
        embed_gpu / HOUR,
        math.ceil((decode + embed) / time / costs["node_cores"]),
        math.ceil(embed_gpu / time),
        math.ceil(decode / time / costs["node_cores"]),
        gallery,
        index,
        nodes,
        reason,
        building / HOUR,
        building / nodes / costs["node_cores"] / HOUR,
        nodes * costs["node_cores"] / search,
    )


@dataclass(frozen=True)
class CameraDays:
    """What recordings of whole pictures take, a day of so many cameras: hours of one core, and nodes that keep up with them."""

    cameras: float
    decode_core_hours: float
    detect_core_hours: float
    embed_core_hours: float
    track_core_hours: float
    nodes: int
    detections_bytes: float


def camera_days(cameras: float, costs: Mapping[str, float]) -> CameraDays:
    """The arithmetic. costs: name in UNIT_COSTS -> value."""
    frames, looked_at = (cameras * DAY * costs[name] for name in ("camera_rate", "look_rate"))
    people = looked_at * costs["camera_people"]
    milliseconds = (
        frames * costs["camera_decode"],
        looked_at * costs["camera_detect"],
        people * (costs["camera_embed"] + costs["camera_crop"]),
        people * costs["camera_track"],
    )
    hours = [each / 1000 / HOUR for each in milliseconds]
    nodes = math.ceil(sum(hours) / 24 / costs["node_cores"])
    return CameraDays(cameras, *hours, nodes, people * costs["detection_bytes"])


def camera_rows(days: Sequence[CameraDays]) -> list[list[str]]:
    """The table of days of cameras, its heading first, a column a number of cameras."""
    lines = [
        ("cameras, a day each", lambda d: f"{d.cameras:,.0f}"),
        ("decoding (core hours)", lambda d: f"{d.decode_core_hours:,.1f}"),
        ("finding people (core hours)", lambda d: f"{d.detect_core_hours:,.1f}"),
        ("embedding them (core hours)", lambda d: f"{d.embed_core_hours:,.1f}"),
        ("following them (core hours)", lambda d: f"{d.track_core_hours:,.2f}"),
        ("CPU nodes that keep up", lambda d: f"{d.nodes:,}"),
        ("storage: detections (TB)", lambda d: f"{d.detections_bytes / TB:,.4f}"),
    ]
    return [[name, *(cell(day) for day in days)] for name, cell in lines]


def changed_costs(settings: Sequence[str]) -> dict[str, float]:
    """The values of UNIT_COSTS with those of NAME=VALUE in their place. Raises UsageError."""
    costs = {name: cost.value for name, cost in UNIT_COSTS.items()}
    for setting in settings:
        name, _, text = setting.partition("=")
        if name not in costs:
            raise UsageError(f"there is no unit cost {name!r}; there are {', '.join(costs)}")
        costs[name] = positive(text, name)
    return costs


def positive(text: str, name: str) -> float:
    """A number above 0. Raises UsageError."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"{name} must be a positive number, not {text!r}")
    return number


def cost_rows(costs: Mapping[str, float]) -> list[list[str]]:
    """The table of unit costs, its heading first."""
    rows = [["name", "value", "unit", "status", "from"]]
    for name, cost in UNIT_COSTS.items():
        own = costs[name] == cost.value
        rows.append([name, f"{costs[name]:,.12g}", cost.unit, *((cost.status, cost.source) if own else ("given", "--set"))])
    return rows


def capacity_rows(sizes: Sequence[Capacity]) -> list[list[str]]:
    """The table of what it takes, its heading first, a column a size."""
    lines = [
        ("videos", lambda c: f"{c.videos:,.0f}"),
        ("candidates", lambda c: f"{c.candidates:,.0f}"),
        ("sampled frames (million)", lambda c: f"{c.frames / 1e6:,.0f}"),
        ("ingest: decoding (core hours)", lambda c: f"{c.decode_core_hours:,.0f}"),
        ("ingest: embedding on CPUs (core hours)", lambda c: f"{c.embed_core_hours:,.0f}"),
        ("ingest: CPU nodes for the first ingest", lambda c: f"{c.ingest_nodes:,}"),
        ("or: embedding on GPUs (GPU hours)", lambda c: f"{c.embed_gpu_hours:,.0f}"),
        ("or: GPUs, and nodes that decode for them", lambda c: f"{c.gpus:,}, {c.gpu_nodes:,}"),
        ("storage: gallery (TB)", lambda c: f"{c.gallery_bytes / TB:,.2f}"),
        ("storage: index (TB)", lambda c: f"{c.index_bytes / TB:,.2f}"),
        ("search: nodes (decided by)", lambda c: f"{c.search_nodes:,} ({c.search_nodes_for})"),
        ("search: searches/s of all nodes", lambda c: f"{c.searches_a_second:,.2f}"),
        ("index: building (core hours)", lambda c: f"{c.index_core_hours:,.0f}"),
        ("index: hours on the search nodes", lambda c: f"{c.index_hours:,.1f}"),
    ]
    return [[name, *(cell(size) for size in sizes)] for name, cell in lines]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    heading, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *others))


def plain(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def updated(page: str, tables: str) -> str:
    """The page with these tables between its marks. Raises UsageError when it has no marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UsageError(f"the page has no place for the tables; it needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(
    videos: Annotated[list[str] | None, typer.Option(help="Videos; may be given again [default: 1e6, 1e8 and 1e10].")] = None,
    seconds: Annotated[str, typer.Option(help="Seconds of one video.")] = "30",
    changed: Annotated[list[str] | None, typer.Option("--set", help="NAME=VALUE of a unit cost; may be given again.")] = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown and nothing else.")] = False,
    update: Annotated[Path | None, typer.Option(help="Page to write the tables into, between its marks.")] = None,
) -> None:
    """Print the unit costs and what they make of a number of videos."""
    costs = changed_costs(changed or [])
    length = positive(seconds, "--seconds")
    sizes = [capacity(positive(number, "--videos"), length, costs) for number in videos or ["1e6", "1e8", "1e10"]]
    days = [camera_days(cameras, costs) for cameras in (1, 100, 10_000)]
    rows = cost_rows(costs), capacity_rows(sizes), camera_rows(days)
    tables = "\n\n".join(map(markdown, rows))
    if update is not None:
        if not update.is_file():
            raise UsageError(f"there is no page {update}")
        update.write_text(updated(update.read_text(), tables))
    elif as_markdown:
        print(tables)
    else:
        print(*map(plain, rows), sep="\n\n")
        figures = {"seconds": length, "costs": costs, "sizes": [vars(size) for size in sizes]}
        print(json.dumps(figures | {"camera_days": [vars(day) for day in days]}))


if __name__ == "__main__":
    run(main)
