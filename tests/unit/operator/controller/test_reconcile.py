"""Reconciling against an API server in memory: it converges, and then it writes nothing more."""

from __future__ import annotations

from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.api.names import Key
from exo_operator.exonode.report import NodeReport
from exo_operator.kube.client import Invalid, KubeError
from exo_operator.kube.objects import Ref

from ..fake_kube import FakeKube
from ..world import BUNDLED, World


class DyingKube(FakeKube):
    """Its caller does not live to see more than `allowed` writes."""

    def __init__(self, allowed: int) -> None:
        super().__init__()
        self.allowed: int | None = allowed

    async def apply(self, manifest: dict[str, Any]) -> dict[str, Any]:
        if self.allowed is not None and len(self.writes) >= self.allowed:
            raise OSError("killed")
        return await super().apply(manifest)


@pytest.fixture
def world() -> World:
    return World()


async def test_an_exonode_becomes_ready_and_then_nothing_is_written_any_more(world: World) -> None:
    key = world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    assert world.condition(key) == ("True", "Ready")
    assert world.names("Service") == ["paris", "paris-ring"]
    world.kube.writes.clear()
    await world.settle(3)
    assert world.kube.writes == []


async def test_a_restarted_operator_touches_nothing_that_is_as_it_should_be(world: World) -> None:
    world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    again = World(world.kube)
    world.kube.writes.clear()
    await again.settle(3)
    assert world.kube.writes == []


async def test_an_operator_killed_between_any_two_writes_converges_without_replacing_a_pod(
    world: World,
) -> None:
    """Each write of a first run becomes its last; a new operator with an empty cache goes on."""
    for allowed in range(1, 5):
        kube = DyingKube(allowed)
        first = World(kube)
        key = first.make("ExoNode", "paris", BUNDLED)
        await first.step()
        pod = first.live("Pod", "paris") if first.has("Pod", "paris") else None
        kube.allowed = None
        second = World(kube)
        await second.settle()
        assert second.condition(key) == ("True", "Ready")
        assert not [write for write in kube.writes if write.startswith("delete")]
        assert (
            pod is None or second.live("Pod", "paris")["metadata"]["uid"] == pod["metadata"]["uid"]
        )


async def test_a_deleted_pod_comes_back(world: World) -> None:
    key = world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    world.kube.collect(Ref("Pod", "default", "paris"))
    await world.step()
    assert world.has("Pod", "paris")
    await world.settle(3)
    assert world.condition(key) == ("True", "Ready")


async def test_a_changed_spec_replaces_the_pod_once(world: World) -> None:
    key = world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    world.kube.writes.clear()
    world.change(key, engine="numpy")
    await world.settle()
    assert world.kube.writes.count("delete Pod paris") == 1
    assert world.condition(key) == ("True", "Ready")
    assert world.live("ExoNode", "paris")["status"]["observedGeneration"] == 2


async def test_a_failing_resource_turns_ready_false_with_its_name_and_back_with_one_event_each(
    world: World,
) -> None:
    key = world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    world.kube.events.clear()
    world.nodes.of["paris"] = NodeReport(reachable=True, ready=False, failing={"stage": "forced"})
    await world.settle(3)
    assert world.condition(key) == ("False", "ResourceUnhealthy")
    del world.nodes.of["paris"]
    await world.settle(3)
    assert world.condition(key) == ("True", "Ready")
    told = [(event["type"], event["reason"], event["note"]) for event in world.kube.events]
    assert told == [
        ("Warning", "ResourceUnhealthy", "stage: forced"),
        ("Normal", "Ready", "Ready is True"),
    ]


async def test_a_service_of_somebody_else_is_not_taken_over_and_the_status_says_so(
    world: World,
) -> None:
    theirs = {"apiVersion": "v1", "kind": "Service", "spec": {"selector": {"app": "web"}}}
    world.kube.seed(theirs | {"metadata": {"name": "paris", "namespace": "default"}})
    world.kube.tell(world.store)
    # The watch shows only what carries our label.
    world.store.remove(world.live("Service", "paris"))
    key = world.make("ExoNode", "paris", BUNDLED)
    world.store.put(world.live("ExoNode", "paris"))
    await world.reconciler.run(key)
    assert world.condition(key) == ("False", "NameTaken")
    assert world.live("Service", "paris")["spec"] == {"selector": {"app": "web"}}


async def test_a_refused_pod_backs_off_and_says_why_with_the_time_of_the_next_try(
    world: World,
) -> None:
    key = world.make("ExoNode", "paris", BUNDLED)
    world.kube.refuse["Pod"] = Invalid(422, "exceeded quota: pods")
    await world.settle(3)
    assert world.condition(key) == ("False", "Refused")
    status = world.live("ExoNode", "paris")["status"]
    assert "exceeded quota" in status["conditions"][0]["message"]
    assert status["nextRetryTime"].startswith("2030-01-01T12:00:0")
    assert world.reconciler.backoff.failures(key) == 3
    world.kube.refuse.clear()
    await world.settle(4)
    assert world.condition(key) == ("True", "Ready")
    assert "nextRetryTime" not in world.live("ExoNode", "paris")["status"]


async def test_a_namespace_that_goes_is_no_failure_to_tell_of(world: World) -> None:
    world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    world.kube.refuse["Pod"] = KubeError(403, "forbidden: namespace x is being terminated")
    world.kube.collect(Ref("Pod", "default", "paris"))
    world.kube.writes.clear()
    world.kube.events.clear()
    await world.settle(4)
    assert (world.kube.writes, world.kube.events) == ([], [])


async def test_a_server_that_asks_to_wait_is_obeyed(world: World) -> None:
    key = world.make("ExoNode", "paris", BUNDLED)
    world.kube.refuse["Service"] = KubeError(429, "slow down", retry_after=120.0)
    world.kube.tell(world.store)
    await world.reconciler.run(key)
    assert world.reconciler.queue.take_nowait() is None
    assert len(world.reconciler.queue) == 1


async def test_one_object_that_always_fails_leaves_the_others_alone(world: World) -> None:
    world.make(
        "ExoNode", "poison", {"model": {"name": "smollm2-135m"}, "engine": ["not", "a", "word"]}
    )
    good = [world.make("ExoNode", f"good-{i}", BUNDLED) for i in range(5)]
    await world.settle(4)
    assert {world.condition(key) for key in good} == {("True", "Ready")}
    assert world.condition(Key("ExoNode", "default", "poison")) == ("False", "InvalidSpec")


async def test_an_exocluster_forms_its_ring_with_services_and_a_budget(world: World) -> None:
    key = world.make("ExoCluster", "ring", BUNDLED | {"nodes": 3})
    await world.settle()
    assert world.condition(key) == ("True", "Ready")
    assert world.names("ExoNode") == world.names("Pod") == ["ring-0", "ring-1", "ring-2"]
    assert world.names("Service") == ["ring", "ring-0", "ring-1", "ring-2", "ring-ring"]
    assert world.live("PodDisruptionBudget", "ring")["spec"]["minAvailable"] == 2
    owners = world.live("Service", "ring-ring")["metadata"]["ownerReferences"]
    assert [owner["name"] for owner in owners] == ["ring-0", "ring-1", "ring-2"]
    status = world.live("ExoCluster", "ring")["status"]
    assert (status["nodes"], status["readyNodes"], status["selector"]) == (
        3,
        3,
        "exo.dev/cluster=ring",
    )
    world.kube.writes.clear()
    await world.settle(3)
    assert world.kube.writes == []


async def test_an_exocluster_scales_down_to_fewer_nodes_and_then_to_none(world: World) -> None:
    key = world.make("ExoCluster", "ring", BUNDLED | {"nodes": 3})
    await world.settle()
    world.change(key, nodes=1)
    await world.settle()
    assert world.names("ExoNode") == ["ring-0"]
    assert not world.has("PodDisruptionBudget", "ring")
    assert world.condition(key) == ("True", "Ready")
    world.change(key, nodes=0)
    await world.settle()
    assert world.names("Pod") == []
    assert world.condition(key) == ("False", "NoNodes")


async def test_a_change_rolls_through_one_node_at_a_time(world: World) -> None:
    key = world.make("ExoCluster", "ring", BUNDLED | {"nodes": 3})
    await world.settle()
    world.change(key, template={"engine": "numpy"})
    fewest = 3
    for _ in range(25):
        await world.step()
        fewest = min(
            fewest,
            sum(
                world.condition(Key("ExoNode", "default", n))[0] == "True"
                for n in world.names("ExoNode")
            ),
        )
    assert fewest == 2
    assert {world.live("ExoNode", name)["spec"]["engine"] for name in world.names("ExoNode")} == {
        "numpy"
    }
    assert world.condition(key) == ("True", "Ready")


async def test_suspend_takes_all_pods_away_and_resuming_brings_them_back(world: World) -> None:
    key = world.make("ExoCluster", "ring", BUNDLED | {"nodes": 2})
    await world.settle()
    world.change(key, suspend=True)
    await world.settle()
    assert world.names("Pod") == []
    assert world.condition(key) == ("False", "Suspended")
    assert world.condition(key, "Suspended") == ("True", "Suspended")
    world.change(key, suspend=False)
    await world.settle()
    assert world.condition(key) == ("True", "Ready")


async def test_a_used_up_restart_budget_stops_the_ring_until_it_is_cleared(world: World) -> None:
    key = world.make("ExoCluster", "ring", BUNDLED | {"nodes": 1, "restart": {"maxRestarts": 2}})
    await world.settle()
    pod = world.live("Pod", "ring-0")
    pod["status"]["containerStatuses"] = [
        {"name": "node", "restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
    ]
    world.kube.seed(pod)
    await world.settle()
    assert world.condition(key) == ("False", "RestartBudgetUsedUp")
    assert world.condition(key, "Failed") == ("True", "RestartBudgetUsedUp")
    assert world.names("Pod") == []
    await world.settle(5)
    assert world.names("Pod") == []
    live = world.live("ExoCluster", "ring")
    live["metadata"]["annotations"] = {names.ANNOTATION_RETRY: "1"}
    world.kube.seed(live)
    await world.settle()
    assert world.condition(key) == ("True", "Ready")
    assert world.condition(key, "Failed")[0] == "False"
