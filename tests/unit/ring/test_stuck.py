"""What follows once a stage is stuck: for its own health, for the plan, for streams, for whoever
cannot do without.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import pytest
from loopback import Net, answer, ask, formed, make_node, until

from exo.inference.arrays import Array
from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.inference_engine import Step
from exo.inference.errors import RingUnavailable
from exo.inference.shard import Shard
from exo.lifecycle import ResourceState
from exo.networking.messages import Forward, Message
from exo.node.node import Node
from exo.ring import membership
from exo.topology import ModelFootprint, NodeOffer, NodeState, NoPlan, plan_ring

MIB = 1024 * 1024
WHY = "a forward pass has made no progress for 30 s"


class Hanging(DummyEngine):
    """`may_run` cleared: each pass hangs until it is set again."""

    def __init__(self) -> None:
        super().__init__()
        self.may_run = asyncio.Event()
        self.may_run.set()

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        await self.may_run.wait()
        return await super()._infer_batch(shard, steps)


@contextlib.asynccontextmanager
async def ring_of(
    count: int, **settings: object
) -> AsyncIterator[tuple[Net, list[Node], list[Hanging]]]:
    net, engines = Net(), [Hanging() for _ in range(count)]
    nodes = [make_node(net, f"n{i}", engine=engine, **settings) for i, engine in enumerate(engines)]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, count)
        yield net, nodes, engines
    finally:
        for engine in engines:
            engine.may_run.set()
        for node in nodes:
            await node.cleanup()


def time_passes(node: Node, seconds: int) -> None:
    """As the sweep would look at the stage, once a second, but at once."""
    for second in range(seconds):
        node.stage.tick(1e6 + second)
    node.ring.sweep()


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_stuck_stage_loses_its_place_in_the_plan_and_no_stream_a_token(which: int) -> None:
    async with ring_of(3) as (_, nodes, engines):
        expected = await answer(nodes[0], ask(max_tokens=40))
        asked = asyncio.create_task(answer(nodes[0], ask(max_tokens=40)))
        engines[which].may_run.clear()
        await until(lambda: nodes[which].stage.statistics().is_in_pass)
        time_passes(nodes[which], 40)
        assert await asked == expected
        others = [node for node in nodes if node is not nodes[which]]
        await formed(nodes, 2)
        assert "no progress" in nodes[which].monitor.report().reasons_ready["forward passes"]
        assert all("forward passes" not in node.monitor.report().reasons_ready for node in others)
        # Its pass comes to an end after all: after some quiet it is planned in again.
        engines[which].may_run.set()
        await until(lambda: not nodes[which].stage.statistics().is_in_pass)
        time_passes(nodes[which], 20)
        await formed(nodes, 3)
        assert await answer(nodes[which], ask(max_tokens=40)) == expected


async def test_a_stuck_stage_degrades_itself_and_its_node_but_restarts_neither() -> None:
    async with ring_of(1) as (_, (node,), (engine,)):
        await answer(node, ask())
        engine.may_run.clear()
        asked = asyncio.create_task(answer(node, ask()))
        await until(lambda: node.stage.statistics().is_in_pass)
        time_passes(node, 40)
        for _ in range(5):
            assert not await node.stage.check_health()
            assert not await node.check_health()
        assert (node.stage.state, node.state) == (ResourceState.DEGRADED, ResourceState.DEGRADED)
        assert "no progress" in node.stage.state_reason
        engine.may_run.set()
        await until(lambda: not node.stage.statistics().is_in_pass)
        time_passes(node, 20)
        assert await node.check_health()
        await asked


async def test_where_the_others_cannot_hold_the_model_the_client_is_told_who_is_stuck() -> None:
    async with ring_of(2, layer_mib=100, memory_mib=500, recovery_seconds=0.3) as (
        _,
        nodes,
        engines,
    ):
        await answer(nodes[0], ask())
        engines[1].may_run.clear()
        asked = asyncio.create_task(answer(nodes[0], ask()))
        await until(lambda: nodes[1].stage.statistics().is_in_pass)
        time_passes(nodes[1], 40)
        with pytest.raises(
            RingUnavailable, match="needs 300 MiB more; node 'n1' is stuck: a forward pass has made"
        ):
            await asked
        engines[1].may_run.set()
        await until(lambda: not nodes[1].stage.statistics().is_in_pass)
        time_passes(nodes[1], 20)
        await formed(nodes, 2)


async def test_a_frame_that_vanishes_on_its_way_costs_an_attempt_and_not_the_stream() -> None:
    async with ring_of(2, stuck_seconds=0.02) as (net, nodes, _):
        expected = await answer(nodes[0], ask(max_tokens=40))
        vanished = asyncio.Event()

        async def swallow(sender: str, receiver: str, message: Message) -> None:
            if isinstance(message, Forward) and not vanished.is_set():
                vanished.set()
                object.__setattr__(message, "sequence_id", "nobody's")

        net.on_deliver = swallow
        asked = asyncio.create_task(answer(nodes[0], ask(max_tokens=40)))
        await vanished.wait()
        assert await asked == expected


# -- the plan --------------------------------------------------------------------------------------


def view(stuck: str, memory: int = 1000) -> list[NodeOffer]:
    return [
        NodeOffer(
            node_id=node,
            incarnation=1,
            memory_mib=memory,
            state=NodeState.SERVING,
            peers=tuple("abc".replace(node, "")),
            stuck=WHY if node in stuck else "",
        )
        for node in "abc"
    ]


@pytest.mark.parametrize(("stuck", "stages"), [("", "abc"), ("b", "ac"), ("ab", "c")])
def test_a_node_that_says_that_it_is_stuck_is_planned_without(stuck: str, stages: str) -> None:
    plan = membership.plan_members(
        view(stuck), ModelFootprint.uniform("m", 4, 100 * MIB), plan_ring
    )
    assert {stage.node_id for stage in plan.stages} == set(stages)
    assert not set(plan.standby) & set(stuck)


@pytest.mark.parametrize(("stuck", "memory"), [("c", 150), ("abc", 1000)])
def test_a_plan_that_fails_for_want_of_stuck_nodes_names_them(stuck: str, memory: int) -> None:
    with pytest.raises(NoPlan, match=f"; node 'c' is stuck: {WHY}"):
        membership.plan_members(
            view(stuck, memory), ModelFootprint.uniform("m", 4, 100 * MIB), plan_ring
        )
