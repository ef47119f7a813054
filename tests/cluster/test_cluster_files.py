"""The files below cluster/: against KubeRay's and Ray's own schemas, and against the code, versions and images they speak of.

KubeRay's CRDs are read from ../shared; everything else needs nothing but the checkout. An API server drops unknown fields of a
CRD without a word, so here they fail.
"""

import copy
import fnmatch
import importlib
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import click
import jsonschema
import pytest
import typer
import yaml
from moto import mock_aws
from packaging.requirements import Requirement
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from tests.conftest import SHARED

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
SCHEMAS = SHARED / "schemas" / "kuberay"
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
RAY_JOBS = sorted((CLUSTER / "kubernetes").glob("rayjob-*.yaml"))
RAY_SERVICE = CLUSTER / "kubernetes" / "rayservice.yaml"
RAY_KINDS = [CLUSTER / "kubernetes" / "raycluster.yaml", RAY_SERVICE, *RAY_JOBS]
RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))
IMAGES = sorted((CLUSTER / "images").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
PRODUCT = {"app.kubernetes.io/part-of": "video-search"}
GPU = "nvidia.com/gpu"

needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's CRD schemas are not in ../shared/schemas/kuberay")
each_ray_kind = pytest.mark.parametrize("path", RAY_KINDS, ids=lambda path: path.stem)
each_ray_up = pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
each_image = pytest.mark.parametrize("path", IMAGES, ids=lambda path: path.stem)


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


# Against KubeRay's schemas


def strict(schema: Any, top: bool = False) -> Any:
    """An openAPIV3Schema as a JSON schema in which fields that it does not name are faults (metadata is Kubernetes' own)."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if "properties" in schema:
        closed["properties"] = {name: strict(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if top:
        closed["properties"]["metadata"] = {
            "type": "object",
            "required": ["name", "namespace"],
            "properties": {"name": {"type": "string"}, "namespace": {"const": "video-search"}},
            "additionalProperties": False,
        }
        closed["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return closed


@pytest.fixture(scope="module")
def validators() -> dict[str, jsonschema.Draft202012Validator]:
    """kind -> validator of a whole document; PodTemplate and Ingress for a pod's template and a NetworkPolicy's rules."""
    found = {}
    for name in ("rayclusters", "rayjobs", "rayservices"):
        definition = yaml.load((SCHEMAS / f"ray.io_{name}.yaml").read_text(), Loader=yaml.CSafeLoader)
        version = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")
        schema = strict(version["schema"]["openAPIV3Schema"], top=True)
        found[definition["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    cluster = found["RayCluster"].schema["properties"]["spec"]["properties"]
    policy = cluster["networkPolicy"]["properties"]["head"]["properties"]
    found["PodTemplate"] = jsonschema.Draft202012Validator(cluster["headGroupSpec"]["properties"]["template"])
    found["Ingress"] = jsonschema.Draft202012Validator(policy["ingressRules"])
    return found


def faults(validator: jsonschema.Draft202012Validator, document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)]


@needs_schemas
@each_ray_kind
def test_each_kuberay_manifest_is_valid_and_has_no_unknown_field(path: Path, validators: dict[str, Any]) -> None:
    (document,) = documents(path)
    assert document["apiVersion"] == "ray.io/v1"
    assert faults(validators[document["kind"]], document) == []


@needs_schemas
def test_the_other_manifests_that_a_crd_can_judge_are_valid_too(validators: dict[str, Any]) -> None:
    redis = next(d for path in MANIFESTS for d in documents(path) if d["kind"] == "StatefulSet")
    assert faults(validators["PodTemplate"], redis["spec"]["template"]) == []
    policies = [d for path in MANIFESTS for d in documents(path) if d["kind"] == "NetworkPolicy"]
    assert len(policies) == 3
    assert [faults(validators["Ingress"], policy["spec"]["ingress"]) for policy in policies] == [[]] * len(policies)


GROUP = ("spec", "rayClusterSpec", "workerGroupSpecs", 0)
CONTAINER = (*GROUP, "template", "spec", "containers", 0)


@needs_schemas
@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("spec", "rayClusterSpec", "authOption"), {"mode": "token"}, "'authOption' was unexpected"),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "tokens", "'tokens' is not one of"),
        (("spec", "backoffLimit"), "3", "'3' is not of type 'integer'"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0, "0 is not of type 'string'"),
        ((*GROUP, "maxReplica"), 4, "'maxReplica' was unexpected"),
        ((*CONTAINER, "resource"), {}, "'resource' was unexpected"),
        ((*CONTAINER, "resources", "limits", "memory"), "16 gigabytes", "does not match"),
        (("metadata", "namspace"), "video-search", "'namspace' was unexpected"),
    ],
)
def test_a_fault_in_a_manifest_is_found(place: tuple[Any, ...], value: Any, said: str, validators: dict[str, Any]) -> None:
    (document,) = documents(RAY_JOBS[0])
    put(document, place, value)
    found = faults(validators["RayJob"], document)
    assert len(found) == 1 and said in found[0]


@needs_schemas
def test_a_missing_field_is_found(validators: dict[str, Any]) -> None:
    (document,) = documents(RAY_JOBS[0])
    del document["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert "'maxReplicas' is a required property" in "".join(faults(validators["RayJob"], document))


# Against the commands


def parse_command(words: list[str]) -> None:
    """Parse `python -m jobs.NAME ...` as the command itself would, without running it. Raises click's errors."""
    assert words[:2] == ["python", "-m"] and words[2].startswith("jobs."), words
    name = words[2].removeprefix("jobs.")
    app = typer.Typer(add_completion=False)
    app.command()(getattr(importlib.import_module(f"jobs.{name}"), name))
    typer.main.get_command(app).make_context(name, words[3:])


def parse_ray_start(words: list[str]) -> None:
    """Parse the words after `ray start`. Raises click's errors."""
    ray_start.make_context("start", list(words))


@pytest.mark.parametrize("path", RAY_JOBS, ids=lambda path: path.stem)
def test_the_entry_point_is_a_command_with_flags_that_it_has(path: Path) -> None:
    (document,) = documents(path)
    words = shlex.split(document["spec"]["entrypoint"])
    assert words[2] == f"jobs.{path.stem.removeprefix('rayjob-')}"
    parse_command(words)
    assert not [word for word in words if word.startswith("/")], "pods share no disk: inputs and outputs are uris"


def test_ingest_index_and_search_each_have_a_job() -> None:
    assert [path.stem for path in RAY_JOBS] == ["rayjob-index", "rayjob-ingest", "rayjob-search"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("python -m jobs.ingest s3://b/ --galery s3://g", "NoSuchOption"),
        ("python -m jobs.ingest s3://b/", "MissingParameter"),
        ("python -m jobs.search t.mp4 --gallery g --top many", "BadParameter"),
        ("python -m jobs.index s3://b --gallery g", "UsageError"),
        ("python -m jobs.ingets s3://b --gallery g", "ModuleNotFoundError"),
    ],
)
def test_a_wrong_entry_point_is_found(line: str, error: str) -> None:
    with pytest.raises(Exception) as refused:  # typer has copies of click's classes
        parse_command(shlex.split(line))
    assert type(refused.value).__name__ == error


def test_the_commands_on_the_operators_page_exist() -> None:
    lines = re.findall(r"(?:job|--) (python -m jobs\.[^\n#]+)", (CLUSTER / "README.md").read_text())
    assert len(lines) >= 3
    for line in lines:
        parse_command(shlex.split(line))


@each_ray_kind
def test_ray_start_parameters_are_options_of_ray_start(path: Path) -> None:
    (document,) = documents(path)
    cluster = ray_cluster(document)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        parse_ray_start([f"--{name}={value}" for name, value in group["rayStartParams"].items()])
    with pytest.raises(click.NoSuchOption):
        parse_ray_start(["--num-cpu=0"])


def test_the_service_is_deployed_as_the_application_has_it() -> None:
    """As the operator hands it to Ray, down to the application with its arguments."""
    (document,) = documents(RAY_SERVICE)
    config = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, _, name = application.import_path.partition(":")
    made = call_user_app_builder_with_args_if_necessary(getattr(importlib.import_module(module), name), application.args)
    *_, hosts, secure, _ = made._bound_deployment.init_args
    assert hosts == ["search.example.org"] and secure
    address = application.args["address"]
    assert (address["host"], address["port"]) == (config.http_options.host, config.http_options.port)
    assert application.route_prefix == "/" and config.logging_config is not None
    assert config.logging_config.enable_access_log is False, "addresses name videos and people's searches"


def test_the_replica_finds_the_tokens_wherever_it_runs() -> None:
    (document,) = documents(RAY_SERVICE)
    application = yaml.safe_load(document["spec"]["serveConfigV2"])["applications"][0]
    file = Path(application["args"]["tokens"])
    for name, template in pods(document):
        if name != "head":  # which offers no CPU
            (container,) = template["spec"]["containers"]
            mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}[str(file.parent)]
            (secret,) = [volume["secret"] for volume in template["spec"]["volumes"] if volume["name"] == mounted]
            made = f"create secret generic {secret['secretName']} --from-file={file.name}="
            assert made in (CLUSTER / "README.md").read_text()


def test_only_the_ingress_reaches_the_service_which_it_names() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in documents(CLUSTER / "kubernetes" / "networkpolicy.yaml")}
    (document,) = documents(RAY_SERVICE)
    config = yaml.safe_load(document["spec"]["serveConfigV2"])
    (rule,) = policies["serve"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": config["http_options"]["port"]}]
    assert rule["from"][0].keys() == {"namespaceSelector", "podSelector"}, "that pod, in that namespace"
    assert document["spec"]["excludeHeadPodFromServeSvc"] is True
    for name, template in pods(document):
        chosen = policies["serve"]["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        assert chosen == (name != "head"), name


# Against versions, images and what the pipeline asks of Ray


@each_ray_kind
def test_the_ray_version_is_the_pinned_one(path: Path) -> None:
    (document,) = documents(path)
    assert ray_cluster(document)["rayVersion"] == PINNED["ray"]


def test_every_image_of_ours_is_one_that_a_container_file_makes_at_this_version() -> None:
    made = {re.findall(r"-t (\S+) \.", path.read_text().splitlines()[0])[0] for path in IMAGES}
    assert made == {f"registry.example/video-search:{PROJECT['version']}-{path.stem}" for path in IMAGES}
    used = {
        value
        for path in (*MANIFESTS, *RAY_UP)
        for document in documents(path)
        for key, value in everything(document)
        if key in ("image", "worker_image", "head_image") and not value.startswith("redis:")
    }
    assert used == made


@each_ray_kind
def test_work_runs_on_workers_and_ray_counts_what_kubernetes_gives(path: Path) -> None:
    (document,) = documents(path)
    cluster = ray_cluster(document)
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "work on the head takes the head with it"
    for name, template in pods(document):
        (container,) = template["spec"]["containers"]
        limits = container["resources"]["limits"]
        assert container["image"].endswith("-gpu") == (GPU in limits) == (name == "gpu"), name
        if name != "submitter":
            assert limits == container["resources"]["requests"], f"{name}: Ray counts the limits, Kubernetes places by requests"


@each_ray_kind
def test_what_a_command_counts_on_is_there_when_it_starts(path: Path) -> None:
    """The commands size themselves by the cluster that they find: a group that starts at 0 would never be used."""
    (document,) = documents(path)
    cluster = ray_cluster(document)
    assert cluster["enableInTreeAutoscaling"] is True
    for group in cluster["workerGroupSpecs"]:
        assert 1 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], group["groupName"]


def test_the_standing_cluster_has_a_cpu_and_a_gpu_group_and_survives_its_head() -> None:
    (document,) = documents(CLUSTER / "kubernetes" / "raycluster.yaml")
    spec = document["spec"]
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["decode", "gpu"]
    options = spec["gcsFaultToleranceOptions"]
    (service,) = documents(RAY_SERVICE)
    assert ray_cluster(service)["gcsFaultToleranceOptions"] == options
    assert set(options["redisPassword"]) == {"valueFrom"}
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    service, stateful_set = documents(CLUSTER / "kubernetes" / "redis.yaml")
    assert options["redisAddress"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    assert container["env"][0]["valueFrom"]["secretKeyRef"] == secret
    assert f"create secret generic {secret['name']} --from-literal={secret['key']}=" in (CLUSTER / "README.md").read_text()
    assert service["spec"]["selector"].items() <= stateful_set["spec"]["template"]["metadata"]["labels"].items()
    assert stateful_set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] in {m["name"] for m in container["volumeMounts"]}


# Who can reach and do what


@each_ray_kind
def test_kuberay_clusters_want_the_token_and_are_not_offered_outside(path: Path) -> None:
    (document,) = documents(path)
    cluster = ray_cluster(document)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP" and cluster["headGroupSpec"]["enableIngress"] is False
    names = [name for name, _ in everything(cluster) if name in ("hostPort", "hostNetwork", "ingressOptions", "headService")]
    assert names == []


def test_every_ray_pod_is_behind_the_network_policy() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in documents(CLUSTER / "kubernetes" / "networkpolicy.yaml")}
    assert policies.keys() == {"ray", "redis", "serve"}
    assert policies["ray"]["podSelector"] == {"matchLabels": PRODUCT} and policies["ray"]["policyTypes"] == ["Ingress"]
    inside, operator = policies["ray"]["ingress"]
    assert inside == {"from": [{"podSelector": {"matchLabels": PRODUCT}}]}
    assert [port["port"] for port in operator["ports"]] == [8265]
    (peer,) = operator["from"]  # both selectors: that pod, in that namespace
    assert peer["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-operator"}}
    assert peer["podSelector"] == {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}}
    for path in RAY_KINDS:
        for document in documents(path):
            for name, template in pods(document):
                assert PRODUCT.items() <= template["metadata"]["labels"].items(), f"{path.stem}: {name}"


def test_only_heads_and_the_cleanup_reach_redis_and_it_reaches_nobody() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in documents(CLUSTER / "kubernetes" / "networkpolicy.yaml")}
    _, stateful_set = documents(CLUSTER / "kubernetes" / "redis.yaml")
    chosen = policies["redis"]["podSelector"]
    assert chosen.keys() == {"matchLabels"} and chosen["matchLabels"]
    assert chosen["matchLabels"].items() <= stateful_set["spec"]["template"]["metadata"]["labels"].items()
    assert policies["redis"]["policyTypes"] == ["Ingress", "Egress"] and "egress" not in policies["redis"]
    (rule,) = policies["redis"]["ingress"]
    (peer,) = rule["from"]
    node = {"key": "ray.io/node-type", "operator": "In", "values": ["head", "redis-cleanup"]}
    assert peer == {"podSelector": {"matchLabels": PRODUCT, "matchExpressions": [node]}}
    assert rule["ports"] == [{"protocol": "TCP", "port": 6379}]


def test_no_service_leads_out_of_the_cluster_and_all_lies_in_one_namespace() -> None:
    for path in MANIFESTS:
        for document in documents(path):
            if document["kind"] == "Service":
                assert document["spec"]["type"] == "ClusterIP"
            if document["kind"] != "Namespace":
                assert document["metadata"]["namespace"] == "video-search"
            assert document["kind"] not in ("Secret", "Ingress")


def test_pods_run_without_root_and_without_rights_to_gain() -> None:
    without_rights = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    checked = []
    for path in MANIFESTS:
        for document in documents(path):
            for name, template in pods(document):
                spec = template["spec"]
                assert spec["securityContext"]["runAsNonRoot"] is True and spec["securityContext"]["runAsUser"] > 0, name
                for container in spec["containers"]:
                    assert without_rights.items() <= container["securityContext"].items(), name
                checked.append(name)
            for options in (value for key, value in everything(document) if key == "autoscalerOptions"):
                assert options["securityContext"] == without_rights
                checked.append("autoscaler")
    assert checked.count("head") == len(RAY_KINDS) and {"redis", "submitter", "gpu", "autoscaler"} <= set(checked)


def test_accounts_named_by_pods_exist_and_only_the_heads_can_call_kubernetes() -> None:
    kinds = documents(CLUSTER / "kubernetes" / "namespace.yaml")
    accounts = {document["metadata"]["name"] for document in kinds if document["kind"] == "ServiceAccount"}
    for path in MANIFESTS:
        for document in documents(path):
            for name, template in pods(document):
                spec = template["spec"]
                assert spec.get("serviceAccountName", "default") in accounts | {"default"}, name
                assert spec.get("automountServiceAccountToken", True) == (name == "head"), name


CREDENTIAL = re.compile(
    r"AKIA[0-9A-Z]{16}|aws_secret|secret_access_key|AWS_ACCESS_KEY|BEGIN [A-Z ]*PRIVATE KEY|requirepass \w"
    r"|RAY_AUTH_TOKEN\s*[:=]\s*(?!\"\$\()|stringData:",
    re.I,
)


def test_no_file_holds_a_credential() -> None:
    files = [path for path in CLUSTER.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert not CREDENTIAL.search(path.read_text()), path
    for path in (*MANIFESTS, *RAY_UP):
        for document in documents(path):
            assert planted(document) == [], path.name


def planted(document: dict[str, Any]) -> list[str]:
    """Where a document holds what should come from a Secret: a field, or an entry of name and value, as of an environment."""
    found = []
    for key, value in everything(document):
        if re.search(r"password|token$", key, re.I) and isinstance(value, str) and not value.startswith("~/"):
            found.append(key)
        for entry in value if isinstance(value, list) else ():
            if (
                isinstance(entry, dict)
                and re.search(r"password|token|secret|access_key", str(entry.get("name")), re.I)
                and "value" in entry
            ):
                found.append(entry["name"])
    return found


def test_a_credential_in_an_environment_would_be_found() -> None:
    _, stateful_set = documents(CLUSTER / "kubernetes" / "redis.yaml")
    put(stateful_set, ("spec", "template", "spec", "containers", 0, "env", 0), {"name": "REDIS_PASSWORD", "value": "hunter2"})
    assert planted(stateful_set) == ["REDIS_PASSWORD"]


@pytest.mark.parametrize(
    "text",
    ["AKIAABCDEFGHIJKLMNOP", "aws_secret_access_key: x", "requirepass hunter2", "RAY_AUTH_TOKEN=abc", "RAY_AUTH_TOKEN: abc"],
)
def test_a_credential_would_be_found(text: str) -> None:
    assert CREDENTIAL.search(text)


# ray up


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


# Container files


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, its arguments) of a container file, continued lines joined."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.M))
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def in_build_context(source: str) -> bool:
    """Whether .dockerignore, in which the last line that fits decides, lets a path through."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").strip()
        if pattern and not pattern.startswith("#") and (fnmatch.fnmatch(source, pattern) or source.startswith(f"{pattern}/")):
            kept = line.startswith("!")
    return kept


@each_image
def test_a_container_file_copies_what_there_is(path: Path) -> None:
    steps = instructions(path)
    assert steps[0][0] == "FROM" and {name for name, _ in steps} <= {"FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER"}
    sources = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert {"pyproject.toml", "constraints.txt", "pipeline", "jobs", "LICENSE", "README.md"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and in_build_context(source), source
    assert not in_build_context("tests") and not in_build_context(".git") and not in_build_context(".venv")


@each_image
def test_a_container_file_installs_extras_that_exist_of_one_kind_with_the_constraints(path: Path) -> None:
    (line,) = [rest for name, rest in instructions(path) if name == "RUN" and '".[' in rest]
    extras = set(re.findall(r'"\.\[([\w,]+)\]"', line)[0].split(","))
    assert extras <= set(PROJECT["optional-dependencies"])
    assert extras & {"cpu", "gpu"} == {path.stem}, "cpu and gpu install the same modules"
    copied = {Path(part).name for name, rest in instructions(path) if name == "COPY" for part in rest.split()[:-1]}
    constraints = re.findall(r"--constraint (\S+)", line)
    assert "constraints.txt" in constraints and set(constraints) <= copied


@each_image
def test_a_container_runs_as_a_user_and_has_a_compiler_and_the_python_that_is_asked_for(path: Path) -> None:
    steps = instructions(path)
    (user,) = [rest for name, rest in steps if name == "USER"]
    commands = " ".join(rest for name, rest in steps if name == "RUN")
    assert user == "1000:1000" and "useradd --uid 1000 --gid 1000" in commands
    after = [name for name, _ in steps[[name for name, _ in steps].index("USER") :]]
    assert "RUN" not in after and "COPY" not in after, "what is installed belongs to root"
    packages = re.findall(r"--no-install-recommends ([^&]+)", commands)[0].split()
    assert {"g++", "wget", "rsync", "openssh-client"} <= set(packages)
    assert any(name == "ENV" and "RAY_AUTH_MODE=token" in rest for name, rest in steps)
    base = re.fullmatch(r"python:(\d+)\.(\d+)-slim-bookworm", steps[0][1])
    assert base and (int(base[1]), int(base[2])) >= tuple(map(int, PROJECT["requires-python"].removeprefix(">=").split(".")))


def test_the_gpu_pins_are_of_the_gpu_extra() -> None:
    pins = dict(line.split("==") for line in (CLUSTER / "images" / "constraints-gpu.txt").read_text().split())
    wanted = {one.name: one.specifier for one in map(Requirement, PROJECT["optional-dependencies"]["gpu"])}
    assert pins.keys() == wanted.keys() and not pins.keys() & PINNED.keys()
    assert [name for name, allowed in wanted.items() if pins[name] not in allowed] == []


def test_what_the_packages_read_at_run_time_is_installed_with_them() -> None:
    """An image has no checkout: a data file that package-data does not name would be missing only there."""
    listed = subprocess.run(["git", "ls-files", "pipeline", "jobs"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy is not a git checkout, so what is tracked is not known")
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    left = []
    for name in listed.stdout.splitlines():
        path = Path(name)
        named = any(fnmatch.fnmatch(path.name, pattern) for pattern in data["*"])
        for package, patterns in data.items():
            folder = package.replace(".", "/") + "/"
            if package != "*" and name.startswith(folder):
                named |= any(ROOT / name in (ROOT / folder).glob(pattern) for pattern in patterns)  # its * does not cross a /
        if path.suffix != ".py" and not named:
            left.append(name)
    assert left == []


def test_the_operators_page_names_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    for path in (*MANIFESTS, *RAY_UP, *IMAGES):
        assert path.name in page, path.name
