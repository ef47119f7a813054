"""The manifests and the operators' page against the commands, versions, images and resources they speak of."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import ServeDeploySchema

from tests.cluster.cluster_files import (
    CLUSTER,
    IMAGES,
    MANIFESTS,
    PINNED,
    PROJECT,
    RAY_JOBS,
    RAY_SERVICE,
    RAY_UP,
    documents,
    each_ray_kind,
    everything,
    parse_ray_start,
    pods,
    ray_cluster,
)

GPU = "nvidia.com/gpu"


def parse_command(words: list[str]) -> None:
    """Parse `python -m jobs.NAME ...` as the command itself would, without running it. Raises click's errors."""
    assert words[:2] == ["python", "-m"] and words[2].startswith("jobs."), words
    name = words[2].removeprefix("jobs.")
    app = typer.Typer(add_completion=False)
    app.command()(getattr(importlib.import_module(f"jobs.{name}"), name))
    typer.main.get_command(app).make_context(name, words[3:])


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


def test_the_operators_page_names_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    for path in (*MANIFESTS, *RAY_UP, *IMAGES):
        assert path.name in page, path.name
