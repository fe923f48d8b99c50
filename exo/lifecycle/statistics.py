"""Counts and durations of one resource: the mutable tally inside, the frozen record outside."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class ResourceStatistics:
    """A snapshot. Totals include failures; `last_*_seconds` are None before the first run."""

    initializations: int = 0
    initialize_failures: int = 0
    cleanups: int = 0
    cleanup_failures: int = 0
    recoveries: int = 0
    health_checks: int = 0
    health_failures: int = 0
    consecutive_health_failures: int = 0
    last_initialize_seconds: float | None = None
    last_cleanup_seconds: float | None = None
    last_health_check_seconds: float | None = None
    abandoned_hooks: int = 0


@dataclass(slots=True)
class Counts:
    """The tally behind a `ResourceStatistics`."""

    initializations: int = 0
    initialize_failures: int = 0
    cleanups: int = 0
    cleanup_failures: int = 0
    recoveries: int = 0
    health_checks: int = 0
    health_failures: int = 0
    consecutive_health_failures: int = 0
    last_initialize_seconds: float | None = None
    last_cleanup_seconds: float | None = None
    last_health_check_seconds: float | None = None
    abandoned_hooks: int = 0

    def snapshot(self) -> ResourceStatistics:
        return ResourceStatistics(**asdict(self))
