"""What the operator decides to do for an ExoCluster."""

from __future__ import annotations

from datetime import timedelta

from exo_operator.exocluster import plan
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.snapshot import ClusterSnapshot
from exo_operator.kube.actions import Apply, Delete

from ..cluster_builders import child, exocluster_of, snapshot_of


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


def test_a_failed_exocluster_stops_all_its_nodes_at_once_and_drops_its_disruption_budget() -> None:
    exocluster = exocluster_of({"nodes": 3})
    children = [child(exocluster, index) for index in range(3)]
    look = snapshot_of(exocluster, *children, failed=True)
    done = actions(exocluster, look)
    assert done == [
        "delete PodDisruptionBudget ring",
        *(f"apply ExoNode ring-{index}" for index in range(3)),
    ]


def test_an_exonode_of_another_owner_with_the_name_of_a_child_is_left_alone() -> None:
    exocluster = exocluster_of()
    theirs = child(exocluster, 1)
    theirs["metadata"]["ownerReferences"] = []
    seen = snapshot_of(exocluster, theirs)
    assert seen.children == ()
    assert "apply ExoNode ring-1" not in actions(exocluster, seen)
