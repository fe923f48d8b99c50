"""Decides the status of an ExoNode: conditions with reasons, layer map, health of its resources.
Pure.

Times move only when a condition flips; figures only when they changed by a tenth, so that a quiet
node writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from exo import contract
from exo_operator.exonode import objects as render
from exo_operator.exonode import plan
from exo_operator.exonode import pod as render_pod
from exo_operator.exonode.objects import Defaults, NodeRef
from exo_operator.exonode.plan import Observed
from exo_operator.kube.store import NodeReport, PodView, Raw

MAX_MESSAGE = 1024
# This many unanswered questions in a row to a node that used to answer count as lost.
LOST_AFTER = 2


class Verdict(NamedTuple):
    """A condition before it has times."""

    status: bool | None
    reason: str
    message: str = ""


def timestamp(now: datetime) -> str:
    """RFC 3339 in seconds, as Kubernetes writes it."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def conditions(
    verdicts: dict[str, Verdict], previous: Sequence[Raw], generation: int, now: datetime
) -> list[dict[str, Any]]:
    """Conditions in the order of `verdicts`; `lastTransitionTime` is the previous one where the
    status is the same.
    """
    before = {condition["type"]: condition for condition in previous}
    result = []
    for type_, verdict in verdicts.items():
        status = {True: "True", False: "False", None: "Unknown"}[verdict.status]
        old = before.get(type_)
        same = old is not None and old.get("status") == status
        result.append(
            {
                "type": type_,
                "status": status,
                "reason": verdict.reason,
                "message": verdict.message[:MAX_MESSAGE],
                "observedGeneration": generation,
                "lastTransitionTime": old["lastTransitionTime"] if same and old else timestamp(now),
            }
        )
    return result


def flips(previous: Sequence[Raw], current: Sequence[Raw]) -> list[Raw]:
    """The conditions whose status changed: each is worth one event."""
    before = {condition["type"]: condition.get("status") for condition in previous}
    return [c for c in current if c["type"] in before and before[c["type"]] != c["status"]]


def node_status(node: NodeRef, observed: Observed, defaults: Defaults) -> dict[str, Any]:
    """The whole status of an ExoNode."""
    raw_pod = observed.get("Pod", node.namespace, node.name)
    pod = PodView(raw_pod) if raw_pod is not None else None
    generation = int(node.raw["metadata"].get("generation", 0))
    old: Raw = node.raw.get("status") or {}
    report = observed.report
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": conditions(
            verdicts(node, pod, observed, defaults),
            old.get("conditions") or (),
            generation,
            observed.now,
        ),
        "model": render.model_word(node.spec.model),
        "url": f"http://{node.name}.{node.namespace}.svc:{contract.API_PORT}",
    }
    if pod is not None:
        facts = {
            "podName": node.name,
            "podIP": pod.ip,
            "nodeName": pod.node_name,
            "restarts": pod.restarts,
        }
        status |= {key: value for key, value in facts.items() if value is not None}
        # Between two answers of the same pod the last known figures stay.
        known = old if old.get("podIP") == pod.ip else {}
        status |= (
            reported(report, known)
            if report.reachable
            else {k: known[k] for k in REPORTED if k in known}
        )
    return status


REPORTED = ("layers", "memory", "ringEpoch", "ringSize", "resources", "measured")


def reported(report: NodeReport, old: Raw) -> dict[str, Any]:
    """The part of the status that the node itself reports."""
    result: dict[str, Any] = {}
    if report.layers is not None:
        start, end = report.layers
        result["layers"] = {"start": start, "end": end, "text": f"{start}-{end}"}
        if report.total_layers is not None:
            result["layers"]["total"] = report.total_layers
    was: Raw = old.get("memory") or {}
    memory = {
        "plannedMiB": report.planned_mib,
        "usedMiB": _steady_int(report.used_mib, was.get("usedMiB")),
    }
    measured_before: Raw = old.get("measured") or {}
    measured = {
        key: _steady(value, measured_before.get(key))
        for key, value in (
            ("tokensPerSecond", report.tokens_per_second),
            ("ttftMs", report.ttft_ms),
            ("hopMs", report.hop_ms),
        )
    }
    for name, figures in (("memory", memory), ("measured", measured)):
        known = {key: value for key, value in figures.items() if value is not None}
        if known:
            result[name] = known
    if report.ring_epoch is not None:
        result["ringEpoch"] = report.ring_epoch
    if report.ring_size is not None:
        result["ringSize"] = report.ring_size
    if report.resources:
        result["resources"] = list(report.resources)
    return result


def _steady(new: float | None, old: float | None) -> float | None:
    if new is None:
        return old
    if old and abs(new - old) <= 0.1 * abs(old):
        return old
    return round(new, 1)


def _steady_int(new: int | None, old: int | None) -> int | None:
    value = _steady(new, old)
    return None if value is None else int(value)


def verdicts(
    node: NodeRef, pod: PodView | None, observed: Observed, defaults: Defaults
) -> dict[str, Verdict]:
    """All conditions of an ExoNode, Ready first."""
    report = observed.report
    result = {
        "Ready": ready(node, pod, observed, defaults),
        "Scheduled": scheduled(node, pod),
        "ModelLoaded": model_loaded(node, pod, report),
        "Healthy": healthy(node, pod, report),
    }
    if render_pod.in_ring(node.spec):
        result["RingJoined"] = ring_joined(pod, report)
    draining = pod is not None and pod.deleting
    result["Draining"] = Verdict(draining, "PodTerminating" if draining else "NotDraining")
    return result


def absent(node: NodeRef) -> Verdict:
    """What every condition says while there is no pod."""
    if node.spec.suspend:
        return Verdict(False, "Suspended", "spec.suspend is set")
    return Verdict(False, "PodMissing", "the pod is being made")


def ready(node: NodeRef, pod: PodView | None, observed: Observed, defaults: Defaults) -> Verdict:
    """Ready: the pod made from this very spec serves, and every part of it is healthy. The first
    reason found wins.
    """
    taken = plan.conflicts(node, observed, defaults)
    if taken:
        names = ", ".join(f"{c.kind} {c.name}" for c in taken)
        return Verdict(False, "NameTaken", f"belongs to somebody else: {names}; rename the ExoNode")
    if pod is None:
        return absent(node)
    if pod.deleting:
        return Verdict(False, "Draining", "the pod is being stopped")
    if pod.spec_hash != render.spec_hash(node.spec, node.spec.image or defaults.image):
        return Verdict(False, "Replacing", "the pod was made from an older spec")
    for verdict in (scheduled(node, pod), model_loaded(node, pod, observed.report)):
        if not verdict.status:
            return verdict
    if observed.misses >= LOST_AFTER:
        return Verdict(False, "Unreachable", "the node does not answer on its health endpoint")
    condition = healthy(node, pod, observed.report)
    if condition.status is False:
        return condition
    if pod.ready:
        return Verdict(True, "Ready", "")
    if render_pod.in_ring(node.spec) and not ring_joined(pod, observed.report).status:
        return ring_joined(pod, observed.report)
    kubelet = pod.condition("Ready") or {}
    return Verdict(
        False, "PodNotReady", kubelet.get("message") or "the readiness probe does not pass"
    )


def scheduled(node: NodeRef, pod: PodView | None) -> Verdict:
    """Scheduled: a machine was found for the pod."""
    if pod is None:
        return absent(node)
    condition = pod.condition("PodScheduled") or {}
    if pod.node_name or condition.get("status") == "True":
        return Verdict(True, "Scheduled", pod.node_name or "")
    return Verdict(
        False,
        condition.get("reason") or "Pending",
        condition.get("message") or "waiting for the scheduler",
    )


def model_loaded(node: NodeRef, pod: PodView | None, report: NodeReport) -> Verdict:
    """ModelLoaded: the container runs and its startup probe passed."""
    if pod is None:
        return absent(node)
    state: Raw = pod.container.get("state") or {}
    ended: Raw = (pod.container.get("lastState") or {}).get("terminated") or {}
    if pod.running and (pod.container.get("started") or report.started):
        return Verdict(True, "Loaded")
    if "waiting" in state:
        reason = state["waiting"].get("reason") or "ContainerWaiting"
        message = state["waiting"].get("message") or ""
        return Verdict(
            False, reason, "; ".join(part for part in (message, _last_words(ended)) if part)
        )
    if "terminated" in state:
        return Verdict(False, "ContainerEnded", _last_words(state["terminated"]))
    if pod.running:
        return Verdict(
            False,
            "Loading",
            failing_text(report) or _last_words(ended) or "the model is being loaded",
        )
    return Verdict(False, "ContainerCreating", "the container has not started yet")


def _last_words(terminated: Raw) -> str:
    if not terminated:
        return ""
    words = _said(str(terminated.get("message") or ""))
    text = f"last exit code {terminated.get('exitCode')}, {terminated.get('reason') or 'no reason'}"
    return f"{text}: {words}" if words else text


def _said(log: str) -> str:
    """The last line of a log that says something to people; of a JSON line, its event."""
    lines = log.strip().splitlines()
    if not lines:
        return ""
    try:
        record = json.loads(lines[-1])
    except ValueError:
        return lines[-1][:400]
    return str(record.get("event", ""))[:400] if isinstance(record, dict) else ""


def failing_text(report: NodeReport) -> str:
    """The failing resources with their reasons, in a steady order."""
    return "; ".join(
        f"{name}: {reason}" if reason else name for name, reason in sorted(report.failing.items())
    )


def healthy(node: NodeRef, pod: PodView | None, report: NodeReport) -> Verdict:
    """Healthy: the node's own health checks pass. Unknown while nobody can ask."""
    if pod is None:
        return absent(node)
    if not report.reachable:
        return (
            Verdict(True, "ProbesPass")
            if pod.ready
            else Verdict(None, "NotAsked", "the node gave no report")
        )
    if report.failing:
        return Verdict(False, "ResourceUnhealthy", failing_text(report))
    if report.ready is False and (report.started or pod.container.get("started")):
        return Verdict(False, "NotReady", "the node says that it is not ready")
    return (
        Verdict(True, "AllHealthy")
        if report.ready
        else Verdict(None, "Starting", "the node is starting")
    )


def ring_joined(pod: PodView | None, report: NodeReport) -> Verdict:
    """RingJoined: the node is part of a formed ring."""
    if report.reachable and report.ring_formed is not None:
        size = f" with {report.ring_size} nodes" if report.ring_size else ""
        if report.ring_formed:
            return Verdict(True, "RingFormed", f"ring{size}, epoch {report.ring_epoch}")
        return Verdict(
            False, "RingForming", failing_text(report) or f"the ring{size} is not formed yet"
        )
    gate = pod.condition(contract.RING_FORMED_GATE) if pod is not None else None
    if gate is not None:
        return Verdict(
            gate.get("status") == "True",
            gate.get("reason") or "RingForming",
            gate.get("message") or "",
        )
    return Verdict(None, "NotAsked", "the node gave no report")
