"""The alert rules name metrics, tags and values that exist, and Prometheus takes them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from pipeline.catalog import REJECT_REASONS
from pipeline.telemetry import METRICS

FILE = Path(__file__).parents[1] / "cluster" / "prometheus-alerts.yaml"
RULES = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_a_rule_asks_for_what_is_measured(rule: dict) -> None:
    series = {name: metric for key, metric in METRICS.items() for name in metric.series(key)}
    asked = re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", rule["expr"])
    assert asked and {name for name, _ in asked} <= series.keys()
    for name, tags in asked:
        for tag, values in re.findall(r'(\w+)=~?"([^"]*)"', tags):
            known = series[name].tags[tag] or (REJECT_REASONS if tag == "reason" else ())
            assert not known or set(values.split("|")) <= set(known)
    assert rule["annotations"].keys() == {"summary", "description"} and rule["labels"]["severity"] in ("warning", "critical")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian's package prometheus) is not installed")
def test_prometheus_takes_the_rules() -> None:
    checked = subprocess.run(["promtool", "check", "rules", str(FILE)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
