"""Reads the files below cluster/."""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.scripts.scripts import start as ray_start

ROOT = Path(__file__).parents[2]


CLUSTER = ROOT / "cluster"


MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))


RAY_JOBS = sorted((CLUSTER / "kubernetes").glob("rayjob-*.yaml"))


RAY_SERVICE = CLUSTER / "kubernetes" / "rayservice.yaml"


RAY_KINDS = [CLUSTER / "kubernetes" / "raycluster.yaml", RAY_SERVICE, *RAY_JOBS]


RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))


IMAGES = sorted((CLUSTER / "images").glob("*.Dockerfile"))


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)


each_ray_kind = pytest.mark.parametrize("path", RAY_KINDS, ids=lambda path: path.stem)


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def ray_cluster(document: dict[str, Any]) -> dict[str, Any]:
    """The spec of the RayCluster that a RayCluster, RayJob or RayService document makes."""
    place = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}.get(document["kind"])
    return document["spec"] if place is None else document["spec"][place]


def pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, pod template) of each kind of pod in a document."""
    if document["kind"] == "StatefulSet":
        yield "redis", document["spec"]["template"]
    if document["kind"] not in ("RayJob", "RayCluster", "RayService"):
        return
    cluster = ray_cluster(document)
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    if document["kind"] == "RayJob":
        yield "submitter", document["spec"]["submitterPodTemplate"]


def everything(node: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of nested mappings and lists."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield key, value
            yield from everything(value)
    elif isinstance(node, list):
        for value in node:
            yield from everything(value)


def put(document: dict[str, Any], place: tuple[Any, ...], value: Any) -> None:
    """Set the field at a path of keys and positions."""
    node: Any = document
    for step in place[:-1]:
        node = node[step]
    node[place[-1]] = value


def parse_ray_start(words: list[str]) -> None:
    """Parse the words after `ray start`. Raises click's errors."""
    ray_start.make_context("start", list(words))
