"""`CircuitBreaker`: stops calling what keeps failing, and lets one call at a time try again."""

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
    """CLOSED: calls pass. OPEN: calls are refused. HALF_OPEN: one call tries."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class CircuitOpen(Exception):
    """Refused without a call. Worth another try after `retry_after` seconds."""

    def __init__(self, name: str, retry_after: float) -> None:
        super().__init__(f"{name} keeps failing; not called again for {retry_after:.1f} s")
        self.name = name
        self.retry_after = retry_after


class CircuitBreaker:
    """Opens after `failures` in a row; `reset_after` seconds later lets a single call try.

    counts: the errors that are the callee's fault. Others, and cancellation, say nothing about it.
    clock: monotonic seconds; replaced in tests.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        reset_after: float = 10.0,
        counts: Iterable[type[Exception]] = (Exception,),
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.name = check.text("CircuitBreaker", "name", name)
        who = f"CircuitBreaker {name!r}"
        self._limit = check.count(who, "failures", failures)
        self._reset_after = check.seconds(who, "reset_after", reset_after)
        self._counts = tuple(counts)
        # Looked up now, not at import: tests replace `time.monotonic`.
        self._clock = time.monotonic if clock is None else clock
        self._failures = 0
        self._opened_at: float | None = None
        self._trying = False

    @property
    def state(self) -> BreakerState:
        if self._opened_at is None:
            return BreakerState.CLOSED
        if self._trying or self._clock() - self._opened_at >= self._reset_after:
            return BreakerState.HALF_OPEN
        return BreakerState.OPEN

    async def call(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Run `operation()`, or raise `CircuitOpen` without running it."""
        trying = self._admit()
        try:
            result = await operation()
        except self._counts:
            self._failed(trying)
            raise
        except BaseException as error:
            # An error that is not the callee's fault: it answered. A cancelled call says nothing.
            if not isinstance(error, asyncio.CancelledError) and not trying:
                self._failures = 0
            raise
        else:
            self._succeeded()
            return result
        finally:
            if trying:
                self._trying = False

    def _admit(self) -> bool:
        """Let the call pass, or raise. Returns whether it is the one that tries again."""
        state = self.state
        if state is BreakerState.CLOSED:
            return False
        assert self._opened_at is not None
        if state is BreakerState.OPEN or self._trying:
            raise CircuitOpen(
                self.name, max(0.0, self._opened_at + self._reset_after - self._clock())
            )
        self._trying = True
        return True

    def _failed(self, trying: bool) -> None:
        self._failures += 1
        if trying or (self._opened_at is None and self._failures >= self._limit):
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
