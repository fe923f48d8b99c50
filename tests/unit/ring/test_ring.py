"""Whole nodes on a loopback network: plan, epochs, replay, drain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import Net, answer, ask, formed, leftovers, make_node, until, whole

from exo.inference.engines.dummy import DummyEngine
from exo.inference.errors import NodeDraining, RingUnavailable
from exo.inference.generation import FinishReason
from exo.inference.sampling.params import SamplingParams
from exo.inference.shard import Shard
from exo.networking.messages import Forward, Message, Open, Token
from exo.node.node import Node


@contextlib.asynccontextmanager
async def ring_of(
    count: int, *, layer_mib: int = 0, step_seconds: float = 0.0, **settings: object
) -> AsyncIterator[tuple[Net, list[Node]]]:
    net = Net()
    nodes = [
        make_node(net, f"n{i}", layer_mib=layer_mib, step_seconds=step_seconds, **settings)
        for i in range(count)
    ]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, count)
        yield net, nodes
    finally:
        for node in nodes:
            await node.cleanup()


async def alone() -> list[int]:
    async with ring_of(1) as (_, (node,)):
        return await answer(node, ask(max_tokens=40))


async def under_way(*nodes: Node) -> None:
    """Until each of these has a request with tokens."""
    await until(
        lambda: all(
            any(request["completion_tokens"] for request in node.describe_requests())
            for node in nodes
        )
    )


async def test_three_nodes_give_the_same_tokens_as_one_from_every_entry() -> None:
    expected = await alone()
    async with ring_of(3) as (_, nodes):
        assert [await answer(node, ask(max_tokens=40)) for node in nodes] == [expected] * 3
        # Those of the start end as well.
        await until(lambda: [len(node.stage.epochs) for node in nodes] == [1, 1, 1])
        await until(lambda: not any(leftovers(node) for node in nodes))


async def test_sampled_tokens_depend_on_the_seed_alone_and_not_on_the_number_of_nodes() -> None:
    params = SamplingParams(temperature=1.0, seed=7, top_p=0.9)
    async with ring_of(1) as (_, (node,)):
        expected = await answer(node, ask(params=params))
    async with ring_of(2) as (_, nodes):
        together = await asyncio.gather(
            *(answer(nodes[i % 2], ask(params=params)) for i in range(5))
        )
    assert together == [expected] * 5


async def test_a_killed_stage_costs_no_token_and_none_comes_twice() -> None:
    expected = await alone()
    async with ring_of(3) as (net, nodes):
        stream = nodes[0].process_tokens(ask(max_tokens=40))
        tokens = [token for _ in range(7) for token in (await anext(stream)).tokens]
        net.kill("n2")
        tokens += [token async for chunk in stream for token in chunk.tokens]
        assert tokens == expected
        await formed(nodes[:2], 2)
        await until(lambda: not leftovers(nodes[0]) and not leftovers(nodes[1]))


async def test_every_moment_of_a_kill_gives_the_same_tokens() -> None:
    expected = await alone()
    for moment in range(0, 40, 5):
        async with ring_of(2) as (net, nodes):
            count = 0

            async def strike(
                sender: str, receiver: str, message: Message, moment: int = moment
            ) -> None:
                nonlocal count
                count += isinstance(message, Forward | Token)
                if count == moment + 1:
                    net.on_deliver = None
                    net.kill("n1")

            net.on_deliver = strike
            assert await answer(nodes[0], ask(max_tokens=40)) == expected, moment


async def test_a_node_that_joins_takes_its_share_and_disturbs_no_stream() -> None:
    expected = await alone()
    net = Net()
    first, second = make_node(net, "a"), make_node(net, "b")
    try:
        await first.initialize()
        stream = first.process_tokens(ask(max_tokens=40))
        tokens = [token for _ in range(5) for token in (await anext(stream)).tokens]
        await second.initialize()
        await formed([first, second], 2)
        tokens += [token async for chunk in stream for token in chunk.tokens]
        assert tokens == expected
        assert await answer(second, ask(max_tokens=40)) == expected
    finally:
        await second.cleanup()
        await first.cleanup()


class SlowToLoad(DummyEngine):
    """Loads when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_load = asyncio.Event()
        self.asked = asyncio.Event()

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        self.asked.set()
        await self.may_load.wait()
        await super()._load_checkpoint(shard, path)


async def test_nobody_waits_for_a_newcomers_download() -> None:
    engine = SlowToLoad()
    async with ring_of(2) as (net, nodes):
        epoch = nodes[0].ring.plan.epoch if nodes[0].ring.plan else ""
        newcomer = make_node(net, "new", engine=engine)
        starting = asyncio.create_task(newcomer.initialize())
        await engine.asked.wait()
        assert await answer(nodes[0], ask(max_tokens=40)) == await answer(
            nodes[1], ask(max_tokens=40)
        )
        assert nodes[0].ring.plan is not None
        assert nodes[0].ring.plan.epoch == epoch
        engine.may_load.set()
        await starting
        await formed([*nodes, newcomer], 3)
        await newcomer.cleanup()


async def test_a_node_closed_and_started_again_joins_anew() -> None:
    expected = await alone()
    async with ring_of(2) as (_, nodes):
        await nodes[0].cleanup()
        await formed(nodes[1:], 1)
        await nodes[0].initialize()
        await formed(nodes, 2)
        assert await answer(nodes[0], ask(max_tokens=40)) == expected


async def test_a_peer_that_stays_slow_is_planned_without_and_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("exo.ring.membership_view.SLOW_SECONDS", 0.0)
    monkeypatch.setattr("exo.ring.membership_view.QUICK_SECONDS", 0.0)
    monkeypatch.setattr("exo.ring.ring.SWEEP", 0.02)
    async with ring_of(3) as (net, nodes):
        for name in ("n0", "n1"):
            net.handle(name, "n2").slow = True
        await formed(nodes[:2], 2)
        for name in ("n0", "n1"):
            net.handle(name, "n2").slow = False
        await formed(nodes, 3)


async def test_a_cut_link_and_its_healing_give_no_wrong_token() -> None:
    expected = await alone()
    async with ring_of(3, step_seconds=0.002) as (net, nodes):
        answers = [asyncio.create_task(answer(node, ask(max_tokens=40))) for node in nodes[:2]]
        await under_way(*nodes[:2])
        net.cut("n1", "n2")
        await formed(nodes[:2], 2)
        assert nodes[2].ring.plan is None or "n1" not in {
            s.node_id for s in nodes[2].ring.plan.stages
        }
        await net.heal("n1", "n2")
        await formed(nodes, 3)
        assert await asyncio.gather(*answers) == [expected] * 2
        assert await answer(nodes[2], ask(max_tokens=40)) == expected


async def test_a_node_left_out_by_a_cut_says_whom_it_waits_for() -> None:
    async with ring_of(3) as (net, nodes):
        net.cut("n0", "n2")
        await formed(nodes[:2], 2)
        await until(lambda: "waiting for n1" in nodes[2].ring.reason)
        assert "ring formed" in nodes[2].monitor.report().reasons_ready
        assert nodes[0].monitor.report().reasons_ready.get("ring formed") is None


async def test_a_half_that_cannot_hold_the_model_is_not_ready_and_names_the_gap() -> None:
    async with ring_of(2, layer_mib=100, memory_mib=500) as (net, nodes):
        net.cut("n0", "n1")
        for node in nodes:
            await until(lambda node=node: "needs 300 MiB more" in node.ring.reason)
            assert "needs 300 MiB more" in node.monitor.report().reasons_ready["ring formed"]
            assert not node.describe_ring()["formed"]
        await net.heal("n0", "n1")
        await formed(nodes, 2)
        assert nodes[0].ring.reason == ""


async def test_a_stream_without_a_ring_ends_with_a_clear_error_in_time() -> None:
    async with ring_of(2, layer_mib=100, memory_mib=500, recovery_seconds=0.3) as (net, nodes):
        stream = nodes[0].process_tokens(ask(max_tokens=1000))
        await anext(stream)
        net.kill("n1")
        with pytest.raises(RingUnavailable, match="needs 300 MiB more"):
            async for _ in stream:
                pass
        await until(lambda: not leftovers(nodes[0]))


async def test_a_lost_entry_node_frees_its_sequences_and_disturbs_no_other() -> None:
    expected = await alone()
    async with ring_of(3, step_seconds=0.001) as (net, nodes):
        doomed = nodes[2].process_tokens(ask(max_tokens=4000))
        await anext(doomed)
        other = asyncio.create_task(answer(nodes[0], ask(max_tokens=40)))
        await under_way(nodes[0])
        net.kill("n2")
        assert await other == expected
        await until(lambda: not leftovers(nodes[0]) and not leftovers(nodes[1]))
        await doomed.aclose()


async def test_what_a_killed_entry_sent_at_last_is_freed_on_every_stage() -> None:
    """Its streams break one after the other: something may still come through the second."""
    async with ring_of(3, step_seconds=0.001) as (net, nodes):
        plan = nodes[0].ring.plan
        assert plan is not None
        net.kill("n2")
        late = Open(
            sequence_id=f"{nodes[2].frontend.prefix}/9/1",
            epoch=plan.epoch,
            entry="n2",
            tokens=(1, 2),
            prompt_length=2,
            params=SamplingParams(temperature=0.0),
            max_length=50,
        )
        nodes[0].router.deliver("n2", late)
        assert nodes[0].stage.live() == 1
        nodes[0].router.on_peer_lost("n2", "its other stream broke")
        await until(lambda: not leftovers(nodes[0]) and not leftovers(nodes[1]))


async def test_a_cancelled_stream_frees_its_kv_on_every_node_within_a_second() -> None:
    async with ring_of(3, step_seconds=0.001) as (_, nodes):
        stream = nodes[1].process_tokens(ask(max_tokens=4000))
        await anext(stream)
        assert all(node.stage.live() for node in nodes)
        await stream.aclose()
        await until(lambda: not any(leftovers(node) for node in nodes), timeout=1.0)


async def test_a_peer_that_no_longer_hears_this_node_costs_its_streams_one_attempt() -> None:
    expected = await alone()
    async with ring_of(2, step_seconds=0.001) as (_, nodes):
        stream = nodes[0].process_tokens(ask(max_tokens=40))
        tokens = [token for _ in range(5) for token in (await anext(stream)).tokens]
        there = nodes[1].view.own_offer()
        nodes[0].router.on_offer(replace(there, peers=()))
        (request,) = nodes[0].describe_requests()
        assert request["state"] == "waiting"
        nodes[0].router.on_offer(there)
        tokens += [token async for chunk in stream for token in chunk.tokens]
        assert tokens == expected


async def test_a_draining_node_ends_its_own_streams_and_hands_over_those_of_others() -> None:
    expected = await alone()
    async with ring_of(3, step_seconds=0.001) as (_, nodes):
        own = asyncio.create_task(answer(nodes[1], ask(max_tokens=40)))
        other = asyncio.create_task(answer(nodes[0], ask(max_tokens=40)))
        await under_way(*nodes[:2])
        draining = asyncio.create_task(nodes[1].drain())
        await asyncio.sleep(0)
        with pytest.raises(NodeDraining):
            await answer(nodes[1], ask())
        await draining
        assert await own == await other == expected
        assert nodes[1].stage.live() == 0
        await nodes[1].cleanup()
        await formed([nodes[0], nodes[2]], 2)
        assert (await whole(nodes[2], ask(max_tokens=40)))[1].finish_reason is FinishReason.LENGTH


async def test_a_rolling_restart_under_load_fails_no_request_and_changes_no_token() -> None:
    expected = await alone()
    async with ring_of(3, step_seconds=0.0005) as (net, nodes):
        results: list[list[int]] = []
        stop = asyncio.Event()

        async def client(number: int) -> None:
            while not stop.is_set():
                for node in nodes[number % 3 :] + nodes[: number % 3]:
                    if (
                        node.is_usable
                        and node.describe_progress() is None
                        and node.ring.plan is not None
                    ):
                        try:
                            results.append(await answer(node, ask(max_tokens=40)))
                        except (NodeDraining, RingUnavailable):
                            continue
                        break
                await asyncio.sleep(0)

        clients = [asyncio.create_task(client(number)) for number in range(8)]
        for index in range(3):
            await until(lambda: len(results) > 10)
            results.clear()
            await nodes[index].cleanup()
            nodes[index] = make_node(net, f"n{index}", step_seconds=0.0005)
            await nodes[index].initialize()
            await formed(nodes, 3)
        stop.set()
        await asyncio.gather(*clients)
        assert results
        assert all(tokens == expected for tokens in results)
        await until(lambda: not any(leftovers(node) for node in nodes))
