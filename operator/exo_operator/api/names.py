"""Every name the operator gives: objects, labels, annotations, the field manager, the keys of the
work queue.

One function or constant each, so that no other module composes a name. Pure.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from exo import contract

MANAGED_BY: Final = "exo-operator"
FIELD_MANAGER: Final = "exo-operator"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"

API_VERSION: Final = f"{contract.GROUP}/{contract.VERSION}"
KIND_NODE: Final = "ExoNode"
KIND_CLUSTER: Final = "ExoCluster"
PLURALS: Final = {KIND_NODE: "exonodes", KIND_CLUSTER: "exoclusters"}

# Annotation on a pod: the hash of what its ExoNode asked for when it was made.
ANNOTATION_SPEC_HASH: Final = f"{contract.GROUP}/spec-hash"
# Annotation on an ExoCluster: any new value clears a terminal Failed.
ANNOTATION_RETRY: Final = f"{contract.GROUP}/retry"
# The key in the Secret that we make for a ring.
RING_SECRET_KEY: Final = "secret"
# Label on the ExoNodes of an ExoCluster: which of its nodes this is.
LABEL_INDEX: Final = f"{contract.GROUP}/index"

# A pod's host name is a DNS label of at most 63 characters; a child of an ExoCluster adds
# "-<index>", a Service "-ring".
MAX_NAME: Final = 52
# Room for "-999".
MAX_CLUSTER_NAME: Final = MAX_NAME - 4


class Key(NamedTuple):
    """What the work queue holds: one custom resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


def ring_service(owner: str) -> str:
    """The headless Service over which nodes find each other; `owner` is the cluster, or a lone
    node.
    """
    return f"{owner}-ring"


def ring_host(owner: str, namespace: str) -> str:
    """The DNS name behind `ring_service`. Relative to the cluster's domain, whatever that is
    called.
    """
    return f"{ring_service(owner)}.{namespace}.svc"


def ring_secret(owner: str) -> str:
    """The Secret that the nodes of a ring share; `owner` as for `ring_service`."""
    return f"{owner}-ring"


def cache_claim(node: str) -> str:
    """The PersistentVolumeClaim of a node's model cache."""
    return f"{node}-cache"


def child_node(cluster: str, index: int) -> str:
    """The ExoNode with this index in an ExoCluster."""
    return f"{cluster}-{index}"


def labels(component: str, instance: str) -> dict[str, str]:
    """The recommended labels, on every object we make."""
    return {
        "app.kubernetes.io/name": "exo",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "exo",
        LABEL_MANAGED_BY: MANAGED_BY,
    }


def owner_reference(owner: dict[str, Any], *, controller: bool = True) -> dict[str, Any]:
    """An owner reference to a custom resource as the API server returned it.

    `blockOwnerDeletion` stays false: it would let a stuck child hold back the deletion of its
    owner, and it needs a permission on finalizers.
    """
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": controller,
        "blockOwnerDeletion": False,
    }
