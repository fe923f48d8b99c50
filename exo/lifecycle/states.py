"""The states of a resource, the table of legal moves, and the one place that changes a state.

Owns `TRANSITIONS` and `StateMachine`. Must not know hooks, tasks or what a resource does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final

from exo.lifecycle.errors import IllegalTransition
from exo.lifecycle.events import is_heard, publish

log = logging.getLogger("exo.lifecycle")


class ResourceState(Enum):
    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    READY = "ready"
    DEGRADED = "degraded"
    ERROR = "error"
    CLOSING = "closing"
    CLOSED = "closed"

    # Members are singletons: the default hash, by name, is many times slower, and states are looked
    # up all the time.
    __hash__ = object.__hash__


_S = ResourceState

TRANSITIONS: Final[Mapping[ResourceState, frozenset[ResourceState]]] = MappingProxyType(
    {
        _S.UNINITIALIZED: frozenset({_S.INITIALIZING, _S.CLOSED}),
        _S.INITIALIZING: frozenset({_S.READY, _S.ERROR, _S.CLOSING}),
        _S.READY: frozenset({_S.DEGRADED, _S.ERROR, _S.CLOSING}),
        _S.DEGRADED: frozenset({_S.READY, _S.ERROR, _S.CLOSING}),
        _S.ERROR: frozenset({_S.INITIALIZING, _S.CLOSING}),
        _S.CLOSING: frozenset({_S.CLOSED}),
        _S.CLOSED: frozenset({_S.INITIALIZING}),
    }
)

USABLE: Final = frozenset({_S.READY, _S.DEGRADED})


@dataclass(frozen=True, slots=True)
class StateChange:
    """One transition. `at`: monotonic seconds. `seconds`: how long the old state had lasted."""

    resource_id: str
    resource_type: str
    old: ResourceState
    new: ResourceState
    reason: str
    at: float
    seconds: float = 0.0


Listener = Callable[[StateChange], None]


class StateMachine:
    """Holds one resource's state; `move` is the only assignment to it after construction."""

    __slots__ = (
        "_listeners",
        "_waiters",
        "reason",
        "resource_id",
        "resource_type",
        "since",
        "state",
    )

    def __init__(self, resource_id: str, resource_type: str) -> None:
        self.resource_id = resource_id
        self.resource_type = resource_type
        self.state = ResourceState.UNINITIALIZED
        self.since = time.monotonic()
        self.reason = "constructed"
        # Tuples, replaced as a whole: most resources have neither, and who iterates sees one
        # moment.
        self._listeners: tuple[Listener, ...] = ()
        self._waiters: tuple[
            tuple[frozenset[ResourceState], asyncio.Future[ResourceState]], ...
        ] = ()

    def move(self, new: ResourceState, reason: str) -> None:
        """Change the state and tell the waiters and listeners; an illegal move raises and changes
        nothing.
        """
        old = self.state
        if new not in TRANSITIONS[old]:
            raise IllegalTransition(
                f"{self.resource_type} {self.resource_id!r} cannot go from {old.name} to {new.name}"
                f" ({reason})",
                resource_id=self.resource_id,
                state=old,
            )
        now = time.monotonic()
        lasted = now - self.since
        self.state = new
        self.since = now
        self.reason = reason
        if self._waiters:
            self._wake(new)
        if self._listeners or is_heard():
            self._tell(
                StateChange(self.resource_id, self.resource_type, old, new, reason, now, lasted)
            )

    def _tell(self, change: StateChange) -> None:
        for listener in self._listeners:
            try:
                listener(change)
            except Exception:
                log.exception(
                    "a listener of %s %r failed on %s",
                    self.resource_type,
                    self.resource_id,
                    change.new.name,
                )
        publish(change)

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` after each change; the returned function removes it (twice is fine)."""
        if not callable(listener):
            raise TypeError(
                f"{self.resource_type} {self.resource_id!r}: listener must be callable, got"
                f" {listener!r}"
            )
        self._listeners += (listener,)

        def remove() -> None:
            kept = list(self._listeners)
            if listener in kept:
                kept.remove(listener)
                self._listeners = tuple(kept)

        return remove

    async def wait_for(self, states: frozenset[ResourceState]) -> ResourceState:
        """The first of `states` that is seen, however briefly it lasts."""
        if self.state in states:
            return self.state
        future: asyncio.Future[ResourceState] = asyncio.get_running_loop().create_future()
        entry = (states, future)
        self._waiters += (entry,)
        try:
            return await future
        finally:
            self._waiters = tuple(other for other in self._waiters if other is not entry)

    def _wake(self, new: ResourceState) -> None:
        for states, future in self._waiters:
            if new in states and not future.done():
                future.set_result(new)
