"""Metrics: nothing without Ray, the documented names with it, and a dashboard that shows exactly those."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from pipeline import telemetry
from pipeline.catalog.inputs import REJECT_REASONS
from pipeline.gallery.audit import read_records
from pipeline.gallery.gallery import Gallery
from pipeline.index.build import build_index

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


def exported(names: Collection[str], enough: Callable[[dict], bool]) -> dict[tuple[str, ...], float]:
    """What Ray's endpoint says in Prometheus' text format, as Prometheus' own parser reads it, once it is enough.

    (series, values of its documented tags and of le, in order of their names) -> sum over processes.
    """
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    found: dict[tuple[str, ...], float] = {}
    deadline = time.monotonic() + 60
    while not enough(found) and time.monotonic() < deadline:
        time.sleep(1)
        with urllib.request.urlopen(address, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        found = defaultdict(float)
        for family in families:
            metric = telemetry.METRICS.get(family.name.removeprefix("ray_"))
            if metric is None or family.name.removeprefix("ray_") not in names:
                continue
            assert (family.type, family.documentation) == (metric.kind, metric.description)
            for sample in family.samples:
                tags = [sample.labels[tag] for tag in sorted({*metric.tags, "le"} & sample.labels.keys())]
                assert metric.tags.keys() <= sample.labels.keys() and sample.name in metric.series(
                    family.name.removeprefix("ray_")
                )
                found[sample.name, *tags] += sample.value
    return dict(found)


@pytest.fixture(scope="module")
def running_ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=0)
    yield
    ray.shutdown()


@pytest.mark.ray
def test_with_ray_the_names_and_values_reach_its_prometheus_endpoint(running_ray: None) -> None:
    use_all()
    ray.get(ray.remote(use_all).remote())
    wanted = {series for name, metric in telemetry.METRICS.items() for series in metric.series(name)}
    found = exported(telemetry.METRICS, lambda found: wanted <= {series for series, *_ in found})
    assert {series for series, *_ in found} == wanted
    for stage in telemetry.SEARCH_STAGES:
        count = found["ray_coattention_search_seconds_count", stage]
        assert count in (1, 2) and found["ray_coattention_search_seconds_sum", stage] == 2 * count  # 2 s from each process
        assert found["ray_coattention_search_seconds_bucket", "1.0", stage] == 0
        assert found["ray_coattention_search_seconds_bucket", "3.0", stage] == count


@pytest.mark.ray
def test_a_search_by_command_and_its_records_reach_the_endpoint_of_the_cluster_it_joins(
    running_ray: None, toy_gallery: Gallery
) -> None:
    build_index(toy_gallery)
    names = ("coattention_searches", "coattention_audit_records")
    before = exported(names, lambda found: len(found) > 0)
    asked = [sys.executable, "-m", "jobs.search", "id:v000", "id:v001", "--gallery", toy_gallery.location.path]
    asked += ["--address", ray.get_runtime_context().gcs_address]
    ended = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr
    assert [record["action"] for record in read_records(toy_gallery)].count("search") == 2
    series = [("ray_coattention_searches_total", "done"), ("ray_coattention_audit_records_total", "search")]

    def more(found: dict, one: tuple[str, ...]) -> float:
        return found.get(one, 0) - before.get(one, 0)

    found = exported(names, lambda found: all(more(found, one) >= 2 for one in series))
    assert [more(found, one) for one in series] == [2, 2]
