"""Every network component passes the lifecycle's conformance suite, with real sockets and files."""

from __future__ import annotations

import json

import grpc
import pytest_asyncio
from node_processes import NodeProcess
from ports import free_ports
from ring_nodes import MEMBERSHIP, RecordingHandler, make_handle, make_server

from exo.lifecycle.testing.conformance import check_resource
from exo.networking.dns.dns_discovery import DnsDiscovery
from exo.networking.grpc.health_server import HealthServer
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.pooled_discovery import NoDiscovery
from exo.networking.udp.udp_discovery import UDPDiscovery
from exo.utils.health_check import HealthMonitor


@pytest_asyncio.fixture(autouse=True)
async def poller():
    """What gRPC keeps for the process (a thread, two sockets) as long as it is used at all is there
    throughout.
    """
    async with grpc.aio.insecure_channel("127.0.0.1:1"):
        yield


@pytest_asyncio.fixture
async def peer(tmp_path):
    """Port of a live node "b": another process, so that its tasks and sockets are not counted as
    ours.
    """
    peers = tmp_path / "nobody.json"
    peers.write_text('{"peers": {}}')
    process = await NodeProcess.start("b", "127.0.0.1", 0, peers)
    listening = await process.wait(lambda event: event["event"] == "listening", 30)
    yield listening["port"]
    await process.close()


def factory(handler):
    return lambda node_id, address, port: make_handle(handler, port, node_id=node_id)


async def test_grpc_server():
    await check_resource(lambda: make_server(RecordingHandler("a")))


async def test_health_server():
    monitor = HealthMonitor()
    await check_resource(lambda: HealthServer("a", "127.0.0.1", monitor, port=0))


async def test_grpc_peer_handle(peer):
    handler = RecordingHandler("a")
    await check_resource(lambda: make_handle(handler, peer))


async def test_no_discovery():
    await check_resource(lambda: NoDiscovery("a", factory(RecordingHandler("a"))))


async def test_manual_discovery(peer, tmp_path):
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"peers": {"b": {"address": "127.0.0.1", "port": peer}}}))
    handler = RecordingHandler("a")
    await check_resource(lambda: ManualDiscovery("a", path, factory(handler)))


async def test_dns_discovery(peer):
    handler = RecordingHandler("a")

    async def records(_):
        return ["127.0.0.1"]

    await check_resource(
        lambda: DnsDiscovery(
            "a", "nodes.example", factory(handler), port=peer, interval=0.1, resolver=records
        )
    )


async def test_udp_discovery():
    (port,) = free_ports(1)
    handler = RecordingHandler("a")
    await check_resource(
        lambda: UDPDiscovery("a", lambda: 1, factory(handler), MEMBERSHIP, port=port)
    )
