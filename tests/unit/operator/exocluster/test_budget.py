"""The restart budget of an ExoCluster: when it is used up, and what gives it back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.api.fields import timestamp

from ..builders import NOW
from ..cluster_builders import budget_of, child, exocluster_of


def past(status_: str, generation: int = 4, **fields: Any) -> dict[str, Any]:
    condition = {
        "type": "Failed",
        "status": status_,
        "reason": "RestartBudgetUsedUp",
        "observedGeneration": generation,
        "lastTransitionTime": timestamp(NOW),
    }
    return {"status": {"conditions": [condition], **fields}}


def test_restarts_beyond_the_budget_fail_the_exocluster() -> None:
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
