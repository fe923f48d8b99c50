"""Nodes of one network find each other by datagrams."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from ports import free_ports
from ring_nodes import MEMBERSHIP, RecordingHandler, factory, make_server, until_peers
from waiting import eventually

from exo.lifecycle import ResourceInitializationError
from exo.networking.grpc.grpc_server import GRPCServer
from exo.networking.hello import Membership
from exo.networking.udp.interfaces import MULTICAST_GROUP, interfaces, open_ipv4, open_ipv6
from exo.networking.udp.udp_discovery import UDPDiscovery
from exo.utils.listening import CannotListen


@pytest.fixture
def udp_port():
    return free_ports(1)[0]


def make_udp(handler, server, port, membership=MEMBERSHIP):
    return UDPDiscovery(
        handler.offer.node_id,
        lambda: server.port,
        factory(handler, membership),
        membership,
        port=port,
        incarnation=handler.offer.incarnation,
        interval=0.2,
        expiry=1.0,
    )


async def test_three_nodes_on_one_machine_find_each_other_by_datagrams_within_three_seconds(
    udp_port,
):
    handlers = [RecordingHandler(name) for name in "abc"]
    async with AsyncExitStack() as stack:
        discoveries = []
        for handler in handlers:
            server = await stack.enter_async_context(make_server(handler))
            discoveries.append(await stack.enter_async_context(make_udp(handler, server, udp_port)))
        async with asyncio.timeout(3):
            for discovery in discoveries:
                assert len(await discovery.discover_peers(wait_for_peers=2)) == 2


async def test_a_port_that_another_program_keeps_to_itself_is_told_with_its_setting():
    handler = RecordingHandler("a")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as selfish:
        selfish.bind(("0.0.0.0", 0))
        port = selfish.getsockname()[1]
        async with make_server(handler) as server:
            discovery = make_udp(handler, server, port)
            with pytest.raises(ResourceInitializationError) as caught:
                await discovery.initialize()
            await discovery.cleanup()
    refused = caught.value.__cause__
    assert isinstance(refused, CannotListen)
    assert (refused.port, refused.setting) == (port, "discovery_port")


async def heard_by_all(udp_port: int, of: set[int]) -> None:
    """Hear what every node on this port hears, until each gRPC port was announced twice."""
    most = 2 * len(interfaces())
    heard: Counter[int] = Counter()
    with open_ipv4(udp_port) as bystander:
        async with asyncio.timeout(10):
            while any(heard[port] < most for port in of):
                data = await asyncio.get_running_loop().sock_recv(bystander, 65536)
                heard[json.loads(data)["port"]] += 1


async def test_datagrams_of_another_cluster_or_secret_are_not_even_dialled(udp_port):
    a, b, c = RecordingHandler("a"), RecordingHandler("b"), RecordingHandler("c")
    secret = Membership(cluster="test", secret=b"s")
    async with (
        make_server(a) as server_a,
        make_server(b) as server_b,
        make_server(c, membership=secret) as server_c,
        make_udp(a, server_a, udp_port) as one,
        make_udp(b, server_b, udp_port, Membership(cluster="other")) as two,
        make_udp(c, server_c, udp_port, secret) as three,
    ):
        await heard_by_all(udp_port, {server_a.port, server_b.port, server_c.port})
        assert [each.peers() for each in (one, two, three)] == [[], [], []]
        assert [each.problems() for each in (one, two, three)] == [{}, {}, {}]


async def test_a_node_that_stops_announcing_is_forgotten_and_found_again(udp_port):
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(a) as server_a, make_udp(a, server_a, udp_port) as discovery:
        async with make_server(b) as server_b, make_udp(b, server_b, udp_port):
            await until_peers(discovery, ["b"])
        await until_peers(discovery, [])
        await eventually(lambda: not discovery._sightings.candidates())
        b = RecordingHandler("b")
        async with make_server(b) as server_b, make_udp(b, server_b, udp_port):
            await until_peers(discovery, ["b"])


def open_ipv6_on(interface) -> bool:
    sock = open_ipv6(0, [interface])
    if sock is None:
        return False
    with sock:
        try:
            sock.sendto(b"", (MULTICAST_GROUP, sock.getsockname()[1], 0, interface.index))
        except OSError:
            return False
    return True


async def test_two_nodes_find_each_other_by_ipv6_multicast_alone(udp_port):
    if not any(open_ipv6_on(each) for each in interfaces()):
        pytest.skip("no interface of this machine takes IPv6 multicast")
    handlers = [RecordingHandler(name) for name in "ab"]
    async with AsyncExitStack() as stack:
        found = []
        for handler in handlers:
            node_id = handler.offer.node_id
            server = await stack.enter_async_context(
                GRPCServer(node_id, "::", 0, handler, MEMBERSHIP)
            )
            discovery = UDPDiscovery(
                node_id,
                lambda server=server: server.port,
                factory(handler),
                MEMBERSHIP,
                port=udp_port,
                incarnation=handler.offer.incarnation,
                interval=0.2,
                expiry=1.0,
                find_interfaces=lambda: [replace(each, broadcast="") for each in interfaces()],
            )
            found.append(await stack.enter_async_context(discovery))
        async with asyncio.timeout(5):
            for discovery in found:
                (peer,) = await discovery.discover_peers(wait_for_peers=1)
                assert ":" in peer.addr().rpartition(":")[0]
