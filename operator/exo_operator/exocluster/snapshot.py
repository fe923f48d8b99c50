"""The frozen view of the world around one ExoCluster, taken for one reconcile."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from exo_operator.api import names
from exo_operator.exocluster import objects
from exo_operator.exocluster.budget import Budget, account
from exo_operator.exocluster.context import ClusterRef
from exo_operator.kube import ownership
from exo_operator.kube.actions import Conflict
from exo_operator.kube.custom import NodeView
from exo_operator.kube.store import Objects, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSnapshot:
    """Everything that planning and the status of an ExoCluster read, as it was at one moment."""

    now: datetime
    objects: Objects
    # The ExoNodes that it controls, by index.
    children: tuple[NodeView, ...]
    budget: Budget
    # Names that it needs and that other owners have.
    conflicts: tuple[Conflict, ...] = ()

    def is_stopped(self, exocluster: ClusterRef) -> bool:
        """Whether the nodes are to have no pods: suspended, or out of restarts."""
        return exocluster.spec.suspend or self.budget.failed


def take(
    store: Store, exocluster: ClusterRef, *, now: datetime, found: tuple[Conflict, ...] = ()
) -> ClusterSnapshot:
    """Take a snapshot. `found` are conflicts that acting ran into, with objects that no watch
    shows.
    """
    controlled = store.controlled_by(names.KIND_NODE, exocluster.namespace, exocluster.uid)
    children = [NodeView.of(raw) for raw in controlled]
    needed = [objects.service_ref(exocluster), *objects.node_refs(exocluster)]
    picked = store.pick([*needed, objects.budget_ref(exocluster)])
    taken = ownership.conflicts(needed, picked, exocluster.uid, orphans_are_ours=False)
    return ClusterSnapshot(
        now=now,
        objects=picked,
        children=tuple(sorted(children, key=lambda child: (child.index, child.name))),
        budget=account(exocluster, children, now),
        conflicts=(*found, *taken),
    )
