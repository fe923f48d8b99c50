"""Manifests of the objects that an ExoNode owns, as plain dicts. Pure: no kopf, no client, no
clock.

What they mean for the node is in `exo.contract`; what is applied when is decided in `plan.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import ExoNodeSpec, ModelRef

Manifest = dict[str, Any]

# The numeric user of the node image.
USER_ID: Final = 65532
# Raise it to replace every pod after a change of this file that running pods must have; an upgrade
# of the operator alone restarts nothing.
TEMPLATE: Final = 1
# Sizes of the bundled models in MiB.
BUNDLED_SIZES_MIB: Final = {contract.DEFAULT_MODEL: 100}
CLEANUP_SECONDS: Final = 10
TLS_DIR: Final = "/etc/exo/tls"
CONTAINER: Final = "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the operator was installed with."""

    image: str = "exo-node:dev"
    network_policy: bool = False
    operator_namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRef:
    """An ExoNode to render for: the object as read, and its parsed spec."""

    raw: Manifest
    spec: ExoNodeSpec
    # ExoNodes of the same cluster, this one among them: together they own the shared headless
    # Service.
    members: Sequence[Manifest] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def ring(self) -> str:
        """Whose headless Service the node uses: the cluster's, or its own."""
        return self.spec.cluster or self.name


def model_argument(model: ModelRef) -> str:
    """The value of `--model`: NAME, PATH or hf:REPO."""
    if model.hf is not None:
        return f"hf:{model.hf}"
    return model.path or model.name or contract.DEFAULT_MODEL


def model_word(model: ModelRef) -> str:
    """The model in one word, for columns."""
    return model.name or model.hf or (model.path or "").rsplit("/", 1)[-1]


def startup_seconds(spec: ExoNodeSpec) -> int:
    """Time allowed for starting: 120 s, and more by the model's size (loading 4 MiB/s, download 2
    MiB/s).
    """
    if spec.probes.startup_seconds is not None:
        return spec.probes.startup_seconds
    size = spec.model.size_mib or BUNDLED_SIZES_MIB.get(spec.model.name or "", 8192)
    speed = 2 if spec.model.hf else 4
    return 120 + math.ceil(size / speed)


def grace_seconds(spec: ExoNodeSpec) -> int:
    """`terminationGracePeriodSeconds`: the pause, the drain and the cleanup fit in."""
    termination = spec.termination
    computed = termination.pre_stop_seconds + termination.drain_seconds + CLEANUP_SECONDS
    return termination.grace_period_seconds or computed


def spec_hash(spec: ExoNodeSpec, image: str) -> str:
    """Hash of all that a pod is made from. Fields left at their defaults do not count, so that an
    upgraded CRD with more of them replaces no pod."""
    wanted = spec.model_dump(
        by_alias=True, exclude_defaults=True, exclude={"suspend", "network_policy"}, mode="json"
    )
    content = json.dumps([TEMPLATE, image, wanted], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def pod_labels(node: NodeRef) -> dict[str, str]:
    """Labels of the pod; the Services and policies select by them."""
    cluster = {contract.LABEL_CLUSTER: node.spec.cluster} if node.spec.cluster else {}
    return names.labels("node", node.name) | {contract.LABEL_NODE: node.name} | cluster


def ring_selector(node: NodeRef) -> dict[str, str]:
    """Selects the pods of the node's ring."""
    if node.spec.cluster:
        return {contract.LABEL_CLUSTER: node.spec.cluster}
    return {contract.LABEL_NODE: node.name}


def _object(
    kind: str, api_version: str, name: str, node: NodeRef, labels: dict[str, str]
) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": node.namespace,
            "labels": labels,
            "ownerReferences": [names.owner_reference(node.raw)],
        },
    }


def api_service(node: NodeRef) -> Manifest:
    """The Service of the node's HTTP API; it lists the pod only while it is Ready."""
    service = _object("Service", "v1", node.name, node, names.labels("api", node.name))
    service["spec"] = {
        "type": "ClusterIP",
        "selector": {contract.LABEL_NODE: node.name},
        "ports": [
            {
                "name": "http",
                "port": contract.API_PORT,
                "targetPort": contract.API_PORT,
                "protocol": "TCP",
                "appProtocol": "http",
            }
        ],
    }
    return service


def ring_service(node: NodeRef) -> Manifest:
    """The headless Service of the node's ring. Nodes find each other before they are Ready, so it
    lists all.
    """
    labels = names.labels("ring", node.ring)
    if node.spec.cluster:
        labels[contract.LABEL_CLUSTER] = node.spec.cluster
    service = _object("Service", "v1", names.ring_service(node.ring), node, labels)
    if node.spec.cluster:
        owners = sorted(node.members, key=lambda member: str(member["metadata"]["name"]))
        service["metadata"]["ownerReferences"] = [
            names.owner_reference(owner, controller=False) for owner in owners
        ]
    ports = {"grpc": contract.GRPC_PORT, "http": contract.API_PORT}
    service["spec"] = {
        "type": "ClusterIP",
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": ring_selector(node),
        "ports": [
            {"name": k, "port": v, "targetPort": v, "protocol": "TCP"} for k, v in ports.items()
        ],
    }
    return service


def cache_claim(node: NodeRef) -> Manifest | None:
    """The claim of the model cache, where the spec asks for one."""
    storage = node.spec.storage
    if storage.size is None:
        return None
    claim = _object(
        "PersistentVolumeClaim",
        "v1",
        names.cache_claim(node.name),
        node,
        names.labels("cache", node.name),
    )
    claim["spec"] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(storage.size)}},
    }
    if storage.storage_class_name:
        claim["spec"]["storageClassName"] = storage.storage_class_name
    return claim


def network_policy(node: NodeRef, defaults: Defaults) -> Manifest | None:
    """Ring ports for members only, the API by option, all else closed. The kubelet's probes come
    from the pod's own machine, which policies let through; the operator reads the API port for its
    status."""
    enabled = node.spec.network_policy.enabled
    if not (defaults.network_policy if enabled is None else enabled):
        return None
    policy = _object(
        "NetworkPolicy", "networking.k8s.io/v1", node.name, node, names.labels("policy", node.name)
    )
    operator: Manifest = {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": names.MANAGED_BY}}
    }
    if defaults.operator_namespace:
        namespace = {"kubernetes.io/metadata.name": defaults.operator_namespace}
        operator["namespaceSelector"] = {"matchLabels": namespace}
    else:
        operator["namespaceSelector"] = {}
    ring = {"podSelector": {"matchLabels": ring_selector(node)}}
    tcp = {"protocol": "TCP"}
    api_rule: Manifest = {"ports": [tcp | {"port": contract.API_PORT}]}
    if node.spec.network_policy.api_from:
        api_rule["from"] = [*node.spec.network_policy.api_from, ring, operator]
    policy["spec"] = {
        "podSelector": {"matchLabels": {contract.LABEL_NODE: node.name}},
        "policyTypes": ["Ingress"],
        "ingress": [api_rule, {"ports": [tcp | {"port": contract.GRPC_PORT}], "from": [ring]}],
    }
    return policy
