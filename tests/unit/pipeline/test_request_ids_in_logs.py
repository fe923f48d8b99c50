"""One request through three nodes: every line about it, on every node, says which request it is."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import pytest
import structlog
from loopback import Net, answer, ask, formed, leftovers, make_node, until

from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.inference_engine import Array, Step
from exo.inference.errors import ExoError, SequenceLost
from exo.inference.shard import Shard
from exo.node.node import Node
from exo.observability import logging as ours

pytestmark = pytest.mark.virtual_clock
Line = dict[str, Any]


class Faulty(DummyEngine):
    """Raises each of `errors` once, pass by pass."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        if self.errors:
            raise self.errors.pop(0)
        return await super()._infer_batch(shard, steps)


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    made = io.StringIO()
    ours.configure_logging("json", "debug", made)
    yield made
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)
    if ours._remove_listener is not None:
        ours._remove_listener()


@contextlib.asynccontextmanager
async def three_nodes() -> AsyncIterator[tuple[list[Node], list[Faulty]]]:
    net, engines = Net(), [Faulty() for _ in range(3)]
    nodes = [make_node(net, f"n{i}", engine=engine) for i, engine in enumerate(engines)]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, 3)
        yield nodes, engines
    finally:
        for node in nodes:
            await node.cleanup()


def about_sequences(stream: io.StringIO) -> list[Line]:
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [line for line in lines if line["logger"].startswith("exo.pipeline")]


async def test_each_line_of_a_request_has_both_its_ids_on_every_node(stream: io.StringIO) -> None:
    async with three_nodes() as (nodes, engines):
        plan = nodes[0].ring.plan
        assert plan is not None
        middle = int(plan.stages[1].node_id[1:])
        # The first attempt is lost in the middle of the ring, so there is a second one.
        lost = SequenceLost(f"{nodes[0].frontend.prefix}/1/1", expected=0, held=None)
        engines[middle].errors = [lost]
        await answer(nodes[0], ask(max_tokens=3, request_id="req_1"))
        await until(lambda: not any(leftovers(node) for node in nodes))
        lines = about_sequences(stream)
        assert {line["request_id"] for line in lines} == {"req_1"}
        attempts = [f"{nodes[0].frontend.prefix}/1/{attempt}" for attempt in (1, 2)]
        assert {line["sequence_id"] for line in lines} == set(attempts)
        for attempt in attempts:
            events = [line["event"] for line in lines if line["sequence_id"] == attempt]
            assert events.count("sequence opened") == 3
            assert events.count("sequence closed") == 3
        assert any("replayed after 0 tokens" in line["event"] for line in lines)


async def test_a_failure_is_logged_where_it_happened_and_at_the_entry(stream: io.StringIO) -> None:
    async with three_nodes() as (nodes, engines):
        plan = nodes[0].ring.plan
        assert plan is not None
        entry = nodes[1]
        last = int(plan.stages[2].node_id[1:])
        engines[last].errors = [FloatingPointError("broken")]
        with pytest.raises(ExoError, match="broken"):
            await answer(entry, ask(request_id="req_2"))
        lines = [line for line in about_sequences(stream) if line["level"] == "warning"]
        ids = {"request_id": "req_2", "sequence_id": f"{entry.frontend.prefix}/1/1"}
        assert [ids.items() <= line.items() for line in lines] == [True, True]
        assert {line["logger"] for line in lines} == {"exo.pipeline.stage", "exo.pipeline.frontend"}
