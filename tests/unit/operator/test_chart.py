"""The Helm chart, rendered by real Helm where it is at hand."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from exo_operator import settings
from exo_operator.kube import kinds, rules

REPOSITORY = Path(__file__).parents[3]
CHART = REPOSITORY / "charts" / "exo-operator"


def find_helm() -> str | None:
    cache = Path(os.environ.get("EXO_CACHE", Path.home() / ".cache" / "exo-operator"))
    return shutil.which("helm") or next((str(path) for path in cache.glob("programs-*/helm")), None)


HELM = find_helm()
needs_helm = pytest.mark.skipif(
    HELM is None, reason="no helm on PATH or in the cache that `make up` fills"
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert HELM is not None
    return subprocess.run(
        [HELM, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def template(*sets: str) -> list[dict[str, Any]]:
    flags = [flag for each in sets for flag in ("--set", each)]
    done = run("template", "exo", str(CHART), "--namespace", "exo-system", *flags)
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Any]]:
    if HELM is None:
        pytest.skip("no helm on PATH or in the cache that `make up` fills")
    return template()


def role_rules(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        rule
        for kind in ("ClusterRole", "Role")
        for role in of_kind(documents, kind)
        for rule in role["rules"]
    ]


def test_no_role_has_a_wildcard(plain: list[dict[str, Any]]) -> None:
    for rule in role_rules(plain):
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_the_operator_may_do_what_it_does_and_can_make_secrets_but_never_see_or_change_one(
    plain: list[dict[str, Any]],
) -> None:
    (own,) = [
        role
        for role in of_kind(plain, "ClusterRole")
        if role["metadata"]["name"] == "exo-exo-operator"
    ]
    allowed = defaultdict(set)
    for rule in own["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                allowed[group, resource] |= set(rule["verbs"])
    for kind in kinds.WATCHED:
        assert {"get", "list", "watch"} <= allowed[kind.group, kind.plural], kind.name
    for kind in kinds.WATCHED:
        if kind.name != "ExoCluster":  # the operator deletes one only before an uninstall
            assert {"create", "patch", "delete"} <= allowed[kind.group, kind.plural], kind.name
    assert allowed["exo.dev", "exoclusters"] == {"get", "list", "watch", "delete"}
    secrets = {key: verbs for key, verbs in allowed.items() if "secret" in key[1]}
    assert secrets == {("", "secrets"): {"create"}}


def test_every_pod_meets_the_restricted_pod_security_standard(plain: list[dict[str, Any]]) -> None:
    templates = [
        doc["spec"]["template"]["spec"]
        for kind in ("Deployment", "Job")
        for doc in of_kind(plain, kind)
    ]
    templates += [doc["spec"] for doc in of_kind(plain, "Pod")]
    assert len(templates) == 3
    for spec in templates:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["resources"]["limits"]["memory"]


def test_the_arguments_are_ones_that_the_operator_takes(plain: list[dict[str, Any]]) -> None:
    (deployment,) = of_kind(plain, "Deployment")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    parsed = settings.parse(container["args"])
    assert parsed.defaults.image == "exo-node:dev"
    assert (parsed.lease_namespace, parsed.lease_name) == ("exo-system", "exo-exo-operator")
    assert parsed.namespaces == ()


def test_the_definitions_come_with_the_chart_and_stay_on_request(
    plain: list[dict[str, Any]],
) -> None:
    found = {doc["metadata"]["name"] for doc in of_kind(plain, "CustomResourceDefinition")}
    assert found == {"exonodes.exo.dev", "exoclusters.exo.dev"}
    kept = of_kind(template("crds.keep=true"), "CustomResourceDefinition")
    assert {doc["metadata"]["annotations"]["helm.sh/resource-policy"] for doc in kept} == {"keep"}
    assert of_kind(template("crds.enabled=false"), "CustomResourceDefinition") == []


@needs_helm
def test_namespaced_mode_makes_roles_only_and_tells_the_operator() -> None:
    documents = template("namespaces={red,blue}", "rbac.aggregate=false")
    assert of_kind(documents, "ClusterRole") == of_kind(documents, "ClusterRoleBinding") == []
    assert {doc["metadata"]["namespace"] for doc in of_kind(documents, "Role")} == {
        "red",
        "blue",
        "exo-system",
    }
    (deployment,) = of_kind(documents, "Deployment")
    assert (
        "--namespaces=red,blue" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    )


@needs_helm
def test_optional_parts_are_off_and_render_when_switched_on(plain: list[dict[str, Any]]) -> None:
    optional = {
        "ServiceMonitor",
        "PodMonitor",
        "PrometheusRule",
        "ConfigMap",
        "PodDisruptionBudget",
    }
    assert not optional & {doc["kind"] for doc in plain}
    toggles = [
        f"monitoring.{name}.enabled=true"
        for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
    ]
    documents = template("replicas=2", *toggles)
    assert optional <= {doc["kind"] for doc in documents}


def test_the_drain_runs_before_the_chart_goes_and_ends_in_time(plain: list[dict[str, Any]]) -> None:
    (job,) = of_kind(plain, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert job["spec"]["activeDeadlineSeconds"] < 60
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][0] == "drain"


BAD_VALUES = [
    "replicas=-1",
    "log.level=loud",
    "imagee=x",
    "image.tag=",
    "drain.timeoutSeconds=soon",
]


@needs_helm
@pytest.mark.parametrize("bad", BAD_VALUES)
def test_a_wrong_value_is_refused_with_its_name(bad: str) -> None:
    done = run("template", "exo", str(CHART), "--set", bad)
    assert done.returncode != 0
    assert bad.split("=")[0].split(".")[-1] in done.stderr


def test_the_charts_rules_are_generated_from_the_table_of_kinds() -> None:
    for path, content in rules.files().items():
        assert (REPOSITORY / path).read_text() == content, "run `make generate`"


@needs_helm
def test_the_chart_lints() -> None:
    done = run("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout
