"""Discovery over real sockets and files: who is found, kept, replaced and dropped."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest
from ports import deaf_port, free_ports
from ring_nodes import RecordingHandler, factory, make_handle, make_server, until_peers
from waiting import eventually

from exo.lifecycle import ResourceInitializationError, ResourceState
from exo.networking.discovery import Discovery
from exo.networking.dns.dns_discovery import DnsDiscovery, resolve
from exo.networking.liveness import Timings
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.messages import Close
from exo.networking.pooled_discovery import NoDiscovery


def write_peers(path: Path, ports: dict[str, int]) -> None:
    peers = {node_id: {"address": "127.0.0.1", "port": port} for node_id, port in ports.items()}
    path.write_text(json.dumps({"peers": peers}))


async def test_no_discovery_finds_nobody():
    async with NoDiscovery("a", factory(RecordingHandler("a"))) as discovery:
        assert await discovery.discover_peers() == []


async def test_the_file_names_the_peers_and_not_the_node_itself(tmp_path):
    a, b = RecordingHandler("a"), RecordingHandler("b")
    path = tmp_path / "peers.json"
    async with make_server(a) as mine, make_server(b) as server:
        write_peers(path, {"a": mine.port, "b": server.port})
        async with ManualDiscovery("a", path, factory(a)) as discovery:
            peers = await discovery.discover_peers(wait_for_peers=1)
            assert [peer.id() for peer in peers] == ["b"]
            await peers[0].send(Close(sequence_id="s", epoch="e"))
            await b.until(lambda: b.messages)
        assert peers[0].state is ResourceState.CLOSED
        assert b.lost == [] or b.lost[0][0] == "a"


async def test_a_changed_file_adds_and_removes_peers_while_the_node_runs(tmp_path):
    a, b, c = RecordingHandler("a"), RecordingHandler("b"), RecordingHandler("c")
    path = tmp_path / "peers.json"
    async with make_server(b) as server_b, make_server(c) as server_c:
        write_peers(path, {"b": server_b.port})
        async with ManualDiscovery("a", path, factory(a), poll_interval=0.02) as discovery:
            await until_peers(discovery, ["b"])
            kept = discovery.peers()[0]
            write_peers(path, {"b": server_b.port, "c": server_c.port})
            await until_peers(discovery, ["b", "c"])
            assert discovery.peers()[0] is kept
            write_peers(path, {"c": server_c.port})
            await until_peers(discovery, ["c"])
            await kept.wait_for(ResourceState.CLOSED, timeout=5)


async def test_a_file_that_becomes_wrong_keeps_the_peers_and_degrades_with_the_line(tmp_path):
    a, b = RecordingHandler("a"), RecordingHandler("b")
    path = tmp_path / "peers.json"
    async with make_server(b) as server:
        write_peers(path, {"b": server.port})
        async with ManualDiscovery("a", path, factory(a), poll_interval=0.02) as discovery:
            await until_peers(discovery, ["b"])
            path.write_text('{"peers": {\n  "b": {"address": }\n}}')
            # At first it may be seen half written.
            await eventually(lambda: "line 2, column 20" in discovery.problem)
            await discovery.check_health()
            assert discovery.state is ResourceState.DEGRADED
            assert [peer.id() for peer in discovery.peers()] == ["b"]
            write_peers(path, {"b": server.port})
            await eventually(lambda: not discovery.problem)
            assert await discovery.check_health()
            assert discovery.state is ResourceState.READY


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1, column 1"),
        ("[]", "peers: the file must be"),
        ('{"peers": {"b": 1}}', "peers.b: must be"),
        ('{"peers": {"b": {"port": 1}}}', "peers.b.address: must be"),
        ('{"peers": {"b": {"address": "x", "port": 0}}}', "peers.b.port: must be"),
        ('{"peers": {"b": {"address": "x", "port": true}}}', "peers.b.port: must be"),
        ('{"peers": {"b": {"address": "x", "prot": 1}}}', "peers.b.prot: is not known"),
        ('{"peers": {"b": {"address": "x"}, "b": {"address": "y"}}}', "b: is in the file twice"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
async def test_a_file_that_is_wrong_at_the_start_fails_with_line_or_field(tmp_path, text, message):
    path = tmp_path / "peers.json"
    path.write_text(text)
    discovery = ManualDiscovery("a", path, factory(RecordingHandler("a")))
    with pytest.raises(ResourceInitializationError) as caught:
        await discovery.initialize()
    assert message in str(caught.value.__cause__)
    assert str(path) in str(caught.value.__cause__)
    await discovery.cleanup()


async def test_a_file_that_is_missing_or_no_text_fails_by_name(tmp_path):
    path = tmp_path / "peers.json"
    for content, message in ((None, "peers.json"), (b"\xff{", "byte 0: is no UTF-8 text")):
        if content is not None:
            path.write_bytes(content)
        discovery = ManualDiscovery("a", path, factory(RecordingHandler("a")))
        with pytest.raises(ResourceInitializationError) as caught:
            await discovery.initialize()
        assert message in str(caught.value.__cause__)
        await discovery.cleanup()


async def test_a_peer_that_restarts_is_found_again_as_a_new_handle(tmp_path):
    a, b = RecordingHandler("a"), RecordingHandler("b")
    path = tmp_path / "peers.json"
    (port,) = free_ports(1)
    server = make_server(b, port=port)
    await server.initialize()
    write_peers(path, {"b": port})
    async with ManualDiscovery("a", path, factory(a)) as discovery:
        await until_peers(discovery, ["b"])
        first = discovery.peers()[0]
        await server.cleanup()
        await until_peers(discovery, [])
        reborn = RecordingHandler("b")
        async with make_server(reborn, port=port):
            await until_peers(discovery, ["b"], timeout=5)
            second = discovery.peers()[0]
            assert second is not first
            assert second.offer().incarnation == reborn.offer.incarnation
            await first.wait_for(ResourceState.CLOSED, timeout=5)


async def test_a_refused_peer_is_reported_with_the_reason(tmp_path):
    a, b = RecordingHandler("a", model_id="other"), RecordingHandler("b")
    path = tmp_path / "peers.json"
    async with make_server(b) as server:
        write_peers(path, {"b": server.port})
        async with ManualDiscovery("a", path, factory(a)) as discovery:
            await eventually(lambda: discovery.problems())
            assert (
                "model 'other', this node serves 'm'"
                in discovery.problems()[f"127.0.0.1:{server.port}"]
            )


async def test_dns_finds_peers_by_address_alone_and_leaves_itself_out():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(b) as server:

        async def records(name):
            assert name == "nodes.example"
            return ["127.0.0.1"]

        async with DnsDiscovery(
            "a", "nodes.example", factory(a), port=server.port, interval=0.05, resolver=records
        ) as discovery:
            await until_peers(discovery, ["b"])
            assert discovery.peers()[0].id() == "b"
        async with DnsDiscovery(
            "b", "nodes.example", factory(b), port=server.port, interval=0.05, resolver=records
        ) as discovery:
            await discovery.check_health()
            assert discovery.peers() == []


class Records:
    """A resolver that says when it is asked. Its answer: addresses, or an error to raise."""

    def __init__(self, *addresses: str) -> None:
        self.answer: list[str] | Exception = list(addresses)
        self._asked = asyncio.Event()

    async def __call__(self, name: str) -> list[str]:
        self._asked.set()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def asked_again(self) -> None:
        self._asked.clear()
        await self._asked.wait()


async def test_two_addresses_of_one_node_make_one_connection():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    records = Records("127.0.0.1", "127.0.0.2", "127.0.0.3")
    async with make_server(b) as server:
        b_everywhere = server.port
        async with DnsDiscovery(
            "a", "x", factory(a), port=b_everywhere, interval=0.05, resolver=records
        ) as discovery:
            await until_peers(discovery, ["b"])
            for _ in range(6):
                await records.asked_again()
            assert a.lost == []
            assert [peer.id() for peer in discovery.peers()] == ["b"]


async def test_dns_tolerates_a_missing_name_and_degrades_when_look_ups_fail():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    records = Records()
    async with (
        make_server(b) as server,
        DnsDiscovery(
            "a", "x", factory(a), port=server.port, interval=0.02, resolver=records
        ) as discovery,
    ):
        assert await discovery.check_health()
        records.answer = ["127.0.0.1", "not an address"]
        await until_peers(discovery, ["b"])
        records.answer = OSError("no such server")
        await until_checked(discovery, ResourceState.DEGRADED, records)
        assert [peer.id() for peer in discovery.peers()] == ["b"]
        records.answer = []
        await until_checked(discovery, ResourceState.READY, records)
        # Connected peers outlive their records.
        assert [peer.id() for peer in discovery.peers()] == ["b"]


async def until_checked(discovery: Discovery, state: ResourceState, records: Records) -> None:
    async with asyncio.timeout(5):
        while discovery.state is not state:
            await records.asked_again()
            await discovery.check_health()


async def test_the_system_resolver_knows_localhost():
    assert "127.0.0.1" in await resolve("localhost")


async def test_start_and_stop_are_other_names_of_initialize_and_cleanup():
    discovery = NoDiscovery("a", factory(RecordingHandler("a")))
    assert (discovery.resource_id, discovery.resource_type) == ("discovery-a", "discovery")
    await discovery.start()
    assert discovery.state is ResourceState.READY
    await discovery.stop()
    assert discovery.state is ResourceState.CLOSED


async def test_a_peer_that_takes_connections_and_never_answers_is_soon_left_alone(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("exo.networking.peer_pool.STUCK_PAUSE", 30.0)
    dials, pauses = [], []
    sleep = asyncio.sleep

    async def recorded(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", recorded)
    path = tmp_path / "peers.json"
    with socket.create_server(("127.0.0.1", 0)) as stopped:
        write_peers(path, {"b": stopped.getsockname()[1]})

        def connect(node_id, address, port):
            dials.append(node_id)
            # There is plenty of time to ask the port: this is about silence, not about slowness.
            patient = Timings(connect_timeout=0.3, probe_timeout=5.0)
            return make_handle(RecordingHandler("a"), port, node_id=node_id, timings=patient)

        async with ManualDiscovery("a", path, connect) as discovery:
            await eventually(lambda: any(pause > 20 for pause in pauses))
            assert len(dials) == 2
            (problem,) = discovery.problems().values()
            assert "no answer" in problem


async def test_where_nobody_listens_no_handle_is_started(tmp_path):
    made = []
    path = tmp_path / "peers.json"

    def connect(node_id, address, port):
        made.append(make_handle(RecordingHandler("a"), port, node_id=node_id))
        return made[-1]

    with deaf_port() as port:
        write_peers(path, {"b": port})
        async with ManualDiscovery("a", path, connect) as discovery:
            await eventually(lambda: len(made) >= 3)
            assert {handle.state for handle in made} == {ResourceState.UNINITIALIZED}
            (problem,) = discovery.problems().values()
            assert f"nothing answers at 127.0.0.1:{port}" in problem
