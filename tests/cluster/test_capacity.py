"""The capacity page: its tables are the script's, and the arithmetic is what its text says."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.capacity import BEGIN, END, UNIT_COSTS, camera_days, capacity, changed_costs, positive, updated
from pipeline.errors import UsageError

ROOT = Path(__file__).parents[2]
ROUND = {
    "source_rate": 20, "sample_rate": 10, "people": 2, "decode_frames": 1000, "embed_frames": 100, "ingest_ratio": 0.5,
    "gpu_embed_frames": 5000, "gallery_frame_bytes": 500, "gallery_video_bytes": 400, "index_frame_bytes": 600,
    "index_frames": 20_000, "search_core_seconds": 0.1, "search_frame_bytes": 100, "node_cores": 10, "node_memory": 1e9,
    "node_disk": 1e11, "ingest_days": 1, "latency": 1,
}  # fmt: skip


def printed(*flags: str) -> str:
    command = [sys.executable, "-m", "benchmarks.capacity", *flags]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_the_page_shows_what_the_script_prints() -> None:
    page = (ROOT / "docs/capacity.md").read_text()
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == printed("--markdown").strip()


def test_a_million_frames_and_a_bit_by_hand() -> None:
    # 10,000 videos of 10 s at 20 frames/s: 2 million frames decoded; two people, 10 sampled frames/s: 2 million embedded
    made = capacity(10_000, 10, ROUND)
    assert (made.candidates, made.frames) == (20_000, 2_000_000)
    assert made.decode_core_hours * 3600 == pytest.approx(2_000_000 / 1000 / 0.5)
    assert made.embed_core_hours * 3600 == pytest.approx(2_000_000 / 100 / 0.5)
    assert made.embed_gpu_hours * 3600 == pytest.approx(400)
    assert made.gallery_bytes == 2_000_000 * 500 + 20_000 * 400
    assert made.index_bytes == 1.2e9
    assert (made.search_nodes, made.search_nodes_for) == (1, "memory")  # 0.2 GB of 1 GB, against 0.02 core seconds a core
    assert made.searches_a_second == pytest.approx(1 * 10 / 0.2)
    assert made.index_hours * 3600 == pytest.approx(2_000_000 / 20_000 / 10)


@pytest.mark.parametrize(
    ("scarce", "nodes"),
    [({"node_memory": 2e7}, (10, "memory")), ({"node_disk": 1e8}, (12, "disk")), ({"latency": 0.005}, (4, "time"))],
)
def test_search_nodes_follow_what_is_scarce(scarce: dict[str, float], nodes: tuple[int, str]) -> None:
    made = capacity(10_000, 10, ROUND | scarce)
    assert (made.search_nodes, made.search_nodes_for) == nodes


def test_no_more_frames_are_sampled_than_a_video_has() -> None:
    assert capacity(1, 10, ROUND | {"source_rate": 5}).frames == 2 * 10 * 5


@pytest.mark.parametrize(("days", "nodes"), [(1, 8), (2, 4), (100, 1)])
def test_the_first_ingest_ends_in_time(days: int, nodes: int) -> None:
    made = capacity(1.5e6, 10, ROUND | {"ingest_days": days})  # 6.6 million core seconds
    assert made.ingest_nodes == nodes
    assert (
        (nodes - 1) * 10 * days * 86_400 < 3600 * (made.decode_core_hours + made.embed_core_hours) <= nodes * 10 * days * 86_400
    )


def test_any_unit_cost_can_be_replaced_by_name() -> None:
    names = list(UNIT_COSTS)
    assert changed_costs([f"{name}={number + 1}" for number, name in enumerate(names)]) == {
        name: number + 1 for number, name in enumerate(names)
    }
    assert "| embed_frames | 77 | frames/s a core | given | --set |" in printed("--markdown", "--set", "embed_frames=77")


@pytest.mark.parametrize("setting", ["gpus=3", "people=0", "people=nan", "people=many", "people"])
def test_a_setting_that_makes_no_sense_is_refused(setting: str) -> None:
    with pytest.raises(UsageError):
        changed_costs([setting])


def test_a_page_without_a_place_for_the_tables_is_refused() -> None:
    assert positive("1e6", "videos") == 1_000_000
    with pytest.raises(UsageError, match="no place"):
        updated("nothing here", "tables")


def test_a_day_of_cameras_is_what_the_page_says() -> None:
    """10 cameras, 10 frames a second of which 1 is looked at, 2 people in each: 8.64 million frames, 864,000 looked at."""
    costs = {"camera_rate": 10.0, "look_rate": 1.0, "camera_people": 2.0, "node_cores": 4.0, "detection_bytes": 100.0}
    costs |= {"camera_decode": 5.0, "camera_detect": 10.0, "camera_embed": 2.0, "camera_crop": 0.5, "camera_track": 0.25}
    day = camera_days(10, costs)
    assert (day.decode_core_hours, day.detect_core_hours) == pytest.approx((8.64e6 * 5 / 3.6e6, 864_000 * 10 / 3.6e6))
    assert (day.embed_core_hours, day.track_core_hours) == pytest.approx((1.728e6 * 2.5 / 3.6e6, 1.728e6 * 0.25 / 3.6e6))
    assert day.nodes == 1 and day.detections_bytes == 1.728e8  # 15.7 core hours, and 96 in a node's day
