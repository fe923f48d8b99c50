"""The ExoCluster that a reconcile is about. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from exo import contract
from exo_operator.api.spec import ExoClusterSpec
from exo_operator.api.status import ExoClusterStatus, read_status
from exo_operator.kube.objects import ObjectRef, Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRef(ObjectRef):
    """An ExoCluster: the object as read, and its parsed spec."""

    spec: ExoClusterSpec
    # The status as it was last written.
    status: ExoClusterStatus

    @classmethod
    def of(cls, raw: Raw) -> ClusterRef:
        """Raises ValidationError if the spec is not readable."""
        return cls(
            raw=raw,
            spec=ExoClusterSpec.model_validate(raw.get("spec") or {}),
            status=read_status(ExoClusterStatus, raw.get("status")),
        )

    @property
    def selector(self) -> dict[str, str]:
        """The labels by which the pods of its nodes are selected."""
        return {contract.LABEL_CLUSTER: self.name}
