"""Single flight: one shared run of a coroutine that any number of callers wait for.

A caller's time-out or cancellation touches that caller only. A flight that may be abandoned is asked to stop when the
last waiter leaves, and that waiter stays until the stop is complete. Knows nothing of resources.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def settled(future: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait for a future or task without ever cancelling it, and without its result; TimeoutError after `timeout`."""
    if future.done():
        return
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object) -> None:
        if not waiter.done():
            waiter.set_result(None)

    def expire() -> None:
        if not waiter.done():
            waiter.set_exception(TimeoutError())

    future.add_done_callback(wake)
    timer = None if timeout is None else loop.call_later(timeout, expire)
    try:
        await waiter
    finally:
        future.remove_done_callback(wake)
        if timer is not None:
            timer.cancel()


class Flight(Generic[T]):
    """One run. `stop_reason` is set once it was asked to end early; `on_stop` is what it does then."""

    __slots__ = ("_abandonable", "_task", "_waiters", "on_stop", "stop_reason")

    def __init__(self, run: Callable[[Flight[T]], Coroutine[Any, Any, T]], *, name: str, abandonable: bool) -> None:
        self.stop_reason: str | None = None
        self.on_stop: Callable[[], None] | None = None
        self._abandonable = abandonable
        self._waiters = 0
        self._task: asyncio.Task[T] = asyncio.get_running_loop().create_task(run(self), name=name)
        self._task.add_done_callback(_retrieve)

    @property
    def done(self) -> bool:
        return self._task.done()

    @property
    def stopping(self) -> bool:
        return self.stop_reason is not None

    def stop(self, reason: str) -> None:
        """Ask the run to end early; the first reason counts."""
        if self.stop_reason is None:
            self.stop_reason = reason
            if self.on_stop is not None:
                self.on_stop()

    async def join(self, timeout: float | None = None) -> T:
        """The shared result or failure. TimeoutError when this caller's own `timeout` seconds are over."""
        self._waiters += 1
        left = False
        try:
            await settled(self._task, timeout)
        except (TimeoutError, asyncio.CancelledError):
            left = True
            self._waiters -= 1
            if self._waiters == 0 and self._abandonable and not self._task.done():
                self.stop("nobody waits for it any more")
                await settled(self._task)
            raise
        finally:
            if not left:
                self._waiters -= 1
        return self._task.result()

    async def settle(self, timeout: float | None = None) -> None:
        """Wait for the end without being counted as a waiter; TimeoutError after `timeout` seconds."""
        await settled(self._task, timeout)

    async def pause(self, seconds: float) -> None:
        """For the run itself: sleep, but wake as soon as it is asked to stop."""
        if self.stopping:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        self.on_stop = wake
        try:
            await settled(woken, seconds)
        except TimeoutError:
            pass
        finally:
            self.on_stop = None


def _retrieve(task: asyncio.Task[Any]) -> None:
    # Waiters may all have left: look at the outcome, so that asyncio does not report it as never retrieved.
    if not task.cancelled():
        task.exception()
