"""`check_resource`: the conformance suite that every AsyncResource passes. For tests.

It starts a resource twice, stops it twice, starts it again, and fails and cancels it at each await
of its hooks. After each of these nothing may be left: no task, thread, open descriptor of any sort,
child process, shared memory or temporary file.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from exo.lifecycle.errors import ResourceClosed, ResourceInitializationError
from exo.lifecycle.resource import AsyncResource
from exo.lifecycle.states import USABLE, ResourceState
from exo.lifecycle.testing.holdings import Holdings, private_temporary_folder
from exo.lifecycle.testing.interruption import HookProbe
from exo.lifecycle.testing.leaks import LeakDetector

Factory: TypeAlias = "Callable[[], AsyncResource | Awaitable[AsyncResource]]"

_S: Final = ResourceState


class ConformanceError(AssertionError):
    """A resource breaks the contract. `violations` has one sentence for each way."""

    def __init__(self, name: str, violations: list[str]) -> None:
        super().__init__(
            f"{name} does not conform:\n" + "\n".join(f"  - {line}" for line in violations)
        )
        self.violations = tuple(violations)


async def check_resource(
    factory: Factory,
    *,
    points: int = 12,
    patience: float = 10.0,
    health: bool = True,
    stop_at_first: bool = False,
) -> None:
    """Run the whole suite on fresh resources. Raises `ConformanceError` that lists every violation.

    factory: makes one resource; takes no arguments, may be async, must open nothing.
    points: at how many awaits of each hook to fail and to cancel, evenly spread when there are
        more.
    patience: at most how many seconds sockets and threads get to go away, once in the whole suite.
    health: whether a started resource must be healthy.
    stop_at_first: skip the rest of the suite once a scenario fails.
    """
    suite = _Suite(factory, LeakDetector(patience), health, stop_at_first)
    # Before the temporary folder is replaced: what a library keeps for the process stays there.
    await suite.warm_up()
    with private_temporary_folder() as suite.folder:
        await _run_scenarios(suite, points)
    if suite.violations:
        raise ConformanceError(suite.name, suite.violations)


async def _run_scenarios(suite: _Suite, points: int) -> None:
    await suite.run("never started", suite.never_started)
    await suite.run("started and stopped twice", suite.twice)
    await suite.run("started again after it was closed", suite.again)
    starts, stops = _spread(suite.start_waits, points), _spread(suite.stop_waits, points)
    for point in (0, *starts, suite.start_waits + 1):
        await suite.run(
            _named("failed", point, suite.start_waits), partial(suite.fail_start, point)
        )
    for point in starts:
        await suite.run(f"start cancelled at await {point}", partial(suite.cancel_start, point))
        await suite.run(f"closed at await {point} of its start", partial(suite.close_start, point))
    for point in stops:
        await suite.run(f"stop cancelled at await {point}", partial(suite.cancel_stop, point))


def _spread(waits: int, points: int) -> list[int]:
    """Up to `points` numbers from 1 to `waits`, evenly spread, ends included."""
    if waits <= points:
        return list(range(1, waits + 1))
    return sorted({1 + round(i * (waits - 1) / max(1, points - 1)) for i in range(points)})


def _named(what: str, point: int, waits: int) -> str:
    where = (
        "before" if point == 0 else f"at await {point} of" if point <= waits else "at the end of"
    )
    return f"{what} {where} its start"


@dataclass
class _Suite:
    factory: Factory
    leaks: LeakDetector
    health: bool
    stop_at_first: bool
    name: str = "resource"
    folder: Path | None = None
    start_waits: int = 0
    stop_waits: int = 0
    violations: list[str] = field(default_factory=list)

    async def make(self) -> AsyncResource:
        made = self.factory()
        resource = await made if inspect.isawaitable(made) else made
        if not isinstance(resource, AsyncResource):
            raise TypeError(f"the factory must make an AsyncResource, got {resource!r}")
        return resource

    def expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.violations.append(f"{self._scenario}: {otherwise}")

    async def warm_up(self) -> None:
        """Start and stop one resource: counts the awaits, and lets libraries open what they keep
        for the whole process.
        """
        resource = await self.make()
        self._previous = weakref.ref(resource)
        self.name = repr(type(resource).__name__)
        start, stop = (
            HookProbe().install(resource, "_do_initialize"),
            HookProbe().install(resource, "_do_cleanup"),
        )
        self._scenario = "plain life"
        await self._quietly(resource.initialize())
        if self.health and resource.is_usable:
            await self._quietly(resource.check_health())
        await self._quietly(resource.cleanup())
        self.start_waits, self.stop_waits = start.waits, stop.waits

    async def run(self, scenario: str, check: Callable[[AsyncResource], Awaitable[None]]) -> None:
        """Run one scenario on a fresh resource and close it; then nothing may be left."""
        self._scenario = scenario
        self._collect_previous()
        before = Holdings.now(self.folder)
        resource = await self.make()
        self._previous = weakref.ref(resource)
        try:
            await check(resource)
        except Exception as error:  # noqa: BLE001  # whatever goes wrong is a finding
            self.expect(False, f"unexpected {error!r}")
        try:
            await resource.cleanup()
        except Exception as error:  # noqa: BLE001
            self.expect(False, f"cleanup raised {error!r}")
        self.expect(
            resource.state is _S.CLOSED, f"ends {resource.state.name} after cleanup, not CLOSED"
        )
        abandoned = resource.statistics().abandoned_hooks
        self.expect(abandoned == 0, f"{abandoned} hook(s) ignored their cancellation")
        await self.nothing_left(before, "after cleanup")
        if self.stop_at_first and self.violations:
            raise ConformanceError(self.name, self.violations)

    def _collect_previous(self) -> None:
        """Free the resource of the scenario before this one, with all that it still has open.

        It is part of reference cycles, so it stays until the garbage collector runs. If that were
        in the middle of this scenario, one open socket less would hide one that leaks.
        """
        for generation in (1, 2):
            if self._previous() is not None:
                gc.collect(generation)

    async def nothing_left(self, before: Holdings, when: str) -> None:
        for leak in await self.leaks.leaks_since(before):
            self.expect(False, f"{when}, {leak}")

    # -- scenarios

    async def never_started(self, resource: AsyncResource) -> None:
        self.expect(resource.state is _S.UNINITIALIZED, f"is made {resource.state.name}")
        stop = HookProbe().install(resource, "_do_cleanup")
        await resource.cleanup()
        self.expect(stop.runs == 0, "runs its cleanup hook although it was never started")

    async def twice(self, resource: AsyncResource) -> None:
        start, stop = (
            HookProbe().install(resource, "_do_initialize"),
            HookProbe().install(resource, "_do_cleanup"),
        )
        await asyncio.gather(resource.initialize(), resource.initialize(), resource.ensure_ready())
        await resource.initialize()
        self.expect(start.runs == 1, f"runs its init hook {start.runs} times for one start")
        self.expect(resource.state in USABLE, f"is {resource.state.name} after initialize")
        if self.health:
            await asyncio.gather(resource.check_health(), resource.check_health())
            self.expect(
                _serves(resource), f"is not healthy after its start: {resource.last_error!r}"
            )
        await asyncio.gather(resource.cleanup(), resource.cleanup())
        await resource.cleanup()
        self.expect(stop.runs == 1, f"runs its cleanup hook {stop.runs} times for one stop")
        self.expect(resource.state is _S.CLOSED, f"is {resource.state.name} after cleanup")
        self.expect(await resource.check_health() is False, "calls itself healthy when closed")
        try:
            await resource.ensure_ready()
        except ResourceClosed:
            pass
        else:
            self.expect(False, "ensure_ready re-opens it after cleanup")

    async def again(self, resource: AsyncResource) -> None:
        await resource.initialize()
        await resource.cleanup()
        await resource.initialize()
        self.expect(resource.state in USABLE, f"is {resource.state.name} when started again")
        if self.health:
            await resource.check_health()
            self.expect(
                _serves(resource), f"is not healthy when started again: {resource.last_error!r}"
            )

    async def fail_start(self, point: int, resource: AsyncResource) -> None:
        before = Holdings.now(self.folder)
        HookProbe(fail_at=point).install(resource, "_do_initialize")
        try:
            await resource.initialize()
        except ResourceInitializationError as error:
            self._check_notes(error)
            self.expect(
                resource.state is _S.ERROR,
                f"is {resource.state.name} after a failed start, not ERROR",
            )
            await self.nothing_left(before, "after the roll-back")
            await resource.initialize()
        self.expect(
            resource.state in USABLE, f"is {resource.state.name} when started after a failed start"
        )

    async def cancel_start(self, point: int, resource: AsyncResource) -> None:
        before = Holdings.now(self.folder)
        cancelled = await self._cancel_at(resource, "_do_initialize", point, resource.initialize)
        if not cancelled:
            # The hook had finished already.
            return
        self.expect(resource.state in (_S.ERROR, _S.READY), f"is left {resource.state.name}")
        if resource.state is _S.ERROR:
            await self.nothing_left(before, "after the roll-back")
            await resource.initialize()
        self.expect(
            resource.state in USABLE,
            f"is {resource.state.name} when started after a cancelled start",
        )

    async def close_start(self, point: int, resource: AsyncResource) -> None:
        closing: list[asyncio.Task[None]] = []
        loop, outside = asyncio.get_running_loop(), contextvars.copy_context()

        def close() -> None:
            closing.append(loop.create_task(resource.cleanup(), context=outside))

        probe = HookProbe(call_at=point, call=close).install(resource, "_do_initialize")
        try:
            await resource.initialize()
        except (ResourceClosed, ResourceInitializationError):
            pass
        self.expect(not probe.swallowed, "its init hook swallows its cancellation")
        for task in closing:
            await task
            self.expect(
                resource.state is _S.CLOSED,
                f"is {resource.state.name} after a cleanup during its start",
            )

    async def cancel_stop(self, point: int, resource: AsyncResource) -> None:
        await resource.initialize()
        await self._cancel_at(resource, "_do_cleanup", point, resource.cleanup)
        await resource.cleanup()
        self.expect(
            resource.state is _S.CLOSED,
            f"is {resource.state.name} after its cleanup's caller was cancelled",
        )

    async def _cancel_at(
        self,
        resource: AsyncResource,
        hook: str,
        point: int,
        operation: Callable[[], Awaitable[object]],
    ) -> bool:
        """Cancel the caller of `operation` while the hook waits for the n-th time.

        Returns whether that was in time.
        """
        loop = asyncio.get_running_loop()
        caller: list[asyncio.Task[object]] = []
        # Not inside the hook's own step: in real use a caller is cancelled between two turns of
        # the loop.
        probe = HookProbe(call_at=point, call=lambda: loop.call_soon(caller[0].cancel))
        probe.install(resource, hook)
        caller.append(asyncio.ensure_future(_wait(operation)))
        await asyncio.wait(caller)
        self.expect(not probe.swallowed, f"{hook} swallows its cancellation")
        if caller[0].cancelled():
            return True
        error = caller[0].exception()
        if error is not None:
            raise error
        return False

    async def _quietly(self, step: Awaitable[object]) -> None:
        try:
            await step
        except Exception as error:  # noqa: BLE001
            self.expect(False, f"unexpected {error!r}")

    def _check_notes(self, error: BaseException) -> None:
        for note in getattr(error, "__notes__", ()):
            self.expect("roll-back failed" not in note, note)

    _scenario: str = "plain life"
    _previous: Callable[[], AsyncResource | None] = lambda: None


def _serves(resource: AsyncResource) -> bool:
    """Whether its last check passed. A declared degradation is not a failed check."""
    return resource.is_usable and resource.statistics().consecutive_health_failures == 0


async def _wait(operation: Callable[[], Awaitable[object]]) -> object:
    return await operation()
