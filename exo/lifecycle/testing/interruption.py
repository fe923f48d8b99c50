"""Interrupts a coroutine, or a hook of a resource, at its n-th suspension. For tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import Any


class InjectedFailure(Exception):
    """The failure that a test asked for."""


class Interrupted:
    """Awaits `coroutine`; `suspensions` counts how often it had to wait.

    fail_at: at that suspension `InjectedFailure` is raised inside the coroutine, which does not
        wait; 0: before its first step.
    call_at: at that suspension `call` is called, and the coroutine waits as usual.
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, Any],
        *,
        fail_at: int | None = None,
        call_at: int | None = None,
        call: Callable[[], object] = lambda: None,
    ) -> None:
        self._coroutine = coroutine
        self._fail_at = fail_at
        self._call_at = call_at
        self._call = call
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._fail_at == 0:
            self._coroutine.close()
            raise InjectedFailure("before the first step")
        # Replaced below.
        resume: Callable[[], Any] = lambda: self._coroutine.send(None)  # noqa: E731
        while True:
            try:
                waits_for = resume()
            except StopIteration as end:
                return end.value
            self.suspensions += 1
            if self.suspensions == self._fail_at:
                if asyncio.isfuture(waits_for):
                    # The task never sees this future: take back the mark that a task must clear.
                    waits_for._asyncio_future_blocking = False
                resume = _thrower(
                    self._coroutine, InjectedFailure(f"at suspension {self.suspensions}")
                )
                continue
            if self.suspensions == self._call_at:
                self._call()
            try:
                yield waits_for
            except BaseException as error:  # noqa: BLE001  # passed on to the coroutine as it is
                resume = _thrower(self._coroutine, error)
            else:
                resume = lambda: self._coroutine.send(None)  # noqa: E731


@dataclass
class HookProbe:
    """Wraps one hook of a resource: counts its runs and waits, fails it or calls something."""

    runs: int = 0
    waits: int = 0
    swallowed: bool = False
    fail_at: int | None = None
    call_at: int | None = None
    call: Callable[[], object] = lambda: None

    def install(self, resource: Any, hook: str) -> HookProbe:
        inner = getattr(resource, hook)

        async def run() -> Any:
            self.runs += 1
            first = self.runs == 1
            step = Interrupted(
                inner(),
                fail_at=self.fail_at if first else None,
                call_at=self.call_at if first else None,
                call=self.call,
            )
            try:
                result = await step
            finally:
                self.waits = max(self.waits, step.suspensions)
            task = asyncio.current_task()
            self.swallowed = self.swallowed or (task is not None and task.cancelling() > 0)
            if first and self.fail_at is not None and self.fail_at > step.suspensions:
                raise InjectedFailure("at the end")
            return result

        setattr(resource, hook, run)
        return self


def _thrower(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: coroutine.throw(error)
