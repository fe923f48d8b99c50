"""`HealthChecks`: the health checks of one resource, and what their results do to its state.

A check that fails counts towards ERROR. One that raises `ResourceDegraded`, or a declared
degradation, only shows. Results that belong to an earlier life are dropped.
"""

from __future__ import annotations

import asyncio
import time

from exo.lifecycle.core.degradation import Degradation
from exo.lifecycle.core.flight import Flight
from exo.lifecycle.core.hooks import HookStopped, HookTimeout, run_hook
from exo.lifecycle.core.record import LifeRecord
from exo.lifecycle.core.state import USABLE, ResourceState
from exo.lifecycle.errors import (
    ResourceDegraded,
    ResourceError,
    ResourceTimeout,
    ResourceUnavailable,
    let_go,
)
from exo.lifecycle.faults import injected_fault

_S = ResourceState


class HealthChecks:
    """At most one check is in flight, shared by all who ask meanwhile."""

    __slots__ = ("_record", "declared", "running")

    def __init__(self, record: LifeRecord) -> None:
        self._record = record
        self.running: Flight[bool] | None = None
        self.declared: dict[str, Degradation] = {}

    def stop(self, reason: str) -> None:
        """Ask a check in flight to end; its result will be dropped."""
        if self.running is not None:
            self.running.stop(reason)

    async def check(self) -> bool:
        """Run the hook, or join the run in flight. False, without the hook, when not usable."""
        if self._record.machine.state not in USABLE:
            return False
        if self.running is None:
            self.running = Flight(
                self._run_check,
                name=f"{self._record.subject.resource_id}:health_check",
                abandonable=True,
            )
        flight = self.running
        if flight.stopping:
            await flight.settle()
            return self._record.machine.state is _S.READY
        return await flight.join()

    async def _run_check(self, flight: Flight[bool]) -> bool:
        record = self._record
        life = record.life
        started = time.monotonic()
        failure: BaseException | None = None
        try:
            failure = await self._find_failure(flight)
        except HookStopped:
            return False
        # A hook may raise anything.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            failure = error
        finally:
            if self.running is flight:
                self.running = None
        if life != record.life or record.machine.state not in USABLE:
            return False
        record.counts.last_health_check_seconds = time.monotonic() - started
        return self._judge(failure)

    async def _find_failure(self, flight: Flight[bool]) -> ResourceError | None:
        """Run the hook and put into words what it says; raises what it raises."""
        record, subject = self._record, self._record.subject
        if (fault := injected_fault(subject)) is not None:
            return record.error(ResourceUnavailable, f"is not healthy: {fault}")
        limit = subject.health_check_timeout
        try:
            healthy = await run_hook(record, "health_check", limit, flight)
        except HookTimeout:
            return record.error(
                ResourceTimeout, f"is not healthy: its health check took more than {limit:g} s"
            )
        if healthy:
            return None
        what = "returned None instead of a bool" if healthy is None else "returned False"
        return record.error(ResourceUnavailable, f"is not healthy: its health check {what}")

    def _judge(self, failure: BaseException | None) -> bool:
        record, counts = self._record, self._record.counts
        counts.health_checks += 1
        if failure is None and self.declared:
            failure = self._declared_failure()
        if failure is None:
            counts.consecutive_health_failures = 0
            record.last_error = None
            if record.machine.state is _S.DEGRADED:
                record.machine.move(_S.READY, "healthy again")
            return True
        let_go(failure)
        record.last_error = failure
        if isinstance(failure, ResourceDegraded):
            counts.consecutive_health_failures = 0
        else:
            counts.health_failures += 1
            counts.consecutive_health_failures += 1
        reason = str(failure) if isinstance(failure, ResourceError) else repr(failure)
        if counts.consecutive_health_failures >= record.subject.failure_threshold:
            record.machine.move(_S.ERROR, reason)
        elif record.machine.state is _S.READY:
            record.machine.move(_S.DEGRADED, reason)
        return False

    def declare(self, made: Degradation) -> None:
        """Show a named degradation in the state: at once, or at the end of the initialize that
        declares it.
        """
        self.declared[made.name] = made
        self.show_declared()

    def show_declared(self) -> None:
        """Move READY to DEGRADED when a degradation is declared."""
        if self.declared and self._record.machine.state is _S.READY:
            self._record.last_error = self._declared_failure()
            self._record.machine.move(_S.DEGRADED, str(self._record.last_error))

    def _declared_failure(self) -> ResourceError:
        return self._record.error(ResourceDegraded, "; ".join(map(str, self.declared.values())))
