"""Decides the status of an ExoNode: its conditions, its layers, the health of its resources. Pure.

Times move only when a condition flips, and figures only when they change by a tenth, so a quiet
node causes no writes. What each condition means is decided in `conditions.py`.
"""

from __future__ import annotations

from exo import contract
from exo_operator.api.conditions import conditions
from exo_operator.api.status import ExoNodeStatus, LayerRange, Measured, Memory
from exo_operator.exonode.conditions import verdicts
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.exonode.objects import model_word
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.snapshot import Snapshot

# A figure that moved by less than this share stays as it was written.
STEADY_SHARE = 0.1


def node_status(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> ExoNodeStatus:
    """The whole status of an ExoNode."""
    old = node.status
    pod, generation = snapshot.pod, node.meta.generation
    # Between two answers of the same pod the last known figures stay.
    known = old if pod is not None and old.pod_ip == pod.ip else ExoNodeStatus()
    if pod is not None and snapshot.report.reachable:
        known = reported(snapshot.report, known)
    return ExoNodeStatus(
        observed_generation=generation,
        conditions=conditions(
            verdicts(node, snapshot, defaults), old.conditions, generation, snapshot.now
        ),
        model=model_word(node.spec.model),
        url=f"http://{node.name}.{node.namespace}.svc:{contract.API_PORT}",
        pod_name=None if pod is None else node.name,
        pod_ip=None if pod is None else pod.ip,
        node_name=None if pod is None else pod.node_name,
        restarts=None if pod is None else pod.restarts,
        layers=known.layers,
        memory=known.memory,
        ring_epoch=known.ring_epoch,
        ring_size=known.ring_size,
        resources=known.resources,
        measured=known.measured,
    )


def reported(report: NodeReport, old: ExoNodeStatus) -> ExoNodeStatus:
    """The part of the status that the node itself reports."""
    return ExoNodeStatus(
        layers=_layers(report),
        memory=_memory(report, old.memory or Memory()),
        ring_epoch=report.ring_epoch,
        ring_size=report.ring_size,
        resources=list(report.resources) or None,
        measured=_measured(report, old.measured or Measured()),
    )


def _layers(report: NodeReport) -> LayerRange | None:
    if report.layers is None:
        return None
    start, end = report.layers
    return LayerRange(start=start, end=end, total=report.total_layers, text=f"{start}-{end}")


def _memory(report: NodeReport, old: Memory) -> Memory | None:
    used = _steady(report.used_mib, old.used_mib)
    memory = Memory(planned_mib=report.planned_mib, used_mib=None if used is None else int(used))
    return None if memory == Memory() else memory


def _measured(report: NodeReport, old: Measured) -> Measured | None:
    measured = Measured(
        tokens_per_second=_steady(report.tokens_per_second, old.tokens_per_second),
        ttft_ms=_steady(report.ttft_ms, old.ttft_ms),
        hop_ms=_steady(report.hop_ms, old.hop_ms),
    )
    return None if measured == Measured() else measured


def _steady(new: float | None, old: float | None) -> float | None:
    if new is None:
        return old
    if old and abs(new - old) <= STEADY_SHARE * abs(old):
        return old
    return round(new, 1)
