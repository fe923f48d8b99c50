"""`SendQueue`: what is to be sent to one peer, bounded in number and bytes. Pure asyncio; knows no
transport.

It is the only queue between a stage and a peer's socket, so it alone decides what happens when a
peer is behind: `put` waits for room, `put_now` says that there is none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

MAX_ITEMS = 16384
MAX_BYTES = 256 * 1024 * 1024

Item = TypeVar("Item")


class SendQueue(Generic[Item]):
    """First in, first out, also among those that wait for room. size: of an item, in bytes."""

    def __init__(
        self, size: Callable[[Item], int], *, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES
    ) -> None:
        self._size = size
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[Item] = deque()
        self._bytes = 0
        self._turn = asyncio.Lock()
        self._room = asyncio.Event()
        self._ready = asyncio.Event()
        self._closed: Exception | None = None

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, item: Item) -> None:
        """Waits for room. Raises what `close` was given; a cancelled put adds nothing."""
        size = self._size(item)
        async with self._turn:
            while self._closed is None and not self._fits(size):
                self._room.clear()
                await self._room.wait()
            self._check_open()
            self._add(item, size)

    def put_now(self, item: Item) -> bool:
        """Returns whether it was taken: there is room, and no `put` waits for it. Raises what
        `close` was given.
        """
        self._check_open()
        size = self._size(item)
        if self._turn.locked() or not self._fits(size):
            return False
        self._add(item, size)
        return True

    async def get(self) -> Item:
        """Waits for the next item. Raises what `close` was given."""
        while not self._items:
            self._check_open()
            self._ready.clear()
            await self._ready.wait()
        return self._take()

    async def get_together(self, *, max_items: int, max_bytes: int) -> list[Item]:
        """The next item, and those behind it that are there already and fit in with it."""
        items = [await self.get()]
        size = self._size(items[0])
        while self._items and len(items) < max_items:
            size += self._size(self._items[0])
            if size > max_bytes:
                break
            items.append(self._take())
        return items

    def clear(self) -> list[Item]:
        """Take out everything that waits, in order."""
        items = list(self._items)
        self._items.clear()
        self._bytes = 0
        self._room.set()
        return items

    def close(self, error: Exception) -> list[Item]:
        """Every call that waits, now or later, raises `error`. Returns what was still queued."""
        if self._closed is None:
            self._closed = error
        items = self.clear()
        self._ready.set()
        return items

    def _check_open(self) -> None:
        if self._closed is not None:
            raise self._closed.with_traceback(None)

    def _add(self, item: Item, size: int) -> None:
        self._items.append(item)
        self._bytes += size
        self._ready.set()

    def _take(self) -> Item:
        item = self._items.popleft()
        self._bytes -= self._size(item)
        self._room.set()
        return item

    def _fits(self, size: int) -> bool:
        # An item larger than the whole allowance still goes, alone.
        return not self._items or (
            len(self._items) < self._max_items and self._bytes + size <= self._max_bytes
        )
