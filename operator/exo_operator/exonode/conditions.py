"""Decides the conditions of an ExoNode. Pure.

Each function gives the verdict of one condition; `api/conditions.py` says what it means.
"""

from __future__ import annotations

import json

from exo import contract
from exo_operator.api.conditions import (
    CommonReason,
    ForeignReason,
    NodeCondition,
    NodeReason,
    Verdict,
)
from exo_operator.exonode import pod as pods
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.snapshot import Snapshot
from exo_operator.kube.objects import PodView, Raw

# This many consecutive questions without an answer, to a node that used to answer, mean it is lost.
LOST_AFTER = 2
# How much of a log line goes into a message.
MAX_LINE = 400


def verdicts(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> dict[NodeCondition, Verdict]:
    """All conditions of an ExoNode, in the order of its status."""
    pod, report = snapshot.pod, snapshot.report
    found = {
        NodeCondition.READY: ready(node, snapshot, defaults),
        NodeCondition.SCHEDULED: scheduled(node, pod),
        NodeCondition.MODEL_LOADED: model_loaded(node, pod, report),
        NodeCondition.HEALTHY: healthy(node, pod, report),
    }
    if node.has_peers:
        found[NodeCondition.RING_JOINED] = ring_joined(pod, report)
    found[NodeCondition.DRAINING] = draining(pod)
    return found


def ready(node: NodeRef, snapshot: Snapshot, defaults: Defaults) -> Verdict:
    """Everything that has to be so for the node to serve, in order. The first obstacle counts."""
    pod, report = snapshot.pod, snapshot.report
    if snapshot.conflicts:
        taken = ", ".join(f"{each.kind} {each.name}" for each in snapshot.conflicts)
        message = f"belongs to somebody else: {taken}; rename the ExoNode"
        return Verdict(False, CommonReason.NAME_TAKEN, message)
    if pod is None:
        return absent(node)
    if pod.is_deleting:
        return Verdict(False, NodeReason.DRAINING, "the pod is being stopped")
    if pod.spec_hash != pods.spec_hash(node, defaults):
        return Verdict(False, NodeReason.REPLACING, "the pod was made from an older spec")
    for verdict in (scheduled(node, pod), model_loaded(node, pod, report)):
        if not verdict.status:
            return verdict
    if snapshot.answers.misses >= LOST_AFTER:
        message = "the node does not answer on its health endpoint"
        return Verdict(False, NodeReason.UNREACHABLE, message)
    return _serving(node, pod, report)


def _serving(node: NodeRef, pod: PodView, report: NodeReport) -> Verdict:
    """Whether a node whose model is loaded serves. Its own report counts before the kubelet's,
    which comes later.
    """
    health = healthy(node, pod, report)
    if health.status is False:
        return health
    if pod.is_ready:
        return Verdict(True, NodeReason.READY)
    if node.has_peers:
        joined = ring_joined(pod, report)
        if not joined.status:
            return joined
    kubelet = pod.condition("Ready") or {}
    message = kubelet.get("message") or "the readiness probe does not pass"
    return Verdict(False, NodeReason.POD_NOT_READY, message)


def absent(node: NodeRef) -> Verdict:
    """What every condition says while there is no pod."""
    if node.spec.suspend:
        return Verdict(False, CommonReason.SUSPENDED, "spec.suspend is set")
    return Verdict(False, NodeReason.POD_MISSING, "the pod is being created")


def scheduled(node: NodeRef, pod: PodView | None) -> Verdict:
    """Scheduled."""
    if pod is None:
        return absent(node)
    condition = pod.condition("PodScheduled") or {}
    if pod.node_name or condition.get("status") == "True":
        return Verdict(True, NodeReason.SCHEDULED, pod.node_name or "")
    reason = _foreign(condition.get("reason")) or NodeReason.PENDING
    return Verdict(False, reason, condition.get("message") or "waiting for the scheduler")


def model_loaded(node: NodeRef, pod: PodView | None, report: NodeReport) -> Verdict:
    """ModelLoaded."""
    if pod is None:
        return absent(node)
    last_words = _last_words(pod.last_terminated)
    if pod.is_running and (pod.has_started or report.started):
        return Verdict(True, NodeReason.LOADED)
    if pod.waiting is not None:
        reason = _foreign(pod.waiting.get("reason")) or NodeReason.CONTAINER_WAITING
        parts = (pod.waiting.get("message") or "", last_words)
        return Verdict(False, reason, "; ".join(part for part in parts if part))
    if pod.terminated is not None:
        return Verdict(False, NodeReason.CONTAINER_ENDED, _last_words(pod.terminated))
    if pod.is_running:
        message = report.failing_text or last_words or "the model is being loaded"
        return Verdict(False, NodeReason.LOADING, message)
    message = "the container has not started yet"
    return Verdict(False, NodeReason.CONTAINER_CREATING, message)


def _foreign(reason: str | None) -> ForeignReason | None:
    return ForeignReason(reason) if reason else None


def _last_words(terminated: Raw | None) -> str:
    if not terminated:
        return ""
    words = _said(str(terminated.get("message") or ""))
    text = f"last exit code {terminated.get('exitCode')}, {terminated.get('reason') or 'no reason'}"
    return f"{text}: {words}" if words else text


def _said(log: str) -> str:
    """The last line of a log; of a line in JSON, its event."""
    lines = log.strip().splitlines()
    if not lines:
        return ""
    try:
        record = json.loads(lines[-1])
    except ValueError:
        return lines[-1][:MAX_LINE]
    return str(record.get("event", ""))[:MAX_LINE] if isinstance(record, dict) else ""


def healthy(node: NodeRef, pod: PodView | None, report: NodeReport) -> Verdict:
    """Healthy. Unknown while the node gives no report."""
    if pod is None:
        return absent(node)
    if not report.reachable:
        if pod.is_ready:
            return Verdict(True, NodeReason.PROBES_PASS)
        return Verdict(None, NodeReason.NOT_ASKED, "the node gave no report")
    if report.failing:
        return Verdict(False, NodeReason.RESOURCE_UNHEALTHY, report.failing_text)
    if report.ready is False and (report.started or pod.has_started):
        return Verdict(False, NodeReason.NOT_READY, "the node says that it is not ready")
    if report.ready:
        return Verdict(True, NodeReason.ALL_HEALTHY)
    return Verdict(None, NodeReason.STARTING, "the node is starting")


def ring_joined(pod: PodView | None, report: NodeReport) -> Verdict:
    """RingJoined. Without a report, the pod's gate shows what the node last said."""
    if report.reachable and report.ring_formed is not None:
        size = f" with {report.ring_size} nodes" if report.ring_size else ""
        if report.ring_formed:
            message = f"ring{size}, epoch {report.ring_epoch}"
            return Verdict(True, NodeReason.RING_FORMED, message)
        message = report.failing_text or f"the ring{size} is not formed yet"
        return Verdict(False, NodeReason.RING_FORMING, message)
    gate = pod.condition(contract.RING_FORMED_GATE) if pod is not None else None
    if gate is None:
        return Verdict(None, NodeReason.NOT_ASKED, "the node gave no report")
    reason = _foreign(gate.get("reason")) or NodeReason.RING_FORMING
    return Verdict(gate.get("status") == "True", reason, gate.get("message") or "")


def draining(pod: PodView | None) -> Verdict:
    """Draining."""
    if pod is not None and pod.is_deleting:
        return Verdict(True, NodeReason.POD_TERMINATING)
    return Verdict(False, NodeReason.NOT_DRAINING)
