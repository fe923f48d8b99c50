"""Manifests of the objects that an ExoCluster owns: its ExoNodes, its Service, its
PodDisruptionBudget. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import ExoClusterSpec
from exo_operator.exonode.objects import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class RingRef:
    """An ExoCluster to render for: the object as read, and its parsed spec."""

    raw: Manifest
    spec: ExoClusterSpec

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])


def selector(ring: RingRef) -> dict[str, str]:
    """Selects the pods of the ring."""
    return {contract.LABEL_CLUSTER: ring.name}


def _metadata(ring: RingRef, name: str, component: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": ring.namespace,
        "labels": names.labels(component, ring.name) | selector(ring),
        "ownerReferences": [names.owner_reference(ring.raw)],
    }


def node(ring: RingRef, index: int, *, stopped: bool) -> Manifest:
    """The ExoNode with this index. Fields at their defaults are left out: the API server fills them
    in.
    """
    metadata = _metadata(ring, names.child_node(ring.name, index), "node")
    metadata["labels"][names.LABEL_INDEX] = str(index)
    spec: dict[str, Any] = ring.spec.template.model_dump(
        by_alias=True, exclude_defaults=True, mode="json"
    )
    spec["model"] = ring.spec.model.model_dump(by_alias=True, exclude_defaults=True, mode="json")
    spec["cluster"] = ring.name
    if stopped:
        spec["suspend"] = True
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_NODE,
        "metadata": metadata,
        "spec": spec,
    }


def service(ring: RingRef) -> Manifest:
    """The Service in front of the ring: any Ready node takes a request."""
    port = {
        "name": "http",
        "port": contract.API_PORT,
        "targetPort": contract.API_PORT,
        "protocol": "TCP",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(ring, ring.name, "api"),
        "spec": {
            "type": "ClusterIP",
            "selector": selector(ring),
            "ports": [port | {"appProtocol": "http"}],
        },
    }


def disruption_budget(ring: RingRef, *, stopped: bool) -> Manifest | None:
    """The PodDisruptionBudget; none where it would allow everything, so that it never blocks a
    drain for nothing.

    By `minAvailable`: Kubernetes counts by `maxUnavailable` only for pods whose controller has a
    scale subresource.
    """
    least = ring.spec.nodes - ring.spec.disruption.max_unavailable
    if stopped or least <= 0:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(ring, ring.name, "budget"),
        "spec": {
            "minAvailable": least,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": selector(ring)},
        },
    }
