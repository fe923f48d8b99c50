"""What the lifecycle tells the outside: state changes, hook runs, ended tasks, to whoever listens
process-wide.

Logs and metrics subscribe here, so that this package needs to know neither.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from exo.lifecycle.states import StateChange

log = logging.getLogger("exo.lifecycle")

Outcome: TypeAlias = Literal["ok", "failed", "timeout", "cancelled", "abandoned"]


@dataclass(frozen=True, slots=True)
class HookRun:
    """One run of a hook: which (`initialize`, `cleanup`, `health_check`), how long in seconds, how
    it ended.
    """

    resource_id: str
    resource_type: str
    hook: str
    seconds: float
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class TaskStarted:
    owner: str
    name: str
    priority: str


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """One background task's end; `error` is set when it failed."""

    owner: str
    name: str
    priority: str
    seconds: float
    outcome: Outcome
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """A `recover()` that brought the resource back to READY."""

    resource_id: str
    resource_type: str


@dataclass(frozen=True, slots=True)
class DegradationChange:
    """A named degradation began (`active`) or ended; `resource_id` is "" for the whole process."""

    resource_id: str
    resource_type: str
    name: str
    to: str
    reason: str
    active: bool


LifecycleEvent: TypeAlias = (
    "StateChange | HookRun | TaskStarted | TaskEnded | Recovered | DegradationChange"
)
GlobalListener: TypeAlias = "Callable[[LifecycleEvent], None]"

_listeners: Final[list[GlobalListener]] = []


def add_global_listener(listener: GlobalListener) -> Callable[[], None]:
    """Call `listener` for every event of every resource; the returned function removes it (twice is
    fine).
    """
    if not callable(listener):
        raise TypeError(f"listener must be callable, got {listener!r}")
    _listeners.append(listener)

    def remove() -> None:
        if listener in _listeners:
            _listeners.remove(listener)

    return remove


def is_heard() -> bool:
    """Whether anyone listens: an event that nobody hears need not be made."""
    return bool(_listeners)


def publish(event: LifecycleEvent) -> None:
    """Tell every global listener; one that raises is logged and bothers nobody."""
    for listener in tuple(_listeners):
        try:
            listener(event)
        except Exception:
            log.exception("a global lifecycle listener failed on %s", type(event).__name__)
