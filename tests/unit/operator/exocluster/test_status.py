"""What an ExoCluster's status says of its members, its plan and its restart budget."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.api.fields import timestamp
from exo_operator.exocluster import objects, plan, snapshot
from exo_operator.exocluster.budget import Budget, account
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.snapshot import ClusterSnapshot
from exo_operator.exocluster.status import cluster_status
from exo_operator.kube.actions import Apply, Delete
from exo_operator.kube.custom import NodeView
from exo_operator.kube.objects import Raw
from exo_operator.kube.store import Store

from ..builders import NOW


def exocluster_of(spec: dict[str, Any] | None = None, **extra: Any) -> ClusterRef:
    wanted = {"model": {"name": "smollm2-135m"}, "nodes": 2} | (spec or {})
    metadata = {"name": "ring", "namespace": "default", "uid": "uid-ring", "generation": 4}
    raw = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND_CLUSTER,
        "metadata": metadata,
        "spec": wanted,
    }
    return ClusterRef.of(raw | extra)


def child(
    exocluster: ClusterRef,
    index: int,
    *,
    ready: bool = True,
    since: timedelta = timedelta(0),
    **status: Any,
) -> dict[str, Any]:
    made = objects.node(exocluster, index, stopped=False)
    made["metadata"] |= {"uid": f"uid-{index}", "generation": 1, "resourceVersion": "5"}
    condition = {
        "type": "Ready",
        "status": str(ready),
        "reason": "Ready" if ready else "Loading",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": timestamp(NOW - since),
    }
    return made | {"status": {"conditions": [condition], **status}}


def snapshot_of(exocluster: ClusterRef, *children: Raw, failed: bool = False) -> ClusterSnapshot:
    """What a reconcile sees when the cache holds these children, the Service and the budget."""
    store = Store()
    for obj in (*children, objects.service(exocluster)):
        store.put(obj)
    budget = objects.disruption_budget(exocluster, stopped=False)
    if budget is not None:
        budget["metadata"]["uid"] = "uid-pdb"
        store.put(budget)
    seen = snapshot.take(store, exocluster, now=NOW)
    return replace(seen, budget=seen.budget._replace(failed=True)) if failed else seen


def budget_of(exocluster: ClusterRef, *children: Raw) -> Budget:
    return account(exocluster, [NodeView.of(each) for each in children], NOW)


def written(exocluster: ClusterRef, *children: Raw) -> Raw:
    """The status as it goes over the wire."""
    return cluster_status(exocluster, snapshot_of(exocluster, *children)).to_wire()


def said(exocluster: ClusterRef, *children: Raw) -> dict[str, tuple[str, str]]:
    return {
        condition["type"]: (condition["status"], condition["reason"])
        for condition in written(exocluster, *children)["conditions"]
    }


def layers(start: int, end: int, total: int = 30) -> dict[str, Any]:
    return {
        "layers": {"start": start, "end": end, "text": f"{start}-{end}", "total": total},
        "ringEpoch": "e1",
    }


def test_two_ready_nodes_that_hold_all_layers_are_a_ready_ring_with_a_valid_plan() -> None:
    exocluster = exocluster_of()
    conditions = said(
        exocluster, child(exocluster, 0, **layers(0, 14)), child(exocluster, 1, **layers(15, 29))
    )
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
    exocluster = exocluster_of()
    conditions = said(
        exocluster, child(exocluster, 0, **layers(0, 29)), child(exocluster, 1, ready=False)
    )
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
    exocluster = exocluster_of()
    children = [child(exocluster, index, **layers(*each)) for index, each in enumerate(slices)]
    assert said(exocluster, *children)["PlanValid"] == ("False", reason)


def test_nodes_on_two_plans_are_told() -> None:
    exocluster = exocluster_of()
    children = [
        child(exocluster, 0, **layers(0, 14)),
        child(exocluster, 1, **(layers(15, 29) | {"ringEpoch": "e2"})),
    ]
    assert said(exocluster, *children)["PlanValid"] == ("False", "EpochsDiffer")


def test_a_child_that_is_ready_for_an_older_spec_does_not_count() -> None:
    exocluster = exocluster_of()
    stale = child(exocluster, 1)
    stale["metadata"]["generation"] = 2
    assert said(exocluster, child(exocluster, 0), stale)["Ready"] == ("False", "NodesNotReady")


def test_members_show_their_layers_and_what_is_wrong_with_them() -> None:
    exocluster = exocluster_of()
    children = (
        child(exocluster, 0, **layers(0, 14)),
        child(exocluster, 1, ready=False, nodeName="machine-2"),
    )
    made = written(exocluster, *children)
    assert made["members"] == [
        {"name": "ring-0", "ready": True, "layers": "0-14"},
        {"name": "ring-1", "ready": False, "reason": "Loading", "nodeName": "machine-2"},
    ]


def test_members_stand_in_the_order_of_their_index() -> None:
    exocluster = exocluster_of({"nodes": 11})
    children = [child(exocluster, index) for index in (10, 9, 1, 0, 2, 3, 4, 5, 6, 7, 8)]
    made = written(exocluster, *children)
    assert [member["name"] for member in made["members"]] == [
        f"ring-{index}" for index in range(11)
    ]


def past(status_: str, generation: int = 4, **fields: Any) -> dict[str, Any]:
    condition = {
        "type": "Failed",
        "status": status_,
        "reason": "RestartBudgetUsedUp",
        "observedGeneration": generation,
        "lastTransitionTime": timestamp(NOW),
    }
    return {"status": {"conditions": [condition], **fields}}


def test_restarts_beyond_the_budget_fail_the_ring() -> None:
    exocluster = exocluster_of({"restart": {"maxRestarts": 3}})
    within = [child(exocluster, 0, restarts=2), child(exocluster, 1, restarts=1)]
    beyond = [child(exocluster, 0, restarts=2), child(exocluster, 1, restarts=2)]
    assert budget_of(exocluster, *within).failed is False
    assert budget_of(exocluster, *beyond) == (4, 0, "", True)


def test_a_budget_of_zero_is_no_limit() -> None:
    exocluster = exocluster_of({"restart": {"maxRestarts": 0}})
    assert budget_of(exocluster, child(exocluster, 0, restarts=999)).failed is False


def test_failed_holds_without_pods_and_is_cleared_by_a_new_spec_or_annotation() -> None:
    held = exocluster_of(**past("True", restarts=11))
    assert budget_of(held, child(held, 0)) == (11, 0, "", True)
    respecified = exocluster_of(**past("True", generation=3, restarts=11))
    assert budget_of(respecified, child(held, 0)).failed is False
    annotated = exocluster_of(**past("True", restarts=11))
    annotated.raw["metadata"]["annotations"] = {names.ANNOTATION_RETRY: "now"}
    assert budget_of(annotated, child(held, 0)) == (0, 0, "now", False)


@pytest.mark.parametrize(("minutes", "used"), [(9, 5), (11, 0)])
def test_ten_minutes_of_being_ready_give_the_budget_back(minutes: int, used: int) -> None:
    ready = {
        "type": "Ready",
        "status": "True",
        "reason": "Ready",
        "lastTransitionTime": timestamp(NOW - timedelta(minutes=minutes)),
    }
    exocluster = exocluster_of(status={"conditions": [ready]})
    assert budget_of(exocluster, child(exocluster, 0, restarts=5)).used == used


def actions(exocluster: ClusterRef, look: ClusterSnapshot) -> list[str]:
    found = []
    for action in plan.plan(exocluster, look):
        if isinstance(action, Apply):
            found.append(f"apply {action.manifest['kind']} {action.manifest['metadata']['name']}")
        elif isinstance(action, Delete):
            found.append(f"delete {action.kind} {action.name}")
    return found


def changed(exocluster: ClusterRef) -> ClusterRef:
    return exocluster_of(exocluster.raw["spec"] | {"template": {"engine": "onnx"}})


def test_a_roll_starts_with_the_last_node_and_takes_as_many_as_allowed() -> None:
    exocluster = exocluster_of({"nodes": 4})
    children = [child(exocluster, index) for index in range(4)]
    assert actions(changed(exocluster), snapshot_of(exocluster, *children)) == [
        "apply ExoNode ring-3"
    ]
    two = exocluster_of({"nodes": 4, "strategy": {"maxUnavailable": 2}})
    assert actions(changed(two), snapshot_of(exocluster, *children)) == [
        "apply ExoNode ring-3",
        "apply ExoNode ring-2",
    ]


def test_a_roll_waits_while_a_node_is_not_ready_for_a_moment() -> None:
    exocluster = exocluster_of({"nodes": 3})
    children = [
        child(exocluster, 0),
        child(exocluster, 1, ready=False, since=timedelta(seconds=5)),
        child(exocluster, 2),
    ]
    assert actions(changed(exocluster), snapshot_of(exocluster, *children)) == []


def test_a_node_that_has_long_been_broken_is_changed_at_once() -> None:
    exocluster = exocluster_of({"nodes": 3})
    children = [
        child(exocluster, index, ready=index == 0, since=timedelta(minutes=1)) for index in range(3)
    ]
    assert actions(changed(exocluster), snapshot_of(exocluster, *children)) == [
        "apply ExoNode ring-1",
        "apply ExoNode ring-2",
    ]


def test_defaults_that_the_server_filled_in_are_no_change() -> None:
    exocluster = exocluster_of()
    filled = child(exocluster, 0)
    filled["spec"] |= {
        "engine": "auto",
        "probes": {"protocol": "HTTP", "readinessPeriodSeconds": 2},
        "suspend": False,
    }
    assert actions(exocluster, snapshot_of(exocluster, filled, child(exocluster, 1))) == []


def test_a_failed_ring_stops_all_its_nodes_at_once_and_drops_its_budget() -> None:
    exocluster = exocluster_of({"nodes": 3})
    children = [child(exocluster, index) for index in range(3)]
    look = snapshot_of(exocluster, *children, failed=True)
    done = actions(exocluster, look)
    assert done == [
        "delete PodDisruptionBudget ring",
        *(f"apply ExoNode ring-{index}" for index in range(3)),
    ]


def test_an_exonode_of_somebody_else_with_a_childs_name_is_left_alone() -> None:
    exocluster = exocluster_of()
    theirs = child(exocluster, 1)
    theirs["metadata"]["ownerReferences"] = []
    look = snapshot_of(exocluster, theirs)
    assert look.children == ()
    assert "apply ExoNode ring-1" not in actions(exocluster, look)
    assert written(exocluster, theirs)["conditions"][0]["reason"] == "NameTaken"
