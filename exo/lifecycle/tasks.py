"""`TaskManager`: the background tasks of one owner, with names and an order of cancellation.

A task that fails is logged and counted. Knows nothing of resources beyond their id. A task starts
outside any hook and outside any other managed task.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, TypeAlias

from exo.lifecycle.core import arguments
from exo.lifecycle.core.flight import settled
from exo.lifecycle.core.hooks import clean_context
from exo.lifecycle.errors import ResourceClosed
from exo.lifecycle.events import Outcome, TaskEnded, TaskStarted, publish
from exo.lifecycle.states import ResourceState

log = logging.getLogger("exo.lifecycle")

HISTORY: Final = 64

TaskFactory: TypeAlias = "Callable[[], Coroutine[Any, Any, Any] | Awaitable[Any]]"
ErrorHandler: TypeAlias = "Callable[[BaseException], None]"

# The id of the managed task that runs in this context: a shutdown called from inside it must spare
# it. An id, not the handle: a context that held its own task's handle would be a reference cycle
# for each task.
_running: Final[contextvars.ContextVar[str | None]] = contextvars.ContextVar(
    "exo_task", default=None
)
_numbers: Final = itertools.count(1)


class TaskPriority(IntEnum):
    """The order of cancellation: LOW goes first."""

    LOW = 0
    NORMAL = 1
    HIGH = 2
    CRITICAL = 3


@dataclass(frozen=True, slots=True)
class TaskStatistics:
    """Counts so far. `abandoned` tasks ignored their cancellation."""

    started: int
    running: int
    succeeded: int
    failed: int
    cancelled: int
    abandoned: int


class TaskHandle:
    """One background task. `started_at`: monotonic seconds."""

    __slots__ = ("_task", "id", "name", "priority", "started_at")

    def __init__(self, name: str, priority: TaskPriority) -> None:
        self.id = f"{name}#{next(_numbers)}"
        self.name = name
        self.priority = priority
        self.started_at = time.monotonic()
        self._task: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return (
            f"TaskHandle({self.id!r}, {self.priority.name}, {'done' if self.done() else 'running'})"
        )

    def done(self) -> bool:
        return self._task is not None and self._task.done()

    def cancelled(self) -> bool:
        return self._task is not None and self._task.cancelled()

    def exception(self) -> BaseException | None:
        """What the task failed with; None while it runs, and when it succeeded or was cancelled."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    def cancel(self) -> None:
        """Ask the task to end, without waiting for it; `TaskManager.cancel_task` waits."""
        if self._task is not None:
            self._task.cancel(f"{self.id} cancelled")

    async def wait(self) -> Any:
        """Return the task's result, or raise its exception. Cancelling the wait does not cancel the
        task.
        """
        assert self._task is not None
        await settled(self._task)
        return self._task.result()


class TaskManager:
    """Starts, cancels and counts the background tasks of one owner."""

    def __init__(self, owner: str = "tasks") -> None:
        self.owner = arguments.text("TaskManager", "owner", owner)
        self._handles: dict[str, TaskHandle] = {}
        self._history: deque[TaskHandle] | None = None
        self._closed = False
        self._started = 0
        self._ended: dict[Outcome, int] = {"ok": 0, "failed": 0, "cancelled": 0, "abandoned": 0}

    @property
    def tasks(self) -> tuple[TaskHandle, ...]:
        """A snapshot of the running tasks, oldest first."""
        return tuple(self._handles.values())

    @property
    def history(self) -> tuple[TaskHandle, ...]:
        """The latest tasks that ended, oldest first; at most `HISTORY`."""
        return tuple(self._history or ())

    def statistics(self) -> TaskStatistics:
        ended = self._ended
        return TaskStatistics(
            started=self._started,
            running=len(self._handles),
            succeeded=ended["ok"],
            failed=ended["failed"],
            cancelled=ended["cancelled"],
            abandoned=ended["abandoned"],
        )

    def start_task(
        self,
        name: str,
        factory: TaskFactory,
        *,
        priority: TaskPriority = TaskPriority.NORMAL,
        on_error: ErrorHandler | None = None,
    ) -> TaskHandle:
        """Start `factory()` in the background. Two tasks may share a name.

        A failure is logged, counted and passed to `on_error`.

        Raises `ResourceClosed` after `shutdown`, TypeError when given a coroutine in place of the
        function that makes it, RuntimeError without a running event loop.
        """
        arguments.text(f"task manager of {self.owner!r}", "name", name)
        if not callable(factory):
            if inspect.iscoroutine(factory):
                factory.close()
            raise TypeError(
                f"task {name!r} of {self.owner!r}: pass the function, not {type(factory).__name__}"
            )
        if not isinstance(priority, TaskPriority):
            raise TypeError(
                f"task {name!r} of {self.owner!r}: priority must be a TaskPriority, got"
                f" {priority!r}"
            )
        if self._closed:
            raise ResourceClosed(
                f"task {name!r}: {self.owner!r} is shut down and starts no new task",
                resource_id=self.owner,
                state=ResourceState.CLOSED,
            )
        loop = asyncio.get_running_loop()
        handle = TaskHandle(name, priority)
        context = clean_context()
        context.run(_running.set, handle.id)
        task = loop.create_task(
            _run(self.owner, name, factory), name=f"{self.owner}:{handle.id}", context=context
        )
        handle._task = task
        self._handles[handle.id] = handle
        self._started += 1
        publish(TaskStarted(self.owner, name, priority.name))
        task.add_done_callback(lambda ended: self._finish(handle, ended, on_error))
        return handle

    async def cancel_task(self, task: TaskHandle | str, *, timeout: float | None = None) -> bool:
        """Cancel one task, or all of one name, and wait for their end.

        Returns whether there was anything to cancel.
        """
        chosen = [
            h
            for h in self._handles.values()
            if (h.name == task if isinstance(task, str) else h is task)
        ]
        for handle in chosen:
            handle.cancel()
        await self._gone([h for h in chosen if h.id != _running.get()], timeout)
        return bool(chosen)

    async def cancel_all_tasks(self, wait: bool = True, timeout: float | None = None) -> int:
        """Cancel all tasks, LOW first and CRITICAL last; returns how many.

        Includes tasks that are started meanwhile; spares the task that calls this. Each priority
        ends before the next is cancelled, within its share of `timeout` seconds. A task that
        ignores its cancellation is then abandoned, counted and named in the log.
        """
        if timeout is not None:
            timeout = arguments.seconds(
                f"task manager of {self.owner!r}", "timeout", timeout, zero=True
            )
        deadline = None if timeout is None else time.monotonic() + timeout
        seen: set[str] = set()
        while batch := self._lowest(seen):
            seen.update(handle.id for handle in batch)
            for handle in batch:
                handle.cancel()
            if wait:
                levels = len({h.priority for h in self._handles.values() if h.id not in seen}) + 1
                share = None if deadline is None else max(0.0, deadline - time.monotonic()) / levels
                await self._gone(batch, share)
        return len(seen)

    async def shutdown(self, timeout: float | None = None) -> int:
        """Refuse new tasks from now on and cancel the running ones; returns how many."""
        self.close()
        return await self.cancel_all_tasks(wait=True, timeout=timeout)

    def close(self) -> None:
        """Refuse new tasks from now on. The running ones continue."""
        self._closed = True

    def reopen(self) -> None:
        """Accept new tasks again: the owner begins a new life."""
        self._closed = False

    def _lowest(self, seen: set[str]) -> list[TaskHandle]:
        caller = _running.get()
        rest = [h for h in self._handles.values() if h.id != caller and h.id not in seen]
        level = min((h.priority for h in rest), default=None)
        return [h for h in rest if h.priority == level]

    async def _gone(self, handles: list[TaskHandle], timeout: float | None) -> None:
        tasks = {h._task: h for h in handles if h._task is not None}
        if not tasks:
            return
        _, pending = await asyncio.wait(tasks, timeout=timeout)
        for task in pending:
            handle = tasks[task]
            if self._handles.pop(handle.id, None) is not None:
                self._ended["abandoned"] += 1
                log.error(
                    "task %r of %r ignores its cancellation and is left behind",
                    handle.id,
                    self.owner,
                )

    def _finish(
        self, handle: TaskHandle, task: asyncio.Task[Any], on_error: ErrorHandler | None
    ) -> None:
        was_abandoned = self._handles.pop(handle.id, None) is None
        if self._history is None:
            self._history = deque(maxlen=HISTORY)
        self._history.append(handle)
        error = None if task.cancelled() else task.exception()
        outcome: Outcome = "cancelled" if task.cancelled() else "ok" if error is None else "failed"
        if not was_abandoned:
            self._ended[outcome] += 1
        seconds = time.monotonic() - handle.started_at
        publish(TaskEnded(self.owner, handle.name, handle.priority.name, seconds, outcome, error))
        if error is None:
            return
        log.error("task %r of %r failed: %r", handle.id, self.owner, error, exc_info=error)
        if on_error is not None:
            try:
                on_error(error)
            except Exception:
                log.exception("on_error of task %r of %r failed", handle.id, self.owner)


async def _run(owner: str, name: str, factory: TaskFactory) -> Any:
    # Called here, not by `start_task`: a task that is cancelled before its first step would leave a
    # coroutine that was never awaited.
    made = factory()
    if not inspect.isawaitable(made):
        raise TypeError(
            f"task {name!r} of {owner!r}: the factory must return a coroutine, got"
            f" {type(made).__name__}"
        )
    return await made
