"""Server-sent events, and work that ends when its client goes away. Knows nothing of completions."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from exo.api import meters
from exo.api.problems import problem_of
from exo.inference.errors import NodeDraining

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The client closed the connection; nobody reads what would follow."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work` in a task of its own; cancels it and raises `ClientGone` when the client disconnects.

    The request's body must have been read: what `receive` has next is the disconnect.
    """
    worker = asyncio.create_task(work, name="api work")
    watcher = asyncio.create_task(_until_gone(receive), name="api disconnect watch")
    try:
        await asyncio.wait({worker, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.done():
            meters.DISCONNECTS.inc()
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
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class EventStream(Response):
    """Sends each object of `events` as one event, then `[DONE]`.

    The status line waits for the first event, so an error before it has its proper status; a later one becomes an
    event `{"error": ...}` and ends the stream without `[DONE]`.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[Any, None]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_gone(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            first = await anext(events)
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send(send, event(first))
            try:
                async for item in events:
                    await _send(send, event(item))
                await _send(send, DONE)
            except asyncio.CancelledError:  # the client has gone, or the server stops at its deadline
                await _send(send, event(problem_of(NodeDraining("the node stopped before the end")).body()))
                raise
            except Exception as error:
                await _send(send, event(problem_of(error).body()))
                raise
            finally:
                with contextlib.suppress(OSError):
                    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _send(send: Send, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})
