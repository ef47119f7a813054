"""The alert rules of Prometheus: they speak of metrics that exist, and fire for what they are named for."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import telemetry
from pipeline.catalog.inputs import REJECT_REASONS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "cluster/prometheus-alerts.yaml"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALL = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL if "alert" in rule}
RECORDED = {rule["record"] for rule in ALL if "record" in rule}


def test_the_rules_name_metrics_that_exist_and_counts_that_are_recorded() -> None:
    series = {series for name, metric in telemetry.METRICS.items() for series in metric.series(name)}
    text = " ".join(rule["expr"] for rule in ALL)
    assert set(re.findall(r"\bray_\w+", text)) <= series
    assert set(re.findall(r"\bcoattention:\w+:\w+", text)) == RECORDED


def test_the_tags_that_the_rules_select_by_have_values_that_occur() -> None:
    code = " ".join(path.read_text() for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))
    known = {
        "outcome": {*telemetry.METRICS["coattention_searches"].tags["outcome"]},
        "stage": {*telemetry.SEARCH_STAGES},
        "reason": {*REJECT_REASONS},
        "action": {*re.findall(r'(?:append_record\(\w+, |action = |is None else )"(\w+)"', code)},
    }
    for rule in ALL:
        for tag, values in re.findall(r'(\w+)=~?"([^"]+)"', rule["expr"]):
            assert set(values.split("|")) <= known[tag], rule


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}


def fired(tmp_path: Path, series: dict[str, str], at: str) -> set[str]:
    """Names of the alerts that fire `at` a time after the start, by Prometheus itself. series: name -> values, one a minute.

    promtool is told that none will, and names those that do. Skips, saying so, where it is not installed.
    """
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus), so whether the alerts fire is not tried")
    case: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": one, "values": values} for one, values in series.items()],
        "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": []} for name in ALERTS],
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    ended = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    names = set(re.findall(r"alertname: (\w+)", ended.stdout + ended.stderr))
    assert (ended.returncode == 0) == (not names), ended.stderr
    return names


SEARCHES, REJECTS, VIDEOS = (f"ray_coattention_{name}_total" for name in ("searches", "ingest_rejects", "ingest_videos"))
RECORDS = 'ray_coattention_audit_records_total{action="search"}'


@pytest.mark.parametrize(
    ("series", "at", "alerts"),
    [
        # Series that begin at the only value they ever have, as those of a process that makes one search do.
        ({SEARCHES + '{outcome="failed",WorkerId="a"}': "_x20 1x40", RECORDS: "_x20 1x40"}, "30m", {"SearchesFail"}),
        ({SEARCHES + '{outcome="failed"}': "1x200", RECORDS: "1x200"}, "180m", set()),  # more than an hour ago
        ({SEARCHES + '{outcome="done"}': "0+5x120"}, "90m", {"SearchesWithoutRecords"}),  # and not one record
        ({SEARCHES + '{outcome="done"}': "0+5x120", RECORDS: "3x120"}, "90m", {"SearchesWithoutRecords"}),
        ({SEARCHES + '{outcome="done"}': "0+5x120", RECORDS: "0+5x120"}, "90m", set()),
        ({SEARCHES + '{outcome="done"}': "0+5x120", RECORDS.replace("search", "follow"): "0+5x120"}, "90m", set()),
        ({REJECTS + '{reason="unavailable"}': "1x40", VIDEOS: "9x40"}, "30m", {"StorageDoesNotAnswer"}),
        ({REJECTS + '{reason="truncated"}': "3x40", VIDEOS: "9x40"}, "30m", {"ManyInputsRejected"}),
        ({REJECTS + '{reason="truncated"}': "3x40"}, "30m", {"ManyInputsRejected"}),  # and not one video
        ({REJECTS + '{reason="decoder_crash"}': "6x40", VIDEOS: "900x40"}, "30m", {"DecodersDie"}),
        ({"ray_coattention_ingest_frames_total": "500x90"}, "80m", {"IngestStands"}),
        ({"ray_coattention_ingest_frames_total": "500+1x90"}, "80m", set()),
        ({"ray_coattention_ingest_frames_total": "500x10 stale"}, "80m", set()),  # it has ended
        ({'ray_coattention_audit_records_total{action="forget"}': "1x40"}, "30m", {"GalleryChangedByHand"}),
        ({RECORDS: "1x40"}, "30m", set()),
        (
            {
                'ray_coattention_search_seconds_bucket{stage="all",le="10.0"}': "0+5x60",
                'ray_coattention_search_seconds_bucket{stage="all",le="30.0"}': "0+10x60",
                'ray_coattention_search_seconds_bucket{stage="all",le="+Inf"}': "0+10x60",
            },
            "50m",
            {"SearchesAreSlow"},
        ),
    ],
)
def test_the_alerts_fire_for_what_they_are_named_for(tmp_path: Path, series: dict[str, str], at: str, alerts: set[str]) -> None:
    assert fired(tmp_path, series, at) == alerts
