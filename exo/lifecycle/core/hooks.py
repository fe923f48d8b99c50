"""Runs one hook of a resource: bounded in time, stoppable, and aware of who called it.

Theory of operation. A hook runs in a task of its own, so that the lifecycle can go on without a
hook that ignores its cancellation: the hook is cancelled, given a short grace, then abandoned,
counted and named in the log.

While it runs, a context variable holds its `HookFrame`. A lifecycle call on the same resource under
that frame would wait for itself, and is refused. Things started inside a hook (a server's
callbacks, plain tasks) inherit the variable and outlive the hook, so a frame is emptied when its
hook ends. An outer frame (a hook that initializes another resource) counts only for calls made by
the inner hook's own task: another task that inherited both frames can wait without harm.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from exo.lifecycle.core.flight import Flight
from exo.lifecycle.core.record import LifeRecord
from exo.lifecycle.core.subject import Subject
from exo.lifecycle.errors import ReentrantCall
from exo.lifecycle.events import HookRun, Outcome, has_listeners, publish

log = logging.getLogger("exo.lifecycle")

# Strong references to hooks that ignored their cancellation: asyncio itself holds tasks weakly.
_abandoned: Final[set[asyncio.Task[Any]]] = set()


class HookFrame:
    """One running hook.

    Emptied when the hook ends: contexts that captured the frame must not keep the resource alive.
    """

    __slots__ = ("hook", "outer", "subject", "task")

    def __init__(self, subject: Subject, hook: str, outer: HookFrame | None) -> None:
        self.subject: Subject | None = subject
        self.hook = hook
        self.outer = outer
        self.task: asyncio.Task[Any] | None = None

    def close(self) -> None:
        self.subject = None
        self.outer = None
        self.task = None


current: Final[contextvars.ContextVar[HookFrame | None]] = contextvars.ContextVar(
    "exo_hook", default=None
)


class HookTimeout(Exception):
    """The hook ran out of time."""


class HookStopped(Exception):
    """The flight that the hook belongs to was asked to stop."""


def forbid_reentry(subject: Subject, call: str) -> None:
    """Raise `ReentrantCall` when `call` is made from inside a hook of the same resource."""
    frame = current.get()
    if frame is None:
        return
    direct = frame.task is not None and asyncio.current_task() is frame.task
    while frame is not None:
        if frame.subject is subject:
            raise ReentrantCall(
                f"{subject.resource_type} {subject.resource_id!r}: {call}() called from its own"
                f" {frame.hook} hook, which would wait for itself; call it from outside, or from a"
                " task of the resource's task manager",
                resource_id=subject.resource_id,
                state=subject.state,
            )
        frame = frame.outer if direct else None


def clean_context() -> contextvars.Context:
    """A copy of the caller's context outside any hook: for tasks that outlive the hook."""
    context = contextvars.copy_context()
    context.run(current.set, None)
    return context


def grace(timeout: float) -> float:
    """How long a cancelled hook may take to end, in seconds."""
    return min(1.0, max(0.05, timeout / 10))


async def run_hook(
    record: LifeRecord, name: str, timeout: float, flight: Flight[Any], *, stoppable: bool = True
) -> Any:
    """Run hook `_do_<name>`. Returns its result; raises its exception, `HookTimeout` or
    `HookStopped`.

    A hook that had to be cancelled counts as timed out or stopped, whatever it returns afterwards.
    """
    started = time.monotonic()
    hook = getattr(record.subject, f"_do_{name}")
    if getattr(hook, "does_nothing", False):
        # The default hook: nothing that could take time or fail, so it needs no task.
        record.hook_began(name)
        _publish(record.subject, name, 0.0, "ok")
        return True
    loop = asyncio.get_running_loop()
    task, frame = _start(record, name, hook, loop)
    ended: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(wake)
    timer = loop.call_later(timeout, wake)
    if stoppable:
        flight.on_stop = wake
        if flight.stopping:
            wake()
    outcome: Outcome = "ok"
    try:
        stopped = False
        try:
            await ended
        except asyncio.CancelledError:
            # A flight is never cancelled by its waiters, so the event loop is being closed. What
            # is open still has to be rolled back.
            stopped = True
        if task.done():
            outcome = _outcome(task)
            return task.result()
        stopped = stopped or (stoppable and flight.stopping)
        outcome = "cancelled" if stopped else "timeout"
        if not await _cancel(task, grace(timeout)):
            outcome = "abandoned"
            _abandon(record, name, task)
        if stopped:
            raise HookStopped(flight.stop_reason or "cancelled")
        raise HookTimeout(f"{timeout:g} s")
    finally:
        flight.on_stop = None
        timer.cancel()
        frame.close()
        if has_listeners():
            _publish(record.subject, name, time.monotonic() - started, outcome)


def _publish(subject: Subject, name: str, seconds: float, outcome: Outcome) -> None:
    publish(HookRun(subject.resource_id, subject.resource_type, name, seconds, outcome))


def _start(
    record: LifeRecord, name: str, hook: Callable[[], Any], loop: asyncio.AbstractEventLoop
) -> tuple[asyncio.Task[Any], HookFrame]:
    frame = HookFrame(record.subject, name, current.get())
    context = contextvars.copy_context()
    context.run(current.set, frame)
    task = loop.create_task(
        _call(record, name, hook), name=f"{record.subject.resource_id}:{name}", context=context
    )
    frame.task = task
    return task, frame


async def _call(record: LifeRecord, name: str, hook: Callable[[], Any]) -> Any:
    record.hook_began(name)
    result = hook()
    if not inspect.isawaitable(result):
        subject = record.subject
        raise TypeError(
            f"{type(subject).__name__}._do_{name} of {subject.resource_id!r} must be an async"
            " function"
        )
    return await result


async def _cancel(task: asyncio.Task[Any], timeout: float) -> bool:
    """Cancel and wait a little. Returns whether the task ended."""
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        pass
    if task.done():
        if not task.cancelled():
            # Retrieved, or asyncio would complain about it.
            task.exception()
        return True
    return False


def _outcome(task: asyncio.Task[Any]) -> Outcome:
    if task.cancelled():
        return "cancelled"
    return "ok" if task.exception() is None else "failed"


def _abandon(record: LifeRecord, name: str, task: asyncio.Task[Any]) -> None:
    who = f"{record.subject.resource_type} {record.subject.resource_id!r}"
    record.counts.abandoned_hooks += 1
    log.error("%s: the %s hook ignores its cancellation and is left behind", who, name)
    _abandoned.add(task)

    def done(ended: asyncio.Task[Any]) -> None:
        _abandoned.discard(ended)
        error = None if ended.cancelled() else ended.exception()
        log.warning(
            "%s: the %s hook left behind has ended%s",
            who,
            name,
            f" with {error!r}" if error else "",
        )

    task.add_done_callback(done)
