"""`HealthMonitor`: checks every registered resource periodically, and answers the probes.

Owns when checks run and what they add up to. Knows no HTTP and no gRPC. A report is made from the
latest results and the current states of the resources, so asking for one takes microseconds and
never waits for a check.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, TypeAlias

from exo.lifecycle import AsyncResource, ResourceClosed, ResourceError, ResourceState, TaskPriority
from exo.lifecycle.core import arguments as check
from exo.lifecycle.core.backoff import backoff
from exo.lifecycle.core.state import USABLE
from exo.utils.health_records import CheckRecord, HealthReport, MonitoredResource, ResourceHealth

__all__ = ["CheckRecord", "HealthMonitor", "HealthReport", "ResourceHealth"]

log = logging.getLogger("exo.health")

Condition: TypeAlias = "Callable[[], str | None]"
Subscriber: TypeAlias = "Callable[[HealthReport], None]"

BEAT_SECONDS: Final = 0.5
RECOVER_BASE: Final = 1.0
RECOVER_MOST: Final = 5.0


class HealthMonitor(AsyncResource):
    """Periodic checks with jitter, one in flight per resource, with recovery from ERROR on request.

    stall_seconds: how long the event loop may make no progress before the process counts as not
        live.
    """

    RESOURCE_TYPE = "health_monitor"

    def __init__(self, *, resource_id: str = "health-monitor", stall_seconds: float = 30.0) -> None:
        super().__init__(resource_id=resource_id)
        self._stall_seconds = check.seconds(
            f"HealthMonitor {resource_id!r}", "stall_seconds", stall_seconds
        )
        self._monitored: dict[str, MonitoredResource] = {}
        self._conditions: dict[str, Condition] = {}
        self._subscribers: list[Subscriber] = []
        self._beat_at = time.monotonic()
        self._loop_thread: int | None = None

    # -- what is watched

    def register(
        self,
        resource: AsyncResource,
        *,
        interval: float = 10.0,
        required: bool = True,
        recover: bool = False,
    ) -> None:
        """Check `resource` every `interval` seconds, give or take a tenth, while the monitor is up.

        required: readiness needs it.
        recover: in ERROR, call its `recover()`, repeatedly with growing random pauses.

        Raises ValueError when its id is registered already.
        """
        who = f"monitor {self.resource_id!r}"
        if not isinstance(resource, AsyncResource):
            raise TypeError(f"{who}: only an AsyncResource can be registered, got {resource!r}")
        name = resource.resource_id
        if name in self._monitored:
            raise ValueError(f"{who}: a resource {name!r} is registered already")
        if resource is self:
            raise ValueError(f"{who} cannot watch itself")
        seconds = check.seconds(f"{who}, resource {name!r}", "interval", interval)
        watched = MonitoredResource(resource, seconds, bool(required), bool(recover))
        watched.remove_listener = resource.add_listener(lambda _: self._changed(watched))
        watched.was_up = resource.is_usable
        self._monitored[name] = watched
        if self.is_initialized:
            self._watch(watched)
        self._notify()

    def unregister(self, resource: AsyncResource | str) -> bool:
        """Stop checking it. False when it was not registered.

        A check in flight is not interrupted; its result is ignored.
        """
        name = resource if isinstance(resource, str) else resource.resource_id
        watched = self._monitored.get(name)
        if watched is None or (not isinstance(resource, str) and watched.resource is not resource):
            return False
        del self._monitored[name]
        watched.remove_listener()
        if watched.task is not None:
            watched.task.cancel()
        self._notify()
        return True

    def add_readiness(self, name: str, condition: Condition) -> Callable[[], None]:
        """Make readiness depend on `condition`, which returns the reason why not, or None.

        It must be quick. Returns a function that removes it.
        """
        check.text(f"monitor {self.resource_id!r}", "name", name)
        if name in self._conditions:
            raise ValueError(
                f"monitor {self.resource_id!r}: a readiness condition {name!r} is there already"
            )
        self._conditions[name] = condition

        def remove() -> None:
            if self._conditions.get(name) is condition:
                del self._conditions[name]
                self._notify()

        self._notify()
        return remove

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with a report after each check and each change of state.

        Returns a function that removes it.
        """
        self._subscribers.append(subscriber)

        def remove() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return remove

    # -- what is known

    def report(self) -> HealthReport:
        """The health of everything, now. May be called from any thread."""
        now = time.monotonic()
        monitored = dict(self._monitored)
        return HealthReport(
            resources=MappingProxyType({name: e.health(now) for name, e in monitored.items()}),
            reasons_live=MappingProxyType(self._reasons_live(now)),
            reasons_started=MappingProxyType(self._reasons_started(monitored)),
            reasons_ready=MappingProxyType(self._reasons_ready(monitored, now)),
        )

    def history(self, name: str) -> tuple[CheckRecord, ...]:
        """The latest checks of a resource, oldest first; KeyError when it is not registered."""
        return tuple(self._monitored[name].history)

    # -- hooks

    async def _do_initialize(self) -> None:
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._task_manager.start_task("heartbeat", self._beat, priority=TaskPriority.HIGH)
        for watched in self._monitored.values():
            self._watch(watched)

    async def _do_cleanup(self) -> None:
        # The checks were background tasks and have ended. The records stay: a report after the end
        # is made from them.
        for watched in self._monitored.values():
            watched.task = None

    async def _do_health_check(self) -> bool:
        return all(
            watched.task is not None and not watched.task.done()
            for watched in self._monitored.values()
        )

    # -- the work

    def _watch(self, watched: MonitoredResource) -> None:
        watched.task = self._task_manager.start_task(
            f"check:{watched.resource.resource_id}", lambda: self._run(watched)
        )

    async def _run(self, watched: MonitoredResource) -> None:
        while True:
            try:
                await self._check(watched)
                if watched.recover and watched.resource.state is ResourceState.ERROR:
                    await self._recover(watched)
            except Exception:
                # `check_health` should not raise. A resource that breaks this is checked again.
                log.exception(
                    "the check of %s failed in an unforeseen way", watched.resource.resource_id
                )
            await asyncio.sleep(watched.interval * random.uniform(0.9, 1.1))

    async def _check(self, watched: MonitoredResource) -> None:
        resource = watched.resource
        if not resource.is_usable:
            return
        started = time.monotonic()
        healthy = await resource.check_health()
        now = time.monotonic()
        reason = None if healthy else resource.state_reason
        watched.record(
            CheckRecord(at=now, healthy=healthy, latency_seconds=now - started, reason=reason)
        )
        self._notify()

    async def _recover(self, watched: MonitoredResource) -> None:
        """Recover until it is up and a check passes. It counts as ready only after that check."""
        resource = watched.resource
        watched.recovering = True
        attempt = 0
        while resource.state is ResourceState.ERROR:
            attempt += 1
            try:
                await resource.recover()
            except ResourceClosed:
                break
            except ResourceError as error:
                log.warning("recovery %d of %s failed: %s", attempt, resource.resource_id, error)
            else:
                await self._confirm(watched)
            if resource.state is ResourceState.ERROR:
                await asyncio.sleep(backoff(attempt, RECOVER_BASE, RECOVER_MOST))
        watched.recovering = False
        self._notify()

    async def _confirm(self, watched: MonitoredResource) -> None:
        await self._check(watched)
        while watched.resource.is_usable and not watched.serving:
            await asyncio.sleep(min(watched.interval, RECOVER_BASE))
            await self._check(watched)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            self._beat_at = time.monotonic()

    def _reasons_live(self, now: float) -> dict[str, str]:
        """When asked on the event loop's own thread, the loop makes progress. From another thread,
        the time of its last heartbeat decides.
        """
        if not self.is_usable or threading.get_ident() == self._loop_thread:
            return {}
        silent = now - self._beat_at
        if silent > self._stall_seconds:
            return {"event_loop": f"no progress for {silent:.0f} s"}
        return {}

    def _reasons_started(self, monitored: Mapping[str, MonitoredResource]) -> dict[str, str]:
        reasons = {n: reason for n, e in monitored.items() if (reason := e.why_not_started())}
        # A monitor that closes or is closed was up before.
        if self.state not in (*USABLE, ResourceState.CLOSING, ResourceState.CLOSED):
            reasons[self.resource_id] = self.state.name.lower()
        return reasons

    def _reasons_ready(
        self, monitored: Mapping[str, MonitoredResource], now: float
    ) -> dict[str, str]:
        required = {n: e.why_not_ready(now) for n, e in monitored.items() if e.required}
        conditions = {n: _ask(n, condition) for n, condition in dict(self._conditions).items()}
        reasons = {n: reason for n, reason in (required | conditions).items() if reason}
        if not self.is_usable:
            reasons[self.resource_id] = self.state.name.lower()
        return reasons

    def _changed(self, watched: MonitoredResource) -> None:
        watched.was_up = watched.was_up or watched.resource.is_usable
        self._notify()

    def _notify(self) -> None:
        if not self._subscribers:
            return
        report = self.report()
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(report)
            except Exception:
                log.exception("a subscriber of monitor %r failed", self.resource_id)


def _ask(name: str, condition: Condition) -> str | None:
    try:
        reason = condition()
    except Exception as error:
        log.exception("readiness condition %r failed", name)
        return f"its condition failed: {error!r}"
    return None if reason is None else (str(reason) or "not ready")
