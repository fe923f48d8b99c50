"""Manifests of the objects that an ExoNode owns, except its pod, as plain dicts. Pure.

What they mean to the node is in `exo.contract`; what is applied when is decided in `plan.py`.
"""

from __future__ import annotations

from typing import Any

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import ModelRef
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.kube.objects import Meta, Raw, Ref, owner_reference


def model_word(model: ModelRef) -> str:
    """The model in one word, for columns."""
    return model.name or model.hf or (model.path or "").rsplit("/", 1)[-1]


def desired(node: NodeRef, defaults: Defaults) -> list[Raw]:
    """Everything that the node is to have, except its pod."""
    always = [ring_service(node), api_service(node)]
    optional = [cache_claim(node), network_policy(node, defaults)]
    return [*always, *(manifest for manifest in optional if manifest is not None)]


def policy_ref(node: NodeRef) -> Ref:
    """Where the NetworkPolicy of the node is, if it has one."""
    return Ref("NetworkPolicy", node.namespace, node.name)


def _object(
    kind: str, api_version: str, name: str, node: NodeRef, component: str, instance: str = ""
) -> Raw:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": node.namespace,
            "labels": names.labels(component, instance or node.name),
            "ownerReferences": [owner_reference(node.raw)],
        },
    }


def _port(name: str, number: int) -> dict[str, Any]:
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}


def api_service(node: NodeRef) -> Raw:
    """The Service of the node's HTTP API. It lists the pod only while it is Ready."""
    service = _object("Service", "v1", node.name, node, "api")
    service["spec"] = {
        "type": "ClusterIP",
        "selector": {contract.LABEL_NODE: node.name},
        "ports": [_port("http", contract.API_PORT) | {"appProtocol": "http"}],
    }
    return service


def ring_service(node: NodeRef) -> Raw:
    """The headless Service of the node's ring. It lists pods that are not Ready, too, because nodes
    must find each other before they are.
    """
    service = _object("Service", "v1", names.ring_service(node.ring), node, "ring", node.ring)
    if node.spec.cluster:
        metadata = service["metadata"]
        metadata["labels"][contract.LABEL_CLUSTER] = node.spec.cluster
        owners = sorted(node.members, key=lambda member: Meta(member).name)
        metadata["ownerReferences"] = [owner_reference(owner, controller=False) for owner in owners]
    service["spec"] = {
        "type": "ClusterIP",
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": node.ring_labels,
        "ports": [_port("grpc", contract.GRPC_PORT), _port("http", contract.API_PORT)],
    }
    return service


def cache_claim(node: NodeRef) -> Raw | None:
    """The claim of the model cache, if the spec asks for one."""
    storage = node.spec.storage
    if storage.size is None:
        return None
    claim = _object("PersistentVolumeClaim", "v1", names.cache_claim(node.name), node, "cache")
    claim["spec"] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": str(storage.size)}},
    }
    if storage.storage_class_name:
        claim["spec"]["storageClassName"] = storage.storage_class_name
    return claim


def network_policy(node: NodeRef, defaults: Defaults) -> Raw | None:
    """Opens the ring port to members only and the API as the spec says, and closes everything else.

    The kubelet's probes come from the pod's own machine, which policies let through. The operator
    reads the API port for the status.
    """
    enabled = node.spec.network_policy.enabled
    if not (defaults.network_policy if enabled is None else enabled):
        return None
    members = {"podSelector": {"matchLabels": node.ring_labels}}
    tcp = {"protocol": "TCP"}
    api_rule: Raw = {"ports": [tcp | {"port": contract.API_PORT}]}
    if node.spec.network_policy.api_from:
        api_rule["from"] = [*node.spec.network_policy.api_from, members, _operator_pods(defaults)]
    policy = _object("NetworkPolicy", "networking.k8s.io/v1", node.name, node, "policy")
    policy["spec"] = {
        "podSelector": {"matchLabels": {contract.LABEL_NODE: node.name}},
        "policyTypes": ["Ingress"],
        "ingress": [api_rule, {"ports": [tcp | {"port": contract.GRPC_PORT}], "from": [members]}],
    }
    return policy


def _operator_pods(defaults: Defaults) -> Raw:
    """The peer of a NetworkPolicy that is the operator: in its namespace, or in any if that is not
    known.
    """
    namespaces: Raw = {}
    if defaults.operator_namespace:
        own = {"kubernetes.io/metadata.name": defaults.operator_namespace}
        namespaces = {"matchLabels": own}
    return {
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": names.MANAGED_BY}},
        "namespaceSelector": namespaces,
    }
