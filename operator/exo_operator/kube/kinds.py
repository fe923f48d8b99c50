"""The kinds of objects that the operator works with, each in one place.

The client's paths, the watches, the comparison with the API server and the chart's RBAC rules all
follow this table. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from exo import contract
from exo_operator.api import names

READ: Final = ("get", "list", "watch")
WRITE: Final = ("create", "patch", "delete")
CREATE: Final = ("create",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind: where its objects are in the API, and what the operator may do with them."""

    name: str
    group: str = ""
    version: str = "v1"
    plural: str
    verbs: tuple[str, ...]
    # Whether the operator writes the status subresource.
    has_status: bool = False

    @property
    def prefix(self) -> str:
        """The path in front of the namespace: `api/v1` or `apis/GROUP/VERSION`."""
        return f"apis/{self.group}/{self.version}" if self.group else f"api/{self.version}"

    @property
    def is_watched(self) -> bool:
        return "watch" in self.verbs

    @property
    def is_custom(self) -> bool:
        """Whether it is one of our custom resources."""
        return self.group == contract.GROUP

    @property
    def selector(self) -> str:
        """The label selector of its lists and watches: users create custom resources, and of all
        other kinds only our own objects matter.
        """
        return "" if self.is_custom else names.MANAGED_SELECTOR


# ExoCluster first: an object comes after its owner.
ALL: Final = (
    Kind(
        name=names.KIND_CLUSTER,
        group=contract.GROUP,
        version=contract.VERSION,
        plural=names.PLURALS[names.KIND_CLUSTER],
        verbs=READ,
        has_status=True,
    ),
    Kind(
        name=names.KIND_NODE,
        group=contract.GROUP,
        version=contract.VERSION,
        plural=names.PLURALS[names.KIND_NODE],
        verbs=READ + WRITE,
        has_status=True,
    ),
    Kind(name="Pod", plural="pods", verbs=READ + WRITE, has_status=True),
    Kind(name="Service", plural="services", verbs=READ + WRITE),
    Kind(name="PersistentVolumeClaim", plural="persistentvolumeclaims", verbs=READ + WRITE),
    Kind(
        name="NetworkPolicy",
        group="networking.k8s.io",
        plural="networkpolicies",
        verbs=READ + WRITE,
    ),
    Kind(
        name="PodDisruptionBudget",
        group="policy",
        plural="poddisruptionbudgets",
        verbs=READ + WRITE,
    ),
    # The secret that the nodes of a ring share is created and never read.
    Kind(name="Secret", plural="secrets", verbs=CREATE),
    Kind(name="Event", group="events.k8s.io", plural="events", verbs=CREATE),
)
BY_NAME: Final = {kind.name: kind for kind in ALL}
WATCHED: Final = tuple(kind for kind in ALL if kind.is_watched)
CUSTOM: Final = tuple(kind.name for kind in ALL if kind.is_custom)
