"""The kubelet's view: grpc.health.v1 on its own port says what the monitor says."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from exo.lifecycle import AsyncResource, ResourceInitializationError
from exo.networking.grpc.health_server import HealthServer
from exo.utils.health_check import HealthMonitor
from exo.utils.listening import CannotListen

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Engine(AsyncResource):
    RESOURCE_TYPE = "inference_engine"
    healthy = True

    async def _do_health_check(self) -> bool:
        if self.healthy is None:
            await asyncio.Event().wait()
        return bool(self.healthy)


@pytest_asyncio.fixture
async def probe():
    engine = Engine(resource_id="engine", health_check_timeout=60.0)
    monitor = HealthMonitor()
    monitor.register(engine, interval=60)
    async with monitor, HealthServer("a", "127.0.0.1", monitor, port=0) as server:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield engine, monitor, health_pb2_grpc.HealthStub(channel)
        await engine.cleanup()


async def ask(stub, service: str) -> int:
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)).status


async def test_before_the_node_is_up_it_is_live_and_neither_started_nor_ready(probe):
    _, _, stub = probe
    assert await ask(stub, "live") == SERVING
    assert await ask(stub, "started") == NOT_SERVING
    assert await ask(stub, "ready") == NOT_SERVING
    assert await ask(stub, "inference_engine") == NOT_SERVING
    assert await ask(stub, "") == NOT_SERVING


async def test_views_and_types_follow_the_monitor(probe):
    engine, monitor, stub = probe
    await engine.initialize()
    for service in ("live", "started", "ready", "inference_engine", ""):
        assert await ask(stub, service) == SERVING, service
    engine.healthy = False
    await engine.check_health()
    assert await ask(stub, "ready") == NOT_SERVING
    assert await ask(stub, "inference_engine") == NOT_SERVING
    assert await ask(stub, "live") == SERVING
    assert await ask(stub, "started") == SERVING
    remove = monitor.add_readiness("ring", lambda: "the ring has not formed")
    engine.healthy = True
    await engine.check_health()
    assert await ask(stub, "inference_engine") == SERVING
    assert await ask(stub, "ready") == NOT_SERVING
    remove()
    assert await ask(stub, "ready") == SERVING


async def test_an_unknown_name_is_not_found(probe):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(probe[2], "nonsense")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_hears_each_change_once(probe):
    engine, _, stub = probe
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="ready"))
    assert (await watch.read()).status == NOT_SERVING
    await engine.initialize()
    assert (await watch.read()).status == SERVING
    await engine.check_health()
    engine.healthy = False
    await engine.check_health()
    assert (await watch.read()).status == NOT_SERVING
    watch.cancel()
    unknown = stub.Watch(health_pb2.HealthCheckRequest(service="later"))
    assert (await unknown.read()).status == UNKNOWN
    unknown.cancel()


async def test_a_check_that_hangs_delays_no_probe(probe):
    engine, _, stub = probe
    await engine.initialize()
    engine.healthy = None
    hanging = asyncio.create_task(engine.check_health())
    await asyncio.sleep(0)
    async with asyncio.timeout(2):
        for _ in range(20):
            assert await ask(stub, "live") == SERVING
    hanging.cancel()


async def test_a_taken_health_port_fails_cleanly():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HealthServer("a", "127.0.0.1", HealthMonitor(), port=taken.getsockname()[1])
        with pytest.raises(ResourceInitializationError) as caught:
            await server.initialize()
        assert isinstance(caught.value.__cause__, CannotListen)
        assert caught.value.__cause__.setting == "health_port"
        await server.cleanup()
