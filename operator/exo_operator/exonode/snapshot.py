"""The frozen view of the world around one ExoNode, taken for one reconcile."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from exo_operator.exonode import objects
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.exonode.report import NodeReport
from exo_operator.kube import ownership
from exo_operator.kube.actions import Conflict
from exo_operator.kube.objects import PodView, Raw, Ref, ref_of
from exo_operator.kube.store import Objects, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the node said when it was asked, and since when it has said or not said so."""

    report: NodeReport = field(default_factory=NodeReport)
    # Consecutive questions without an answer, after one that was answered.
    misses: int = 0
    # Seconds for which the node has reported that its ring is not formed.
    unformed_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything that planning and the status of an ExoNode read, as it was at one moment."""

    now: datetime
    objects: Objects
    pod: PodView | None
    # Pods of the other nodes of its ring. Read only while its own pod is missing.
    peer_pods: tuple[PodView, ...] = ()
    # Names that it needs and that other owners have.
    conflicts: tuple[Conflict, ...] = ()
    answers: Answers = field(default_factory=Answers)

    @property
    def report(self) -> NodeReport:
        return self.answers.report


def take(
    store: Store,
    node: NodeRef,
    defaults: Defaults,
    *,
    now: datetime,
    answers: Answers | None = None,
    found: tuple[Conflict, ...] = (),
) -> Snapshot:
    """Take a snapshot. `found` are conflicts that acting ran into, with objects that no watch
    shows.
    """
    pod_ref = Ref("Pod", node.namespace, node.name)
    needed = [*(ref_of(manifest) for manifest in objects.desired(node, defaults)), pod_ref]
    picked = store.pick([*needed, objects.policy_ref(node)])
    pod = picked.get(pod_ref)
    taken = ownership.conflicts(needed, picked, node.uid, orphans_are_ours=True)
    return Snapshot(
        now=now,
        objects=picked,
        pod=None if pod is None else PodView(pod),
        peer_pods=_peer_pods(store, node) if pod is None else (),
        conflicts=(*found, *taken),
        answers=answers or Answers(),
    )


def _peer_pods(store: Store, node: NodeRef) -> tuple[PodView, ...]:
    names = [ref_of(member).name for member in node.members]
    pods: list[Raw | None] = [
        store.get("Pod", node.namespace, name) for name in names if name != node.name
    ]
    return tuple(PodView(pod) for pod in pods if pod is not None)
