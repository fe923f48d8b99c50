"""Every field of an ExoNode's spec reaches an object, and every field of its status is written.

A field that is added to a model and forgotten elsewhere fails here.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from exo_operator.api.conditions import NodeCondition
from exo_operator.api.spec import ExoNodeSpec
from exo_operator.api.status import ExoNodeStatus, ResourceHealth
from exo_operator.exonode import objects, secret
from exo_operator.exonode import pod as pods
from exo_operator.exonode.conditions import verdicts
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.status import node_status
from exo_operator.kube.objects import Raw

from ..builders import DEFAULTS, exonode, node_ref, planned, pod_of, snapshot_of
from ..schemas import check_status, leaves, put, schema_of, unset

# One other value for each field, and what the spec must have for the field to matter.
HF = {"model": {"hf": "owner/name"}}
CLAIM = {"storage": {"size": "1Gi"}}
MEMBER = {"cluster": "ring"}
POLICY = {"networkPolicy": {"enabled": True}}
EXAMPLES: dict[str, tuple[dict[str, Any], Any]] = {
    "model.name": ({"model": {"path": "/m"}}, "smollm2-135m"),
    "model.path": ({}, "/m"),
    "model.hf": ({}, "owner/name"),
    "model.revision": (HF, "v2"),
    "model.sizeMiB": ({"model": {"path": "/m"}}, 4000),
    "cluster": ({}, "ring"),
    "layers.start": ({"layers": {"start": 0, "end": 5}}, 1),
    "layers.end": ({"layers": {"start": 0, "end": 5}}, 6),
    "discovery.mode": (MEMBER, "none"),
    "suspend": ({}, True),
    "engine": ({}, "numpy"),
    "image": ({}, "mine:1"),
    "imagePullPolicy": ({}, "Always"),
    "resources.requests": ({}, {"cpu": 1}),
    "resources.limits": ({}, {"memory": "9Gi"}),
    "memoryMiB": ({}, 900),
    "probes.protocol": ({}, "GRPC"),
    "probes.startupSeconds": ({}, 999),
    "probes.readinessPeriodSeconds": ({}, 7),
    "probes.livenessPeriodSeconds": ({}, 7),
    "probes.livenessFailureThreshold": ({}, 7),
    "termination.drainSeconds": ({}, 77),
    "termination.preStopSeconds": ({}, 7),
    "termination.gracePeriodSeconds": ({}, 777),
    "storage.size": ({}, "1Gi"),
    "storage.storageClassName": (CLAIM, "fast"),
    "storage.existingClaim": ({}, "mine"),
    "auth.apiKeySecretRef.name": ({}, "keys"),
    "auth.apiKeySecretRef.key": ({"auth": {"apiKeySecretRef": {"name": "k"}}}, "other"),
    "auth.ringSecretRef.name": ({}, "mine"),
    "auth.ringSecretRef.key": ({"auth": {"ringSecretRef": {"name": "k"}}}, "other"),
    "tls.secretName": ({}, "certs"),
    "scheduling.nodeSelector": ({}, {"disk": "fast"}),
    "scheduling.tolerations": ({}, [{"key": "gpu", "operator": "Exists"}]),
    "scheduling.affinity": ({}, {"nodeAffinity": {}}),
    "scheduling.topologySpread": ({}, [{"maxSkew": 1}]),
    "scheduling.priorityClassName": ({}, "high"),
    "scheduling.runtimeClassName": ({}, "gvisor"),
    "networkPolicy.enabled": ({}, True),
    "networkPolicy.apiFrom": (POLICY, [{"podSelector": {}}]),
    "extraEnv": ({}, [{"name": "A", "value": "b"}]),
}


def spec_with(base: dict[str, Any], path: str = "", value: Any = None) -> dict[str, Any]:
    spec = {"model": {"name": "smollm2-135m"}} | copy.deepcopy(base)
    if path:
        put(spec, path, value)
    if path in ("model.path", "model.hf"):
        del spec["model"]["name"]
    return spec


def outcome(spec: dict[str, Any]) -> Any:
    """Everything that a node's spec leads to, except the hash of it."""
    node = node_ref(exonode(spec=spec))
    pod = pods.pod(node, DEFAULTS, secret.for_pod(node, ()))
    pod["metadata"]["annotations"] = {}
    return pod, objects.desired(node, DEFAULTS), len(planned(node))


def test_there_is_an_example_of_every_field() -> None:
    assert set(EXAMPLES) == set(leaves(schema_of("ExoNode")["properties"]["spec"]))


@pytest.mark.parametrize("path", EXAMPLES)
def test_every_field_of_the_spec_changes_something(path: str) -> None:
    base, value = EXAMPLES[path]
    changed = spec_with(base, path, value)
    ExoNodeSpec.model_validate(changed)
    assert outcome(changed) != outcome(spec_with(base))


def test_every_field_of_the_status_is_written() -> None:
    status = full_status()
    # Written only when a reconcile has failed.
    assert set(unset(status)) == {"next_retry_time"}
    check_status("ExoNode", status.to_wire())


def test_every_condition_is_written_in_its_order() -> None:
    raw = exonode(spec={"model": {"name": "smollm2-135m"}, "cluster": "ring"})
    node = node_ref(raw)
    assert list(verdicts(node, snapshot_of(node), DEFAULTS)) == list(NodeCondition)


def full_status() -> ExoNodeStatus:
    node = node_ref(exonode(spec={"model": {"name": "smollm2-135m"}, "cluster": "ring"}))
    resource = ResourceHealth(
        name="stage", healthy=False, state="degraded", reason="forced", last_error="boom"
    )
    report = NodeReport(
        reachable=True,
        ready=True,
        resources=(resource,),
        ring_formed=True,
        ring_epoch="e1",
        ring_size=2,
        layers=(0, 14),
        total_layers=30,
        planned_mib=90,
        used_mib=400,
        tokens_per_second=50.0,
        ttft_ms=90.0,
        hop_ms=0.4,
    )
    pod: Raw = pod_of(node)
    return node_status(node, snapshot_of(node, pod, report=report), DEFAULTS)
