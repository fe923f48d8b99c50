"""The restart budget of an ExoCluster: how many restarts its nodes have used. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from exo_operator.api import names
from exo_operator.api.conditions import ClusterCondition
from exo_operator.exocluster.context import ClusterRef
from exo_operator.kube.custom import NodeView

# An ExoCluster that has been Ready for this long gets its whole budget back.
FORGIVEN_AFTER: Final = timedelta(minutes=10)


class Budget(NamedTuple):
    """What was used since the budget was last reset, and whether that is too much."""

    used: int
    baseline: int
    token: str
    failed: bool


def account(exocluster: ClusterRef, children: Sequence[NodeView], now: datetime) -> Budget:
    """Count the restarts of the nodes' containers.

    Failed is terminal: only a new spec, a new value of the retry annotation, or resuming clears it.
    While it holds, the pods are gone, and their counts with them.
    """
    old = exocluster.status
    token = str(exocluster.meta.annotations.get(names.ANNOTATION_RETRY, ""))
    total = sum(child.status.restarts or 0 for child in children)
    if old.holds(ClusterCondition.FAILED):
        if _is_same_attempt(exocluster, token):
            return Budget(old.restarts or 0, old.restart_baseline or 0, token, True)
        return Budget(0, total, token, False)
    # Counts of pods that are gone can only lower the total.
    baseline = min(old.restart_baseline or 0, total)
    if _is_forgiven(exocluster, now):
        baseline = total
    used = total - baseline
    limit = exocluster.spec.restart.max_restarts
    return Budget(used, baseline, token, bool(limit) and used > limit)


def _is_same_attempt(exocluster: ClusterRef, token: str) -> bool:
    """Whether neither the spec nor the retry annotation has changed since Failed was written."""
    failed = exocluster.status.condition(ClusterCondition.FAILED)
    generation = exocluster.meta.raw.get("generation")
    return (
        failed is not None
        and failed.observed_generation == generation
        and token == (exocluster.status.retry_token or "")
    )


def _is_forgiven(exocluster: ClusterRef, now: datetime) -> bool:
    ready = exocluster.status.condition(ClusterCondition.READY)
    return (
        ready is not None
        and ready.status == "True"
        and now - ready.last_transition_time > FORGIVEN_AFTER
    )
