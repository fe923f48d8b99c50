"""`StateMachine`: the one place that changes a state.

The states themselves are in `core/state.py`; their public names are here too. Must not know hooks,
tasks or what a resource does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from exo.lifecycle.core.state import TRANSITIONS, USABLE, Listener, ResourceState, StateChange
from exo.lifecycle.errors import IllegalTransition
from exo.lifecycle.events import has_listeners, publish

__all__ = ["TRANSITIONS", "USABLE", "Listener", "ResourceState", "StateChange", "StateMachine"]

log = logging.getLogger("exo.lifecycle")


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
        # Tuples that are replaced as a whole: most resources have neither, and a loop over one
        # is not disturbed by a listener that adds or removes another.
        self._listeners: tuple[Listener, ...] = ()
        self._waiters: tuple[
            tuple[frozenset[ResourceState], asyncio.Future[ResourceState]], ...
        ] = ()

    def move(self, new: ResourceState, reason: str) -> None:
        """Change the state, then notify waiters and listeners.

        A move that the table lacks raises `IllegalTransition` and changes nothing.
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
        if self._listeners or has_listeners():
            self._notify(
                StateChange(self.resource_id, self.resource_type, old, new, reason, now, lasted)
            )

    def _notify(self, change: StateChange) -> None:
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
        """Call `listener` after each change.

        Returns a function that removes it; calling that twice is fine.
        """
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
        """Return the first of `states` that is seen, however briefly it lasts."""
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
