"""Decides whether a pod gets the secret of its ring, and when that Secret is to be made. Pure.

The operator may make Secrets and nothing else: it cannot read one, so it makes it again before each
pod, and the API
server refuses where it is there. Whether a ring has a secret shows in its pods: one whose pods were
made before there were any stays without until it has no pod at all, because nodes with and without
would refuse each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import SecretKey
from exo_operator.exonode.objects import NodeRef
from exo_operator.kube.store import PodView, Raw

# What the kubelet says of a container that reads a Secret, or a key of one, which is not there.
MISSING = "CreateContainerConfigError"


@dataclass(frozen=True, slots=True)
class MakeSecret:
    """A Secret with a new random value, where there is none of this name.

    owner: it goes with this object; with the ring's headless Service, which all nodes of the ring
        own, where None.
    """

    namespace: str
    name: str
    service: str
    labels: dict[str, str]
    owner: Raw | None


def for_pod(node: NodeRef, pods: list[Raw]) -> SecretKey | None:
    """The secret of a pod that is to be made. pods: those of the other nodes of its ring."""
    if node.spec.auth.ring_secret_ref is not None:
        return node.spec.auth.ring_secret_ref
    if any(variable.name == contract.env_name("secret") for variable in node.spec.extra_env):
        return None
    ours = SecretKey(name=names.ring_secret(node.ring), key=names.RING_SECRET_KEY)
    live = [pod for pod in map(PodView, pods) if not pod.deleting and not pod.finished]
    return ours if all(pod.reads_secret(ours.name) for pod in live) else None


def make(node: NodeRef) -> MakeSecret:
    """What makes the Secret of the node's ring."""
    cluster: dict[str, Any] = (
        {contract.LABEL_CLUSTER: node.spec.cluster} if node.spec.cluster else {}
    )
    name = names.ring_secret(node.ring)
    labels = names.labels("ring", node.ring) | cluster
    return MakeSecret(node.namespace, name, names.ring_service(node.ring), labels, _cluster(node))


def _cluster(node: NodeRef) -> Raw | None:
    """The reference to the ExoCluster that the node belongs to: the secret outlives all nodes of
    it.
    """
    for owner in node.raw["metadata"].get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == names.KIND_CLUSTER:
            return {**owner, "controller": False, "blockOwnerDeletion": False}
    return None


def is_ours(node: NodeRef, secret: SecretKey | None) -> bool:
    return secret is not None and node.spec.auth.ring_secret_ref is None


def misses_it(node: NodeRef, pod: PodView) -> bool:
    """Whether somebody took away the Secret that we made: the pod waits for it."""
    return (
        pod.waiting_for == MISSING
        and node.spec.auth.ring_secret_ref is None
        and pod.reads_secret(names.ring_secret(node.ring))
    )


def manifest(action: MakeSecret, owner: Raw, value: str) -> Raw:
    """Immutable: a value that changed under the nodes would part those that start from those that
    run.
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
