"""What an ExoNode's status says, for everything that can happen to its pod."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from exo_operator.api.conditions import NodeCondition, NodeReason, Verdict, conditions, flips
from exo_operator.api.fields import timestamp
from exo_operator.api.status import Condition
from exo_operator.exonode import status
from exo_operator.exonode.report import NodeReport
from exo_operator.kube.actions import Conflict
from exo_operator.kube.objects import Raw

from ..builders import DEFAULTS, NOW, container, exonode, node_ref, not_ready, pod_of, snapshot_of

UP = NodeReport(reachable=True, ready=True)


def written(raw: Raw, *objects: Raw, **more: Any) -> Raw:
    """The status as it goes over the wire."""
    node = node_ref(raw)
    return status.node_status(node, snapshot_of(node, *objects, **more), DEFAULTS).to_wire()


def of(raw: Raw, *objects: Raw, **more: Any) -> dict[str, Raw]:
    """The conditions by type."""
    made = written(raw, *objects, **more)
    return {condition["type"]: condition for condition in made["conditions"]}


def said(condition: dict[str, Any]) -> tuple[str, str]:
    return condition["status"], condition["reason"]


def test_a_healthy_node_is_ready_in_every_respect() -> None:
    raw = exonode()
    conditions = of(raw, pod_of(node_ref(raw)), report=UP)
    assert {type_: said(c) for type_, c in conditions.items()} == {
        "Ready": ("True", "Ready"),
        "Scheduled": ("True", "Scheduled"),
        "ModelLoaded": ("True", "Loaded"),
        "Healthy": ("True", "AllHealthy"),
        "Draining": ("False", "NotDraining"),
    }
    assert {c["observedGeneration"] for c in conditions.values()} == {3}


def test_without_a_pod_nothing_is_ready_and_the_reason_says_so() -> None:
    conditions = of(exonode())
    assert said(conditions["Ready"]) == ("False", "PodMissing")
    suspended = of(exonode(spec={"model": {"name": "smollm2-135m"}, "suspend": True}))
    assert said(suspended["Ready"]) == ("False", "Suspended")


WAITING = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
CRASHED = {
    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
    "lastState": {
        "terminated": {
            "exitCode": 1,
            "reason": "Error",
            "message": "line one\nmodel file is truncated",
        }
    },
}
JSON_LOG = {
    "state": {
        "terminated": {"exitCode": 3, "reason": "Error", "message": '{"event": "out of memory"}'}
    }
}
UNSCHEDULED = [
    {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 machines fit",
    }
]


@pytest.mark.parametrize(
    ("pod", "reason", "message"),
    [
        (
            {"phase": "Pending", "conditions": UNSCHEDULED, "containerStatuses": []},
            "Unschedulable",
            "0/3 machines fit",
        ),
        ({"containerStatuses": container(**WAITING)}, "ImagePullBackOff", "no such image"),
        (
            {"containerStatuses": container(**CRASHED)},
            "CrashLoopBackOff",
            "model file is truncated",
        ),
        (
            {"containerStatuses": container(**JSON_LOG)},
            "ContainerEnded",
            "last exit code 3, Error: out of memory",
        ),
        (
            {"containerStatuses": container(state={"running": {}})},
            "Loading",
            "the model is being loaded",
        ),
        ({"containerStatuses": []}, "ContainerCreating", "not started"),
        ({"conditions": not_ready("probe failed")}, "PodNotReady", "probe failed"),
    ],
)
def test_ready_is_false_with_the_first_reason_on_the_way(
    pod: dict[str, Any], reason: str, message: str
) -> None:
    raw = exonode()
    live = pod_of(node_ref(raw), **pod)
    if reason == "Unschedulable":
        del live["spec"]["nodeName"]
    ready = of(raw, live)["Ready"]
    assert said(ready) == ("False", reason)
    assert message in ready["message"]


def test_a_failing_resource_is_named_even_before_the_kubelet_noticed() -> None:
    raw = exonode()
    report = NodeReport(reachable=True, ready=False, failing={"stage-paris": "forced", "api": ""})
    conditions = of(raw, pod_of(node_ref(raw)), report=report)
    assert said(conditions["Ready"]) == ("False", "ResourceUnhealthy")
    assert conditions["Ready"]["message"] == "api; stage-paris: forced"
    assert said(conditions["Healthy"]) == ("False", "ResourceUnhealthy")


def test_a_node_that_stopped_answering_is_unreachable_after_two_questions() -> None:
    raw = exonode()
    pod = pod_of(node_ref(raw))
    assert said(of(raw, pod, misses=1)["Ready"]) == ("True", "Ready")
    assert said(of(raw, pod, misses=2)["Ready"]) == ("False", "Unreachable")


def test_a_node_that_nobody_can_ask_is_believed_to_its_probes() -> None:
    raw = exonode()
    conditions = of(raw, pod_of(node_ref(raw)), report=NodeReport())
    assert said(conditions["Ready"]) == ("True", "Ready")
    assert said(conditions["Healthy"]) == ("True", "ProbesPass")


def test_a_pod_of_an_older_spec_is_never_ready_for_the_new_one() -> None:
    old, new = exonode(), exonode(spec={"model": {"name": "smollm2-135m"}, "engine": "onnx"})
    assert said(of(new, pod_of(node_ref(old)), report=UP)["Ready"]) == ("False", "Replacing")


def test_a_pod_in_deletion_drains_and_is_not_ready() -> None:
    raw = exonode()
    pod = pod_of(node_ref(raw))
    pod["metadata"]["deletionTimestamp"] = "2030-01-01T12:00:30Z"
    conditions = of(raw, pod, report=UP)
    assert said(conditions["Ready"]) == ("False", "Draining")
    assert said(conditions["Draining"]) == ("True", "PodTerminating")


def test_a_taken_name_is_told() -> None:
    ready = of(exonode(), found=(Conflict("Service", "paris"),))["Ready"]
    assert said(ready) == ("False", "NameTaken")
    assert "Service paris" in ready["message"]


def test_ring_joined_is_there_only_for_a_node_of_a_ring_and_tells_the_epoch() -> None:
    raw = exonode(spec={"model": {"name": "smollm2-135m"}, "cluster": "ring"})
    assert "RingJoined" not in of(exonode())
    formed = replace(UP, ring_formed=True, ring_epoch="abc", ring_size=3)
    joined = of(raw, pod_of(node_ref(raw)), report=formed)["RingJoined"]
    assert said(joined) == ("True", "RingFormed")
    assert "abc" in joined["message"]
    waiting = of(
        raw, pod_of(node_ref(raw), conditions=not_ready()), report=replace(UP, ring_formed=False)
    )
    assert said(waiting["Ready"]) == ("False", "RingForming")


def test_transition_times_move_only_when_the_status_flips() -> None:
    earlier = NOW - timedelta(hours=1)
    first, second, third = NodeCondition.READY, NodeCondition.HEALTHY, NodeCondition.DRAINING
    previous = [
        Condition(type=first, status="True", reason="Old", last_transition_time=earlier),
        Condition(type=second, status="False", reason="Old", last_transition_time=earlier),
    ]
    verdicts = {type_: Verdict(True, NodeReason.LOADED) for type_ in (first, second, third)}
    made = conditions(verdicts, previous, 1, NOW)
    times = {each.type: each.last_transition_time for each in made}
    assert times == {first: earlier, second: NOW, third: NOW}
    assert [each.type for each in flips(previous, made)] == [second]
    assert made[0].model_dump(by_alias=True, mode="json")["lastTransitionTime"] == timestamp(
        earlier
    )


def test_the_status_of_a_quiet_node_does_not_change_with_small_figures() -> None:
    raw = exonode()
    pod = pod_of(node_ref(raw))
    report = replace(
        UP, layers=(0, 29), total_layers=30, tokens_per_second=50.0, used_mib=400, ttft_ms=90.0
    )
    first = written(raw, pod, report=report)
    raw["status"] = first
    later = replace(report, tokens_per_second=53.0, used_mib=410, ttft_ms=None)
    assert written(raw, pod, report=later) == first
    much = written(raw, pod, report=replace(report, tokens_per_second=90.0))
    assert much["measured"]["tokensPerSecond"] == 90.0


def test_figures_stay_while_the_same_pod_is_silent_and_go_with_it() -> None:
    raw = exonode()
    pod = pod_of(node_ref(raw))
    report = replace(UP, layers=(0, 14), total_layers=30)
    raw["status"] = written(raw, pod, report=report)
    assert raw["status"]["layers"] == {"start": 0, "end": 14, "text": "0-14", "total": 30}
    silent = written(raw, pod)
    assert silent["layers"]["text"] == "0-14"
    pod["status"]["podIP"] = "10.0.0.8"
    assert "layers" not in written(raw, pod)
