"""A clock for unit tests that jumps to the next timer as soon as no task can run.

    async def test_a_silent_peer_is_lost(virtual_clock):     # or @pytest.mark.virtual_clock
        await asyncio.sleep(30)                              # costs nothing; timeouts work as well
        assert virtual_clock.elapsed == pytest.approx(30)    # and time.monotonic() agrees with it

Fixture and marker are for async tests in tests/unit. `pytestmark = pytest.mark.virtual_clock` turns
it on for all async tests of a module. While its loop is open, `time.monotonic` is the loop's time.

Rules, so that a jump never overtakes work:

- Threads. While a call runs in an executor or on an engine's `Worker`, or a thread that the test
  started is alive, time passes as it really does. A call that is handed to an executor without the
  loop must be announced: `virtual_clock.wait_for(future)`.
- Sockets, pipes and subprocesses are refused with `RealInput`: the kernel delivers in real time.
- Standing still. If no task can run, no timer is left and no thread works, `Deadlock` names the
  tasks. It also ends a test whose periodic tasks keep the clock going without end, and one that
  polls with `sleep(0)`.

Two things to know. A function that bound `time.monotonic` when it was imported (a default argument,
a `default_factory`) keeps real time: pass it `virtual_clock.time`. And time does not pass while the
loop's own thread computes; `virtual_clock.advance(seconds)` stands for a loop that is blocked.
"""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
import time
from collections.abc import Callable
from concurrent.futures import thread as executors
from typing import Any, NoReturn

from exo.inference.engines import worker

# Far more than any unit test needs; reached within a few seconds by one that never ends.
MOST_JUMPS = 100_000
MOST_TURNS = 500_000
POLL_SECONDS = 0.01

Events = list[tuple[selectors.SelectorKey, int]]


class Deadlock(AssertionError):
    """What the test waits for cannot happen any more."""


class RealInput(AssertionError):
    """The test waits for a socket, a pipe or a process, which know nothing of virtual time."""


class VirtualClock:
    """The time of one test, in seconds. Starts at a whole second near the real clock."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self.started_at = float(math.ceil(self._real()))
        self._now = self.started_at
        self._looked_at = self._real()
        self._awaited: set[asyncio.Future[Any]] = set()
        self._threads_before = set(threading.enumerate())

    def time(self) -> float:
        return self._now

    @property
    def elapsed(self) -> float:
        """Seconds since the loop of this test was made."""
        return self._now - self.started_at

    def advance(self, seconds: float) -> None:
        """Let time pass without running a task, as if the loop were blocked that long."""
        self._now += seconds

    def wait_for(self, future: asyncio.Future[Any]) -> None:
        """Do not jump before `future` is done: something outside the loop works on it."""
        self._awaited.add(future)
        future.add_done_callback(self._awaited.discard)

    def is_awaiting(self) -> bool:
        """Whether something outside the loop may still wake a task."""
        return bool(self._awaited) or any(map(self._works, threading.enumerate()))

    def follow(self, awaiting: bool) -> None:
        """Account for the real time since the last call, if it was spent waiting for a thread."""
        now = self._real()
        if awaiting:
            self._now += now - self._looked_at
        self._looked_at = now

    def _works(self, thread: threading.Thread) -> bool:
        """Threads that wait for calls are idle: their calls are counted one by one."""
        if thread in self._threads_before or thread in executors._threads_queues:
            return False
        return getattr(thread, "_target", None) is not worker._serve


class _Selector(selectors.DefaultSelector):
    """Jumps instead of waiting. The loop asks it once per turn: now (0), until the next timer, or
    without end (None)."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock
        self._jumps = self._turns = 0

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if self.get_map():  # the first one is the pipe with which threads wake the loop
            _refuse(f"reading {fileobj!r}")
        return super().register(fileobj, events, data)

    def begin(self) -> None:
        self._jumps = self._turns = 0

    def select(self, timeout: float | None = None) -> Events:
        awaiting = self._clock.is_awaiting()
        # A thread may end without waking the selector, so ask again soon.
        slice_ = POLL_SECONDS if timeout is None else min(timeout, POLL_SECONDS)
        events = super().select(slice_ if awaiting else 0)
        self._clock.follow(awaiting)
        if awaiting or events:
            self._turns = 0
        elif timeout is None:
            raise Deadlock(f"no task can run and no timer is left; waiting: {_waiting()}")
        else:
            self._pass(timeout)
        return events

    def _pass(self, timeout: float) -> None:
        if timeout > 0:
            self._clock.advance(timeout)
            self._jumps, self._turns = self._jumps + 1, 0
        self._turns += 1
        if self._jumps > MOST_JUMPS or self._turns > MOST_TURNS:
            what = "timers" if self._jumps > MOST_JUMPS else "sleep(0)"
            self.begin()
            raise Deadlock(f"only {what} kept the loop busy; waiting: {_waiting()}")


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """The event loop. From its making until `close`, `time.monotonic` is its time."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self._guard = _Selector(self.clock)
        self._restore = _patched(self.clock)
        super().__init__(self._guard)

    def time(self) -> float:
        return self.clock.time()

    def run_forever(self) -> None:
        self._guard.begin()
        super().run_forever()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.clock.wait_for(future)
        return future

    def close(self) -> None:
        super().close()
        self._restore()


def _refuse(what: str) -> NoReturn:
    raise RealInput(f"no sockets, pipes or processes under the virtual clock: {what}")


def _refusing(name: str) -> Callable[..., Any]:
    async def refuse(self: VirtualClockLoop, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(name)

    return refuse


# Refused before they open anything: some would meet the selector only in a callback, unseen.
for _name in (
    *("create_connection", "create_server", "create_datagram_endpoint", "connect_accepted_socket"),
    *("create_unix_connection", "create_unix_server", "connect_read_pipe", "connect_write_pipe"),
    *("subprocess_exec", "subprocess_shell"),
):
    setattr(VirtualClockLoop, _name, _refusing(_name))


def _patched(clock: VirtualClock) -> Callable[[], None]:
    """Put `clock` in place of `time.monotonic` and count the calls of workers; returns the undo."""
    monotonic, submit = time.monotonic, worker.Worker.submit

    def counted(self: worker.Worker, function: Callable[..., Any], *args: Any) -> Any:
        future = submit(self, function, *args)
        if getattr(future.get_loop(), "clock", None) is clock:
            clock.wait_for(future)
        return future

    def restore() -> None:
        time.monotonic, worker.Worker.submit = monotonic, submit  # type: ignore[method-assign]

    time.monotonic, worker.Worker.submit = clock.time, counted  # type: ignore[method-assign]
    return restore


def _waiting() -> str:
    return ", ".join(sorted(map(_describe, asyncio.all_tasks(asyncio.get_running_loop()))))


def _describe(task: asyncio.Task[Any]) -> str:
    stack = task.get_stack(limit=1)
    where = f" at {stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else ""
    return f"{task.get_name()}{where}"
