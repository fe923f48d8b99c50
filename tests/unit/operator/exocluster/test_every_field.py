"""Every field of an ExoCluster's spec reaches an object or a decision, and every field of its
status is written.

A field that is added to a model and forgotten elsewhere fails here. The fields of `spec.template`
are those of an ExoNode, and are tested there.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from exo_operator.api.conditions import ClusterCondition
from exo_operator.exocluster import objects, plan
from exo_operator.exocluster.conditions import Tally, verdicts
from exo_operator.exocluster.context import ClusterRef
from exo_operator.exocluster.status import cluster_status

from ..cluster_builders import budget_of, child, exocluster_of, layers, snapshot_of
from ..schemas import check_status, leaves, put, schema_of, unset

# One other value for each field.
EXAMPLES: dict[str, Any] = {
    "nodes": 4,
    "model": {"hf": "owner/name"},
    "template": {"engine": "numpy"},
    "strategy.maxUnavailable": 2,
    "disruption.maxUnavailable": 2,
    "restart.maxRestarts": 1,
    "suspend": True,
}
# There is one value to choose from.
FIXED = {"strategy.type"}


def outcome(exocluster: ClusterRef) -> Any:
    """Everything that a spec leads to: objects, the roll of a change, and the restart budget."""
    stopped = exocluster.spec.suspend
    before = exocluster_of({"nodes": 3, "template": {"image": "old:1"}})
    children = [child(before, index, restarts=1) for index in range(3)]
    return (
        objects.node(exocluster, 0, stopped=stopped),
        objects.service(exocluster),
        objects.disruption_budget(exocluster, stopped=stopped),
        len(plan.plan(exocluster, snapshot_of(exocluster, *children))),
        budget_of(exocluster, *children).failed,
    )


def test_there_is_an_example_of_every_field() -> None:
    fields = {
        path if path.split(".")[0] not in ("model", "template") else path.split(".")[0]
        for path in leaves(schema_of("ExoCluster")["properties"]["spec"])
    }
    assert set(EXAMPLES) | FIXED == fields


@pytest.mark.parametrize("path", EXAMPLES)
def test_every_field_of_the_spec_changes_something(path: str) -> None:
    base = {"nodes": 3, "model": {"name": "smollm2-135m"}}
    changed = copy.deepcopy(base)
    put(changed, path, EXAMPLES[path])
    assert outcome(exocluster_of(changed)) != outcome(exocluster_of(base))


def test_every_field_of_the_status_is_written() -> None:
    exocluster = exocluster_of()
    facts = layers(0, 29) | {"nodeName": "machine-1"}
    children = [child(exocluster, 0, **facts), child(exocluster, 1, ready=False, **facts)]
    status = cluster_status(exocluster, snapshot_of(exocluster, *children))
    # The next retry is written only when a reconcile has failed; a ready member has no reason.
    assert set(unset(status)) == {"next_retry_time", "members.reason"}
    assert status.members[1].reason == "Loading"
    check_status("ExoCluster", status.to_wire())


def test_every_condition_is_written_in_its_order() -> None:
    exocluster = exocluster_of()
    seen = snapshot_of(exocluster)
    found = verdicts(exocluster, seen, Tally.of(exocluster, seen, 0))
    assert list(found) == list(ClusterCondition)
