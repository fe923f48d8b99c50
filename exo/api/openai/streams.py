"""Server-sent events, and work that ends when its client disconnects. Knows no completions."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exo.api import metrics
from exo.api.exchange import Exchange
from exo.api.problems import problem_of
from exo.inference.errors import NodeDraining

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
PING = b": still here\n\n"


class ClientGone(Exception):
    """The client closed the connection: what would follow has no reader."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in its own task; cancel it and raise `ClientGone` when the client disconnects.

    The request's body must have been read before, so that the next message is the disconnect.
    """
    worker = asyncio.create_task(work, name="api work")
    watcher = asyncio.create_task(_until_gone(receive), name="api disconnect watch")
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            metrics.DISCONNECTS.inc()
            raise ClientGone
        return worker.result()
    finally:
        worker.cancel()
        watcher.cancel()
        await asyncio.gather(worker, watcher, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(data: Any) -> bytes:
    return (
        b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )


class EventStream(Response):
    """Sends each object of `events` as one event, then `[DONE]`.

    The status line waits for the first event, so an error before it has its proper status. A later
    error becomes an event `{"error": ...}` and ends the stream without `[DONE]`. After a silence of
    `ping_seconds` (while the ring recovers from a loss, say) a comment is sent: proxies cut
    connections that are silent for long.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None], *, ping_seconds: float = 15.0) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._ping_seconds = ping_seconds
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send, Exchange.of(scope).params))

    async def _send_all(self, send: Send, params: Mapping[str, str]) -> None:
        async with contextlib.aclosing(self._events) as events:
            first = await anext(events)
            await send(
                {
                    "type": "http.response.start",
                    "status": self.status_code,
                    "headers": self.raw_headers,
                }
            )
            pinging = asyncio.create_task(self._ping(send), name="api stream pings")
            try:
                await self._send(send, event(first))
                async for item in events:
                    await self._send(send, event(item))
                await self._send(send, DONE)
            # The client disconnected, or the server stops at its deadline.
            except asyncio.CancelledError:
                await self._send(
                    send, event(problem_of(NodeDraining("the node stopped before the end")).body())
                )
                raise
            except Exception as error:
                await self._send(send, event(problem_of(error, params).body()))
                raise
            finally:
                pinging.cancel()
                with contextlib.suppress(OSError):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, body: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": True})

    async def _ping(self, send: Send) -> None:
        """Each send is one whole event, so a ping is never sent in the middle of another event."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(max(0.0, self._sent_at + self._ping_seconds - now()))
            if now() - self._sent_at >= self._ping_seconds:
                await self._send(send, PING)
