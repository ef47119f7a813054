"""The manifests below cluster/ against the schemas of KubeRay's CRDs.

These are read from ../shared. An API server drops unknown fields of a CRD without a word, so here they fail.
"""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.cluster.cluster_files import MANIFESTS, RAY_JOBS, documents, each_ray_kind, put
from tests.conftest import SHARED

SCHEMAS = SHARED / "schemas" / "kuberay"
needs_schemas = pytest.mark.skipif(not SCHEMAS.is_dir(), reason="KubeRay's CRD schemas are not in ../shared/schemas/kuberay")


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
