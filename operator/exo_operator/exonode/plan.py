"""Decides what to do for an ExoNode: what is wanted and a snapshot in, actions out. Pure.

Once the actions are carried out, planning again gives none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from exo import contract
from exo_operator.api.conditions import EventReason, NodeReason
from exo_operator.exonode import objects, secret
from exo_operator.exonode import pod as pods
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.exonode.snapshot import Snapshot
from exo_operator.kube.actions import Action, Apply, Delete, SetGate
from exo_operator.kube.diff import differs
from exo_operator.kube.objects import Meta, PodView, Raw, Ref, ref_of

# A pod that still exists this long after its grace period is on a machine that does not answer. Its
# name is needed.
OVERDUE: Final = timedelta(seconds=15)
# A ring that is not formed for this long closes the gate.
UNFORMED_AFTER_S: Final = 8.0


def plan(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> list[Action]:
    """What to do now. Empty if everything is as wanted, or if there is only something to wait for.

    A name that belongs to another owner is left alone.
    """
    if node.meta.is_deleting:
        return []
    blocked = {(conflict.kind, conflict.name) for conflict in snapshot.conflicts}
    actions: list[Action] = []
    for manifest in objects.desired(node, defaults):
        ref = ref_of(manifest)
        if (ref.kind, ref.name) not in blocked:
            actions.extend(_ensure(manifest, snapshot.objects.get(ref)))
    actions.extend(_unwanted_policy(node, snapshot, defaults))
    if ("Pod", node.name) not in blocked:
        actions.extend(_pod_actions(node, snapshot, defaults))
    return actions


def _ensure(manifest: Raw, live: Raw | None) -> Iterator[Apply]:
    if live is None:
        yield Apply(manifest, exists=False, why="missing")
    elif not Meta(live).is_deleting and differs(manifest, live):
        yield Apply(manifest, exists=True, why="differs")


def _unwanted_policy(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> Iterator[Delete]:
    ref: Ref = objects.policy_ref(node)
    live = snapshot.objects.get(ref)
    if live is None or objects.network_policy(node, defaults) is not None:
        return
    meta = Meta(live)
    if not meta.is_deleting and meta.controller_uid == node.uid:
        yield Delete(*ref, meta.uid, EventReason.POLICY_REMOVED, "not wanted any more")


def _pod_actions(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> Iterator[Action]:
    pod = snapshot.pod
    if pod is None:
        if not node.spec.suspend:
            yield from _new_pod(node, snapshot, defaults)
        return

    def delete(reason: EventReason, why: str, grace: int | None = None) -> Delete:
        return Delete("Pod", node.namespace, node.name, pod.uid, reason, why, grace)

    if pod.is_deleting:
        if is_overdue(pod, snapshot.now):
            why = "its machine did not end it in its grace period"
            yield delete(EventReason.POD_FORCED, why, 0)
    elif node.spec.suspend:
        yield delete(EventReason.SUSPENDED, "suspended")
    elif pod.is_finished:
        yield delete(EventReason.POD_FINISHED, f"pod ended in phase {pod.phase}")
    elif pod.spec_hash != pods.spec_hash(node, defaults):
        yield delete(EventReason.SPEC_CHANGED, "made from an older spec")
    elif secret.is_missing(node, pod):
        yield secret.make(node)
    elif pod.has_ring_gate:
        yield from _gate(node, pod, snapshot)


def _new_pod(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> Iterator[Action]:
    """The secret comes first: a pod that reads a Secret waits until it exists."""
    ring_secret = secret.for_pod(node, snapshot.peer_pods)
    if secret.is_ours(node, ring_secret):
        yield secret.make(node)
    yield Apply(pods.pod(node, defaults, ring_secret), exists=False, why="missing")


def is_overdue(pod: PodView, now: datetime) -> bool:
    """Whether the pod's grace period ended a while ago."""
    ends = pod.meta.deletion_ends
    return ends is not None and now - ends > OVERDUE


def _gate(node: NodeRef, pod: PodView, snapshot: Snapshot) -> Iterator[SetGate]:
    """Open the gate when the node reports that its ring is formed. Close it only when the node has
    reported for a while that it is not: a ring that agrees on a new plan holds its requests for a
    moment, and meanwhile its nodes stay behind their Service.
    """
    report = snapshot.report
    if not report.reachable or report.ring_formed is None:
        return
    condition = pod.condition(contract.RING_FORMED_GATE)
    is_open = None if condition is None else condition.get("status") == "True"
    if report.ring_formed and is_open is not True:
        why = f"epoch {report.ring_epoch}"
        yield SetGate(node.namespace, node.name, pod.uid, True, NodeReason.RING_FORMED, why)
    elif not report.ring_formed and (
        is_open is None or (is_open and snapshot.answers.unformed_s >= UNFORMED_AFTER_S)
    ):
        yield SetGate(node.namespace, node.name, pod.uid, False, NodeReason.RING_FORMING, "")
