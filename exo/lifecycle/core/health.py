"""One resource's health checks, and what their results do to its state. Part of `core.py`, apart
for its size.

A check that fails counts; one that says `ResourceDegraded`, or a declared degradation, only shows.
Results of an earlier life are dropped.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from exo.lifecycle.core.flight import Flight
from exo.lifecycle.core.hooks import HookStopped, HookTimeout, run_hook
from exo.lifecycle.errors import (
    ResourceDegraded,
    ResourceError,
    ResourceTimeout,
    ResourceUnavailable,
    let_go,
)
from exo.lifecycle.faults import injected_fault
from exo.lifecycle.states import USABLE, ResourceState

if TYPE_CHECKING:
    from exo.lifecycle.core.lifecycle import Lifecycle
    from exo.lifecycle.degradations import Degradation

_S = ResourceState


class Health:
    __slots__ = ("_core", "declared", "running")

    def __init__(self, core: Lifecycle) -> None:
        self._core = core
        self.running: Flight[bool] | None = None
        self.declared: dict[str, Degradation] = {}

    def stop(self, reason: str) -> None:
        """Ask a check in flight to end; its result will be dropped."""
        if self.running is not None:
            self.running.stop(reason)

    async def check(self) -> bool:
        if self._core.machine.state not in USABLE:
            return False
        if self.running is None:
            self.running = Flight(
                self._run_check,
                name=f"{self._core.resource.resource_id}:health_check",
                abandonable=True,
            )
        flight = self.running
        if flight.stopping:
            await flight.settle()
            return self._core.machine.state is _S.READY
        return await flight.join()

    async def _run_check(self, flight: Flight[bool]) -> bool:
        life = self._core.life
        started = time.monotonic()
        failure: BaseException | None = None
        try:
            if (fault := injected_fault(self._core.resource)) is not None:
                raise self._core.error(ResourceUnavailable, f"is not healthy: {fault}")
            healthy = await run_hook(
                self._core.resource,
                "health_check",
                self._core.resource.health_check_timeout,
                flight,
            )
            if not healthy:
                what = "returned None instead of a bool" if healthy is None else "returned False"
                failure = self._core.error(
                    ResourceUnavailable, f"is not healthy: its health check {what}"
                )
        except HookTimeout:
            limit = self._core.resource.health_check_timeout
            failure = self._core.error(
                ResourceTimeout, f"is not healthy: its health check took more than {limit:g} s"
            )
        except HookStopped:
            return False
        # A hook may raise anything.
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001
            failure = error
        finally:
            if self.running is flight:
                self.running = None
        if life != self._core.life or self._core.machine.state not in USABLE:
            return False
        self._core.counts.last_health_check_seconds = time.monotonic() - started
        return self._judge(failure)

    def _judge(self, failure: BaseException | None) -> bool:
        counts = self._core.counts
        counts.health_checks += 1
        if failure is None and self.declared:
            failure = self._declared_failure()
        if failure is None:
            counts.consecutive_health_failures = 0
            self._core.last_error = None
            if self._core.machine.state is _S.DEGRADED:
                self._core.machine.move(_S.READY, "healthy again")
            return True
        let_go(failure)
        self._core.last_error = failure
        if isinstance(failure, ResourceDegraded):
            counts.consecutive_health_failures = 0
        else:
            counts.health_failures += 1
            counts.consecutive_health_failures += 1
        reason = str(failure) if isinstance(failure, ResourceError) else repr(failure)
        if counts.consecutive_health_failures >= self._core.resource.failure_threshold:
            self._core.machine.move(_S.ERROR, reason)
        elif self._core.machine.state is _S.READY:
            self._core.machine.move(_S.DEGRADED, reason)
        return False

    def declare(self, made: Degradation) -> None:
        """A named degradation: shown in the state at once, or at the end of the initialize that
        declares it.
        """
        self.declared[made.name] = made
        self.show_declared()

    def show_declared(self) -> None:
        if self.declared and self._core.machine.state is _S.READY:
            self._core.last_error = self._declared_failure()
            self._core.machine.move(_S.DEGRADED, str(self._core.last_error))

    def _declared_failure(self) -> ResourceError:
        return self._core.error(ResourceDegraded, "; ".join(map(str, self.declared.values())))
