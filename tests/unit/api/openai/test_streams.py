"""Server-sent events: pings in silence, errors with their status or as events, work that ends with
its client.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from virtual_clock import VirtualClock

from exo.api.openai.streams import DONE, PING, ClientGone, EventStream, event, unless_gone


class Client:
    """An ASGI client: what it was sent, and when it goes."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)


async def stream(client: Client, events: AsyncGenerator[Any, None], **options: float) -> None:
    await EventStream(events, **options)({"type": "http"}, client.receive, client.send)


async def test_events_are_framed_and_end_with_done() -> None:
    async def two() -> AsyncGenerator[Any, None]:
        yield {"a": "é\n"}
        yield {"b": 2}

    client = Client()
    await stream(client, two())
    assert client.body == 'data: {"a":"é\\n"}\n\ndata: {"b":2}\n\n'.encode() + DONE
    assert client.messages[-1]["more_body"] is False


async def test_silence_is_filled_with_comments(virtual_clock: VirtualClock) -> None:
    client, enough = Client(), asyncio.Event()

    async def slow() -> AsyncGenerator[Any, None]:
        yield 1
        await enough.wait()
        yield 2

    running = asyncio.create_task(stream(client, slow(), ping_seconds=15))
    await asyncio.sleep(14.9)
    assert client.body == event(1)
    await asyncio.sleep(16)
    assert client.body == event(1) + PING + PING
    enough.set()
    await running
    sent = client.body
    assert sent == event(1) + PING + PING + event(2) + DONE
    await asyncio.sleep(100)
    assert client.body == sent


async def test_an_error_before_the_first_event_sends_nothing() -> None:
    async def broken() -> AsyncGenerator[Any, None]:
        raise ValueError("no")
        yield

    client = Client()
    with pytest.raises(ValueError, match="no"):
        await stream(client, broken())
    assert client.messages == []


async def test_the_events_are_closed_when_the_client_goes() -> None:
    client, closed = Client(), asyncio.Event()

    async def endless() -> AsyncGenerator[Any, None]:
        try:
            yield 1
            client.gone.set()
            await asyncio.Event().wait()
        finally:
            closed.set()

    with pytest.raises(ClientGone):
        await stream(client, endless())
    assert closed.is_set()


async def test_work_that_is_done_first_has_its_result_or_its_error() -> None:
    async def answer() -> int:
        return 42

    async def fail() -> int:
        raise ValueError("no")

    client = Client()
    assert await unless_gone(client.receive, answer()) == 42  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no"):
        await unless_gone(client.receive, fail())  # type: ignore[arg-type]
    assert len(asyncio.all_tasks()) == 1
