"""Who can reach and do what in the clusters that the files below cluster/ make."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.cluster_files import (
    CLUSTER,
    MANIFESTS,
    RAY_KINDS,
    RAY_UP,
    documents,
    each_ray_kind,
    everything,
    pods,
    put,
    ray_cluster,
)

PRODUCT = {"app.kubernetes.io/part-of": "video-search"}


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
