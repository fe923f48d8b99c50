"""What the status of an ExoCluster says about its members and its plan."""

from __future__ import annotations

import pytest
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.status import cluster_status
from exo_operator.kube.objects import Raw

from ..cluster_builders import child, exocluster_of, layers, snapshot_of


def written(exocluster: ClusterRef, *children: Raw) -> Raw:
    """The status as it goes over the wire."""
    return cluster_status(exocluster, snapshot_of(exocluster, *children)).to_wire()


def said(exocluster: ClusterRef, *children: Raw) -> dict[str, tuple[str, str]]:
    return {
        condition["type"]: (condition["status"], condition["reason"])
        for condition in written(exocluster, *children)["conditions"]
    }


def test_two_ready_nodes_that_hold_all_layers_are_a_ready_exocluster_with_a_valid_plan() -> None:
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


def test_nodes_on_two_plans_make_the_plan_invalid() -> None:
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


def test_members_are_in_the_order_of_their_index() -> None:
    exocluster = exocluster_of({"nodes": 11})
    children = [child(exocluster, index) for index in (10, 9, 1, 0, 2, 3, 4, 5, 6, 7, 8)]
    made = written(exocluster, *children)
    assert [member["name"] for member in made["members"]] == [
        f"ring-{index}" for index in range(11)
    ]


def test_a_name_that_another_owner_has_is_reported() -> None:
    exocluster = exocluster_of()
    theirs = child(exocluster, 1)
    theirs["metadata"]["ownerReferences"] = []
    assert written(exocluster, theirs)["conditions"][0]["reason"] == "NameTaken"
