"""Decides the status of an ExoCluster: its conditions, its members with their layers, its restart
budget. Pure.
"""

from __future__ import annotations

from exo import contract
from exo_operator.api.conditions import NodeReason, conditions
from exo_operator.api.status import ExoClusterStatus, Member
from exo_operator.exocluster.conditions import Tally, verdicts
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.plan import outdated
from exo_operator.exocluster.snapshot import ClusterSnapshot
from exo_operator.exonode.objects import model_word
from exo_operator.kube.custom import NodeView


def cluster_status(exocluster: ClusterRef, snapshot: ClusterSnapshot) -> ExoClusterStatus:
    """The whole status of an ExoCluster."""
    generation = exocluster.meta.generation
    children, budget = snapshot.children, snapshot.budget
    stale = {child.name for _, child in outdated(exocluster, snapshot)}
    tally = Tally.of(exocluster, snapshot, len(stale))
    return ExoClusterStatus(
        observed_generation=generation,
        conditions=conditions(
            verdicts(exocluster, snapshot, tally),
            exocluster.status.conditions,
            generation,
            snapshot.now,
        ),
        nodes=len(children),
        ready_nodes=len(tally.ready),
        updated_nodes=sum(child.name not in stale for child in children),
        selector=",".join(f"{key}={value}" for key, value in exocluster.selector.items()),
        url=f"http://{exocluster.name}.{exocluster.namespace}.svc:{contract.API_PORT}",
        model=model_word(exocluster.spec.model),
        ring_epoch=tally.epochs[0] if len(tally.epochs) == 1 else None,
        restarts=budget.used,
        restart_baseline=budget.baseline,
        retry_token=budget.token,
        members=[_member(child) for child in children],
    )


def _member(child: NodeView) -> Member:
    layers = child.status.layers
    return Member(
        name=child.name,
        ready=child.is_ready,
        layers=None if layers is None else layers.text,
        reason=None if child.is_ready else _reason(child),
        node_name=child.status.node_name,
    )


def _reason(child: NodeView) -> str:
    return NodeReason.PENDING if child.ready is None else child.ready.reason
