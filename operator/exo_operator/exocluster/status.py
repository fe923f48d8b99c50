"""Decides the status of an ExoCluster: its conditions, its members with their layers, its restart
budget. Pure.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from exo import contract
from exo_operator.api import names
from exo_operator.exocluster import plan as plan_ring
from exo_operator.exocluster.objects import RingRef, selector
from exo_operator.exocluster.plan import RingObserved, condition, is_ready
from exo_operator.exonode import objects as render
from exo_operator.exonode.status import Verdict, conditions
from exo_operator.kube.store import Raw

# A ring that was Ready for this long has its restart budget back.
FORGIVEN_AFTER: Final = timedelta(minutes=10)


class Budget(NamedTuple):
    """The restart budget: what was used since it was last reset, and whether that is too much."""

    used: int
    baseline: int
    token: str
    failed: bool


def budget(ring: RingRef, children: list[Raw], now: datetime) -> Budget:
    """Account for the restarts of the nodes' containers.

    Failed is terminal: only a new spec, a new value of the retry annotation, or resuming clears it.
    While it holds, the pods are gone, and with them their counts.
    """
    old: Raw = ring.raw.get("status") or {}
    total = sum(int((child.get("status") or {}).get("restarts") or 0) for child in children)
    token = str((ring.raw["metadata"].get("annotations") or {}).get(names.ANNOTATION_RETRY, ""))
    generation = ring.raw["metadata"].get("generation")
    was = condition(ring.raw, "Failed")
    same_spec = (
        was is not None
        and was.get("observedGeneration") == generation
        and token == old.get("retryToken", "")
    )
    if was is not None and was.get("status") == "True":
        if same_spec:
            return Budget(
                int(old.get("restarts") or 0), int(old.get("restartBaseline") or 0), token, True
            )
        return Budget(0, total, token, False)
    baseline = min(int(old.get("restartBaseline") or 0), total)
    ready = condition(ring.raw, "Ready")
    if ready is not None and ready.get("status") == "True" and now - _time(ready) > FORGIVEN_AFTER:
        baseline = total
    used = total - baseline
    limit = ring.spec.restart.max_restarts
    return Budget(used, baseline, token, bool(limit) and used > limit)


def _time(condition_: Raw) -> datetime:
    return datetime.fromisoformat(str(condition_["lastTransitionTime"]).replace("Z", "+00:00"))


def ring_status(ring: RingRef, observed: RingObserved, used: Budget) -> dict[str, Any]:
    """The whole status of an ExoCluster."""
    generation = int(ring.raw["metadata"].get("generation", 0))
    previous = (ring.raw.get("status") or {}).get("conditions") or ()
    children = sorted(observed.children, key=lambda child: _index(child))
    stale = {manifest["metadata"]["name"] for manifest, _ in plan_ring.outdated(ring, observed)}
    epochs = {
        str(epoch)
        for child in children
        if is_ready(child) and (epoch := _status(child).get("ringEpoch"))
    }
    verdicts_ = verdicts(ring, observed, children, len(stale), epochs, used)
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "conditions": conditions(verdicts_, previous, generation, observed.now),
        "nodes": len(children),
        "readyNodes": sum(1 for child in children if is_ready(child)),
        "updatedNodes": sum(1 for child in children if child["metadata"]["name"] not in stale),
        "selector": ",".join(f"{key}={value}" for key, value in selector(ring).items()),
        "url": f"http://{ring.name}.{ring.namespace}.svc:{contract.API_PORT}",
        "model": render.model_word(ring.spec.model),
        "restarts": used.used,
        "restartBaseline": used.baseline,
        "retryToken": used.token,
        "members": [_member(child) for child in children],
    }
    if len(epochs) == 1:
        status["ringEpoch"] = epochs.pop()
    return status


def _status(child: Raw) -> Raw:
    status: Raw = child.get("status") or {}
    return status


def _index(child: Raw) -> tuple[int, str]:
    text = (child["metadata"].get("labels") or {}).get(names.LABEL_INDEX, "")
    return (int(text) if text.isdigit() else -1, child["metadata"]["name"])


def _member(child: Raw) -> dict[str, Any]:
    status = _status(child)
    ready = condition(child, "Ready") or {}
    facts = {
        "layers": (status.get("layers") or {}).get("text"),
        "reason": None if is_ready(child) else ready.get("reason", "Pending"),
        "nodeName": status.get("nodeName"),
    }
    member = {"name": child["metadata"]["name"], "ready": is_ready(child)}
    return member | {key: value for key, value in facts.items() if value is not None}


def verdicts(
    ring: RingRef,
    observed: RingObserved,
    children: list[Raw],
    stale: int,
    epochs: set[str],
    used: Budget,
) -> dict[str, Verdict]:
    """All conditions of an ExoCluster, Ready first."""
    wanted = ring.spec.nodes
    ready = sum(1 for child in children if is_ready(child))
    moving = stale > 0 or len(children) != wanted
    bad = _first_problem(children)
    taken = plan_ring.conflicts(ring, observed)
    suspended = (
        Verdict(True, "Suspended", "spec.suspend is set")
        if ring.spec.suspend
        else Verdict(False, "Running")
    )
    failed = Verdict(False, "WithinBudget")
    if used.failed:
        before = condition(ring.raw, "Failed") or {}
        text = (
            f"{used.used} restarts, allowed are {ring.spec.restart.max_restarts}; set annotation"
            " exo.dev/retry"
        )
        message = f"{text} to a new value, or change the spec. {bad}".strip()
        # The pods are stopped by now; what they died of is in the message of the moment they
        # failed.
        message = before["message"] if before.get("status") == "True" else message
        failed = Verdict(True, "RestartBudgetUsedUp", message)
    if taken:
        text = ", ".join(f"{conflict.kind} {conflict.name}" for conflict in taken)
        main = Verdict(False, "NameTaken", f"belongs to somebody else: {text}")
    elif used.failed:
        main = Verdict(False, failed.reason, failed.message)
    elif ring.spec.suspend:
        main = Verdict(False, suspended.reason, suspended.message)
    elif wanted == 0:
        main = Verdict(False, "NoNodes", "spec.nodes is 0")
    elif moving:
        main = Verdict(
            False,
            "Progressing",
            f"{wanted - stale} of {wanted} nodes are up to date; {bad}".rstrip("; "),
        )
    elif ready < wanted:
        main = Verdict(
            False, "NodesNotReady", f"{ready} of {wanted} nodes are ready; {bad}".rstrip("; ")
        )
    else:
        main = Verdict(True, "Ready", "")
    return {
        "Ready": main,
        "Available": (
            Verdict(True, "Serving", f"{ready} nodes answer")
            if ready
            else Verdict(False, "NoNodeReady", bad)
        ),
        "Progressing": Verdict(moving, "Changing" if moving else "UpToDate"),
        "Degraded": Verdict(
            0 < ready < wanted and not moving,
            "NodesMissing" if ready < wanted else "AllNodesReady",
            bad,
        ),
        "PlanValid": plan_valid(children, epochs, ready),
        "Failed": failed,
        "Suspended": suspended,
    }


def _first_problem(children: list[Raw]) -> str:
    for child in children:
        ready = condition(child, "Ready")
        if is_ready(child) or ready is None:
            continue
        if ready.get("status") == "True":
            return f"{child['metadata']['name']}: Updating"
        return f"{child['metadata']['name']}: {ready.get('reason')}: {ready.get('message')}".rstrip(
            ": "
        )
    return ""


def plan_valid(children: list[Raw], epochs: set[str], ready: int) -> Verdict:
    """PlanValid: the ready nodes agree on one plan, and its slices hold every layer exactly
    once.
    """
    if not ready:
        return Verdict(None, "NoNodeReady", "no node has told its layers yet")
    if len(epochs) > 1:
        return Verdict(False, "EpochsDiffer", f"the nodes are on {len(epochs)} different plans")
    slices = sorted(
        (layers["start"], layers["end"], layers.get("total"))
        for child in children
        if is_ready(child) and (layers := _status(child).get("layers"))
    )
    if not slices:
        return Verdict(None, "LayersUnknown", "no node has told its layers yet")
    expected = 0
    for start, end, _ in slices:
        if start != expected:
            return Verdict(
                False,
                "LayersNotCovered",
                f"layer {expected} is not held exactly once by a ready node",
            )
        expected = end + 1
    total = slices[0][2]
    if total is not None and expected != total:
        return Verdict(
            False, "LayersNotCovered", f"layers {expected} to {total - 1} are on no ready node"
        )
    return Verdict(True, "LayersCovered", f"{expected} layers on {len(slices)} nodes")
