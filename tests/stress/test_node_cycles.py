"""A whole node, started and stopped 100 times on the same ports: nothing accumulates."""

from __future__ import annotations

import asyncio
import gc
import time

from ports import free_ports

from exo.api.server import ApiServer
from exo.api.settings import ApiSettings
from exo.cli.commands.serve import compose
from exo.lifecycle import ResourceState
from exo.lifecycle.testing.leaks import Holdings, gained_since
from exo.node.build import build_node
from exo.node.settings import NodeSettings

CYCLES = 100
BOUND_SECONDS = 90.0


async def test_a_hundred_lives_of_a_node_on_the_same_ports_leak_no_task_socket_thread_or_file():
    api, grpc, health = free_ports(3)
    settings = NodeSettings(
        node_id="n0", engine="dummy", model="dummy", host="127.0.0.1", grpc_port=grpc
    )
    node = build_node(settings)
    server = ApiServer(node.backend, node, node.monitor, ApiSettings(host="127.0.0.1", port=api))
    group = compose(node, server, health)
    begun = time.monotonic()
    before: Holdings | None = None
    for cycle in range(CYCLES):
        await group.initialize()
        assert node.server.port == grpc
        await group.cleanup()
        assert all(
            part.state is ResourceState.CLOSED
            for part in (group, node, *node.parts, node.ring, node.monitor)
        )
        if cycle == 2:
            # By now the libraries hold what they hold for the life of a process.
            gc.collect()
            await asyncio.sleep(0.2)
            before = Holdings.now()
    assert before is not None
    assert await gained_since(before, patience=10.0) == []
    assert time.monotonic() - begun < BOUND_SECONDS
