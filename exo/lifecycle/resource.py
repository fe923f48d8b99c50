"""`AsyncResource`: the base class of every component that is started and stopped.

The work is done in `exo.lifecycle.core`. Subclasses fill in the hooks `_do_initialize`,
`_do_cleanup` and `_do_health_check`, and call `ensure_ready()` first in each public operation. The
base class takes few private names on an instance, so that subclasses can choose theirs freely.
"""

from __future__ import annotations

import uuid
import warnings
from abc import ABC
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, ClassVar, Self

from exo.lifecycle.core import arguments
from exo.lifecycle.core.backoff import backoff
from exo.lifecycle.core.degradation import Degradation
from exo.lifecycle.core.hooks import current, forbid_reentry
from exo.lifecycle.core.lifecycle import Lifecycle, log
from exo.lifecycle.core.state import USABLE, Listener, ResourceState
from exo.lifecycle.registry import register
from exo.lifecycle.states import StateMachine
from exo.lifecycle.statistics import ResourceStatistics
from exo.lifecycle.tasks import TaskManager

_READY = ResourceState.READY


class AsyncResource(ABC):  # noqa: B024  # the hooks have defaults; subclasses add abstract methods
    """One state, one way up, one way down, and a health check. docs/lifecycle.md is the tour."""

    RESOURCE_TYPE: ClassVar[str] = "resource"
    # recover(): how often it tries, and the pauses in between in seconds.
    RECOVER_ATTEMPTS: ClassVar[int] = 3
    RECOVER_BASE_DELAY: ClassVar[float] = 0.1
    RECOVER_MAX_DELAY: ClassVar[float] = 5.0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "_check_health" in vars(cls) and "_do_health_check" not in vars(cls):
            # Nothing would ever call it, so the resource would always count as healthy.
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
        """Time-outs are in seconds, greater than zero. Needs no event loop.

        Raises TypeError or ValueError that names the resource and the field.
        """
        who = (
            type(self).__name__ if resource_id is None else f"{type(self).__name__} {resource_id!r}"
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
        self._task_manager = TaskManager(name)
        self._lifecycle = Lifecycle(self, self._state_machine, self._task_manager)
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
        """The latest failure; None again once the resource is READY."""
        return self._lifecycle.record.last_error

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
        """Counts and durations so far, as a frozen record."""
        return self._lifecycle.record.counts.snapshot()

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with each `StateChange`, after it happened.

        Returns a function that removes the listener.
        """
        return self._state_machine.add_listener(listener)

    # -- the life

    async def initialize(self, timeout: float | None = None) -> bool:
        """Bring the resource to READY; returns True.

        Single-flight: concurrent callers share one run of the hook. `timeout` bounds only this
        caller's wait.

        Raises `ResourceInitializationError` (also a `ResourceTimeout` when the hook ran out of
        time) after a roll-back, `ResourceTimeout` for this caller's own time-out, `ResourceClosed`
        while closing.
        """
        forbid_reentry(self, "initialize")
        if timeout is not None:
            timeout = arguments.seconds(repr(self), "timeout", timeout, zero=True)
        await self._lifecycle.initialize(timeout)
        return True

    async def cleanup(self) -> None:
        """Close: ends CLOSED within `cleanup_timeout`, whatever happens.

        Idempotent and single-flight. Raises what the cleanup hook raised, once.
        """
        forbid_reentry(self, "cleanup")
        await self._lifecycle.cleanup()

    async def ensure_ready(self, *, allow_degraded: bool = True) -> None:
        """Return when usable: initializes if nothing has, waits for an initialize in flight, tries
        once to recover from ERROR.

        Raises `ResourceClosed` when closing or closed, `ResourceUnavailable` when DEGRADED is not
        allowed, and what `initialize` and `recover` raise.
        """
        if self._state_machine.state is _READY and current.get() is None:
            return
        forbid_reentry(self, "ensure_ready")
        await self._lifecycle.make_ready(allow_degraded)

    async def check_health(self) -> bool:
        """Run the health hook once (single-flight) and let its result move the state.

        False, without running the hook, when not initialized.
        """
        forbid_reentry(self, "check_health")
        return await self._lifecycle.health.check()

    async def recover(self) -> bool:
        """Close what is open and initialize again, a few times with random pauses, until READY;
        returns True.

        Raises `ResourceInitializationError` after the last attempt, `ResourceClosed` when closing
        or closed.
        """
        forbid_reentry(self, "recover")
        await self._lifecycle.recover(self.RECOVER_ATTEMPTS)
        return True

    async def wait_for(self, *states: ResourceState, timeout: float | None = None) -> ResourceState:
        """Return the first of `states` that the resource is in, however briefly.

        Raises `ResourceTimeout` after `timeout` seconds.
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
            # The error of the body is the one that matters.
            log.exception("%r: cleanup failed after %r", self, error)
            error.add_note(f"cleanup of {self!r} failed too: {failed!r}")

    def recover_delay(self, attempt: int) -> float:
        """Seconds to wait after failed attempt number `attempt` (from 1)."""
        return backoff(attempt, self.RECOVER_BASE_DELAY, self.RECOVER_MAX_DELAY)

    # -- degradations: for `exo.lifecycle.degradations`, which also publishes the change

    @property
    def declared_degradations(self) -> Mapping[str, Degradation]:
        """Those that hold for this resource, by name."""
        return MappingProxyType(self._lifecycle.health.declared)

    def declare_degradation(self, made: Degradation) -> None:
        """Use `degrade(..., resource=self)` instead."""
        self._lifecycle.health.declare(made)

    def withdraw_degradation(self, name: str) -> Degradation | None:
        """Use `restore(..., resource=self)` instead. Returns what was withdrawn."""
        return self._lifecycle.health.declared.pop(name, None)

    # -- hooks

    async def _do_initialize(self) -> None:  # noqa: B027  # a default, not a gap
        """Open everything; when it returns, the resource is READY.

        It may fail half-way: `_do_cleanup` then runs.
        """

    async def _do_cleanup(self) -> None:  # noqa: B027  # a default, not a gap
        """Close everything that is open. Must be safe after a half-done `_do_initialize`."""

    async def _do_health_check(self) -> bool:
        """Whether the resource can do its work now.

        May raise `ResourceDegraded`: it can, but less well.
        """
        return True


for _hook in (
    AsyncResource._do_initialize,
    AsyncResource._do_cleanup,
    AsyncResource._do_health_check,
):
    # `run_hook` then needs no task to run it.
    _hook.does_nothing = True  # type: ignore[union-attr]
