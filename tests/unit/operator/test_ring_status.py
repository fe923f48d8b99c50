"""What an ExoCluster's status says of its members, its plan and its restart budget."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.api.spec import ExoClusterSpec
from exo_operator.exocluster import objects as render_ring
from exo_operator.exocluster import plan as plan_ring
from exo_operator.exocluster import status as status_ring
from exo_operator.exocluster.objects import RingRef
from exo_operator.exocluster.plan import RingObserved
from exo_operator.exonode import status
from exo_operator.exonode.plan import Apply, Delete
from exo_operator.kube.store import Store

from .builders import NOW


def ring_of(spec: dict[str, Any] | None = None, **extra: Any) -> RingRef:
    wanted = {"model": {"name": "smollm2-135m"}, "nodes": 2} | (spec or {})
    metadata = {"name": "ring", "namespace": "default", "uid": "uid-ring", "generation": 4}
    raw = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_CLUSTER,
        "metadata": metadata,
        "spec": wanted,
    }
    return RingRef(raw=raw | extra, spec=ExoClusterSpec.model_validate(wanted))


def child(
    ring: RingRef,
    index: int,
    *,
    ready: bool = True,
    since: timedelta = timedelta(0),
    **status_: Any,
) -> dict[str, Any]:
    made = render_ring.node(ring, index, stopped=False)
    made["metadata"] |= {"uid": f"uid-{index}", "generation": 1, "resourceVersion": "5"}
    condition = {
        "type": "Ready",
        "status": str(ready),
        "reason": "Ready" if ready else "Loading",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": status.timestamp(NOW - since),
    }
    return made | {"status": {"conditions": [condition], **status_}}


def observed(ring: RingRef, *children: dict[str, Any], failed: bool = False) -> RingObserved:
    store = Store()
    for obj in (
        *children,
        render_ring.service(ring),
        render_ring.disruption_budget(ring, stopped=False),
    ):
        if obj is not None:
            store.put(obj)
    return RingObserved(get=store.get, now=NOW, children=children, failed=failed)


def said(ring: RingRef, *children: dict[str, Any]) -> dict[str, tuple[str, str]]:
    look = observed(ring, *children)
    made = status_ring.ring_status(ring, look, status_ring.budget(ring, list(children), NOW))
    return {
        condition["type"]: (condition["status"], condition["reason"])
        for condition in made["conditions"]
    }


def layers(start: int, end: int, total: int = 30) -> dict[str, Any]:
    return {
        "layers": {"start": start, "end": end, "text": f"{start}-{end}", "total": total},
        "ringEpoch": "e1",
    }


def test_two_ready_nodes_that_hold_all_layers_are_a_ready_ring_with_a_valid_plan() -> None:
    ring = ring_of()
    conditions = said(ring, child(ring, 0, **layers(0, 14)), child(ring, 1, **layers(15, 29)))
    assert conditions == {
        "Ready": ("True", "Ready"),
        "Available": ("True", "Serving"),
        "Progressing": ("False", "UpToDate"),
        "Degraded": ("False", "AllNodesReady"),
        "PlanValid": ("True", "LayersCovered"),
        "Failed": ("False", "WithinBudget"),
        "Suspended": ("False", "Running"),
    }


def test_one_of_two_nodes_is_available_and_degraded_but_not_ready() -> None:
    ring = ring_of()
    conditions = said(ring, child(ring, 0, **layers(0, 29)), child(ring, 1, ready=False))
    assert conditions["Ready"] == ("False", "NodesNotReady")
    assert conditions["Available"][0] == "True"
    assert conditions["Degraded"][0] == "True"


@pytest.mark.parametrize(
    ("slices", "reason"),
    [
        ([(0, 14), (16, 29)], "LayersNotCovered"),
        ([(0, 14), (14, 29)], "LayersNotCovered"),
        ([(0, 14), (15, 28)], "LayersNotCovered"),
        ([(1, 14), (15, 29)], "LayersNotCovered"),
    ],
)
def test_a_plan_with_a_gap_an_overlap_or_a_missing_end_is_not_valid(
    slices: list[tuple[int, int]], reason: str
) -> None:
    ring = ring_of()
    children = [child(ring, index, **layers(*each)) for index, each in enumerate(slices)]
    assert said(ring, *children)["PlanValid"] == ("False", reason)


def test_nodes_on_two_plans_are_told() -> None:
    ring = ring_of()
    children = [
        child(ring, 0, **layers(0, 14)),
        child(ring, 1, **(layers(15, 29) | {"ringEpoch": "e2"})),
    ]
    assert said(ring, *children)["PlanValid"] == ("False", "EpochsDiffer")


def test_a_child_that_is_ready_for_an_older_spec_does_not_count() -> None:
    ring = ring_of()
    stale = child(ring, 1)
    stale["metadata"]["generation"] = 2
    assert said(ring, child(ring, 0), stale)["Ready"] == ("False", "NodesNotReady")


def test_members_show_their_layers_and_what_is_wrong_with_them() -> None:
    ring = ring_of()
    children = (child(ring, 0, **layers(0, 14)), child(ring, 1, ready=False, nodeName="machine-2"))
    made = status_ring.ring_status(
        ring, observed(ring, *children), status_ring.Budget(0, 0, "", False)
    )
    assert made["members"] == [
        {"name": "ring-0", "ready": True, "layers": "0-14"},
        {"name": "ring-1", "ready": False, "reason": "Loading", "nodeName": "machine-2"},
    ]


def test_members_stand_in_the_order_of_their_index() -> None:
    ring = ring_of({"nodes": 11})
    children = [child(ring, index) for index in (10, 9, 1, 0, 2, 3, 4, 5, 6, 7, 8)]
    made = status_ring.ring_status(
        ring, observed(ring, *children), status_ring.Budget(0, 0, "", False)
    )
    assert [member["name"] for member in made["members"]] == [
        f"ring-{index}" for index in range(11)
    ]


def past(status_: str, generation: int = 4, **fields: Any) -> dict[str, Any]:
    condition = {"type": "Failed", "status": status_, "observedGeneration": generation}
    return {"status": {"conditions": [condition], **fields}}


def test_restarts_beyond_the_budget_fail_the_ring() -> None:
    ring = ring_of({"restart": {"maxRestarts": 3}})
    within = [child(ring, 0, restarts=2), child(ring, 1, restarts=1)]
    beyond = [child(ring, 0, restarts=2), child(ring, 1, restarts=2)]
    assert status_ring.budget(ring, within, NOW).failed is False
    assert status_ring.budget(ring, beyond, NOW) == (4, 0, "", True)


def test_a_budget_of_zero_is_no_limit() -> None:
    ring = ring_of({"restart": {"maxRestarts": 0}})
    assert status_ring.budget(ring, [child(ring, 0, restarts=999)], NOW).failed is False


def test_failed_holds_without_pods_and_is_cleared_by_a_new_spec_or_annotation() -> None:
    held = ring_of(**past("True", restarts=11))
    assert status_ring.budget(held, [child(held, 0)], NOW) == (11, 0, "", True)
    respecified = ring_of(**past("True", generation=3, restarts=11))
    assert status_ring.budget(respecified, [child(held, 0)], NOW).failed is False
    annotated = ring_of(**past("True", restarts=11))
    annotated.raw["metadata"]["annotations"] = {names.ANNOTATION_RETRY: "now"}
    assert status_ring.budget(annotated, [child(held, 0)], NOW) == (0, 0, "now", False)


@pytest.mark.parametrize(("minutes", "used"), [(9, 5), (11, 0)])
def test_ten_minutes_of_being_ready_give_the_budget_back(minutes: int, used: int) -> None:
    ready = {
        "type": "Ready",
        "status": "True",
        "lastTransitionTime": status.timestamp(NOW - timedelta(minutes=minutes)),
    }
    ring = ring_of(status={"conditions": [ready]})
    assert status_ring.budget(ring, [child(ring, 0, restarts=5)], NOW).used == used


def actions(ring: RingRef, look: RingObserved) -> list[str]:
    found = []
    for action in plan_ring.plan(ring, look):
        if isinstance(action, Apply):
            found.append(f"apply {action.manifest['kind']} {action.manifest['metadata']['name']}")
        elif isinstance(action, Delete):
            found.append(f"delete {action.kind} {action.name}")
    return found


def changed(ring: RingRef) -> RingRef:
    return ring_of(ring.raw["spec"] | {"template": {"engine": "onnx"}})


def test_a_roll_starts_with_the_last_node_and_takes_as_many_as_allowed() -> None:
    ring = ring_of({"nodes": 4})
    children = [child(ring, index) for index in range(4)]
    assert actions(changed(ring), observed(ring, *children)) == ["apply ExoNode ring-3"]
    two = ring_of({"nodes": 4, "strategy": {"maxUnavailable": 2}})
    assert actions(changed(two), observed(ring, *children)) == [
        "apply ExoNode ring-3",
        "apply ExoNode ring-2",
    ]


def test_a_roll_waits_while_a_node_is_not_ready_for_a_moment() -> None:
    ring = ring_of({"nodes": 3})
    children = [
        child(ring, 0),
        child(ring, 1, ready=False, since=timedelta(seconds=5)),
        child(ring, 2),
    ]
    assert actions(changed(ring), observed(ring, *children)) == []


def test_a_node_that_has_long_been_broken_is_changed_at_once() -> None:
    ring = ring_of({"nodes": 3})
    children = [
        child(ring, index, ready=index == 0, since=timedelta(minutes=1)) for index in range(3)
    ]
    assert actions(changed(ring), observed(ring, *children)) == [
        "apply ExoNode ring-1",
        "apply ExoNode ring-2",
    ]


def test_defaults_that_the_server_filled_in_are_no_change() -> None:
    ring = ring_of()
    filled = child(ring, 0)
    filled["spec"] |= {
        "engine": "auto",
        "probes": {"protocol": "HTTP", "readinessPeriodSeconds": 2},
        "suspend": False,
    }
    assert actions(ring, observed(ring, filled, child(ring, 1))) == []


def test_a_failed_ring_stops_all_its_nodes_at_once_and_drops_its_budget() -> None:
    ring = ring_of({"nodes": 3})
    children = [child(ring, index) for index in range(3)]
    look = observed(ring, *children, failed=True)
    budget = look.get("PodDisruptionBudget", "default", "ring")
    assert budget is not None
    budget["metadata"]["uid"] = "uid-pdb"
    done = actions(ring, look)
    assert done == [
        "delete PodDisruptionBudget ring",
        *(f"apply ExoNode ring-{index}" for index in range(3)),
    ]


def test_an_exonode_of_somebody_else_with_a_childs_name_is_left_alone() -> None:
    ring = ring_of()
    theirs = child(ring, 1)
    theirs["metadata"]["ownerReferences"] = []
    store = Store()
    store.put(theirs)
    look = RingObserved(get=store.get, now=NOW, children=())
    assert "apply ExoNode ring-1" not in actions(ring, look)
    made = status_ring.ring_status(ring, look, status_ring.Budget(0, 0, "", False))
    assert made["conditions"][0]["reason"] == "NameTaken"
