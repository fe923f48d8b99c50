"""`CircuitBreaker`: stop calling what keeps failing, and find out with one call at a time when it
works again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import TypeVar

from exo.lifecycle.core import arguments as check

log = logging.getLogger("exo.errors")

T = TypeVar("T")


class BreakerState(Enum):
    CLOSED = "closed"  # calls pass
    OPEN = "open"  # calls are refused
    HALF_OPEN = "half_open"  # one call tries


class CircuitOpen(Exception):
    """Refused without a call; worth another try after `retry_after` seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"{name} keeps failing; not called again for {retry_after:.1f} s")
        self.name = name
        self.retry_after = retry_after


class CircuitBreaker:
    """Opens after `failures` in a row; after `reset_after` seconds lets a single probe through.

    counts: the errors that speak against the callee; others, and cancellation, say nothing about
        it.
    clock: monotonic seconds, for tests.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        reset_after: float = 10.0,
        counts: Iterable[type[Exception]] = (Exception,),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = check.text("CircuitBreaker", "name", name)
        who = f"CircuitBreaker {name!r}"
        self._limit = check.count(who, "failures", failures)
        self._reset_after = check.seconds(who, "reset_after", reset_after)
        self._counts = tuple(counts)
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> BreakerState:
        if self._opened_at is None:
            return BreakerState.CLOSED
        if self._probing or self._clock() - self._opened_at >= self._reset_after:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    @property
    def consecutive_failures(self) -> int:
        return self._failures

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation()`, or raise `CircuitOpen` without running it."""
        probe = self._admit()
        try:
            result = await operation()
        except self._counts:
            self._failed(probe)
            raise
        except BaseException as error:
            # Cancelled, or an error that is not the callee's: no news of it. A probe's seat is free
            # again.
            if not isinstance(error, asyncio.CancelledError) and not probe:
                self._failures = 0
            raise
        else:
            self._succeeded()
            return result
        finally:
            if probe:
                self._probing = False

    def _admit(self) -> bool:
        """Whether this call is the probe of a half-open breaker."""
        state = self.state
        if state is BreakerState.CLOSED:
            return False
        assert self._opened_at is not None
        if state is BreakerState.OPEN or self._probing:
            raise CircuitOpen(
                self.name, max(0.0, self._opened_at + self._reset_after - self._clock())
            )
        self._probing = True
        return True

    def _failed(self, probe: bool) -> None:
        self._failures += 1
        if probe or (self._opened_at is None and self._failures >= self._limit):
            self._opened_at = self._clock()
            log.warning(
                "%s failed %d times in a row: not called for %.1f s",
                self.name,
                self._failures,
                self._reset_after,
            )

    def _succeeded(self) -> None:
        if self._opened_at is not None:
            log.info("%s works again", self.name)
        self._failures = 0
        self._opened_at = None
