"""Manifests of the objects that an ExoCluster owns: its ExoNodes, its Service, its
PodDisruptionBudget. Pure.
"""

from __future__ import annotations

from exo import contract
from exo_operator.api import names
from exo_operator.exocluster.context import ClusterRef
from exo_operator.kube.objects import Raw, Ref, owner_reference


def service_ref(exocluster: ClusterRef) -> Ref:
    """Where its Service is."""
    return Ref("Service", exocluster.namespace, exocluster.name)


def budget_ref(exocluster: ClusterRef) -> Ref:
    """Where its PodDisruptionBudget is, if it has one."""
    return Ref("PodDisruptionBudget", exocluster.namespace, exocluster.name)


def node_refs(exocluster: ClusterRef) -> list[Ref]:
    """Where its ExoNodes are, by index."""
    return [
        Ref(names.KIND_NODE, exocluster.namespace, names.child_node(exocluster.name, index))
        for index in range(exocluster.spec.nodes)
    ]


def _object(
    api_version: str, kind: str, exocluster: ClusterRef, name: str, component: str, spec: Raw
) -> Raw:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": exocluster.namespace,
            "labels": names.labels(component, exocluster.name) | exocluster.selector,
            "ownerReferences": [owner_reference(exocluster.raw)],
        },
        "spec": spec,
    }


def node_spec(exocluster: ClusterRef, *, stopped: bool) -> Raw:
    """The spec of its ExoNodes, the same for each. Fields at their defaults are left out, because
    the API server fills them in.
    """
    wanted = exocluster.spec
    spec: Raw = wanted.template.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    spec["model"] = wanted.model.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    spec["cluster"] = exocluster.name
    if stopped:
        spec["suspend"] = True
    return spec


def node(exocluster: ClusterRef, index: int, *, stopped: bool) -> Raw:
    """The ExoNode with this index."""
    name = names.child_node(exocluster.name, index)
    spec = node_spec(exocluster, stopped=stopped)
    manifest = _object(names.API_VERSION, names.KIND_NODE, exocluster, name, "node", spec)
    manifest["metadata"]["labels"][names.LABEL_INDEX] = str(index)
    return manifest


def service(exocluster: ClusterRef) -> Raw:
    """The Service in front of its nodes. Any node that is Ready takes a request."""
    port = {
        "name": "http",
        "port": contract.API_PORT,
        "targetPort": contract.API_PORT,
        "protocol": "TCP",
        "appProtocol": "http",
    }
    spec = {"type": "ClusterIP", "selector": exocluster.selector, "ports": [port]}
    return _object("v1", "Service", exocluster, exocluster.name, "api", spec)


def disruption_budget(exocluster: ClusterRef, *, stopped: bool) -> Raw | None:
    """The PodDisruptionBudget. There is none if it would allow every eviction, so that it never
    holds up draining a machine without a reason.

    It uses `minAvailable`, because Kubernetes counts by `maxUnavailable` only for pods whose
    controller has a scale subresource.
    """
    least = exocluster.spec.nodes - exocluster.spec.disruption.max_unavailable
    if stopped or least <= 0:
        return None
    spec = {
        "minAvailable": least,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": exocluster.selector},
    }
    name = exocluster.name
    return _object("policy/v1", "PodDisruptionBudget", exocluster, name, "budget", spec)
