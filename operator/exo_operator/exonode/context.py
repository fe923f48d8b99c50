"""The ExoNode that a reconcile is about, and what the operator was installed with. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import ExoNodeSpec
from exo_operator.api.status import ExoNodeStatus, read_status
from exo_operator.kube.objects import ObjectRef, Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What the operator was installed with."""

    image: str = "exo-node:dev"
    network_policy: bool = False
    operator_namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRef(ObjectRef):
    """An ExoNode: the object as read, and its parsed spec."""

    spec: ExoNodeSpec
    # The status as it was last written.
    status: ExoNodeStatus
    # The ExoNodes of the same ring, including this one. Together they own the shared headless
    # Service.
    members: Sequence[Raw] = ()

    @classmethod
    def of(cls, raw: Raw, members: Sequence[Raw] = ()) -> NodeRef:
        """Raises ValidationError if the spec is not readable."""
        return cls(
            raw=raw,
            spec=ExoNodeSpec.model_validate(raw.get("spec") or {}),
            status=read_status(ExoNodeStatus, raw.get("status")),
            members=members or [raw],
        )

    @property
    def ring(self) -> str:
        """The name of its ring: `spec.cluster`, or its own name if it is on its own."""
        return self.spec.cluster or self.name

    @property
    def has_peers(self) -> bool:
        """Whether it has peers to wait for."""
        return bool(self.spec.cluster) and self.spec.discovery.mode != "none"

    @property
    def ring_labels(self) -> dict[str, str]:
        """The labels by which the pods of its ring are selected."""
        if self.spec.cluster:
            return {contract.LABEL_CLUSTER: self.spec.cluster}
        return {contract.LABEL_NODE: self.name}

    @property
    def pod_labels(self) -> dict[str, str]:
        """The labels of its pod. Services and policies select by them."""
        own = names.labels("node", self.name) | {contract.LABEL_NODE: self.name}
        return own | self.ring_labels

    def image(self, defaults: Defaults) -> str:
        """The image of its pod."""
        return self.spec.image or defaults.image
