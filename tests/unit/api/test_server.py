"""`ApiServer` on a real socket: its life, its port, its stop."""

from __future__ import annotations

import asyncio
import socket

import httpx
import pytest
from api_fakes import FakeBackend, Fakes
from ports import free_ports
from waiting import eventually

from exo.api.server import ApiServer
from exo.api.settings import ApiSettings
from exo.lifecycle import ResourceInitializationError, ResourceState
from exo.lifecycle.testing.conformance import check_resource

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}


def server(
    fakes: Fakes, port: int = 0, drain_seconds: float = 5.0, host: str = "127.0.0.1"
) -> ApiServer:
    settings = ApiSettings(host=host, port=port, drain_seconds=drain_seconds)
    return ApiServer(fakes.backend, fakes.view, fakes.monitor, settings)  # type: ignore[arg-type]


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_it_passes_the_conformance_suite() -> None:
    await check_resource(lambda: server(Fakes()))


async def test_port_zero_is_a_free_port_that_answers() -> None:
    async with server(Fakes()) as api, httpx.AsyncClient() as http:
        assert api.port > 0
        assert (await http.get(f"{api.url}/livez")).status_code == 200
        assert await api.check_health()
        port = api.port
    with pytest.raises(ConnectionRefusedError):
        # From another address: from the same one, the kernel may give the caller this very port,
        # and it meets itself.
        await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))


async def test_a_busy_port_is_a_clear_error_and_leaves_nothing_open() -> None:
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        api = server(Fakes(), port)
        with pytest.raises(ResourceInitializationError, match=f"127.0.0.1 port {port}"):
            await api.initialize()
    assert api.state is ResourceState.ERROR
    assert await api.initialize()
    assert api.port == port
    await api.cleanup()


async def test_an_address_that_is_not_ours_is_a_clear_error() -> None:
    with pytest.raises(ResourceInitializationError, match=r"203\.0\.113\.1"):
        await server(Fakes(), host="203.0.113.1").initialize()


async def test_it_serves_again_on_the_same_port_after_a_stop() -> None:
    (port,) = free_ports(1)
    async with server(Fakes(), port):
        pass
    again = server(Fakes(), port)
    async with again, httpx.AsyncClient() as http:
        assert (await http.get(f"{again.url}/livez")).status_code == 200


async def test_a_stop_lets_a_running_answer_end_and_takes_nothing_new() -> None:
    fakes = Fakes(backend=FakeBackend(hold=asyncio.Event()))
    api = server(fakes)
    await api.initialize()
    port = api.port
    async with (
        httpx.AsyncClient() as http,
        http.stream("POST", f"{api.url}/v1/chat/completions", json=CHAT) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        closing = asyncio.create_task(api.cleanup())
        await eventually(lambda: refused(port), 10)
        assert not closing.done()
        assert fakes.backend.hold is not None
        fakes.backend.hold.set()
        rest = [line async for line in lines if line]
    await closing
    assert rest[-1] == "data: [DONE]"
    assert fakes.backend.open == set()


async def test_an_answer_that_never_ends_is_cut_at_the_deadline() -> None:
    fakes = Fakes(backend=FakeBackend(hold=asyncio.Event()))
    api = server(fakes, drain_seconds=0.05)
    await api.initialize()
    async with (
        httpx.AsyncClient() as http,
        http.stream("POST", f"{api.url}/v1/chat/completions", json=CHAT) as answer,
    ):
        lines = answer.aiter_lines()
        await anext(lines)
        await api.cleanup()
        rest = [line async for line in lines if line]
    assert "the node stopped before the end" in rest[-1]
    assert api.state is ResourceState.CLOSED
    assert fakes.backend.open == set()


async def test_idle_connections_do_not_hold_up_a_stop() -> None:
    api = server(Fakes(), drain_seconds=60)
    await api.initialize()
    async with httpx.AsyncClient() as http:
        await http.get(f"{api.url}/livez")
        await asyncio.wait_for(api.cleanup(), 5)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_ends_its_sequences(stream: bool) -> None:
    fakes = Fakes(backend=FakeBackend(hold=asyncio.Event()))
    async with server(fakes) as api, httpx.AsyncClient() as http:
        body = {**CHAT, "stream": stream, "n": 3}
        asking = asyncio.create_task(http.post(f"{api.url}/v1/chat/completions", json=body))
        await eventually(lambda: len(fakes.backend.open) == 3, 5)
        asking.cancel()
        await eventually(lambda: not fakes.backend.open, 10)
    assert len(fakes.backend.closed) == 3


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"port": -1}, "port"), ({"max_body_bytes": 0}, "max_body"), ({"drain_seconds": -1}, "drain")],
)
def test_wrong_settings_are_named(fields: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ApiSettings(**fields)  # type: ignore[arg-type]
