"""The configurations of `ray up` against Ray's own checks."""

import copy
import shlex
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.cluster_files import (
    CLUSTER,
    RAY_UP,
    documents,
    parse_ray_start,
    put,
)

each_ray_up = pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as `ray up` completes and checks it before it calls the cloud. Raises what Ray raises."""
    complete = prepare_config(copy.deepcopy(config))
    validate_config(complete)
    return complete


@each_ray_up
def test_ray_up_takes_the_configuration(path: Path) -> None:
    (config,) = documents(path)
    complete = prepared(config)
    assert complete["head_node_type"] in complete["available_node_types"]
    assert "boto3" not in " ".join(complete["head_setup_commands"]), "the image has it; nodes install nothing from outside"


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("aws", ("max_worker",), 3),
        ("aws", ("max_workers",), "many"),
        ("aws", ("available_node_types", "gpu", "min_worker"), 1),
        ("aws", ("docker", "images"), "x"),
        ("aws", ("provider", "security_group"), {"Group": "x"}),
        ("aws", ("head_node_type",), "missing"),
        ("on-premise", ("auth", "ssh_usr"), "search"),
    ],
)
def test_a_fault_in_a_ray_up_configuration_is_found(name: str, place: tuple[str, ...], value: Any) -> None:
    (config,) = documents(CLUSTER / "ray-up" / f"{name}.yaml")
    put(config, place, value)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        prepared(config)


@each_ray_up
def test_ray_up_nodes_want_the_token_and_keep_the_dashboard_on_loopback(path: Path) -> None:
    (config,) = documents(path)
    token = "~/.ray/auth_token"
    assert config["file_mounts"][token] == token
    for role in ("head", "worker"):
        (line,) = [line for line in config[f"{role}_start_ray_commands"] if "ray start" in line]
        before, _, after = line.partition("ray start")
        assert before.rstrip().endswith("RAY_AUTH_MODE=token")
        words = shlex.split(after)
        parse_ray_start(words)
        assert ("--head" in words) == (role == "head")
        assert ("--dashboard-host=127.0.0.1" in words) == (role == "head")


def test_ray_opens_nothing_on_aws_and_nodes_lie_in_the_operators_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own security group lets SSH in from everywhere, whatever rules one adds: here it must make none."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    (config,) = documents(CLUSTER / "ray-up" / "aws.yaml")
    assert "security_group" not in config["provider"]
    (tmp_path / ".ssh").mkdir()
    (tmp_path / config["auth"]["ssh_private_key"].removeprefix("~/")).write_text("")
    with mock_aws():
        ec2 = boto3.client("ec2", config["provider"]["region"])
        ec2.create_key_pair(KeyName="video-search")
        (subnet, *_) = ec2.describe_subnets()["Subnets"]
        group = ec2.create_security_group(GroupName="g", Description="d", VpcId=subnet["VpcId"])["GroupId"]
        before = {g["GroupId"] for g in ec2.describe_security_groups()["SecurityGroups"]}
        for node in config["available_node_types"].values():
            assert len(node["node_config"]["SecurityGroupIds"]) == 1 == len(node["node_config"]["SubnetIds"])
            node["node_config"] |= {"SecurityGroupIds": [group], "SubnetIds": [subnet["SubnetId"]]}
        launched = bootstrap_aws(prepared(config))
        assert {g["GroupId"] for g in ec2.describe_security_groups()["SecurityGroups"]} == before
    for node in launched["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [group]


def test_aws_nodes_take_their_rights_from_profiles() -> None:
    (config,) = documents(CLUSTER / "ray-up" / "aws.yaml")
    assert config["provider"]["use_internal_ips"] is True
    profiles = {}
    for name, node in config["available_node_types"].items():
        profiles[name] = node["node_config"]["IamInstanceProfile"]["Arn"]
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert node["node_config"]["KeyName"]
        image = node.get("docker", {}).get("worker_image", config["docker"]["image"])
        assert image.endswith("-gpu" if name == "gpu" else "-cpu")
    assert profiles["decode"] == profiles["gpu"] != profiles["head"], "workers cannot start or stop instances"
    assert min(config["available_node_types"][name]["min_workers"] for name in ("decode", "gpu")) >= 1
