"""The CustomResourceDefinitions: fresh, structural, described, and right about examples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from exo_operator.api import crds, names
from exo_operator.api.spec import ExoClusterSpec, ExoNodeSpec

from exo import contract

REPOSITORY = Path(__file__).parents[4]
CRDS = {crd["spec"]["names"]["kind"]: crd for crd in (crds.node_crd(), crds.cluster_crd())}


def schema(kind: str) -> dict[str, Any]:
    found: dict[str, Any] = CRDS[kind]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return found


def walk(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            yield from walk(node[key], f"{path}[]")


def refused(kind: str, spec: dict[str, Any]) -> str | None:
    """What plain schema validation says against a spec. The CEL rules are tried on the cluster."""
    try:
        jsonschema.validate(spec, schema(kind)["properties"]["spec"])
    except jsonschema.ValidationError as error:
        return f"{error.json_path}: {error.message}"
    return None


@pytest.mark.parametrize("directory", crds.DIRECTORIES)
def test_the_committed_files_are_what_the_models_generate(directory: str) -> None:
    for name, content in crds.files().items():
        assert (REPOSITORY / directory / name).read_text() == content, "run `make generate`"


def test_check_finds_a_stale_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert crds.main([str(tmp_path)]) == 0
    assert crds.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "exo.dev_exonodes.yaml").write_text("old")
    assert crds.main([str(tmp_path), "--check"]) == 1
    assert "exo.dev_exonodes.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("kind", list(CRDS))
def test_every_field_has_a_type_and_a_description(kind: str) -> None:
    for path, node in walk(schema(kind)):
        if node.get("x-kubernetes-int-or-string"):
            continue
        assert "type" in node, path
        if not path.endswith("[]") and path != ".metadata" and path != "":
            assert node.get("description"), path


@pytest.mark.parametrize("kind", list(CRDS))
def test_the_schema_is_structural(kind: str) -> None:
    for path, node in walk(schema(kind)):
        assert not {"$ref", "$defs", "title", "oneOf", "allOf", "const"} & set(node), path
        assert "anyOf" not in node or node.get("x-kubernetes-int-or-string"), path
        assert not (node.get("properties") and node.get("additionalProperties")), path


@pytest.mark.parametrize("kind", list(CRDS))
def test_rules_have_messages_and_lists_with_rules_have_bounds(kind: str) -> None:
    for path, node in walk(schema(kind)["properties"]["spec"], ".spec"):
        for rule in node.get("x-kubernetes-validations", ()):
            assert rule["message"], path
        if node.get("type") == "array":
            assert "maxItems" in node, path


def test_the_smallest_manifests_are_enough() -> None:
    assert refused("ExoNode", {"model": {"name": "smollm2-135m"}}) is None
    assert refused("ExoCluster", {"model": {"name": "smollm2-135m"}, "nodes": 2}) is None


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({}, "model"),
        ({"model": {"name": "gpt-5"}}, "smollm2-135m"),
        ({"model": {"name": "smollm2-135m", "sizeMiB": -1}}, "sizeMiB"),
        ({"model": {"path": "relative"}}, "path"),
        ({"model": {"hf": "no-slash"}}, "hf"),
        ({"model": {"name": "smollm2-135m"}, "engine": "cuda"}, "engine"),
        ({"model": {"name": "smollm2-135m"}, "memoryMiB": 0}, "memoryMiB"),
        ({"model": {"name": "smollm2-135m"}, "layers": {"start": -1, "end": 3}}, "start"),
        ({"model": {"name": "smollm2-135m"}, "termination": {"drainSeconds": -5}}, "drainSeconds"),
        ({"model": {"name": "smollm2-135m"}, "probes": {"protocol": "TCP"}}, "protocol"),
        ({"model": {"name": "smollm2-135m"}, "cluster": "Not A Name"}, "cluster"),
        ({"model": {"name": "smollm2-135m"}, "extraEnv": [{"value": "x"}]}, "name"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_field(spec: dict[str, Any], field: str) -> None:
    assert field in (refused("ExoNode", spec) or "")


def test_defaults_are_static_and_the_same_as_the_operators() -> None:
    filled = _fill(schema("ExoNode")["properties"]["spec"], {"model": {"name": "smollm2-135m"}})
    assert filled["resources"] == {
        "requests": {"cpu": "250m", "memory": "512Mi"},
        "limits": {"memory": "2Gi"},
    }
    assert filled["termination"] == {"drainSeconds": 30, "preStopSeconds": 3}
    assert filled["probes"]["protocol"] == "HTTP"
    smallest = {"model": {"name": "smollm2-135m"}}
    assert ExoNodeSpec.model_validate(filled) == ExoNodeSpec.model_validate(smallest)
    ring = _fill(schema("ExoCluster")["properties"]["spec"], dict(smallest))
    assert ExoClusterSpec.model_validate(ring) == ExoClusterSpec.model_validate(smallest)


def _fill(node: dict[str, Any], value: Any) -> Any:
    """Fill defaults in as the API server does."""
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = (
                    child["default"]
                    if not isinstance(child["default"], dict)
                    else dict(child["default"])
                )
            if name in value:
                value[name] = _fill(child, value[name])
    return value


def test_what_kubectl_shows() -> None:
    def columns(kind: str, wide: bool) -> list[str]:
        found = CRDS[kind]["spec"]["versions"][0]["additionalPrinterColumns"]
        return [column["name"] for column in found if bool(column.get("priority")) == wide]

    assert columns("ExoNode", wide=False) == ["Ready", "Model", "Layers", "Reason", "Age"]
    assert {"Node", "IP", "Tok/s"} <= set(columns("ExoNode", wide=True))
    assert columns("ExoCluster", wide=False) == ["Ready", "Model", "Nodes", "Up", "Reason", "Age"]
    assert {kind: crd["spec"]["names"]["shortNames"] for kind, crd in CRDS.items()} == {
        "ExoNode": ["xn"],
        "ExoCluster": ["xc"],
    }
    assert {crd["spec"]["names"]["categories"][0] for crd in CRDS.values()} == {"exo"}


def test_an_exocluster_can_be_scaled_and_both_can_be_selected_by_model() -> None:
    version = CRDS["ExoCluster"]["spec"]["versions"][0]
    assert version["subresources"]["scale"]["labelSelectorPath"] == ".status.selector"
    for crd in CRDS.values():
        assert {"jsonPath": ".spec.model.name"} in crd["spec"]["versions"][0]["selectableFields"]


def test_bundled_models_are_those_of_the_contract() -> None:
    name = schema("ExoNode")["properties"]["spec"]["properties"]["model"]["properties"]["name"]
    assert name["enum"] == list(contract.BUNDLED_MODELS)


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "examples").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_example_is_valid(path: Path) -> None:
    found = [
        doc
        for doc in yaml.safe_load_all(path.read_text())
        if doc["apiVersion"] == names.API_VERSION
    ]
    assert found
    for document in found:
        assert refused(document["kind"], document["spec"]) is None
        assert len(document["metadata"]["name"]) <= names.MAX_CLUSTER_NAME
