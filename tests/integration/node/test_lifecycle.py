"""A whole node as a resource: what is busy, what breaks, what is left."""

from __future__ import annotations

import asyncio
import socket

import pytest
from ports import free_ports

from exo.inference.engines.inference_engine import InferenceEngine
from exo.lifecycle import ResourceInitializationError, ResourceState
from exo.lifecycle.testing.leaks import Holdings, gained_since
from exo.node.build import build_node
from exo.node.node import Node
from exo.node.settings import NodeSettings

S = ResourceState


def make(port: int = 0) -> Node:
    return build_node(
        NodeSettings(node_id="n0", engine="dummy", model="dummy", host="127.0.0.1", grpc_port=port)
    )


async def until(condition: object, timeout: float = 15.0) -> None:
    assert callable(condition)
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  # the condition may be anything
            await asyncio.sleep(0.01)


async def test_a_busy_port_is_named_and_leaves_nothing_running_and_a_free_one_starts() -> None:
    (port,) = free_ports(1)
    taken = socket.create_server(("127.0.0.1", port))
    # Once each, for what the libraries keep: gRPC keeps the event queues of its first failed bind.
    async with make():
        pass
    with pytest.raises(ResourceInitializationError):
        await make(port).initialize()
    before = Holdings.now()
    node = make(port)
    try:
        with pytest.raises(ResourceInitializationError) as failed:
            await node.initialize()
        assert str(port) in repr(failed.value.__cause__)
        assert node.state is S.ERROR
        assert all(
            part.state in (S.CLOSED, S.UNINITIALIZED)
            for part in (*node.parts, node.ring, node.monitor)
        )
        assert await gained_since(before, patience=10.0) == []
    finally:
        taken.close()
    assert await node.initialize()
    assert node.server.port == port
    await node.cleanup()


async def test_an_ailing_engine_degrades_its_node_and_recovers_by_itself_in_place() -> None:
    async with make() as node:
        await until(lambda: node.monitor.report().is_ready)
        engine, server_since = node.inference_engine, node.server.state_since
        sick = True

        async def check() -> bool:
            return not sick

        engine._do_health_check = check  # type: ignore[method-assign]
        await engine.wait_for(S.ERROR, timeout=15)
        report = node.monitor.report()
        assert not report.is_ready
        assert engine.resource_id in report.reasons_ready
        assert report.is_live
        assert node.state in (S.READY, S.DEGRADED)
        sick = False
        await until(lambda: node.monitor.report().is_ready)
        assert node.inference_engine.statistics().recoveries >= 1
        assert node.server.state_since == server_since, "the healthy parts went on"
        await until(lambda: node.state is S.READY)


async def test_a_part_that_fails_to_close_keeps_no_other_from_closing() -> None:
    node = make()
    await node.initialize()

    async def stuck() -> None:
        raise OSError("stuck")

    assert isinstance(node.inference_engine, InferenceEngine)
    node.ring._do_cleanup = stuck  # type: ignore[method-assign]
    with pytest.raises(ExceptionGroup, match="node 'n0': cleanup"):
        await node.cleanup()
    assert all(part.state is S.CLOSED for part in (node, *node.parts, node.ring, node.monitor))
    await node.cleanup()


async def test_cleanup_during_the_start_ends_closed_with_nothing_left() -> None:
    async with make():
        pass
    before = Holdings.now()
    for turns in (1, 5, 20, 60):
        node = make()
        starting = asyncio.create_task(node.initialize())
        for _ in range(turns):
            await asyncio.sleep(0)
        await node.cleanup()
        await asyncio.wait({starting})
        starting.exception()
        assert all(
            part.state in (S.CLOSED, S.UNINITIALIZED)
            for part in (node, *node.parts, node.ring, node.monitor)
        )
    assert await gained_since(before, patience=10.0) == []
