"""A changed plan, seen by the streams that run: new layers next to the old ones, or in place of
them where they must.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from loopback import Net, answer, ask, formed, leftovers, make_node, until

from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.engines.inference_engine import LoadProgress
from exo.inference.errors import CheckpointError
from exo.inference.shard import Shard
from exo.lifecycle import ResourceInitializationError, ResourceState
from exo.node.node import Node
from exo.ring.shard_manager import missing_mib
from exo.topology import ModelFootprint

MIB = 1024 * 1024
STEP = 0.002


class Gate:
    """Makes engines whose loads wait, once it is shut."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.begun: list[Shard] = []
        self.given_up: list[Shard] = []

    def shut(self) -> None:
        self.open.clear()
        self.begun.clear()

    def shelf(self) -> EnginePool:
        return EnginePool(lambda: Gated(self))


class Gated(DummyEngine):
    def __init__(self, gate: Gate) -> None:
        super().__init__(step_seconds=STEP)
        self._gate = gate

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        self._gate.begun.append(shard)
        try:
            await self._gate.open.wait()
        except asyncio.CancelledError:
            self._gate.given_up.append(shard)
            raise
        await super()._load_checkpoint(shard, path)


@contextlib.asynccontextmanager
async def closing(*nodes: Node) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for node in nodes:
            await node.cleanup()


async def undisturbed(tokens: int) -> list[int]:
    node = make_node(Net(), "alone")
    async with closing(node):
        await node.initialize()
        return await answer(node, ask(max_tokens=tokens))


def layers(node: Node) -> list[tuple[int, int]]:
    shelf = node.inference_engine
    assert isinstance(shelf, EnginePool)
    return [(shard.start_layer, shard.end_layer) for shard in shelf.shards]


def attempts(node: Node) -> int:
    (request,) = node.describe_requests()
    return int(request["attempts"])


class Reader:
    """Reads a stream in the background: `tokens` so far."""

    def __init__(self, node: Node, count: int) -> None:
        self.tokens: list[int] = []
        self.task = asyncio.create_task(self._read(node, count))

    async def _read(self, node: Node, count: int) -> None:
        async for chunk in node.process_tokens(ask(max_tokens=count)):
            self.tokens += chunk.tokens

    async def more(self, count: int = 10) -> None:
        wanted = len(self.tokens) + count
        await until(lambda: len(self.tokens) >= wanted)


async def test_a_stream_ends_on_the_plan_it_began_on_while_a_joining_node_makes_others_load() -> (
    None
):
    expected = await undisturbed(300)
    net, gate = Net(), Gate()
    first, second = make_node(net, "a", engine=gate.shelf()), make_node(net, "b", step_seconds=STEP)
    async with closing(second, first):
        await first.initialize()
        reader = Reader(first, 300)
        await reader.more()
        gate.shut()
        await second.initialize()
        await until(lambda: gate.begun)
        await reader.more()  # while it loads
        assert first.ring.plan is not None
        assert len(first.ring.plan.stages) == 1
        gate.open.set()
        await formed([first, second], 2)
        await reader.more()
        assert attempts(first) == 1
        assert layers(first) == [(0, 7), (0, 3)]
        # Beside it the new plan serves.
        assert await answer(second, ask(max_tokens=20)) == expected[:20]
        await reader.task
        assert reader.tokens == expected
        await until(lambda: layers(first) == [(0, 3)])
        assert list(first.stage.epochs) == [first.ring.plan.epoch if first.ring.plan else ""]


async def test_a_node_that_leaves_goes_when_the_others_have_its_layers_and_its_streams_moved() -> (
    None
):
    expected = await undisturbed(300)
    net, gate = Net(), Gate()
    nodes = [make_node(net, name, engine=gate.shelf()) for name in ("a", "b")]
    leaver = make_node(net, "c", step_seconds=STEP)
    async with closing(*nodes):
        await asyncio.gather(*(node.initialize() for node in (*nodes, leaver)))
        await formed([*nodes, leaver], 3)
        await until(lambda: all(len(layers(node)) == 1 for node in nodes))
        reader = Reader(nodes[0], 300)
        await reader.more()
        gate.shut()
        gone = asyncio.create_task(leaver.cleanup())
        await until(lambda: len(gate.begun) == 2)
        await reader.more()
        assert attempts(nodes[0]) == 1
        assert not gone.done()
        gate.open.set()
        await gone
        await reader.task
        assert reader.tokens == expected


async def test_layers_that_do_not_both_fit_replace_the_old_ones_and_the_reason_says_why() -> None:
    expected = await undisturbed(300)
    net, gate = Net(), Gate()
    # 8 layers of 100 MiB: 4 each, then 3, 3 and 2. 400 + 300 do not fit in 500.
    nodes = [
        make_node(net, name, engine=gate.shelf(), layer_mib=100, memory_mib=500)
        for name in ("a", "b")
    ]
    third = make_node(net, "c", step_seconds=STEP, layer_mib=100, memory_mib=500)
    async with closing(third, *nodes):
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, 2)
        reader = Reader(nodes[0], 300)
        await reader.more()
        gate.shut()
        await third.initialize()
        await until(lambda: "in place of" in nodes[0].ring.reason)
        assert "both at once need 200 MiB more" in nodes[0].ring.reason
        assert "ring formed" in nodes[0].monitor.report().reasons_ready
        await until(lambda: layers(nodes[0]) == [])
        gate.open.set()
        await formed([*nodes, third], 3)
        await reader.task
        assert reader.tokens == expected


async def test_earlier_epochs_make_room_for_newer_layers_and_their_streams_move_on() -> None:
    expected = await undisturbed(400)
    net = Net()
    # 8 layers of 100 MiB, 1300 MiB each: 8 and 4 fit together, a third range of 3 does not.
    nodes = [
        make_node(net, name, step_seconds=STEP, layer_mib=100, memory_mib=1300)
        for name in ("a", "b", "c")
    ]
    async with closing(*nodes):
        await nodes[0].initialize()
        reader = Reader(nodes[0], 400)
        await reader.more()
        await nodes[1].initialize()
        await formed(nodes[:2], 2)
        assert layers(nodes[0]) == [(0, 7), (0, 3)]
        await nodes[2].initialize()
        await formed(nodes, 3)
        await until(lambda: attempts(nodes[0]) == 2)
        assert layers(nodes[0]) == [(0, 3), (0, 2)]
        await reader.task
        assert reader.tokens == expected


async def test_a_load_that_nobody_wants_any_more_is_given_up_at_once() -> None:
    expected = await undisturbed(40)
    net, gate = Net(), Gate()
    first, others = (
        make_node(net, "a", engine=gate.shelf()),
        [make_node(net, name) for name in ("b", "c")],
    )
    async with closing(first, *others):
        await asyncio.gather(first.initialize(), others[0].initialize())
        await formed([first, others[0]], 2)
        gate.shut()
        await others[1].initialize()
        await until(lambda: gate.begun == [Shard("dummy", 0, 2, 8)])  # its share of three
        net.kill("b")
        await until(lambda: gate.given_up == [Shard("dummy", 0, 2, 8)])
        net.kill("c")
        gate.open.set()
        await formed([first], 1)
        assert await answer(first, ask(max_tokens=40)) == expected
        await until(lambda: not leftovers(first))


class CannotLoadMore(DummyEngine):
    loads = 0

    def _load_now(self, shard: Shard, path: Path, report: Callable[[LoadProgress], None]) -> None:
        type(self).loads += 1
        if type(self).loads > 1:
            raise OSError("the disk is gone")
        super()._load_now(shard, path, report)


async def test_a_node_that_cannot_load_the_new_layers_serves_the_old_ones_on() -> None:
    expected = await undisturbed(300)
    net = Net()
    CannotLoadMore.loads = 0
    first = make_node(net, "a", engine=EnginePool(lambda: CannotLoadMore(step_seconds=STEP)))
    second = make_node(net, "b", step_seconds=STEP)
    async with closing(second, first):
        await first.initialize()
        reader = Reader(first, 300)
        await reader.more()
        await second.initialize()
        await until(lambda: "the disk is gone" in str(first.ring.load_error))
        await reader.more()
        await reader.task
        assert reader.tokens == expected


class CannotLoad(DummyEngine):
    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        raise CheckpointError("tensor 'x' is missing", path="model.gguf")


async def test_a_node_that_cannot_load_its_layers_bows_out_and_the_others_serve() -> None:
    expected = await undisturbed(40)
    net = Net()
    nodes = [make_node(net, "a"), make_node(net, "b", engine=CannotLoad()), make_node(net, "c")]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, 2)
        assert await answer(nodes[0], ask(max_tokens=40)) == expected
        assert "tensor 'x' is missing" in str(nodes[1].ring.load_error)
    finally:
        for node in nodes:
            await node.cleanup()


async def test_a_lone_node_that_cannot_load_its_model_does_not_start() -> None:
    node = make_node(Net(), "a", engine=CannotLoad())
    with pytest.raises(ResourceInitializationError, match="tensor 'x' is missing"):
        await node.initialize()
    assert node.server.state is ResourceState.CLOSED


def footprint(layer: int, **ends: int) -> ModelFootprint:
    return ModelFootprint.uniform(
        "m", 8, layer * MIB, **{name: size * MIB for name, size in ends.items()}
    )


def shard(start: int, end: int) -> Shard:
    return Shard("m", start, end, 8)


def lacking(
    held: Iterable[Shard], new: Shard, offered: int, free: int, tokens: int = 0, **model: Any
) -> int:
    return missing_mib(footprint(100, **model), tuple(held), new, offered, free, tokens)


def test_room_is_what_was_offered_less_everything_held_and_never_more_than_is_free() -> None:
    assert lacking([shard(0, 3)], shard(0, 2), offered=700, free=10_000) == 0
    assert lacking([shard(0, 3)], shard(0, 2), offered=699, free=10_000) == 1
    assert lacking([shard(0, 3)], shard(0, 2), offered=10_000, free=250) == 50
    # 10 tokens of 1 MiB in each of 4 layers may come yet, and the new engine takes half of what is
    # free for its own.
    assert (
        lacking([shard(0, 3)], shard(0, 2), offered=10_000, free=380, tokens=10, token_bytes=1) == 0
    )
    assert (
        lacking([shard(0, 3)], shard(0, 2), offered=10_000, free=379, tokens=10, token_bytes=1) == 1
    )
    assert lacking([], shard(0, 2), offered=10_000, free=10_000) < 0
    assert lacking([shard(0, 3)], shard(4, 7), offered=800, free=800, last_bytes=30) == 30
