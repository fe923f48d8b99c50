"""Decides the conditions of an ExoCluster. Pure.

Each function gives the verdict of one condition; `api/conditions.py` says what it means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from exo_operator.api import names
from exo_operator.api.conditions import ClusterCondition, ClusterReason, CommonReason, Verdict
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.snapshot import ClusterSnapshot
from exo_operator.kube.custom import NodeView


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What several conditions ask about the nodes, counted once."""

    # spec.nodes.
    wanted: int
    # Nodes whose spec is not the wanted one.
    stale: int
    ready: tuple[NodeView, ...]
    # The plans that the ready nodes serve.
    epochs: tuple[str, ...]
    # Whether nodes are being added, changed or removed.
    is_moving: bool
    # The first node that is not Ready, and why; empty if there is none.
    problem: str

    @classmethod
    def of(cls, exocluster: ClusterRef, snapshot: ClusterSnapshot, stale: int) -> Tally:
        wanted, children = exocluster.spec.nodes, snapshot.children
        ready = tuple(child for child in children if child.is_ready)
        epochs = {child.status.ring_epoch for child in ready if child.status.ring_epoch}
        return cls(
            wanted=wanted,
            stale=stale,
            ready=ready,
            epochs=tuple(sorted(epochs)),
            is_moving=stale > 0 or len(children) != wanted,
            problem=_first_problem(children),
        )


def verdicts(
    exocluster: ClusterRef, snapshot: ClusterSnapshot, tally: Tally
) -> dict[ClusterCondition, Verdict]:
    """All conditions of an ExoCluster, in the order of its status."""
    return {
        ClusterCondition.READY: ready(exocluster, snapshot, tally),
        ClusterCondition.AVAILABLE: available(tally),
        ClusterCondition.PROGRESSING: progressing(tally),
        ClusterCondition.DEGRADED: degraded(tally),
        ClusterCondition.PLAN_VALID: plan_valid(tally),
        ClusterCondition.FAILED: failed(exocluster, snapshot, tally),
        ClusterCondition.SUSPENDED: suspended(exocluster),
    }


def ready(exocluster: ClusterRef, snapshot: ClusterSnapshot, tally: Tally) -> Verdict:
    """Everything that has to be so for all nodes to serve, in order. The first obstacle counts."""
    if snapshot.conflicts:
        taken = ", ".join(f"{each.kind} {each.name}" for each in snapshot.conflicts)
        return Verdict(False, CommonReason.NAME_TAKEN, f"belongs to somebody else: {taken}")
    if snapshot.budget.failed:
        return failed(exocluster, snapshot, tally)._replace(status=False)
    if exocluster.spec.suspend:
        return suspended(exocluster)._replace(status=False)
    if tally.wanted == 0:
        return Verdict(False, ClusterReason.NO_NODES, "spec.nodes is 0")
    if tally.is_moving:
        message = f"{tally.wanted - tally.stale} of {tally.wanted} nodes are up to date"
        return Verdict(False, ClusterReason.PROGRESSING, _with_problem(message, tally))
    if len(tally.ready) < tally.wanted:
        message = f"{len(tally.ready)} of {tally.wanted} nodes are ready"
        return Verdict(False, ClusterReason.NODES_NOT_READY, _with_problem(message, tally))
    return Verdict(True, ClusterReason.READY)


def _with_problem(message: str, tally: Tally) -> str:
    return f"{message}; {tally.problem}" if tally.problem else message


def available(tally: Tally) -> Verdict:
    """Available."""
    if tally.ready:
        return Verdict(True, ClusterReason.SERVING, f"{len(tally.ready)} nodes answer")
    return Verdict(False, ClusterReason.NO_NODE_READY, tally.problem)


def progressing(tally: Tally) -> Verdict:
    """Progressing."""
    return Verdict(
        tally.is_moving, ClusterReason.CHANGING if tally.is_moving else ClusterReason.UP_TO_DATE
    )


def degraded(tally: Tally) -> Verdict:
    """Degraded."""
    missing = len(tally.ready) < tally.wanted
    holds = bool(tally.ready) and missing and not tally.is_moving
    reason = ClusterReason.NODES_MISSING if missing else ClusterReason.ALL_NODES_READY
    return Verdict(holds, reason, tally.problem)


def plan_valid(tally: Tally) -> Verdict:
    """PlanValid. Unknown while no node is Ready and has reported its layers."""
    unknown = "no node has reported its layers yet"
    if not tally.ready:
        return Verdict(None, ClusterReason.NO_NODE_READY, unknown)
    if len(tally.epochs) > 1:
        message = f"the nodes are on {len(tally.epochs)} different plans"
        return Verdict(False, ClusterReason.EPOCHS_DIFFER, message)
    slices = [child.status.layers for child in tally.ready if child.status.layers is not None]
    if not slices:
        return Verdict(None, ClusterReason.LAYERS_UNKNOWN, unknown)
    covered = 0
    for each in sorted(slices, key=lambda layers: (layers.start, layers.end)):
        if each.start != covered:
            message = f"layer {covered} is not held exactly once by a ready node"
            return Verdict(False, ClusterReason.LAYERS_NOT_COVERED, message)
        covered = each.end + 1
    total = min(slices, key=lambda layers: (layers.start, layers.end)).total
    if total is not None and covered != total:
        message = f"layers {covered} to {total - 1} are on no ready node"
        return Verdict(False, ClusterReason.LAYERS_NOT_COVERED, message)
    message = f"{covered} layers on {len(slices)} nodes"
    return Verdict(True, ClusterReason.LAYERS_COVERED, message)


def failed(exocluster: ClusterRef, snapshot: ClusterSnapshot, tally: Tally) -> Verdict:
    """Failed. Its message stays the one of the moment it happened: the pods are gone afterwards,
    and what they died of is known only then.
    """
    if not snapshot.budget.failed:
        return Verdict(False, ClusterReason.WITHIN_BUDGET)
    before = exocluster.status.condition(ClusterCondition.FAILED)
    if before is not None and before.status == "True":
        return Verdict(True, ClusterReason.BUDGET_USED_UP, before.message)
    allowed = exocluster.spec.restart.max_restarts
    text = (
        f"{snapshot.budget.used} restarts, allowed are {allowed}; set annotation"
        f" {names.ANNOTATION_RETRY} to a new value, or change the spec. {tally.problem}"
    )
    return Verdict(True, ClusterReason.BUDGET_USED_UP, text.strip())


def suspended(exocluster: ClusterRef) -> Verdict:
    """Suspended."""
    if exocluster.spec.suspend:
        return Verdict(True, CommonReason.SUSPENDED, "spec.suspend is set")
    return Verdict(False, ClusterReason.RUNNING)


def _first_problem(children: Sequence[NodeView]) -> str:
    for child in children:
        if child.is_ready or child.ready is None:
            continue
        if child.ready.status == "True":
            return f"{child.name}: Updating"
        return f"{child.name}: {child.ready.reason}: {child.ready.message}".rstrip(": ")
    return ""
