"""Decides what to do for an ExoCluster: which ExoNodes to create, change and delete, and in which
order. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from exo_operator.api.conditions import EventReason
from exo_operator.api.spec import ExoNodeSpec
from exo_operator.exocluster import objects
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.snapshot import ClusterSnapshot
from exo_operator.kube.actions import Action, Apply, Delete
from exo_operator.kube.custom import NodeView
from exo_operator.kube.diff import differs
from exo_operator.kube.objects import Meta, Raw, ref_of

# A node that has not been Ready for this long does not recover by itself.
NOT_READY_AFTER: Final = timedelta(seconds=30)


def plan(exocluster: ClusterRef, snapshot: ClusterSnapshot) -> list[Action]:
    """What to do now. A name that belongs to another owner is left alone."""
    if exocluster.meta.is_deleting:
        return []
    blocked = {(conflict.kind, conflict.name) for conflict in snapshot.conflicts}
    return [
        *_front(exocluster, snapshot, blocked),
        *_scale(exocluster, snapshot, blocked),
        *_roll(exocluster, snapshot),
    ]


def _front(
    exocluster: ClusterRef, snapshot: ClusterSnapshot, blocked: set[tuple[str, str]]
) -> Iterator[Action]:
    """The Service and the PodDisruptionBudget."""
    budget = objects.disruption_budget(exocluster, stopped=snapshot.is_stopped(exocluster))
    for manifest in (objects.service(exocluster), budget):
        if manifest is None or (manifest["kind"], exocluster.name) in blocked:
            continue
        live = snapshot.objects.get(ref_of(manifest))
        if live is None:
            yield Apply(manifest, exists=False, why="missing")
        elif not Meta(live).is_deleting and differs(manifest, live):
            yield Apply(manifest, exists=True, why="differs")
    ref = objects.budget_ref(exocluster)
    old = snapshot.objects.get(ref)
    if budget is None and old is not None and Meta(old).controller_uid == exocluster.uid:
        why = "it would allow all"
        yield Delete(*ref, Meta(old).uid, EventReason.BUDGET_REMOVED, why)


def _scale(
    exocluster: ClusterRef, snapshot: ClusterSnapshot, blocked: set[tuple[str, str]]
) -> Iterator[Action]:
    """Delete the ExoNodes beyond `spec.nodes`, and create those that are missing."""
    wanted = objects.node_refs(exocluster)
    kept = frozenset(wanted)
    for child in snapshot.children:
        ref = ref_of(child.raw)
        if ref not in kept and not child.meta.is_deleting:
            yield Delete(*ref, child.meta.uid, EventReason.SCALED_DOWN, "scaled down")
    stopped = snapshot.is_stopped(exocluster)
    for index, ref in enumerate(wanted):
        if snapshot.objects.get(ref) is None and (ref.kind, ref.name) not in blocked:
            manifest = objects.node(exocluster, index, stopped=stopped)
            yield Apply(manifest, exists=False, why="missing")


def outdated(exocluster: ClusterRef, snapshot: ClusterSnapshot) -> list[tuple[Raw, NodeView]]:
    """The children whose spec is not the wanted one, each with the manifest it should have.

    Specs are compared with defaults filled in on both sides.
    """
    stopped = snapshot.is_stopped(exocluster)
    wanted = ExoNodeSpec.model_validate(objects.node_spec(exocluster, stopped=stopped))
    children = {ref_of(child.raw): child for child in snapshot.children}
    found = []
    for index, ref in enumerate(objects.node_refs(exocluster)):
        child = children.get(ref)
        if child is None or child.meta.is_deleting:
            continue
        if ExoNodeSpec.model_validate(child.spec) != wanted:
            found.append((objects.node(exocluster, index, stopped=stopped), child))
    return found


def _roll(exocluster: ClusterRef, snapshot: ClusterSnapshot) -> Iterator[Action]:
    """Change children one after another, the last index first, while enough of the others work.

    A child that has not worked for a while is changed at once: that costs nothing, and it lets a
    broken spec be corrected. A child that is not Ready only for a moment, because its ring agrees
    on a new plan, is waited for.
    """
    old = outdated(exocluster, snapshot)
    if snapshot.is_stopped(exocluster):
        yield from (Apply(manifest, exists=True, why="stop") for manifest, _ in old)
        return
    broken = [manifest for manifest, child in old if _is_broken(child, snapshot.now)]
    working = [manifest for manifest, child in old if child.is_ready]
    missing = exocluster.spec.nodes - sum(child.is_ready for child in snapshot.children)
    spare = max(0, exocluster.spec.strategy.max_unavailable - missing)
    for manifest in [*broken, *working[::-1][:spare]]:
        yield Apply(manifest, exists=True, why="spec changed")


def _is_broken(child: NodeView, now: datetime) -> bool:
    """Whether a child has not been Ready for so long that changing it loses nothing."""
    ready = child.ready
    if ready is None or child.is_suspended:
        return True
    return ready.status != "True" and now - ready.last_transition_time > NOT_READY_AFTER
