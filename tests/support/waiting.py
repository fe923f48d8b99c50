"""Waiting for what no event announces: other processes, sockets, the tasks of a whole ring."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def eventually(condition: Callable[[], object], timeout: float = 30.0) -> None:
    """Return once `condition` holds; raises TimeoutError where it does not within `timeout`."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def settled(value: Callable[[], object], seconds: float = 0.2, timeout: float = 30.0) -> None:
    """Return once `value()` stayed the same for that long: buffers of the kernel that fill, say."""
    loop = asyncio.get_running_loop()
    last, since = value(), loop.time()
    async with asyncio.timeout(timeout):
        while loop.time() - since < seconds:
            await asyncio.sleep(0.005)
            if (now := value()) != last:
                last, since = now, loop.time()
