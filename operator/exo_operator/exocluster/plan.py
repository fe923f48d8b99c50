"""Decides what to do for an ExoCluster: which ExoNodes to make, change and delete, and in which
order. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from exo_operator.api import names
from exo_operator.api.spec import ExoNodeSpec
from exo_operator.exocluster import objects as render_ring
from exo_operator.exocluster.objects import RingRef
from exo_operator.exonode.objects import Manifest
from exo_operator.exonode.plan import (
    Action,
    Apply,
    Conflict,
    Delete,
    Lookup,
    controller_uid,
    differs,
)
from exo_operator.kube.store import Raw

# A node that was not Ready for this long does not come back by itself.
STUCK_AFTER: Final = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class RingObserved:
    """The world around one ExoCluster. `children` are the ExoNodes that it controls."""

    get: Lookup
    now: datetime
    children: Sequence[Raw]
    taken: tuple[Conflict, ...] = ()
    # The restart budget is used up: the nodes are stopped until somebody clears it.
    failed: bool = False

    def stopped(self, ring: RingRef) -> bool:
        return ring.spec.suspend or self.failed


def condition(obj: Raw, type_: str) -> Raw | None:
    """A condition of a custom resource."""
    found = (obj.get("status") or {}).get("conditions") or ()
    return next((c for c in found if c.get("type") == type_), None)


def is_ready(child: Raw) -> bool:
    """Ready, and this for the child's current spec."""
    ready = condition(child, "Ready")
    if ready is None or ready.get("status") != "True" or "deletionTimestamp" in child["metadata"]:
        return False
    return bool(ready.get("observedGeneration") == child["metadata"].get("generation"))


def is_current(manifest: Manifest, live: Raw) -> bool:
    """Whether a child's spec is the wanted one, defaults filled in on both sides."""
    wanted = ExoNodeSpec.model_validate(manifest["spec"])
    return wanted == ExoNodeSpec.model_validate(live.get("spec") or {})


def conflicts(ring: RingRef, observed: RingObserved) -> list[Conflict]:
    """Names we need that other owners hold."""
    found = list(observed.taken)
    wanted = [("Service", ring.name)]
    wanted.extend(
        (names.KIND_NODE, names.child_node(ring.name, index)) for index in range(ring.spec.nodes)
    )
    for kind, name in wanted:
        live = observed.get(kind, ring.namespace, name)
        if (
            live is not None
            and controller_uid(live) != ring.uid
            and "deletionTimestamp" not in live["metadata"]
        ):
            found.append(Conflict(kind, name))
    return found


def plan(ring: RingRef, observed: RingObserved) -> list[Action]:
    """What to do now."""
    if "deletionTimestamp" in ring.raw["metadata"]:
        return []
    blocked = {(conflict.kind, conflict.name) for conflict in conflicts(ring, observed)}
    return [
        *_front(ring, observed, blocked),
        *_scale(ring, observed, blocked),
        *_roll(ring, observed),
    ]


def _front(
    ring: RingRef, observed: RingObserved, blocked: set[tuple[str, str]]
) -> Iterator[Action]:
    budget = render_ring.disruption_budget(ring, stopped=observed.stopped(ring))
    for manifest in (render_ring.service(ring), budget):
        if manifest is None or (manifest["kind"], ring.name) in blocked:
            continue
        live = observed.get(manifest["kind"], ring.namespace, ring.name)
        if live is None:
            yield Apply(manifest, "missing")
        elif "deletionTimestamp" not in live["metadata"] and differs(manifest, live):
            yield Apply(manifest, "differs")
    old = observed.get("PodDisruptionBudget", ring.namespace, ring.name)
    if budget is None and old is not None and controller_uid(old) == ring.uid:
        uid = old["metadata"]["uid"]
        yield Delete(
            "PodDisruptionBudget",
            ring.namespace,
            ring.name,
            uid,
            "BudgetRemoved",
            "it would allow all",
        )


def _scale(
    ring: RingRef, observed: RingObserved, blocked: set[tuple[str, str]]
) -> Iterator[Action]:
    wanted = {names.child_node(ring.name, index): index for index in range(ring.spec.nodes)}
    for child in observed.children:
        metadata = child["metadata"]
        if metadata["name"] not in wanted and "deletionTimestamp" not in metadata:
            yield Delete(
                names.KIND_NODE,
                ring.namespace,
                metadata["name"],
                metadata["uid"],
                "ScaledDown",
                "scaled down",
            )
    for name, index in wanted.items():
        missing = observed.get(names.KIND_NODE, ring.namespace, name) is None
        if missing and (names.KIND_NODE, name) not in blocked:
            yield Apply(render_ring.node(ring, index, stopped=observed.stopped(ring)), "missing")


def outdated(ring: RingRef, observed: RingObserved) -> list[tuple[Manifest, Raw]]:
    """The children whose spec is not the wanted one, with what they should be."""
    found = []
    for index in range(ring.spec.nodes):
        manifest = render_ring.node(ring, index, stopped=observed.stopped(ring))
        live = observed.get(names.KIND_NODE, ring.namespace, manifest["metadata"]["name"])
        if (
            live is None
            or controller_uid(live) != ring.uid
            or "deletionTimestamp" in live["metadata"]
        ):
            continue
        if not is_current(manifest, live):
            found.append((manifest, live))
    return found


def _roll(ring: RingRef, observed: RingObserved) -> Iterator[Action]:
    """Change children one after another, the last index first, while enough of the others work.

    A child that has not worked for a while is changed at once: that costs nothing, and lets a
    broken spec be corrected. One that is not Ready only for a moment, as its ring plans anew, is
    waited for.
    """
    old = outdated(ring, observed)
    if observed.stopped(ring):
        yield from (Apply(manifest, "stop") for manifest, _ in old)
        return
    yield from (
        Apply(manifest, "spec changed") for manifest, live in old if _is_stuck(live, observed.now)
    )
    working = [manifest for manifest, live in old if is_ready(live)]
    missing = ring.spec.nodes - sum(1 for child in observed.children if is_ready(child))
    spare = max(0, ring.spec.strategy.max_unavailable - missing)
    yield from (Apply(manifest, "spec changed") for manifest in working[::-1][:spare])


def _is_stuck(child: Raw, now: datetime) -> bool:
    ready = condition(child, "Ready")
    if ready is None or is_suspended(child):
        return True
    since = datetime.fromisoformat(str(ready["lastTransitionTime"]).replace("Z", "+00:00"))
    return ready.get("status") != "True" and now - since > STUCK_AFTER


def is_suspended(child: Raw) -> bool:
    """Whether the child was told to have no pod."""
    return bool((child.get("spec") or {}).get("suspend"))
