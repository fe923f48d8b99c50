"""Decides whether a pod gets the secret of its ring, and when that Secret is created. Pure.

The operator may create Secrets and do nothing else with them. It cannot read one, so it creates the
Secret before each pod, and the API server refuses if it exists. Whether a ring has a secret shows
in its pods: a ring whose pods were made before there were secrets stays without one until it has no
pod at all, because nodes with a secret and nodes without would refuse each other.
"""

from __future__ import annotations

from typing import Any

from exo import contract
from exo_operator.api import names
from exo_operator.api.template import SecretKey
from exo_operator.exonode.context import NodeRef
from exo_operator.kube.actions import MakeSecret
from exo_operator.kube.objects import PodView, Raw

# What the kubelet says about a container that reads a Secret, or a key in one, that does not exist.
MISSING = "CreateContainerConfigError"


def for_pod(node: NodeRef, peer_pods: tuple[PodView, ...]) -> SecretKey | None:
    """The secret of a pod that is about to be created, given the pods of the other nodes of its
    ring.
    """
    if node.spec.auth.ring_secret_ref is not None:
        return node.spec.auth.ring_secret_ref
    if any(variable.name == contract.env_name("secret") for variable in node.spec.extra_env):
        return None
    ours = SecretKey(name=names.ring_secret(node.ring), key=names.RING_SECRET_KEY)
    live = [pod for pod in peer_pods if not pod.is_deleting and not pod.is_finished]
    return ours if all(pod.reads_secret(ours.name) for pod in live) else None


def make(node: NodeRef) -> MakeSecret:
    """The action that creates the Secret of the node's ring."""
    cluster: dict[str, Any] = (
        {contract.LABEL_CLUSTER: node.spec.cluster} if node.spec.cluster else {}
    )
    return MakeSecret(
        namespace=node.namespace,
        name=names.ring_secret(node.ring),
        service=names.ring_service(node.ring),
        labels=names.labels("ring", node.ring) | cluster,
        owner=_exocluster(node),
    )


def _exocluster(node: NodeRef) -> Raw | None:
    """The reference to the ExoCluster of the node. Its secret outlives all of its nodes."""
    for owner in node.meta.owners:
        if owner.get("controller") and owner.get("kind") == names.KIND_CLUSTER:
            return {**owner, "controller": False, "blockOwnerDeletion": False}
    return None


def is_ours(node: NodeRef, secret: SecretKey | None) -> bool:
    """Whether the operator is to create this secret."""
    return secret is not None and node.spec.auth.ring_secret_ref is None


def is_missing(node: NodeRef, pod: PodView) -> bool:
    """Whether the pod waits for a Secret that the operator had created and that is gone."""
    return (
        pod.waiting_for == MISSING
        and node.spec.auth.ring_secret_ref is None
        and pod.reads_secret(names.ring_secret(node.ring))
    )


def manifest(action: MakeSecret, owner: Raw, value: str) -> Raw:
    """The Secret. It is immutable: a value that changed would separate the nodes that start from
    those that run.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": action.name,
            "namespace": action.namespace,
            "labels": action.labels,
            "ownerReferences": [owner],
        },
        "type": "Opaque",
        "immutable": True,
        "stringData": {names.RING_SECRET_KEY: value},
    }
