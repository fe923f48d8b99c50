"""`Lifecycle`: single-flight initialize, recover and cleanup of one resource.

Theory of operation. There are at most three flights: `starting` (initialize or recover), `closing`,
and a health check. Each changes the state only while it is the current one.

The state moves synchronously with the call that causes it: from the moment `cleanup()` is called,
the state is CLOSING. `closing` first stops the other two flights and waits for them, and only then
closes anything, so a cleanup hook never runs alongside an init hook.

`LifeRecord.opened` says that an init hook began since the cleanup hook last ran. The cleanup hook
runs exactly when it is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

from exo.lifecycle.core.closing import close
from exo.lifecycle.core.failures import cleanup_failure, start_failure
from exo.lifecycle.core.flight import Flight
from exo.lifecycle.core.health import HealthChecks
from exo.lifecycle.core.hooks import HookStopped, run_hook
from exo.lifecycle.core.record import LifeRecord
from exo.lifecycle.core.state import USABLE, ResourceState
from exo.lifecycle.core.subject import Subject
from exo.lifecycle.errors import (
    ResourceClosed,
    ResourceError,
    ResourceInitializationError,
    ResourceTimeout,
    ResourceUnavailable,
    let_go,
)
from exo.lifecycle.events import Recovered, publish
from exo.lifecycle.states import StateMachine
from exo.lifecycle.tasks import TaskManager

log = logging.getLogger("exo.lifecycle")

_S = ResourceState


class Lifecycle:
    """The way up and the way down of one resource."""

    __slots__ = ("_subject", "_tasks", "closing", "health", "machine", "record", "starting")

    def __init__(self, subject: Subject, machine: StateMachine, tasks: TaskManager) -> None:
        self._subject = subject
        self._tasks = tasks
        self.machine = machine
        self.record = LifeRecord(subject, machine)
        self.health = HealthChecks(self.record)
        self.starting: Flight[None] | None = None
        self.closing: Flight[list[BaseException]] | None = None

    # -- initialize and recover

    async def initialize(self, timeout: float | None) -> None:
        """Return when usable. `timeout` bounds this caller's wait only."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            if self.machine.state in USABLE:
                return
            self._refuse_closing("initialize")
            if self.starting is None:
                self._start(attempts=1, reason="initialize", recovering=False)
            if await self._join_start("initialize", deadline):
                return

    async def recover(self, attempts: int) -> None:
        """Return when READY; closes what is open before each attempt."""
        while True:
            if self.machine.state is _S.READY:
                return
            self._refuse_closed("recover")
            if self.starting is None:
                self._start_recovery(attempts)
            if await self._join_start("recover", None):
                return

    async def make_ready(self, allow_degraded: bool) -> None:
        """`ensure_ready`, where the resource is not simply READY."""
        self._refuse_closed("ensure_ready")
        if self.machine.state is _S.ERROR and self.starting is None:
            await self.recover(attempts=1)
        elif self.machine.state not in USABLE:
            await self.initialize(None)
        self._refuse_closed("ensure_ready")
        if self.machine.state is _S.DEGRADED and not allow_degraded:
            raise self.record.error(
                ResourceUnavailable, f"is DEGRADED: {self.record.last_error or 'see its health'}"
            )
        if self.machine.state not in USABLE:
            raise self.record.error(ResourceUnavailable, f"is {self.machine.state.name}")

    async def _join_start(self, call: str, deadline: float | None) -> bool:
        """Wait for the attempt in flight. False when it was already being given up: the caller then
        starts a new one.
        """
        flight = self.starting
        if flight is None:
            return False
        doomed = flight.stopping
        try:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            await (flight.settle(left) if doomed else flight.join(left))
        except TimeoutError as error:
            if isinstance(error, ResourceError):
                raise
            raise self.record.error(
                ResourceTimeout, f"was not ready within the time-out given to {call}()"
            ) from None
        if doomed:
            return False
        self._refuse_closed(call)
        return True

    def _start_recovery(self, attempts: int) -> None:
        if self.machine.state is _S.UNINITIALIZED:
            self._start(attempts=1, reason="recover", recovering=False)
            return
        if self.machine.state is _S.DEGRADED:
            self.machine.move(_S.ERROR, "recover")
        self._start(attempts=attempts, reason="recover", recovering=True)

    def _start(self, *, attempts: int, reason: str, recovering: bool) -> None:
        self._begin_attempt(reason)
        self.starting = Flight(
            lambda flight: self._run_start(flight, attempts, recovering),
            name=f"{self._subject.resource_id}:{reason}",
            abandonable=True,
        )

    def _begin_attempt(self, reason: str) -> None:
        self.record.life += 1
        self.health.stop(reason)
        self.health.running = None
        self.health.declared.clear()
        self.machine.move(_S.INITIALIZING, reason)

    async def _run_start(self, flight: Flight[None], attempts: int, recovering: bool) -> None:
        subject = self._subject
        deadline = time.monotonic() + subject.initialize_timeout + subject.cleanup_timeout
        try:
            for attempt in range(1, attempts + 1):
                if attempt > 1:
                    self._begin_attempt(f"recover, attempt {attempt}")
                try:
                    await self._attempt(flight, deadline if recovering else None)
                except ResourceInitializationError:
                    delay = subject.recover_delay(attempt)
                    out_of_time = time.monotonic() + delay >= deadline
                    if flight.stopping or attempt == attempts or out_of_time:
                        raise
                    await flight.pause(delay)
                    self._refuse_closing("recover")
                    if flight.stopping:
                        raise
                else:
                    break
        finally:
            if self.starting is flight:
                self.starting = None
        if recovering:
            self.record.counts.recoveries += 1
            publish(Recovered(subject.resource_id, subject.resource_type))

    async def _attempt(self, flight: Flight[None], deadline: float | None) -> None:
        """From INITIALIZING to READY, or rolled back to ERROR.

        Where a cleanup stopped this attempt, the roll-back is left to that cleanup.
        """
        record = self.record
        started = time.monotonic()
        limit = self._subject.initialize_timeout
        record.counts.initializations += 1
        try:
            if record.opened:
                await self._close_before_recovery(flight)
            self._tasks.reopen()
            if deadline is not None:
                limit = max(0.0, min(limit, deadline - time.monotonic()))
            await run_hook(record, "initialize", limit, flight)
            if flight.stopping:
                raise HookStopped(flight.stop_reason)
        # A hook may raise anything.
        except (Exception, asyncio.CancelledError) as cause:  # noqa: BLE001
            record.counts.initialize_failures += 1
            failure = start_failure(record, cause, limit)
            let_go(cause)
            await self._roll_back(flight, cause, failure)
            if self.machine.state is _S.CLOSING and not isinstance(failure, ResourceClosed):
                raise record.error(
                    ResourceClosed, "was closed while it rolled back a failed start"
                ) from failure
            raise failure from failure.__cause__
        finally:
            record.counts.last_initialize_seconds = time.monotonic() - started
        record.last_error = None
        record.counts.consecutive_health_failures = 0
        self.machine.move(_S.READY, "initialized")
        self.health.show_declared()

    async def _close_before_recovery(self, flight: Flight[None]) -> None:
        """What is broken often fails to close: logged, and no reason not to start again."""
        try:
            await close(self.record, self._tasks, self._subject.cleanup_timeout, flight)
        except Exception as error:  # noqa: BLE001  # a hook may raise anything
            log.warning("%s: closing before it starts again failed: %r", self._subject, error)

    async def _roll_back(
        self, flight: Flight[None], cause: BaseException, failure: ResourceError
    ) -> None:
        if self.machine.state is _S.CLOSING:
            # The cleanup that stopped this attempt closes what it opened.
            return
        self.record.last_error = failure.__cause__ or failure
        try:
            await close(self.record, self._tasks, self._subject.cleanup_timeout, flight)
        except Exception as error:
            log.exception("%s: roll-back failed", self._subject)
            failure.add_note(f"roll-back failed too: {error!r}")
        if self.machine.state is _S.INITIALIZING:
            self.machine.move(_S.ERROR, f"initialize failed: {cause!r}")

    # -- cleanup

    async def cleanup(self) -> None:
        """Return when CLOSED."""
        if self.closing is None:
            if self.machine.state is _S.CLOSED:
                return
            self._begin_cleanup()
            if self.closing is None:
                return
        errors = await self.closing.join()
        # All callers wait for the same cleanup; the first to wake raises its error, once.
        if errors:
            raise errors.pop()

    def _begin_cleanup(self) -> None:
        self.record.life += 1
        if self.machine.state is _S.UNINITIALIZED:
            if not self._tasks.tasks:
                self.machine.move(_S.CLOSED, "cleanup before any initialize")
                return
        else:
            self.machine.move(_S.CLOSING, "cleanup")
        self.closing = Flight(
            self._run_cleanup, name=f"{self._subject.resource_id}:cleanup", abandonable=False
        )
        if self.starting is not None:
            self.starting.stop("cleanup")
        self.health.stop("cleanup")

    async def _run_cleanup(self, flight: Flight[list[BaseException]]) -> list[BaseException]:
        error: BaseException | None = None
        try:
            if self.starting is not None or self.health.running is not None:
                await self._settle_others()
            await close(self.record, self._tasks, self._subject.cleanup_timeout, flight)
        # A hook may raise anything.
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001
            error = cleanup_failure(self.record, raised)
            let_go(error)
            self.record.last_error = error
        finally:
            self.closing = None
            self.health.declared.clear()
            reason = "cleaned up" if error is None else f"cleanup failed: {error!r}"
            self.machine.move(_S.CLOSED, reason)
        return [] if error is None else [error]

    async def _settle_others(self) -> None:
        """Wait until the start and the check that were asked to stop have ended."""
        for other in (self.starting, self.health.running):
            if other is not None:
                # Cancelled only when the event loop is being closed, and then too what is open
                # has to be closed.
                with contextlib.suppress(asyncio.CancelledError):
                    await other.settle()
        self.health.running = None

    # -- shared

    async def wait_for(
        self, states: frozenset[ResourceState], timeout: float | None
    ) -> ResourceState:
        try:
            async with asyncio.timeout(timeout):
                return await self.machine.wait_for(states)
        except TimeoutError:
            names = ", ".join(sorted(state.name for state in states))
            raise self.record.error(
                ResourceTimeout, f"did not reach {names} within {timeout:g} s"
            ) from None

    def _refuse_closing(self, call: str) -> None:
        if self.machine.state is _S.CLOSING or self.closing is not None:
            raise self.record.error(ResourceClosed, f"is closing: {call}() came too late")

    def _refuse_closed(self, call: str) -> None:
        self._refuse_closing(call)
        if self.machine.state is _S.CLOSED:
            raise self.record.error(
                ResourceClosed, f"is closed: {call}() does not re-open it, only initialize() does"
            )
