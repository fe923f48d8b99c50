"""The keyed work queue: one run per key at a time, many keys at once, back-off per key, and a limit
on the total rate.

It knows nothing about Kubernetes. Time and chance are injected, so tests need neither.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Backoff(Generic[K]):
    """Exponential back-off per key, from 0.5 s to 5 min, with jitter over the upper half of each
    step.
    """

    def __init__(
        self, first: float = 0.5, most: float = 300.0, chance: Callable[[], float] = random.random
    ) -> None:
        self._first = first
        self._most = most
        self._chance = chance
        self._failures: dict[K, int] = {}

    def failed(self, key: K) -> float:
        """Count one more failure; returns the seconds to wait."""
        count = self._failures.get(key, 0)
        self._failures[key] = count + 1
        ceiling = min(self._most, self._first * 2.0 ** min(count, 32))
        return ceiling * (0.5 + 0.5 * self._chance())

    def succeeded(self, key: K) -> None:
        self._failures.pop(key, None)

    def failures(self, key: K) -> int:
        return self._failures.get(key, 0)


class TokenBucket:
    """At most `rate` tokens per second on average, `burst` at once."""

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._clock = clock
        self._tokens = float(burst)
        self._at = clock()

    def take(self) -> float:
        """Take one token, on credit if none is left. Returns the seconds to wait before its use."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self._rate)


class WorkQueue(Generic[K]):
    """Keys waiting to be worked on.

    Invariants: a key is worked on by one worker at a time; a key added meanwhile runs once more
    afterwards; a key has at most one pending time, the earliest that was asked for.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._order = 0
        self._active: set[K] = set()
        self._changed = asyncio.Event()

    def add(self, key: K, delay: float = 0.0) -> None:
        """Ask for a run of `key` in `delay` seconds, unless an earlier one is pending."""
        due = self._clock() + delay
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        self._changed.set()

    def forget(self, key: K) -> None:
        self._due.pop(key, None)

    def take_nowait(self) -> K | None:
        """The next key that is due and not being worked on, if there is one."""
        skipped: list[tuple[float, int, K]] = []
        found: K | None = None
        while self._heap and self._heap[0][0] <= self._clock():
            entry = heapq.heappop(self._heap)
            due, _, key = entry
            if self._due.get(key) != due:
                continue
            if key in self._active:
                skipped.append(entry)
                continue
            del self._due[key]
            self._active.add(key)
            found = key
            break
        for entry in skipped:
            heapq.heappush(self._heap, entry)
        return found

    async def take(self) -> K:
        """Wait for the next key."""
        while True:
            key = self.take_nowait()
            if key is not None:
                return key
            self._changed.clear()
            wait = self._next_wait()
            try:
                await asyncio.wait_for(self._changed.wait(), wait)
            except TimeoutError:
                continue

    def _next_wait(self) -> float | None:
        """Seconds until an idle key is due; None if there is none, since a key that is finished or
        added wakes the taker.
        """
        waiting = [due for key, due in self._due.items() if key not in self._active]
        return max(0.0, min(waiting) - self._clock()) if waiting else None

    def done(self, key: K) -> None:
        """The work on `key` ended."""
        self._active.discard(key)
        self._changed.set()

    def __len__(self) -> int:
        return len(self._due)

    async def work(self, run: Callable[[K], Awaitable[None]]) -> None:
        """A worker: run keys forever. `run` must not raise."""
        while True:
            key = await self.take()
            try:
                await run(key)
            finally:
                self.done(key)
