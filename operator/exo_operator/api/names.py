"""Every name that the operator gives: objects, labels, annotations, the field manager, the keys of
the work queue.

One function or constant each, so that no other module composes a name. Pure.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from exo import contract

MANAGED_BY: Final = "exo-operator"
FIELD_MANAGER: Final = "exo-operator"
LABEL_MANAGED_BY: Final = "app.kubernetes.io/managed-by"
MANAGED_SELECTOR: Final = f"{LABEL_MANAGED_BY}={MANAGED_BY}"

API_VERSION: Final = f"{contract.GROUP}/{contract.VERSION}"
KIND_NODE: Final = "ExoNode"
KIND_CLUSTER: Final = "ExoCluster"
PLURALS: Final = {KIND_NODE: "exonodes", KIND_CLUSTER: "exoclusters"}

# Annotation on a pod: the hash of what its ExoNode asked for when the pod was created.
ANNOTATION_SPEC_HASH: Final = f"{contract.GROUP}/spec-hash"
# Annotation on an ExoCluster: a new value clears a terminal Failed.
ANNOTATION_RETRY: Final = f"{contract.GROUP}/retry"
# The key in the Secret that the operator creates for a ring.
RING_SECRET_KEY: Final = "secret"
# Label on the ExoNodes of an ExoCluster: which of its nodes this is.
LABEL_INDEX: Final = f"{contract.GROUP}/index"

# A pod's host name is a DNS label of at most 63 characters. A child of an ExoCluster adds
# "-<index>", a Service "-ring".
MAX_NAME: Final = 52
# Leaves room for "-999".
MAX_CLUSTER_NAME: Final = MAX_NAME - 4


class Key(NamedTuple):
    """What the work queue holds: one custom resource."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


def ring_service(owner: str) -> str:
    """The headless Service through which nodes find each other. `owner` is the ExoCluster, or the
    ExoNode if it is on its own.
    """
    return f"{owner}-ring"


def ring_host(owner: str, namespace: str) -> str:
    """The DNS name of `ring_service`, relative to the cluster's domain, which may have any name."""
    return f"{ring_service(owner)}.{namespace}.svc"


def ring_secret(owner: str) -> str:
    """The Secret that the nodes of a ring share; `owner` as for `ring_service`."""
    return f"{owner}-ring"


def cache_claim(node: str) -> str:
    """The PersistentVolumeClaim of a node's model cache."""
    return f"{node}-cache"


def child_node(exocluster: str, index: int) -> str:
    """The ExoNode with this index in an ExoCluster."""
    return f"{exocluster}-{index}"


def labels(component: str, instance: str) -> dict[str, str]:
    """The recommended labels, which every object of the operator carries."""
    return {
        "app.kubernetes.io/name": "exo",
        "app.kubernetes.io/instance": instance,
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/part-of": "exo",
        LABEL_MANAGED_BY: MANAGED_BY,
    }
