"""`Flight`: one shared run of a coroutine that any number of callers wait for.

A caller's time-out or cancellation affects only that caller. A flight that may be abandoned is
asked to stop when its last waiter leaves, and that waiter stays until it has stopped. Knows nothing
of resources.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")
LOOP_CLOSING: Final = "the event loop is being closed"


async def settled(future: asyncio.Future[Any], timeout: float | None = None) -> None:
    """Wait for the end of a future or task. Never cancels it, and ignores its result.

    Raises TimeoutError after `timeout` seconds.
    """
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
    """One run.

    stop_reason: set once the run was asked to end early.
    on_stop: called at that moment; the run sets it to whatever wakes it.
    """

    __slots__ = (
        *("_abandonable", "_error", "_name", "_result", "_run", "_task", "_traceback", "_waiters"),
        *("done", "on_stop", "stop_reason"),
    )

    def __init__(
        self, run: Callable[[Flight[T]], Coroutine[Any, Any, T]], *, name: str, abandonable: bool
    ) -> None:
        self.stop_reason: str | None = None
        self.on_stop: Callable[[], None] | None = None
        self.done = False
        self._abandonable = abandonable
        self._result: T | None = None
        self._error: BaseException | None = None
        self._traceback: TracebackType | None = None
        # One future per waiter, True for those that count.
        self._waiters: dict[asyncio.Future[None], bool] = {}
        # Dropped when the run begins, so that a flight that is over keeps nothing of its owner
        # alive.
        self._run: Callable[[Flight[T]], Coroutine[Any, Any, T]] | None = run
        self._name = name
        self._launch()

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
        """Return the shared result, or raise the shared failure.

        Raises TimeoutError after this caller's own `timeout` seconds.
        """
        if not self.done:
            loop = asyncio.get_running_loop()
            waiter: asyncio.Future[None] = loop.create_future()
            timer = None if timeout is None else loop.call_later(timeout, _expire, waiter)
            self._waiters[waiter] = True
            try:
                await waiter
            except (TimeoutError, asyncio.CancelledError):
                del self._waiters[waiter]
                await self._left()
                raise
            finally:
                if timer is not None:
                    timer.cancel()
            del self._waiters[waiter]
        if self._error is not None:
            # All waiters raise the same object: without this, each raise would lengthen its
            # traceback.
            raise self._error.with_traceback(self._traceback)
        return self._result  # type: ignore[return-value]  # set with done, where there is no error

    async def _left(self) -> None:
        """A waiter has left. The last one asks the run to stop and stays until it has.

        If the run itself is cancelled, the event loop is being closed, and it keeps running only as
        long as some task waits.
        """
        if self.done:
            return
        if self._task.cancelling() or self.stop_reason == LOOP_CLOSING:
            await self.settle()
        elif self._abandonable and True not in self._waiters.values():
            self.stop("no caller waits for it any more")
            await self.settle()

    async def settle(self, timeout: float | None = None) -> None:
        """Wait for the end without counting as a waiter. TimeoutError after `timeout` seconds."""
        if self.done:
            return
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[None] = loop.create_future()
        timer = None if timeout is None else loop.call_later(timeout, _expire, waiter)
        self._waiters[waiter] = False
        try:
            await waiter
        finally:
            del self._waiters[waiter]
            if timer is not None:
                timer.cancel()

    async def pause(self, seconds: float) -> None:
        """For use by the run itself: sleep, but wake as soon as it is asked to stop."""
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

    def _launch(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._fly(), name=self._name)
        self._task.add_done_callback(self._landed)

    def _landed(self, _: asyncio.Task[None]) -> None:
        """Launch again if the run never began.

        An event loop that is being closed cancels every task, this one perhaps before its first
        step. Only the run can bring the owner back to a consistent state, so it runs after all,
        already asked to stop.
        """
        if self._run is not None:
            self.stop(LOOP_CLOSING)
            self._launch()

    async def _fly(self) -> None:
        """Never raises: all waiters may have left, and asyncio complains about an error that
        is never retrieved.
        """
        run, self._run = self._run, None
        assert run is not None
        try:
            self._result = await run(self)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # kept for the waiters
            self._error, self._traceback = error, error.__traceback__
        self.done = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())
