"""Read access to an ExoNode as its ExoCluster and the metrics see it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from exo_operator.api import names
from exo_operator.api.conditions import NodeCondition
from exo_operator.api.status import Condition, ExoNodeStatus, read_status
from exo_operator.kube.objects import Meta, Raw


@dataclass(frozen=True, slots=True)
class NodeView:
    """An ExoNode and its status, read once."""

    raw: Raw
    status: ExoNodeStatus

    @classmethod
    def of(cls, raw: Raw) -> NodeView:
        return cls(raw, read_status(ExoNodeStatus, raw.get("status")))

    @property
    def meta(self) -> Meta:
        return Meta(self.raw)

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def spec(self) -> Raw:
        return self.raw.get("spec") or {}

    @property
    def ready(self) -> Condition | None:
        """Its condition Ready, if it has one yet."""
        return self.status.condition(NodeCondition.READY)

    @property
    def is_ready(self) -> bool:
        """Whether it is Ready, and that for its current spec."""
        ready = self.ready
        if ready is None or ready.status != "True" or self.meta.is_deleting:
            return False
        return ready.observed_generation == self.meta.raw.get("generation")

    @property
    def is_suspended(self) -> bool:
        """Whether its spec asks for no pod."""
        return bool(self.spec.get("suspend"))

    @property
    def index(self) -> int:
        """Its index in its ExoCluster; -1 if it has none."""
        text = self.meta.labels.get(names.LABEL_INDEX, "")
        return int(text) if text.isdigit() else -1
