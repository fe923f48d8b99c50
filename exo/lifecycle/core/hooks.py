"""Runs one hook of a resource: bounded in time, stoppable, and knowing who called it.

Theory of operation. A hook runs in a task of its own, so that one which ignores its cancellation
can be left behind: it is cancelled, given a short grace, then abandoned, counted and named in the
log. While it runs, a context variable holds its `Frame`; a lifecycle call made under that frame on
the same resource would wait for itself and is refused. Things started inside a hook (a server's
callbacks, plain tasks) inherit the variable, so a frame is dead once its hook has ended, and outer
frames (a hook that initializes another resource) count only for the very task of the inner hook.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from exo.lifecycle.errors import ReentrantCall
from exo.lifecycle.events import HookRun, Outcome, is_heard, publish

if TYPE_CHECKING:
    from exo.lifecycle.core.flight import Flight
    from exo.lifecycle.resource import AsyncResource

log = logging.getLogger("exo.lifecycle")

# Hooks that ignored their cancellation, kept so that they are not lost and their end is seen.
_abandoned: Final[set[asyncio.Task[Any]]] = set()


class Frame:
    """One running hook. `resource` is dropped at its end: contexts that captured the frame must not
    keep it alive.
    """

    __slots__ = ("hook", "outer", "resource", "task")

    def __init__(self, resource: AsyncResource, hook: str, outer: Frame | None) -> None:
        self.resource: AsyncResource | None = resource
        self.hook = hook
        self.outer = outer
        self.task: asyncio.Task[Any] | None = None

    def close(self) -> None:
        self.resource = None
        self.outer = None
        self.task = None


current: Final[contextvars.ContextVar[Frame | None]] = contextvars.ContextVar(
    "exo_hook", default=None
)


class HookTimeout(Exception):
    """The hook ran out of time."""


class HookStopped(Exception):
    """The flight that the hook belongs to was asked to stop."""


def forbid_reentry(resource: AsyncResource, call: str) -> None:
    """Raise `ReentrantCall` when `call` is made from inside a hook of `resource`."""
    frame = current.get()
    if frame is None:
        return
    direct = frame.task is not None and asyncio.current_task() is frame.task
    while frame is not None:
        if frame.resource is resource:
            raise ReentrantCall(
                f"{resource.resource_type} {resource.resource_id!r}: {call}() called from its own"
                f" {frame.hook} hook, which would wait for itself; call it from outside, or from a"
                " task of the resource's task manager",
                resource_id=resource.resource_id,
                state=resource.state,
            )
        frame = frame.outer if direct else None


def clean_context() -> contextvars.Context:
    """A copy of the caller's context that runs in no hook: for tasks that outlive it."""
    context = contextvars.copy_context()
    context.run(current.set, None)
    return context


def grace(timeout: float) -> float:
    """How long a cancelled hook may take to end, in seconds."""
    return min(1.0, max(0.05, timeout / 10))


async def run_hook(
    resource: AsyncResource,
    name: str,
    timeout: float,
    flight: Flight[Any],
    *,
    stoppable: bool = True,
) -> Any:
    """Run hook `_do_<name>`; its result or its exception, or `HookTimeout` or `HookStopped`.

    A hook that had to be cancelled counts as timed out or stopped whatever it returns afterwards.
    """
    started = time.monotonic()
    hook = getattr(resource, f"_do_{name}")
    if getattr(hook, "does_nothing", False):
        # The default: no task to run, nothing that could take time or fail.
        _note_begin(resource, name)
        publish(HookRun(resource.resource_id, resource.resource_type, name, 0.0, "ok"))
        return True
    task, frame = _start(resource, name, hook)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        if not ended.done():
            ended.set_result(None)

    task.add_done_callback(wake)
    timer = asyncio.get_running_loop().call_later(timeout, wake)
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
            # Nobody cancels a flight; the event loop is being closed. What is open is still rolled
            # back.
            stopped = True
        if task.done():
            outcome = _outcome(task)
            return task.result()
        stopped = stopped or (stoppable and flight.stopping)
        outcome = "cancelled" if stopped else "timeout"
        if not await _cancel(task, grace(timeout)):
            outcome = "abandoned"
            _abandon(resource, name, task)
        raise (
            HookStopped(flight.stop_reason or "cancelled")
            if stopped
            else HookTimeout(f"{timeout:g} s")
        )
    finally:
        flight.on_stop = None
        timer.cancel()
        frame.close()
        if is_heard():
            seconds = time.monotonic() - started
            publish(HookRun(resource.resource_id, resource.resource_type, name, seconds, outcome))


def _start(
    resource: AsyncResource, name: str, hook: Callable[[], Any]
) -> tuple[asyncio.Task[Any], Frame]:
    frame = Frame(resource, name, current.get())
    context = contextvars.copy_context()
    context.run(current.set, frame)
    task = asyncio.get_running_loop().create_task(
        _call(resource, name, hook), name=f"{resource.resource_id}:{name}", context=context
    )
    frame.task = task
    return task, frame


def _note_begin(resource: AsyncResource, name: str) -> None:
    """From the init hook's first step on there may be something to close, until the cleanup hook's
    first step.

    A hook that is cancelled before it changes nothing.
    """
    if name != "health_check":
        resource._lifecycle.opened = name == "initialize"


async def _call(resource: AsyncResource, name: str, hook: Callable[[], Any]) -> Any:
    _note_begin(resource, name)
    result = hook()
    if not inspect.isawaitable(result):
        raise TypeError(
            f"{type(resource).__name__}._do_{name} of {resource.resource_id!r} must be an async"
            " function"
        )
    return await result


async def _cancel(task: asyncio.Task[Any], timeout: float) -> bool:
    """Cancel and wait a little; whether the task ended."""
    task.cancel()
    try:
        await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        pass
    if task.done():
        if not task.cancelled():
            task.exception()
        return True
    return False


def _outcome(task: asyncio.Task[Any]) -> Outcome:
    if task.cancelled():
        return "cancelled"
    return "ok" if task.exception() is None else "failed"


def _abandon(resource: AsyncResource, name: str, task: asyncio.Task[Any]) -> None:
    who = f"{resource.resource_type} {resource.resource_id!r}"
    resource._lifecycle.counts.abandoned_hooks += 1
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
