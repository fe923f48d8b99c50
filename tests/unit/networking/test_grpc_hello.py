"""Which nodes connect to each other, and what they are told when they do not; ports in use."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace

import pytest
from ports import deaf_port, free_ports
from ring_nodes import RecordingHandler, make_handle, make_server

from exo.lifecycle import ResourceInitializationError, ResourceState
from exo.networking.errors import PeerLost, PeerRefused
from exo.networking.hello import Membership
from exo.networking.liveness import Timings
from exo.utils.listening import CannotListen


def cause_of(error: BaseException) -> str:
    assert isinstance(error.__cause__, PeerLost)
    return str(error.__cause__)


@pytest.mark.parametrize(
    ("mine", "theirs", "message"),
    [
        (
            Membership(cluster="x"),
            Membership(cluster="y"),
            r"cluster 'x', this node belongs to 'y'",
        ),
        (
            Membership(cluster="x", protocol=2),
            Membership(cluster="x"),
            r"protocol version 2, this node speaks 1",
        ),
        (
            Membership(cluster="x", secret=b"1"),
            Membership(cluster="x", secret=b"2"),
            r"shared secret differs",
        ),
        (Membership(cluster="x", secret=b"1"), Membership(cluster="x"), r"shared secret differs"),
        (Membership(cluster="x"), Membership(cluster="x", secret=b"2"), r"shared secret differs"),
    ],
)
async def test_a_stranger_is_refused_with_the_reason(mine, theirs, message):
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(b, membership=theirs) as server:
        handle = make_handle(a, server.port, membership=mine)
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert message in cause_of(caught.value)
        assert isinstance(caught.value.__cause__, PeerRefused)
        assert handle.state is ResourceState.ERROR
        assert b.offers == {}
        assert server.sessions.ids() == []
        await handle.cleanup()


async def test_the_same_secret_on_both_sides_is_accepted():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    membership = Membership(cluster="x", secret=b"shared")
    async with (
        make_server(b, membership=membership) as server,
        make_handle(a, server.port, membership=membership),
    ):
        assert server.sessions.ids() == ["a"]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (
            RecordingHandler("a", model_id="x"),
            RecordingHandler("b"),
            "model 'x', this node serves 'm'",
        ),
        (
            RecordingHandler("a", model_hash="1" * 64),
            RecordingHandler("b", model_hash="2" * 64),
            "has content 1111",
        ),
        (RecordingHandler("n"), RecordingHandler("n"), "node id 'n' is taken by another process"),
    ],
)
async def test_another_model_or_a_taken_id_is_refused(a, b, message):
    async with make_server(b) as server:
        handle = make_handle(a, server.port)
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert message in cause_of(caught.value)
        await handle.cleanup()


async def test_a_node_that_dials_itself_is_told_so():
    a = RecordingHandler("a")
    async with make_server(a) as server:
        handle = make_handle(a, server.port)
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert caught.value.__cause__.reason == "self"
        await handle.cleanup()


async def test_the_handler_has_the_last_word():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    b.refuse_with = "the ring is full"
    async with make_server(b) as server:
        handle = make_handle(a, server.port)
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert "the ring is full" in cause_of(caught.value)
        await handle.cleanup()


async def test_an_unexpected_node_at_the_address_is_refused():
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with make_server(b) as server:
        handle = make_handle(a, server.port, node_id="c")
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert "node 'b' answers at its address" in cause_of(caught.value)
        await handle.cleanup()


async def test_more_peers_than_allowed_are_refused():
    b = RecordingHandler("b")
    async with (
        make_server(b, max_peers=1) as server,
        make_handle(RecordingHandler("a"), server.port),
    ):
        second = make_handle(RecordingHandler("c"), server.port)
        with pytest.raises(ResourceInitializationError) as caught:
            await second.initialize()
        assert "this node has 1 peers already" in cause_of(caught.value)
        await second.cleanup()
        assert server.sessions.ids() == ["a"]


async def test_a_port_where_nobody_listens_fails_cleanly():
    with deaf_port() as port:
        handle = make_handle(RecordingHandler("a"), port)
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert "UNAVAILABLE" in cause_of(caught.value)
        await handle.cleanup()


async def test_a_port_that_accepts_and_says_nothing_times_out():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        handle = make_handle(
            RecordingHandler("a"), silent.getsockname()[1], timings=Timings(connect_timeout=0.3)
        )
        with pytest.raises(ResourceInitializationError) as caught:
            await handle.initialize()
        assert "no answer" in cause_of(caught.value)
        await handle.cleanup()


async def test_a_stall_of_our_own_loop_while_the_port_is_asked_is_no_silence_of_the_peer(
    monkeypatch, virtual_clock
):
    asked, closed = [], []

    async def stalled_once(*where):
        asked.append(where)
        if len(asked) == 1:
            virtual_clock.advance(1.0)
            await asyncio.Event().wait()
        return None, SimpleNamespace(close=lambda: closed.append(True))

    monkeypatch.setattr(asyncio, "open_connection", stalled_once)
    handle = make_handle(RecordingHandler("a"), 1, timings=Timings(connect_timeout=0.3))
    assert await handle.answers()
    assert len(asked) == 2
    assert closed == [True]


async def test_a_port_that_does_not_answer_is_asked_once(monkeypatch, virtual_clock):
    asked = []

    async def silent(*where):
        asked.append(where)
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio, "open_connection", silent)
    handle = make_handle(RecordingHandler("a"), 1, timings=Timings(connect_timeout=0.3, tick=10.0))
    assert not await handle.answers()
    assert len(asked) == 1
    assert virtual_clock.elapsed == pytest.approx(0.3)


async def test_a_taken_port_fails_the_server_and_leaves_nothing():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = make_server(RecordingHandler("a"), port=taken.getsockname()[1])
        with pytest.raises(ResourceInitializationError) as caught:
            await server.initialize()
        assert isinstance(caught.value.__cause__, CannotListen)
        assert caught.value.__cause__.setting == "grpc_port"
        await server.cleanup()


async def test_two_servers_never_share_a_port():
    async with make_server(RecordingHandler("a")) as one:
        two = make_server(RecordingHandler("b"), port=one.port)
        with pytest.raises(ResourceInitializationError):
            await two.initialize()
        await two.cleanup()


async def test_a_server_restarts_on_its_port_at_once():
    (port,) = free_ports(1)
    server = make_server(RecordingHandler("a"), port=port)
    await server.start()
    await server.stop()
    again = make_server(RecordingHandler("a"), port=port)
    async with again:
        assert again.port == port
        assert await again.check_health()
