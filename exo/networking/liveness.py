"""When a peer counts as slow, and when as lost. Pure: the time is passed in.

When a peer is silent, its port is tried. The kernel of a machine that is there takes the connection
even if the process is busy or stopped. If it does not, the peer is lost. If it does, the peer is
slow, and is lost only after `stuck_after`.

Silence is counted in ticks of this node's own event loop, and a late tick counts for two at most.
So when this node itself stands still for a while, that is not taken for silence of its peers.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds. A loss is noticed after heartbeat + silent_after + tick + probe_timeout at most:
    less than 2.
    """

    heartbeat: float = 0.3
    tick: float = 0.1
    silent_after: float = 1.2
    probe_timeout: float = 0.3
    stuck_after: float = 15.0
    slow_latency: float = 0.5
    connect_timeout: float = 3.0
    hello_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} must be more than 0 seconds")


class Liveness:
    """One peer's heartbeats."""

    def __init__(self, timings: Timings) -> None:
        self._timings = timings
        self._silence = 0.0
        self._last_tick: float | None = None
        self._latencies: deque[float] = deque(maxlen=3)

    @property
    def silence(self) -> float:
        return self._silence

    @property
    def latency(self) -> float | None:
        return self._latencies[-1] if self._latencies else None

    def heard(self, latency: float) -> None:
        self._silence = 0.0
        self._latencies.append(latency)

    def tick(self, now: float) -> None:
        if self._last_tick is not None:
            self._silence += min(now - self._last_tick, 2 * self._timings.tick)
        self._last_tick = now

    def is_silent(self) -> bool:
        return self._silence > self._timings.silent_after

    def is_stuck(self) -> bool:
        return self._silence > self._timings.stuck_after

    def is_slow(self) -> bool:
        """Silent now, or late three times in a row. One late answer alone says nothing."""
        late = len(self._latencies) == 3 and min(self._latencies) > self._timings.slow_latency
        return late or self.is_silent()
