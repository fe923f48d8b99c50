"""The conditions of the custom resources and their reasons, each with a line of explanation, and
how a verdict becomes a condition.

`docs/reference/conditions.md` is generated from this module. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, Literal, NamedTuple, NewType, Self, TypeVar

from exo_operator.api.status import Condition

MAX_MESSAGE: Final = 1024

# A reason in the words of the kubelet or the scheduler, like CrashLoopBackOff or Unschedulable.
ForeignReason = NewType("ForeignReason", str)


class Documented(StrEnum):
    """A word that users see, with a line that explains it."""

    doc: str

    def __new__(cls, word: str, doc: str) -> Self:
        member = str.__new__(cls, word)
        member._value_ = word
        member.doc = doc
        return member


T = TypeVar("T", bound=Documented)


class NodeCondition(Documented):
    """The conditions of an ExoNode, in the order of its status."""

    READY = "Ready", "The pod made from the current spec serves, and every part of it is healthy."
    SCHEDULED = "Scheduled", "A machine was found for the pod."
    MODEL_LOADED = "ModelLoaded", "The container runs and its startup probe has passed."
    HEALTHY = "Healthy", "The node's own health checks pass."
    RING_JOINED = "RingJoined", "The node is part of a formed ring. Absent on a node on its own."
    DRAINING = "Draining", "The pod is stopping and finishes its running requests."


class ClusterCondition(Documented):
    """The conditions of an ExoCluster, in the order of its status."""

    READY = "Ready", "All nodes are Ready and have the current spec."
    AVAILABLE = "Available", "At least one node is Ready and answers requests."
    PROGRESSING = "Progressing", "Nodes are being added, changed or removed."
    DEGRADED = "Degraded", "Some nodes are Ready and some are not, although nothing is changing."
    PLAN_VALID = "PlanValid", "The Ready nodes agree on one plan that covers each layer once."
    FAILED = "Failed", "The restart budget is used up, and the nodes are stopped."
    SUSPENDED = "Suspended", "spec.suspend is set."


class CommonReason(Documented):
    """Reasons that Ready can have on both resources."""

    NAME_TAKEN = "NameTaken", "An object with a name that is needed here has another owner."
    SUSPENDED = "Suspended", "spec.suspend is set."
    INVALID_SPEC = "InvalidSpec", "The operator cannot read the spec; it waits for a change."
    REFUSED = "Refused", "The API server refused an object; it is tried again later."
    RECONCILE_FAILED = "ReconcileFailed", "An error came up; it is tried again later."


class NodeReason(Documented):
    """Reasons in the conditions of an ExoNode."""

    READY = "Ready", "The node serves."
    POD_MISSING = "PodMissing", "The pod is being created."
    DRAINING = "Draining", "The pod is being stopped."
    REPLACING = "Replacing", "The pod was made from an older spec and is being replaced."
    UNREACHABLE = "Unreachable", "The node stopped answering on its health endpoint."
    POD_NOT_READY = "PodNotReady", "The readiness probe does not pass."
    SCHEDULED = "Scheduled", "A machine was found."
    PENDING = "Pending", "The pod waits for the scheduler."
    LOADED = "Loaded", "The model is loaded."
    CONTAINER_WAITING = "ContainerWaiting", "The container waits; the kubelet gave no reason."
    CONTAINER_ENDED = "ContainerEnded", "The container ended and is going to be restarted."
    CONTAINER_CREATING = "ContainerCreating", "The container has not started yet."
    LOADING = "Loading", "The model is being loaded."
    ALL_HEALTHY = "AllHealthy", "All resources of the node are healthy."
    PROBES_PASS = "ProbesPass", "The node gave no report, but its readiness probe passes."
    NOT_ASKED = "NotAsked", "The node gave no report yet."
    RESOURCE_UNHEALTHY = "ResourceUnhealthy", "The resources named in the message are unhealthy."
    NOT_READY = "NotReady", "The node reports that it is not ready."
    STARTING = "Starting", "The node is starting."
    RING_FORMED = "RingFormed", "The ring is formed and serves the epoch in the message."
    RING_FORMING = "RingForming", "The ring is not formed yet, or is agreeing on a new plan."
    POD_TERMINATING = "PodTerminating", "The pod has been deleted and is stopping."
    NOT_DRAINING = "NotDraining", "The pod is not stopping."


class ClusterReason(Documented):
    """Reasons in the conditions of an ExoCluster."""

    READY = "Ready", "All nodes are Ready."
    NO_NODES = "NoNodes", "spec.nodes is 0."
    PROGRESSING = "Progressing", "Nodes are being brought to the current spec."
    NODES_NOT_READY = "NodesNotReady", "Some nodes are not Ready; the message names the first."
    SERVING = "Serving", "At least one node answers requests."
    NO_NODE_READY = "NoNodeReady", "No node is Ready."
    CHANGING = "Changing", "Nodes are being added, changed or removed."
    UP_TO_DATE = "UpToDate", "All nodes exist and have the current spec."
    NODES_MISSING = "NodesMissing", "Some nodes are not Ready."
    ALL_NODES_READY = "AllNodesReady", "All nodes are Ready."
    EPOCHS_DIFFER = "EpochsDiffer", "The nodes are on different plans."
    LAYERS_UNKNOWN = "LayersUnknown", "No node has reported its layers yet."
    LAYERS_NOT_COVERED = "LayersNotCovered", "A layer is on no Ready node, or on more than one."
    LAYERS_COVERED = "LayersCovered", "Every layer is on exactly one Ready node."
    BUDGET_USED_UP = "RestartBudgetUsedUp", "The nodes restarted more often than allowed."
    WITHIN_BUDGET = "WithinBudget", "The nodes have restarts left."
    RUNNING = "Running", "spec.suspend is not set."


class EventReason(Documented):
    """Reasons of the events that tell of a deletion. A flip of Ready is an event as well; its
    reason is the condition's.
    """

    POD_FORCED = "PodForced", "The pod outlived its grace period on a machine that does not answer."
    SUSPENDED = "Suspended", "spec.suspend was set, so the pod was deleted."
    POD_FINISHED = "PodFinished", "The pod ended and was deleted to free its name."
    SPEC_CHANGED = "SpecChanged", "The pod was made from an older spec and was deleted."
    POLICY_REMOVED = "PolicyRemoved", "The NetworkPolicy is no longer wanted."
    BUDGET_REMOVED = "BudgetRemoved", "The PodDisruptionBudget would allow every eviction."
    SCALED_DOWN = "ScaledDown", "spec.nodes was lowered, so the ExoNode was deleted."


Reason = CommonReason | NodeReason | ClusterReason | ForeignReason


class Verdict(NamedTuple):
    """A condition before it has times. `status` None is Unknown."""

    status: bool | None
    reason: Reason
    message: str = ""


def status_word(status: bool | None) -> Literal["True", "False", "Unknown"]:
    """How a condition spells its status."""
    if status is None:
        return "Unknown"
    return "True" if status else "False"


def conditions(
    verdicts: Mapping[T, Verdict], previous: Sequence[Condition], generation: int, now: datetime
) -> list[Condition]:
    """The conditions in the order of `verdicts`. The transition time stays the previous one unless
    the status changed.
    """
    before = {condition.type: condition for condition in previous}
    result = []
    for type_, verdict in verdicts.items():
        status = status_word(verdict.status)
        old = before.get(type_)
        same = old is not None and old.status == status
        result.append(
            Condition(
                type=type_,
                status=status,
                reason=verdict.reason,
                message=verdict.message[:MAX_MESSAGE],
                observed_generation=generation,
                last_transition_time=old.last_transition_time if same and old else now,
            )
        )
    return result


def flips(previous: Sequence[Condition], current: Sequence[Condition]) -> list[Condition]:
    """The conditions whose status changed; each is worth one event."""
    before = {condition.type: condition.status for condition in previous}
    return [c for c in current if c.type in before and before[c.type] != c.status]
