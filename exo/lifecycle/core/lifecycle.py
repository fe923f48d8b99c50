"""The lifecycle behind one `AsyncResource`: single-flight initialize, cleanup, recover and health
check.

Theory of operation. `opened` says that an init hook began since the cleanup hook last ran: the
cleanup hook runs
exactly when it is set. There are at most three flights: `starting` (initialize or recover),
`closing`, and a health check. A flight changes the state only while it is the current one, and the
state moves synchronously with the call that
causes it: a caller that sees `cleanup()` begun sees CLOSING. `closing` stops the other two and
waits for them before it
closes anything. `life` counts attempts and cleanups: a health result of an earlier life is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING

from exo.lifecycle.core.flight import Flight
from exo.lifecycle.core.health import Health
from exo.lifecycle.core.hooks import HookStopped, HookTimeout, run_hook
from exo.lifecycle.errors import (
    ResourceClosed,
    ResourceError,
    ResourceInitializationError,
    ResourceInitializationTimeout,
    ResourceTimeout,
    ResourceUnavailable,
    let_go,
)
from exo.lifecycle.events import Recovered, publish
from exo.lifecycle.states import USABLE, ResourceState, StateMachine
from exo.lifecycle.statistics import Counts

if TYPE_CHECKING:
    from exo.lifecycle.degradations import Degradation
    from exo.lifecycle.resource import AsyncResource

log = logging.getLogger("exo.lifecycle")

_S = ResourceState


class Lifecycle:
    __slots__ = (
        "closing",
        "counts",
        "health",
        "last_error",
        "life",
        "machine",
        "opened",
        "resource",
        "starting",
    )

    def __init__(self, resource: AsyncResource, machine: StateMachine) -> None:
        self.resource = resource
        self.machine = machine
        self.counts = Counts()
        self.last_error: BaseException | None = None
        self.health = Health(self)
        self.opened = False
        self.life = 0
        self.starting: Flight[None] | None = None
        self.closing: Flight[list[BaseException]] | None = None

    # -- initialize and recover

    async def initialize(self, timeout: float | None) -> None:
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
        while True:
            if self.machine.state is _S.READY:
                return
            self._refuse_closed("recover")
            if self.starting is None:
                if self.machine.state is _S.UNINITIALIZED:
                    self._start(attempts=1, reason="recover", recovering=False)
                else:
                    if self.machine.state is _S.DEGRADED:
                        self.machine.move(_S.ERROR, "recover")
                    self._start(attempts=attempts, reason="recover", recovering=True)
            if await self._join_start("recover", None):
                return

    async def make_ready(self, allow_degraded: bool) -> None:
        self._refuse_closed("ensure_ready")
        if self.machine.state is _S.ERROR and self.starting is None:
            await self.recover(attempts=1)
        elif self.machine.state not in USABLE:
            await self.initialize(None)
        self._refuse_closed("ensure_ready")
        if self.machine.state is _S.DEGRADED and not allow_degraded:
            raise self.error(
                ResourceUnavailable, f"is DEGRADED: {self.last_error or 'see its health'}"
            )
        if self.machine.state not in USABLE:
            raise self.error(ResourceUnavailable, f"is {self.machine.state.name}")

    async def _join_start(self, call: str, deadline: float | None) -> bool:
        """Wait for the attempt in flight; False when it was being given up, so that the caller
        tries anew.
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
            raise self.error(
                ResourceTimeout, f"was not ready within the time-out given to {call}()"
            ) from None
        if doomed:
            return False
        self._refuse_closed(call)
        return True

    def _start(self, *, attempts: int, reason: str, recovering: bool) -> None:
        self._begin_attempt(reason)
        self.starting = Flight(
            lambda flight: self._run_start(flight, attempts, recovering),
            name=f"{self.resource.resource_id}:{reason}",
            abandonable=True,
        )

    def _begin_attempt(self, reason: str) -> None:
        self.life += 1
        self.health.stop(reason)
        self.health.running = None
        self.health.declared.clear()
        self.machine.move(_S.INITIALIZING, reason)

    async def _run_start(self, flight: Flight[None], attempts: int, recovering: bool) -> None:
        resource = self.resource
        deadline = time.monotonic() + resource.initialize_timeout + resource.cleanup_timeout
        try:
            for attempt in range(1, attempts + 1):
                if attempt > 1:
                    self._begin_attempt(f"recover, attempt {attempt}")
                try:
                    await self._attempt(flight, deadline if recovering else None)
                except ResourceInitializationError:
                    delay = resource.recover_delay(attempt)
                    if (
                        flight.stopping
                        or attempt == attempts
                        or time.monotonic() + delay >= deadline
                    ):
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
            self.counts.recoveries += 1
            publish(Recovered(resource.resource_id, resource.resource_type))

    async def _attempt(self, flight: Flight[None], deadline: float | None) -> None:
        """From INITIALIZING to READY, or rolled back to ERROR (or left to the cleanup that stopped
        it).
        """
        started = time.monotonic()
        limit = self.resource.initialize_timeout
        self.counts.initializations += 1
        try:
            if self.opened:
                await self._close_the_old(flight)
            self.resource._task_manager.reopen()
            if deadline is not None:
                limit = max(0.0, min(limit, deadline - time.monotonic()))
            await run_hook(self.resource, "initialize", limit, flight)
            if flight.stopping:
                raise HookStopped(flight.stop_reason)
        # A hook may raise anything.
        except (Exception, asyncio.CancelledError) as cause:  # noqa: BLE001
            self.counts.initialize_failures += 1
            failure = self._failure(cause, limit)
            let_go(cause)
            await self._roll_back(flight, cause, failure)
            if self.machine.state is _S.CLOSING and not isinstance(failure, ResourceClosed):
                raise self.error(
                    ResourceClosed, "was closed while it rolled back a failed start"
                ) from failure
            raise failure from failure.__cause__
        finally:
            self.counts.last_initialize_seconds = time.monotonic() - started
        self.last_error = None
        self.counts.consecutive_health_failures = 0
        self.machine.move(_S.READY, "initialized")
        self.health.show_declared()

    async def _close_the_old(self, flight: Flight[None]) -> None:
        """Before a recovery. What is broken often fails to close: counted, said,
        and no obstacle.
        """
        try:
            await self._close(self.resource.cleanup_timeout, flight)
        except Exception as error:  # noqa: BLE001  # a hook may raise anything
            log.warning("%s: closing before it starts anew failed: %r", self.resource, error)

    def _failure(self, cause: BaseException, limit: float) -> ResourceError:
        if self.machine.state is _S.CLOSING:
            return self.error(ResourceClosed, "was closed while it initialized")
        if isinstance(cause, HookTimeout):
            failure: ResourceError = self.error(
                ResourceInitializationTimeout,
                f"did not initialize within {limit:g} s and was rolled back",
            )
            failure.__cause__ = self.error(ResourceTimeout, f"init hook ran out of its {limit:g} s")
        elif isinstance(cause, HookStopped):
            failure = self.error(
                ResourceInitializationError, f"gave up initializing: {cause}; it was rolled back"
            )
        else:
            failure = self.error(
                ResourceInitializationError, f"failed to initialize and was rolled back: {cause!r}"
            )
            failure.__cause__ = cause
        return failure

    async def _roll_back(
        self, flight: Flight[None], cause: BaseException, failure: ResourceError
    ) -> None:
        if self.machine.state is _S.CLOSING:
            return  # the cleanup that stopped this attempt closes what it opened
        self.last_error = failure.__cause__ or failure
        try:
            await self._close(self.resource.cleanup_timeout, flight)
        except Exception as error:
            log.exception("%s: roll-back failed", self.resource)
            failure.add_note(f"roll-back failed too: {error!r}")
        if self.machine.state is _S.INITIALIZING:
            self.machine.move(_S.ERROR, f"initialize failed: {cause!r}")

    # -- cleanup

    async def cleanup(self) -> None:
        if self.closing is None:
            if self.machine.state is _S.CLOSED:
                return
            self._begin_cleanup()
            if self.closing is None:
                return
        errors = await self.closing.join()
        # Everyone waits for the same cleanup; its error is raised once, by the first that wakes.
        if errors:
            raise errors.pop()

    def _begin_cleanup(self) -> None:
        self.life += 1
        if self.machine.state is _S.UNINITIALIZED:
            if not self.resource._task_manager.tasks:
                self.machine.move(_S.CLOSED, "cleanup before any initialize")
                return
        else:
            self.machine.move(_S.CLOSING, "cleanup")
        self.closing = Flight(
            self._run_cleanup, name=f"{self.resource.resource_id}:cleanup", abandonable=False
        )
        if self.starting is not None:
            self.starting.stop("cleanup")
        self.health.stop("cleanup")

    async def _run_cleanup(self, flight: Flight[list[BaseException]]) -> list[BaseException]:
        error: BaseException | None = None
        try:
            for other in (self.starting, self.health.running):
                if other is not None:
                    # Cancelled only when the event loop is being closed: what is open is closed all
                    # the same.
                    with contextlib.suppress(asyncio.CancelledError):
                        await other.settle()
            self.health.running = None
            await self._close(self.resource.cleanup_timeout, flight)
        # A hook may raise anything.
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001
            error = self._cleanup_failure(raised)
            let_go(error)
            self.last_error = error
        finally:
            self.closing = None
            self.health.declared.clear()
            self.machine.move(
                _S.CLOSED, "cleaned up" if error is None else f"cleanup failed: {error!r}"
            )
        return [] if error is None else [error]

    def _cleanup_failure(self, raised: BaseException) -> BaseException:
        if isinstance(raised, HookTimeout):
            return self.error(
                ResourceTimeout, f"did not clean up within {self.resource.cleanup_timeout:g} s"
            )
        if isinstance(raised, HookStopped | asyncio.CancelledError):
            error = self.error(ResourceError, "its cleanup was cancelled")
            error.__cause__ = raised
            return error
        return raised

    async def _close(
        self, timeout: float, flight: Flight[None] | Flight[list[BaseException]]
    ) -> None:
        """Cancel the background tasks, then run the cleanup hook if something is open; within
        `timeout` seconds.
        """
        started = time.monotonic()
        tasks = self.resource._task_manager
        tasks.close()
        if tasks.tasks:
            await tasks.cancel_all_tasks(timeout=timeout / 2)
        if not self.opened:
            return
        self.counts.cleanups += 1
        left = max(timeout / 2, timeout - (time.monotonic() - started))
        try:
            try:
                await run_hook(self.resource, "cleanup", left, flight, stoppable=False)
            except (HookStopped, asyncio.CancelledError):
                if not self.opened:
                    raise
                # Cancelled before its first step by an event loop that is being closed: nothing is
                # closed yet.
                await run_hook(self.resource, "cleanup", left, flight, stoppable=False)
        except (Exception, asyncio.CancelledError):
            self.counts.cleanup_failures += 1
            raise
        finally:
            self.counts.last_cleanup_seconds = time.monotonic() - started

    # -- health

    async def check_health(self) -> bool:
        return await self.health.check()

    def declare(self, made: Degradation) -> None:
        self.health.declare(made)

    @property
    def declared(self) -> dict[str, Degradation]:
        return self.health.declared

    # -- shared

    async def wait_for(
        self, states: frozenset[ResourceState], timeout: float | None
    ) -> ResourceState:
        try:
            async with asyncio.timeout(timeout):
                return await self.machine.wait_for(states)
        except TimeoutError:
            names = ", ".join(sorted(state.name for state in states))
            raise self.error(
                ResourceTimeout, f"did not reach {names} within {timeout:g} s"
            ) from None

    def error(self, kind: type[ResourceError], what: str) -> ResourceError:
        resource = self.resource
        message = f"{resource.resource_type} {resource.resource_id!r} {what}"
        return kind(message, resource_id=resource.resource_id, state=self.machine.state)

    def _refuse_closing(self, call: str) -> None:
        if self.machine.state is _S.CLOSING or self.closing is not None:
            raise self.error(ResourceClosed, f"is closing: {call}() came too late")

    def _refuse_closed(self, call: str) -> None:
        self._refuse_closing(call)
        if self.machine.state is _S.CLOSED:
            raise self.error(
                ResourceClosed, f"is closed: {call}() does not re-open it, only initialize() does"
            )


def backoff(attempt: int, base: float, most: float) -> float:
    """Exponential with jitter: between half and all of min(most,
    base * 2**(attempt - 1)) seconds.
    """
    ceiling = min(most, base * 2 ** min(attempt - 1, 32))
    return random.uniform(ceiling / 2, ceiling)
