"""A node as a whole: its health is that of its parts, draining is a state, prompts are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from loopback import Net, answer, ask, formed, make_node, until
from prometheus_client import CollectorRegistry

from exo.inference.errors import ModelNotFound, NodeDraining, RingUnavailable
from exo.inference.shard import Shard
from exo.lifecycle import ResourceState
from exo.node.node import Node
from exo.observability.metrics import LifecycleMetrics

SHARD = Shard("dummy", 0, 7, 8)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    made = make_node(Net(), "n")
    async with made:
        yield made


PARTS = len(list(make_node(Net(), "n").parts))


@pytest.mark.parametrize("index", range(PARTS))
async def test_an_ailing_part_degrades_the_node_and_is_named(node: Node, index: int) -> None:
    part = list(node.parts)[index]
    assert await node.check_health()

    async def check() -> bool:
        return False

    part._do_health_check = check  # type: ignore[method-assign]
    assert not await node.check_health()
    assert node.state is ResourceState.DEGRADED
    assert part.resource_id in node.state_reason


async def test_every_part_is_shown_and_checked(node: Node) -> None:
    shown = set(node.monitor.report().resources)
    ids = {part.resource_id for part in (*node.parts, node.ring, node)}
    assert shown == ids


async def test_what_stage_and_ring_count_of_their_work_is_a_metric(node: Node) -> None:
    await answer(node, ask(max_tokens=5))
    registry = CollectorRegistry()
    metrics = LifecycleMetrics(registry)
    try:
        passes = figure(registry, node.stage.resource_id, "stage", "passes")
        assert passes == node.stage.statistics().passes > 0
        assert figure(registry, node.stage.resource_id, "stage", "scheduler_sequences") == 0
        assert figure(registry, node.ring.resource_id, "ring", "is_formed") == 1
        assert figure(registry, node.ring.resource_id, "ring", "cleanups") is None
    finally:
        metrics.close()


def figure(
    registry: CollectorRegistry, resource_id: str, resource_type: str, name: str
) -> float | None:
    labels = {"resource_id": resource_id, "resource_type": resource_type, "figure": name}
    return registry.get_sample_value("exo_resource_figure", labels)


async def test_a_node_drains_until_its_next_life() -> None:
    node = make_node(Net(), "n")
    assert not node.is_draining
    await node.initialize()
    assert not node.is_draining
    await node.drain()
    assert node.is_draining
    assert node.describe_progress() == "draining: 0 requests run"
    with pytest.raises(NodeDraining, match="this node is draining; ask another one"):
        await answer(node, ask())
    await node.cleanup()
    assert node.is_draining
    # A closed node has no model any more. Its callers are to ask another one, not another model.
    with pytest.raises(NodeDraining):
        await answer(node, ask())
    await node.initialize()
    assert not node.is_draining
    assert await answer(node, ask())
    await node.cleanup()


async def test_a_node_that_has_not_started_says_so() -> None:
    with pytest.raises(RingUnavailable, match="node 'n' is uninitialized"):
        await answer(make_node(Net(), "n"), ask())


async def test_a_prompt_is_answered_with_token_ids(node: Node) -> None:
    tokens = await node.process_prompt(SHARD, "Hello", "r1", {"max_tokens": 5})
    request = ask(await node.backend.render_prompt("dummy", "Hello"), max_tokens=5)
    assert tokens.dtype == "int64"
    assert len(tokens) == 5
    again = await node.process_prompt(SHARD, "Hello", inference_state={"max_tokens": 5})
    assert len(again) == 5
    assert len(await answer(node, request)) == 5
    assert len(await node.process_prompt(SHARD, "Hello")) == 128


async def test_a_prompt_for_another_model_is_refused(node: Node) -> None:
    with pytest.raises(ModelNotFound):
        await node.process_prompt(Shard("other", 0, 7, 8), "Hello")


async def test_a_prompt_starts_the_node_where_it_has_not_been_started() -> None:
    node = make_node(Net(), "n")
    assert len(await node.process_prompt(SHARD, "Hello", None, {"max_tokens": 3})) == 3
    await node.cleanup()


async def test_peers_and_topology_follow_the_discovery() -> None:
    net = Net()
    one, two = make_node(net, "a"), make_node(net, "b")
    async with one, two:
        await formed([one, two], 2)
        assert [peer.id() for peer in one.peers] == ["b"]
        assert not await one.update_peers()
        assert [offer.node_id for offer in (await one.collect_topology()).nodes()] == ["a", "b"]
        task = asyncio.create_task(one.periodic_topology_collection(0.01))
        net.kill("b")
        await until(lambda: [offer.node_id for offer in one.topology.nodes()] == ["a"])
        task.cancel()
