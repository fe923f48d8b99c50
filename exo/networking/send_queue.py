"""`SendQueue`: what is to be sent to one peer, bounded in number and bytes. Pure asyncio; knows no
transport.
"""

from __future__ import annotations

import asyncio
from collections import deque


class SendQueue:
    """First in, first out, also among those who wait for room."""

    def __init__(self, *, max_items: int = 1024, max_bytes: int = 32 * 1024 * 1024) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[bytes] = deque()
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._ready = asyncio.Event()
        self._closed: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def queued_bytes(self) -> int:
        return self._bytes

    async def put(self, data: bytes) -> None:
        """Waits for room. Raises what `close` was given; a cancelled put adds nothing."""
        async with self._turn:
            while self._closed is None and not self._fits(len(data)):
                self._room.clear()
                await self._room.wait()
            if self._closed is not None:
                raise self._closed.with_traceback(None)
            self._add(data)

    def put_now(self, data: bytes) -> bool:
        """Whether it was taken: there is room, and nobody waits for it. Raises what `close` was
        given.
        """
        if self._closed is not None:
            raise self._closed.with_traceback(None)
        if self._turn.locked() or not self._fits(len(data)):
            return False
        self._add(data)
        return True

    async def get(self) -> bytes:
        """Waits for the next item. Raises what `close` was given."""
        while not self._items:
            if self._closed is not None:
                raise self._closed.with_traceback(None)
            self._ready.clear()
            await self._ready.wait()
        data = self._items.popleft()
        self._bytes -= len(data)
        self._room.set()
        return data

    async def get_together(self, max_bytes: int) -> list[bytes]:
        """The next item, and those behind it that are there already, up to `max_bytes` in all."""
        items = [await self.get()]
        size = len(items[0])
        while self._items and (size := size + len(self._items[0])) <= max_bytes:
            items.append(await self.get())
        return items

    def close(self, error: Exception) -> None:
        """Drop what is queued; every waiter, now or later, gets `error`."""
        if self._closed is None:
            self._closed = error
        self._items.clear()
        self._bytes = 0
        self._room.set()
        self._ready.set()

    def _add(self, data: bytes) -> None:
        self._items.append(data)
        self._bytes += len(data)
        self._ready.set()

    def _fits(self, size: int) -> bool:
        # A message larger than the whole allowance still goes, alone.
        return not self._items or (
            len(self._items) < self._max_items and self._bytes + size <= self._max_bytes
        )
