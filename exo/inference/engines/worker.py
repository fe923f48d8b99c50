"""`Worker`: one thread that computes, for an engine or a sampler, and how the event loop waits for
it.

A decode step takes a few milliseconds and leaves the processor's caches full of weights, so the
code around it runs with cold caches. One queue and one callback cost a twentieth of a step less
than the two futures, the condition and the semaphore of an executor (decision 0010).
"""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Calls run one at a time, in order. The thread ends with `stop`, or with the interpreter."""

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        # Daemon: otherwise the interpreter would wait for it before `_stop_and_wait` is called.
        self._thread = threading.Thread(target=_serve, args=(self._calls,), name=name, daemon=True)
        self._thread.start()
        atexit.register(self._stop_and_wait)

    def submit(self, function: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        """Run it on the thread. When the future is cancelled, a call that has not begun never does;
        one that has runs to its end, and its result is dropped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._calls.put((future, loop, function, arguments))
        return future

    def stop(self) -> None:
        """The thread ends after what was submitted before. Does not wait for it."""
        atexit.unregister(self._stop_and_wait)
        self._calls.put(None)

    def _stop_and_wait(self) -> None:
        self._calls.put(None)
        self._thread.join()


_Call = tuple[asyncio.Future[Any], asyncio.AbstractEventLoop, Callable[..., Any], tuple[Any, ...]]


def _serve(calls: SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        future, loop, function, arguments = call
        if not future.cancelled():
            _answer(loop, future, *_outcome(function, arguments))
        del call, future, loop, function, arguments  # an idle thread keeps nothing alive


def _outcome(
    function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, BaseException | None]:
    try:
        return function(*arguments), None
    except BaseException as error:  # noqa: BLE001 - raised to the caller
        return None, error


def _answer(
    loop: asyncio.AbstractEventLoop,
    future: asyncio.Future[Any],
    result: Any,
    error: BaseException | None,
) -> None:
    try:
        loop.call_soon_threadsafe(_settle, future, result, error)
    except RuntimeError:
        pass  # the loop is closed: no caller is left


def _settle(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
