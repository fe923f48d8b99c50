"""Decides what to do for an ExoNode: (wanted, observed) -> actions. Pure; carrying the actions out
changes the observed state so that planning again gives none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from exo import contract
from exo_operator.api import names
from exo_operator.exonode import objects as render
from exo_operator.exonode import pod as render_pod
from exo_operator.exonode import secret as plan_secret
from exo_operator.exonode.objects import Defaults, Manifest, NodeRef
from exo_operator.exonode.secret import MakeSecret
from exo_operator.kube.store import NodeReport, PodView, Raw

# A pod that is still there this long after its grace ended sits on a machine that does not answer:
# its name is needed.
OVERDUE: Final = timedelta(seconds=15)
UNFORMED_AFTER_S: Final = 8.0


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of a manifest. `why` is for the log."""

    manifest: Manifest
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly this object. `grace` None takes the object's own; `reason` goes into an
    event.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    reason: str
    why: str
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class SetGate:
    """The readiness gate of a pod."""

    namespace: str
    name: str
    uid: str
    ready: bool
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """A name we need belongs to somebody else. Nothing is done; the status says so."""

    kind: str
    name: str


Action = Apply | Delete | SetGate | MakeSecret
Lookup = Callable[[str, str, str], Raw | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """The world around one ExoNode."""

    get: Lookup
    now: datetime
    report: NodeReport = field(default_factory=NodeReport)
    # Questions to the pod's endpoints that failed in a row, after one that was answered.
    misses: int = 0
    # Seconds for which the node has said that its ring is not formed.
    unformed_s: float = 0.0
    # Objects outside the watches that were found to hold a name we need.
    taken: tuple[Conflict, ...] = ()


def differs(wanted: Any, live: Any) -> bool:
    """Whether a field that we want is not as we want it. What others added, or the API server
    defaulted, is left.
    """
    if isinstance(wanted, dict):
        return not isinstance(live, dict) or any(differs(v, live.get(k)) for k, v in wanted.items())
    if isinstance(wanted, list):
        if not isinstance(live, list) or len(wanted) != len(live):
            return True
        if wanted and isinstance(wanted[0], dict) and "uid" in wanted[0]:
            wanted, live = (
                sorted(items, key=lambda item: str(item["uid"])) for items in (wanted, live)
            )
        return any(differs(a, b) for a, b in zip(wanted, live, strict=True))
    return bool(wanted != live)


def controller_uid(obj: Raw) -> str | None:
    """The uid of the object's controlling owner."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def desired(node: NodeRef, defaults: Defaults) -> list[Manifest]:
    """Everything but the pod."""
    wanted = [render.ring_service(node), render.api_service(node)]
    wanted.extend(
        m
        for m in (render.cache_claim(node), render.network_policy(node, defaults))
        if m is not None
    )
    return wanted


def conflicts(node: NodeRef, observed: Observed, defaults: Defaults) -> list[Conflict]:
    """The names we need that other owners hold."""
    found = list(observed.taken)
    uid = node.raw["metadata"]["uid"]
    for manifest in [*desired(node, defaults), {"kind": "Pod", "metadata": {"name": node.name}}]:
        live = observed.get(manifest["kind"], node.namespace, manifest["metadata"]["name"])
        if live is None or "deletionTimestamp" in live["metadata"]:
            continue
        owner = controller_uid(live)
        if owner is not None and owner != uid:
            found.append(Conflict(manifest["kind"], manifest["metadata"]["name"]))
    return found


def plan(node: NodeRef, observed: Observed, defaults: Defaults) -> list[Action]:
    """What to do now. Empty when all is as wanted, or when there is nothing to do but wait."""
    if "deletionTimestamp" in node.raw["metadata"]:
        return []
    blocked = {(c.kind, c.name) for c in conflicts(node, observed, defaults)}
    actions: list[Action] = []
    for manifest in desired(node, defaults):
        name = manifest["metadata"]["name"]
        if (manifest["kind"], name) in blocked:
            continue
        live = observed.get(manifest["kind"], node.namespace, name)
        if live is None:
            actions.append(Apply(manifest, "missing"))
        elif "deletionTimestamp" not in live["metadata"] and differs(manifest, live):
            actions.append(Apply(manifest, "differs"))
    actions.extend(_unwanted_policy(node, observed, defaults))
    if ("Pod", node.name) not in blocked:
        actions.extend(_pod_actions(node, observed, defaults))
    return actions


def _unwanted_policy(node: NodeRef, observed: Observed, defaults: Defaults) -> Iterator[Action]:
    live = observed.get("NetworkPolicy", node.namespace, node.name)
    if (
        live is None
        or render.network_policy(node, defaults) is not None
        or "deletionTimestamp" in live["metadata"]
    ):
        return
    if controller_uid(live) == node.raw["metadata"]["uid"]:
        uid = live["metadata"]["uid"]
        yield Delete(
            "NetworkPolicy", node.namespace, node.name, uid, "PolicyRemoved", "not wanted any more"
        )


def _pod_actions(node: NodeRef, observed: Observed, defaults: Defaults) -> Iterator[Action]:
    live = observed.get("Pod", node.namespace, node.name)
    if live is None:
        if not node.spec.suspend:
            yield from _new_pod(node, observed, defaults)
        return
    wanted = render_pod.pod(node, defaults)
    pod = PodView(live)

    def delete(reason: str, why: str, grace: int | None = None) -> Delete:
        return Delete("Pod", node.namespace, node.name, pod.uid, reason, why, grace)

    if pod.deleting:
        if overdue(live, observed.now):
            yield delete("PodForced", "its machine did not end it in its grace period", 0)
    elif node.spec.suspend:
        yield delete("Suspended", "suspended")
    elif pod.finished:
        yield delete("PodFinished", f"pod ended in phase {pod.phase}")
    elif pod.spec_hash != wanted["metadata"]["annotations"][names.ANNOTATION_SPEC_HASH]:
        yield delete("SpecChanged", "made from an older spec")
    elif plan_secret.misses_it(node, pod):
        yield plan_secret.make(node)
    elif pod.has_ring_gate:
        yield from _gate(node, pod, observed)


def _new_pod(node: NodeRef, observed: Observed, defaults: Defaults) -> Iterator[Action]:
    """The secret first: a pod that reads one that is not there waits for it."""
    peers = [str(member["metadata"]["name"]) for member in node.members]
    pods = [observed.get("Pod", node.namespace, name) for name in peers if name != node.name]
    secret = plan_secret.for_pod(node, [pod for pod in pods if pod is not None])
    if plan_secret.is_ours(node, secret):
        yield plan_secret.make(node)
    yield Apply(render_pod.pod(node, defaults, secret), "missing")


def overdue(pod: Raw, now: datetime) -> bool:
    """Whether the pod's grace period ended a while ago. `deletionTimestamp` already counts the
    grace in.
    """
    end = datetime.fromisoformat(pod["metadata"]["deletionTimestamp"].replace("Z", "+00:00"))
    return now - end > OVERDUE


def _gate(node: NodeRef, pod: PodView, observed: Observed) -> Iterator[Action]:
    """Open the gate when the node itself says that its ring is formed; close it when it has said
    for a while that it is
    not: a ring that plans anew holds its requests for a moment, and its nodes should stay behind
        their Service.
    """
    report = observed.report
    if not report.reachable or report.ring_formed is None:
        return
    condition = pod.condition(contract.RING_FORMED_GATE)
    now = condition.get("status") if condition is not None else None
    if report.ring_formed and now != "True":
        yield SetGate(
            node.namespace, node.name, pod.uid, True, "RingFormed", f"epoch {report.ring_epoch}"
        )
    elif not report.ring_formed and (
        now is None or (now == "True" and observed.unformed_s >= UNFORMED_AFTER_S)
    ):
        yield SetGate(node.namespace, node.name, pod.uid, False, "RingForming", "")
