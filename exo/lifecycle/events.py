"""The process-wide events of the lifecycle: state changes, hook runs, tasks, degradations.

Logs and metrics subscribe here, so this package needs to know neither.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from exo.lifecycle.core.state import StateChange

log = logging.getLogger("exo.lifecycle")

Outcome: TypeAlias = Literal["ok", "failed", "timeout", "cancelled", "abandoned"]


@dataclass(frozen=True, slots=True)
class HookRun:
    """One run of a hook: `initialize`, `cleanup` or `health_check`."""

    resource_id: str
    resource_type: str
    hook: str
    seconds: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """The start of one background task."""

    owner: str
    name: str
    priority: str


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """The end of one background task. `error` is set when it failed."""

    owner: str
    name: str
    priority: str
    seconds: float
    outcome: Outcome
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """A `recover()` brought the resource back to READY."""

    resource_id: str
    resource_type: str


@dataclass(frozen=True, slots=True)
class DegradationChange:
    """A named degradation began (`active`) or ended. `resource_id` is "" for the whole process."""

    resource_id: str
    resource_type: str
    name: str
    to: str
    reason: str
    active: bool


LifecycleEvent: TypeAlias = (
    StateChange | HookRun | TaskStarted | TaskEnded | Recovered | DegradationChange
)
GlobalListener: TypeAlias = Callable[[LifecycleEvent], None]

_listeners: Final[list[GlobalListener]] = []


def add_global_listener(listener: GlobalListener) -> Callable[[], None]:
    """Call `listener` for every event of every resource.

    Returns a function that removes it; calling that twice is fine.
    """
    if not callable(listener):
        raise TypeError(f"listener must be callable, got {listener!r}")
    _listeners.append(listener)

    def remove() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return remove


def has_listeners() -> bool:
    """Whether an event would reach anyone. If not, the caller need not build it."""
    return bool(_listeners)


def publish(event: LifecycleEvent) -> None:
    """Call every global listener. One that raises is logged; the others are still called."""
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:
            log.exception("a global lifecycle listener failed on %s", type(event).__name__)
