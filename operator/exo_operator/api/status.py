"""Typed models of the custom resources' status. The status schema of the CRDs is generated from
them, and every status that is written is one of them, so that both always agree.

What goes into them is decided in `exonode/status.py` and `exocluster/status.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from exo_operator.api import names
from exo_operator.api.fields import Model, Timestamp


class Condition(Model):
    """One aspect of the current state."""

    type: str = Field(description="What the condition is about.", max_length=316)
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    reason: str = Field(description="Why, in one CamelCase word.", max_length=1024)
    message: str = Field(default="", description="Why, in a sentence.", max_length=32_768)
    observed_generation: int | None = Field(
        default=None, description="The generation that this is about."
    )
    last_transition_time: Timestamp = Field(description="When the status last changed.")


class ConditionedStatus(Model):
    """What every status has."""

    observed_generation: int | None = Field(
        default=None, description="The generation that this status is about."
    )
    conditions: list[Condition] = Field(
        default_factory=list,
        description="The conditions, one of each type.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    next_retry_time: Timestamp | None = Field(
        default=None, description="When a failed reconcile is tried again."
    )

    def condition(self, type_: str) -> Condition | None:
        """The condition of this type, if there is one."""
        return next((each for each in self.conditions if each.type == type_), None)

    def holds(self, type_: str) -> bool:
        """Whether the condition of this type is True."""
        condition = self.condition(type_)
        return condition is not None and condition.status == "True"

    def with_conditions(
        self, conditions: Sequence[Condition], generation: int, retry: datetime | None
    ) -> Self:
        """This status with other conditions and everything else as it was."""
        changes: dict[str, Any] = {
            "conditions": list(conditions),
            "observed_generation": generation,
        }
        if retry is not None:
            changes["next_retry_time"] = retry
        return self.model_copy(update=changes)

    def to_wire(self) -> dict[str, Any]:
        """The status as the API server takes it: without what is unknown."""
        return self.model_dump(by_alias=True, mode="json", exclude_unset=True, exclude_none=True)


S = TypeVar("S", bound=ConditionedStatus)


def read_status(model: type[S], written: object) -> S:
    """A status as the API server returned it; an empty one if it is absent or unreadable.

    Everything in a status can be found out again, so an unreadable one is not an error.
    """
    try:
        return model.model_validate(written or {})
    except ValidationError:
        return model()


class LayerRange(Model):
    """The slice of the model that a node holds."""

    start: int = Field(description="First layer, counted from 0.")
    end: int = Field(description="Last layer, inclusive.")
    total: int | None = Field(default=None, description="Layers of the whole model.")
    text: str = Field(description="The range as people write it, like 0-14.")


class Memory(Model):
    """Memory of a node in MiB."""

    planned_mib: int | None = Field(
        default=None,
        validation_alias="plannedMiB",
        serialization_alias="plannedMiB",
        description="Planned for the node's layers.",
    )
    used_mib: int | None = Field(
        default=None,
        validation_alias="usedMiB",
        serialization_alias="usedMiB",
        description="Resident memory of the process.",
    )


class ResourceHealth(Model):
    """One resource of the node, as its own health check sees it."""

    name: str = Field(description="Name of the resource.")
    healthy: bool = Field(description="Result of the last health check.")
    state: str | None = Field(default=None, description="Lifecycle state.")
    reason: str | None = Field(default=None, description="Why it is not healthy.")
    last_error: str | None = Field(default=None, description="The last error.")


class Measured(Model):
    """Figures that the node measured."""

    tokens_per_second: float | None = Field(
        default=None, description="Generated tokens per second."
    )
    ttft_ms: float | None = Field(
        default=None, description="Time to the first token in milliseconds."
    )
    hop_ms: float | None = Field(
        default=None, description="Latency of a hop to the next node in milliseconds."
    )


class ExoNodeStatus(ConditionedStatus):
    """The observed state of an inference node."""

    model: str | None = Field(default=None, description="The model in one word.")
    pod_name: str | None = Field(default=None, description="The node's pod.")
    pod_ip: str | None = Field(
        default=None,
        validation_alias="podIP",
        serialization_alias="podIP",
        description="Address of the pod.",
    )
    node_name: str | None = Field(default=None, description="The machine that the pod runs on.")
    url: str | None = Field(default=None, description="Address of the API inside the cluster.")
    restarts: int | None = Field(default=None, description="Restarts of the pod's container.")
    layers: LayerRange | None = Field(default=None, description="The layers that this node holds.")
    memory: Memory | None = Field(default=None, description="Planned and used memory.")
    ring_epoch: str | None = Field(default=None, description="Epoch of the ring's plan.")
    ring_size: int | None = Field(default=None, description="Nodes in the ring.")
    resources: list[ResourceHealth] | None = Field(
        default=None,
        description="The health of every resource of the node.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    measured: Measured | None = Field(default=None, description="What the node measured.")


class Member(Model):
    """One node of an ExoCluster."""

    name: str = Field(description="Name of the ExoNode.")
    ready: bool = Field(description="Whether it is Ready.")
    layers: str | None = Field(default=None, description="The layers that it holds, like 0-14.")
    reason: str | None = Field(default=None, description="Why it is not Ready.")
    node_name: str | None = Field(default=None, description="The machine that it runs on.")


class ExoClusterStatus(ConditionedStatus):
    """The observed state of an ExoCluster."""

    nodes: int | None = Field(default=None, description="ExoNodes that exist.")
    ready_nodes: int | None = Field(default=None, description="ExoNodes that are Ready.")
    updated_nodes: int | None = Field(default=None, description="ExoNodes with the current spec.")
    selector: str | None = Field(
        default=None, description="Label selector of the pods, for the scale subresource."
    )
    url: str | None = Field(default=None, description="Address of the API inside the cluster.")
    model: str | None = Field(default=None, description="The model in one word.")
    ring_epoch: str | None = Field(default=None, description="Epoch of the ring's plan.")
    restarts: int | None = Field(
        default=None, description="Restarts since the budget was last reset."
    )
    restart_baseline: int | None = Field(
        default=None, description="Restarts counted when the budget was last reset."
    )
    retry_token: str | None = Field(
        default=None, description="The value of the exo.dev/retry annotation last seen."
    )
    members: list[Member] = Field(
        default_factory=list,
        description="The nodes with their layers.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )


# Kind -> the model of its status.
STATUS_MODELS: dict[str, type[ConditionedStatus]] = {
    names.KIND_NODE: ExoNodeStatus,
    names.KIND_CLUSTER: ExoClusterStatus,
}
