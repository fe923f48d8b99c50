"""The records of health monitoring: one check, one resource, the whole report.

What counts as started and as ready is decided here, for one resource.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from exo.lifecycle import AsyncResource, ResourceState, TaskHandle

HISTORY: Final = 120
# A result counts as fresh for this many intervals, plus the time a check may take.
FRESH_INTERVALS: Final = 3.0


@dataclass(frozen=True, slots=True)
class CheckRecord:
    """One health check. `at`: monotonic seconds when it ended."""

    at: float
    healthy: bool
    latency_seconds: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class ResourceHealth:
    """The health of one resource in a report.

    since: monotonic seconds when it entered the state.
    reason: why it is not healthy; None when it is.
    """

    state: ResourceState
    healthy: bool
    since: float
    reason: str | None
    last_error: str | None
    latency_seconds: float | None
    checked_ago_seconds: float | None
    required: bool
    resource_type: str = "resource"


@dataclass(frozen=True, slots=True)
class HealthReport:
    """The health of everything at one moment.

    Each of the three views is true when its reasons (name to reason) are empty.
    """

    resources: Mapping[str, ResourceHealth]
    reasons_live: Mapping[str, str]
    reasons_started: Mapping[str, str]
    reasons_ready: Mapping[str, str]
    at: float = field(default_factory=time.monotonic)

    @property
    def is_live(self) -> bool:
        return not self.reasons_live

    @property
    def is_started(self) -> bool:
        return not self.reasons_started

    @property
    def is_ready(self) -> bool:
        return not self.reasons_ready

    def of_type(self, resource_type: str) -> Mapping[str, str]:
        """The unhealthy resources of one type, with the reason of each."""
        return {
            name: health.reason or health.state.name.lower()
            for name, health in self.resources.items()
            if health.resource_type == resource_type and not health.healthy
        }


@dataclass(slots=True, eq=False)
class MonitoredResource:
    """One registered resource.

    recovering: it was in ERROR, and no check has passed since.
    was_up: it has been usable at some time.
    """

    resource: AsyncResource
    interval: float
    required: bool
    recover: bool
    recovering: bool = False
    was_up: bool = False
    task: TaskHandle | None = None
    remove_listener: Callable[[], None] = lambda: None
    history: deque[CheckRecord] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def record(self, check: CheckRecord) -> None:
        self.history.append(check)

    @property
    def serving(self) -> bool:
        """READY, or DEGRADED by declaration (`ResourceDegraded`) and not by failed checks."""
        state = self.resource.state
        if state is ResourceState.DEGRADED:
            return self.resource.statistics().consecutive_health_failures == 0
        return state is ResourceState.READY

    def why_not_started(self) -> str | None:
        """None once the resource has been up, whatever came after, or when it is optional."""
        return None if self.was_up or not self.required else self._reason()

    def why_not_ready(self, now: float) -> str | None:
        if not self.serving:
            return self._reason()
        if self.recovering:
            return f"recovering: {self._reason()}"
        age = now - max(self.resource.state_since, self.history[-1].at if self.history else 0.0)
        if age > FRESH_INTERVALS * self.interval + self.resource.health_check_timeout:
            return f"not checked for {age:.0f} s"
        return None

    def health(self, now: float) -> ResourceHealth:
        last = self.history[-1] if self.history else None
        error = self.resource.last_error
        healthy = self.resource.is_healthy and not self.recovering
        return ResourceHealth(
            state=self.resource.state,
            healthy=healthy,
            since=self.resource.state_since,
            reason=None if healthy else self._reason(),
            last_error=None if error is None else (str(error) or repr(error)),
            latency_seconds=None if last is None else last.latency_seconds,
            checked_ago_seconds=None if last is None else now - last.at,
            required=self.required,
            resource_type=self.resource.resource_type,
        )

    def _reason(self) -> str:
        resource = self.resource
        error = resource.last_error
        what = resource.state.name.lower()
        if error is not None:
            return f"{what}: {str(error) or repr(error)}"
        if resource.state is ResourceState.UNINITIALIZED:
            return what
        return f"{what}: {resource.state_reason}"
