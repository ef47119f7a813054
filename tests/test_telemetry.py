"""Metrics: nothing without Ray, the documented names with it, and a dashboard that shows exactly those."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from pipeline import telemetry
from pipeline.catalog import REJECT_REASONS

ROOT = Path(__file__).parent.parent
DASHBOARD = ROOT / "cluster/grafana-dashboard.json"


def use_all() -> None:
    """One value for every metric and every tag value that is documented."""
    for name, metric in telemetry.METRICS.items():
        record = {"counter": telemetry.count, "histogram": telemetry.observe, "gauge": telemetry.gauge}[metric.kind]
        (tag, values), *_ = [*metric.tags.items(), (None, ("",))]
        for value in values or ("any",):
            record(name, 2.0, **({tag: value} if tag else {}))


def test_without_ray_nothing_happens_and_ray_is_not_imported() -> None:
    program = (
        "import sys; from pipeline import telemetry as t; t.count('coattention_ingest_videos'); "
        "t.observe('coattention_search_seconds', 1.0, stage='all'); t.gauge('coattention_partitions_open', 1); "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=60)


def test_a_name_or_a_tag_that_is_not_documented_is_an_error_also_without_ray() -> None:
    with pytest.raises(KeyError, match="coattention_nonsense"):
        telemetry.count("coattention_nonsense")
    with pytest.raises(KeyError, match="stage"):
        telemetry.observe("coattention_search_seconds", 1.0)
    with pytest.raises(KeyError, match="camera"):
        telemetry.count("coattention_ingest_videos", camera="cam1")


def test_a_block_is_timed_also_when_it_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, str]] = []
    monkeypatch.setattr(telemetry, "observe", lambda name, seconds, stage: seen.append((name, seconds, stage)))
    with pytest.raises(ZeroDivisionError), telemetry.timed("coattention_search_seconds", stage="score"):
        time.sleep(0.02)
        raise ZeroDivisionError
    ((name, seconds, stage),) = seen
    assert (name, stage) == ("coattention_search_seconds", "score") and 0.02 <= seconds < 1


def test_of_a_stream_only_the_making_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(telemetry, "observe", lambda name, seconds, stage: seen.append(seconds))

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.01)
            yield number

    for _ in telemetry.timed_items(slow(), "coattention_ingest_seconds", stage="decode"):
        time.sleep(0.05)
    assert len(seen) == 3 and all(0.01 <= seconds < 0.05 for seconds in seen)


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    expressions = [target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel["targets"]]
    shown = set(re.findall(r"ray_coattention_\w+", " ".join(expressions)))
    known = {series: name for name, metric in telemetry.METRICS.items() for series in metric.series(name)}
    assert shown <= known.keys()
    assert {known[series] for series in shown} == telemetry.METRICS.keys()


def test_the_dashboard_groups_by_tags_that_the_metrics_have() -> None:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for expression in (target["expr"] for target in panel["targets"]):
            if name := re.search(r"ray_(coattention_\w+?)(?:_total|_bucket|_sum|_count)?(?=[\[{)])", expression):
                tags = {tag.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for tag in group.split(",")} - {"le"}
                assert tags <= telemetry.METRICS[name[1]].tags.keys(), expression


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(places)) == len(places) and max(x for x, _ in places) < 24
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_reject_reasons_are_names_that_a_tag_can_hold() -> None:
    assert all(re.fullmatch(r"[a-z_]+", reason) for reason in REJECT_REASONS)


@pytest.mark.ray
def test_with_ray_the_names_reach_its_prometheus_endpoint() -> None:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=0)
    try:
        use_all()
        ray.get(ray.remote(use_all).remote())
        wanted = {series for name, metric in telemetry.METRICS.items() for series in metric.series(name)}
        node = ray.nodes()[0]
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        deadline, missing = time.monotonic() + 60, wanted
        while missing and time.monotonic() < deadline:
            time.sleep(1)
            with urllib.request.urlopen(address, timeout=10) as answer:
                missing = wanted - set(re.findall(r"^(\w+)\{", answer.read().decode(), re.MULTILINE))
        assert not missing
    finally:
        ray.shutdown()
