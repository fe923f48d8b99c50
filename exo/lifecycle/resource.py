"""`AsyncResource`: what every component with a life inherits. The work is done in `core.py`.

Subclasses fill in the hooks `_do_initialize`, `_do_cleanup`, `_do_health_check` and call
`ensure_ready()` first in each public operation. Few private names are taken on an instance, so that
subclasses are free in theirs.
"""

from __future__ import annotations

import uuid
import warnings
from abc import ABC
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, Self

from exo.lifecycle.core import arguments
from exo.lifecycle.core.hooks import current, forbid_reentry
from exo.lifecycle.core.lifecycle import Lifecycle, backoff, log
from exo.lifecycle.registry import register
from exo.lifecycle.states import USABLE, Listener, ResourceState, StateMachine
from exo.lifecycle.statistics import ResourceStatistics
from exo.lifecycle.tasks import TaskManager

_READY = ResourceState.READY


class AsyncResource(ABC):  # noqa: B024  # the hooks have defaults; subclasses add the abstract ones
    RESOURCE_TYPE: ClassVar[str] = "resource"
    # recover(): how often it tries, and the pauses between in seconds.
    RECOVER_ATTEMPTS: ClassVar[int] = 3
    RECOVER_BASE_DELAY: ClassVar[float] = 0.1
    RECOVER_MAX_DELAY: ClassVar[float] = 5.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_check_health" in vars(cls) and "_do_health_check" not in vars(cls):
            # Nothing would ever call it, and the resource would always be healthy.
            message = (
                f"{cls.__name__}._check_health is no hook of AsyncResource: name it"
                " _do_health_check"
            )
            warnings.warn(message, stacklevel=2)

    def __init__(
        self,
        *,
        resource_id: str | None = None,
        resource_type: str | None = None,
        display_name: str | None = None,
        initialize_timeout: float = 30.0,
        cleanup_timeout: float = 30.0,
        health_check_timeout: float = 5.0,
        failure_threshold: int = 3,
    ) -> None:
        """Time-outs are seconds, greater than zero. No event loop is needed yet.

        Raises TypeError or ValueError that names the resource and the field.
        """
        who = (
            f"{type(self).__name__} {resource_id!r}"
            if resource_id is not None
            else type(self).__name__
        )
        kind = arguments.text(
            who, "resource_type", self.RESOURCE_TYPE if resource_type is None else resource_type
        )
        name = f"{kind}-{uuid.uuid4().hex[:12]}" if resource_id is None else resource_id
        self._resource_id = arguments.text(who, "resource_id", name)
        self._display_name = arguments.text(
            who, "display_name", name if display_name is None else display_name
        )
        self._lifecycle_limits = (
            arguments.seconds(who, "initialize_timeout", initialize_timeout),
            arguments.seconds(who, "cleanup_timeout", cleanup_timeout),
            arguments.seconds(who, "health_check_timeout", health_check_timeout),
            arguments.count(who, "failure_threshold", failure_threshold),
        )
        self._state_machine = StateMachine(name, kind)
        self._lifecycle = Lifecycle(self, self._state_machine)
        self._task_manager = TaskManager(name)
        register(self)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.resource_type} {self.resource_id!r}, {self.state.name})"
        )

    # -- identity and state

    @property
    def resource_id(self) -> str:
        return self._resource_id

    @property
    def resource_type(self) -> str:
        return self._state_machine.resource_type

    @property
    def display_name(self) -> str:
        return self._display_name

    @property
    def state(self) -> ResourceState:
        return self._state_machine.state

    @property
    def state_since(self) -> float:
        """Monotonic seconds at which the state was entered."""
        return self._state_machine.since

    @property
    def state_reason(self) -> str:
        """Why the state was entered."""
        return self._state_machine.reason

    @property
    def last_error(self) -> BaseException | None:
        """What last went wrong; None again once the resource is READY."""
        return self._lifecycle.last_error

    @property
    def is_initialized(self) -> bool:
        return self._state_machine.state in USABLE

    @property
    def is_usable(self) -> bool:
        return self._state_machine.state in USABLE

    @property
    def is_healthy(self) -> bool:
        return self._state_machine.state is _READY

    @property
    def initialize_timeout(self) -> float:
        return self._lifecycle_limits[0]

    @property
    def cleanup_timeout(self) -> float:
        return self._lifecycle_limits[1]

    @property
    def health_check_timeout(self) -> float:
        return self._lifecycle_limits[2]

    @property
    def failure_threshold(self) -> int:
        return self._lifecycle_limits[3]

    def statistics(self) -> ResourceStatistics:
        return self._lifecycle.counts.snapshot()

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each `StateChange`, after it; returns what removes it."""
        return self._state_machine.add_listener(listener)

    # -- the life

    async def initialize(self, timeout: float | None = None) -> bool:
        """Bring the resource to READY; True. Single-flight: concurrent callers share one run of the
        hook.

        timeout: bounds this caller's waiting. Raises `ResourceInitializationError` (also a
        `ResourceTimeout` when the hook ran out of time) after a roll-back, `ResourceTimeout` for
        this caller's own time-out, `ResourceClosed` while closing.
        """
        forbid_reentry(self, "initialize")
        if timeout is not None:
            timeout = arguments.seconds(repr(self), "timeout", timeout, zero=True)
        await self._lifecycle.initialize(timeout)
        return True

    async def cleanup(self) -> None:
        """Close for good: ends CLOSED within `cleanup_timeout`, whatever happens. Idempotent and
        single-flight.

        Raises what the cleanup hook raised, once.
        """
        forbid_reentry(self, "cleanup")
        await self._lifecycle.cleanup()

    async def ensure_ready(self, *, allow_degraded: bool = True) -> None:
        """Return when usable: initializes lazily, waits for an initialize, tries once to recover
        from ERROR.

        Raises `ResourceClosed` when closing or closed, `ResourceUnavailable` when DEGRADED is not
        allowed, and what `initialize` and `recover` raise.
        """
        if self._state_machine.state is _READY and current.get() is None:
            return
        forbid_reentry(self, "ensure_ready")
        await self._lifecycle.make_ready(allow_degraded)

    async def check_health(self) -> bool:
        """Run the health hook once (single-flight) and let its result move the state; False when
        not initialized.
        """
        forbid_reentry(self, "check_health")
        return await self._lifecycle.check_health()

    async def recover(self) -> bool:
        """Close what is open and initialize again, a few times with jittered pauses, until READY;
        True.

        Raises `ResourceInitializationError` after the last attempt, `ResourceClosed` when closing
        or closed.
        """
        forbid_reentry(self, "recover")
        await self._lifecycle.recover(self.RECOVER_ATTEMPTS)
        return True

    async def wait_for(self, *states: ResourceState, timeout: float | None = None) -> ResourceState:
        """The first of `states` that the resource is in, however briefly; `ResourceTimeout` after
        `timeout` seconds.
        """
        if not states or not all(isinstance(state, ResourceState) for state in states):
            raise TypeError(f"{self!r}: wait_for needs one or more ResourceState, got {states!r}")
        if timeout is not None:
            timeout = arguments.seconds(repr(self), "timeout", timeout, zero=True)
        return await self._lifecycle.wait_for(frozenset(states), timeout)

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.cleanup()
        except Exception as failed:
            if error is None:
                raise
            # The error of the body is the one to see.
            log.exception("%r: cleanup failed after %r", self, error)
            error.add_note(f"cleanup of {self!r} failed too: {failed!r}")

    def recover_delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1)."""
        return backoff(attempt, self.RECOVER_BASE_DELAY, self.RECOVER_MAX_DELAY)

    # -- hooks

    async def _do_initialize(self) -> None:  # noqa: B027  # a default, not a gap
        """Open everything; on return the resource is READY. May fail half-way: `_do_cleanup`
        follows.
        """

    async def _do_cleanup(self) -> None:  # noqa: B027  # a default, not a gap
        """Close everything that is open. Must be safe after a half-done `_do_initialize`."""

    async def _do_health_check(self) -> bool:
        """Whether the resource can do its work now. `ResourceDegraded` says: yes, but less well."""
        return True


for _hook in (
    AsyncResource._do_initialize,
    AsyncResource._do_cleanup,
    AsyncResource._do_health_check,
):
    # Lets `hooks.run_hook` skip the task that a hook otherwise gets.
    _hook.does_nothing = True  # type: ignore[union-attr]
