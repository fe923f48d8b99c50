"""A ring of a model so wide that a chunk of its prompt does not fit one message. Real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loopback import answer, ask, formed, leftovers, until
from ports import free_ports

from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.errors import ExoError, RingUnavailable
from exo.networking.messages import MAX_VALUES_BYTES
from exo.node.build import build_node
from exo.node.node import Node
from exo.node.settings import NodeSettings

PROMPT = tuple(3 + i % 250 for i in range(1000))


@contextlib.asynccontextmanager
async def nodes_of_width(
    count: int, hidden: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[list[Node]]:
    monkeypatch.setattr(
        "exo.node.build.create_pool",
        lambda *_, **__: EnginePool(lambda: DummyEngine(hidden=hidden)),
    )
    ports = free_ports(count)
    config = folder / f"peers-{count}.json"
    peers = {f"n{i}": {"address": "127.0.0.1", "port": port} for i, port in enumerate(ports)}
    config.write_text(json.dumps({"peers": peers}))
    nodes = [
        build_node(
            NodeSettings(
                node_id=name,
                engine="dummy",
                model="dummy",
                host="127.0.0.1",
                grpc_port=peer["port"],
                discovery="manual",
                discovery_config=config,
                drain_seconds=5.0,
                recovery_seconds=30.0,
            )
        )
        for name, peer in peers.items()
    ]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, count)
        yield nodes
    finally:
        for node in nodes:
            await node.cleanup()


@pytest.mark.parametrize("hidden", [8192, 16384])
async def test_a_long_prompt_of_a_wide_model_needs_one_attempt_and_gives_the_answer_of_one_node(
    hidden: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes_of_width(1, hidden, tmp_path, monkeypatch) as (alone,):
        expected = await answer(alone, ask(PROMPT, 5))
    async with nodes_of_width(2, hidden, tmp_path, monkeypatch) as nodes:
        stream = nodes[1].process_tokens(ask(PROMPT, 5))
        tokens = list((await anext(stream)).tokens)
        (request,) = nodes[1].describe_requests()
        assert request["attempts"] == 1
        tokens += [token async for chunk in stream for token in chunk.tokens]
        assert tokens == expected
        await until(lambda: not any(leftovers(node) for node in nodes))


async def test_what_no_message_can_carry_ends_the_request_at_once_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A single row above the limit cannot be cut: without a way out it must not be tried again."""
    async with nodes_of_width(2, MAX_VALUES_BYTES // 4 + 1, tmp_path, monkeypatch) as nodes:
        for entry in nodes:
            begun = time.monotonic()
            with pytest.raises(ExoError, match=r"values: \d+ bytes, a message takes at most") as e:
                await answer(entry, ask())
            assert not isinstance(e.value, RingUnavailable)
            assert time.monotonic() - begun < 10
        await until(lambda: not any(leftovers(node) for node in nodes))
