"""`HealthMonitor`: checks every registered resource periodically; the only source of what the
probes say.

Owns when checks run and what they add up to. Knows no HTTP and no gRPC. A report is made from the
latest results and the resources' present states, so asking for one costs microseconds and never
waits for a check.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Final, TypeAlias

from exo.lifecycle import AsyncResource, ResourceClosed, ResourceError, ResourceState, TaskPriority
from exo.lifecycle.core import arguments as check
from exo.lifecycle.core.backoff import backoff
from exo.utils.health_records import CheckRecord, HealthEntry, HealthReport, ResourceHealth

__all__ = ["CheckRecord", "HealthMonitor", "HealthReport", "ResourceHealth"]

log = logging.getLogger("exo.health")

Condition: TypeAlias = "Callable[[], str | None]"
Subscriber: TypeAlias = "Callable[[HealthReport], None]"

BEAT_SECONDS: Final = 0.5
RECOVER_BASE: Final = 1.0
RECOVER_MOST: Final = 5.0


class HealthMonitor(AsyncResource):
    """Periodic checks with jitter, one in flight per resource; optional recovery from ERROR; three
    aggregate views.

    stall_seconds: how long the event loop may make no progress before the process counts as not
        live.
    """

    RESOURCE_TYPE = "health_monitor"

    def __init__(self, *, resource_id: str = "health-monitor", stall_seconds: float = 30.0) -> None:
        super().__init__(resource_id=resource_id)
        self._stall_seconds = check.seconds(
            f"HealthMonitor {resource_id!r}", "stall_seconds", stall_seconds
        )
        self._entries: dict[str, HealthEntry] = {}
        self._conditions: dict[str, Condition] = {}
        self._subscribers: list[Subscriber] = []
        self._beat_at = time.monotonic()
        self._loop_thread: int | None = None
        self._lag = 0.0

    # -- what is watched

    def register(
        self,
        resource: AsyncResource,
        *,
        interval: float = 10.0,
        required: bool = True,
        recover: bool = False,
    ) -> None:
        """Check `resource` every `interval` seconds (jittered by a tenth), from now on or from
        `initialize` on.

        required: readiness needs it. recover: in ERROR, call its `recover()`, again with growing
        jittered pauses. Raises ValueError when its id is registered already.
        """
        who = f"monitor {self.resource_id!r}"
        if not isinstance(resource, AsyncResource):
            raise TypeError(f"{who}: only an AsyncResource can be registered, got {resource!r}")
        name = resource.resource_id
        if name in self._entries:
            raise ValueError(f"{who}: a resource {name!r} is registered already")
        if resource is self:
            raise ValueError(f"{who} cannot watch itself")
        seconds = check.seconds(f"{who}, resource {name!r}", "interval", interval)
        entry = HealthEntry(resource, seconds, bool(required), bool(recover))
        entry.forget = resource.add_listener(lambda _: self._changed(entry))
        entry.was_up = resource.is_usable
        self._entries[name] = entry
        if self.is_initialized:
            self._watch(entry)
        self._tell()

    def unregister(self, resource: AsyncResource | str) -> bool:
        """Stop checking it; False when it was not registered. A check that runs now ends by itself,
        unheard.
        """
        name = resource if isinstance(resource, str) else resource.resource_id
        entry = self._entries.get(name)
        if entry is None or (not isinstance(resource, str) and entry.resource is not resource):
            return False
        del self._entries[name]
        entry.forget()
        if entry.task is not None:
            entry.task.cancel()
        self._tell()
        return True

    def add_readiness(self, name: str, condition: Condition) -> Callable[[], None]:
        """Make readiness depend on `condition`, which returns why not, or None. Must be quick.
        Returns a remover.
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
                self._tell()

        self._tell()
        return remove

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with a report after each check and each change of state; returns a
        remover.
        """
        self._subscribers.append(subscriber)

        def remove() -> None:
            if subscriber in self._subscribers:
                self._subscribers.remove(subscriber)

        return remove

    # -- what is known

    def report(self) -> HealthReport:
        """The state of everything, now. May be called from any thread."""
        now = time.monotonic()
        entries = dict(self._entries)
        live = self._reasons_live(now)
        started = {name: reason for name, e in entries.items() if (reason := e.why_not_started())}
        ready = {
            name: reason
            for name, e in entries.items()
            if e.required and (reason := e.why_not_ready(now))
        }
        ready |= {
            name: reason
            for name, c in dict(self._conditions).items()
            if (reason := _ask(name, c)) is not None
        }
        if not self.is_usable:
            started = (
                started
                if self._has_run()
                else {**started, self.resource_id: self.state.name.lower()}
            )
            ready[self.resource_id] = self.state.name.lower()
        return HealthReport(
            resources=MappingProxyType({name: e.health(now) for name, e in entries.items()}),
            reasons_live=MappingProxyType(live),
            reasons_started=MappingProxyType(started),
            reasons_ready=MappingProxyType(ready),
        )

    def history(self, name: str) -> tuple[CheckRecord, ...]:
        """The latest checks of a resource, oldest first; KeyError when it is not registered."""
        return tuple(self._entries[name].history)

    @property
    def loop_lag_seconds(self) -> float:
        """How late the event loop was at the latest heartbeat."""
        return self._lag

    async def check_now(self, name: str | None = None) -> HealthReport:
        """Check one resource, or all, at once; the report afterwards."""
        chosen = list(self._entries.values()) if name is None else [self._entries[name]]
        await asyncio.gather(*(self._check(entry) for entry in chosen))
        return self.report()

    # -- hooks

    async def _do_initialize(self) -> None:
        self._loop_thread = threading.get_ident()
        self._beat_at = time.monotonic()
        self._task_manager.start_task("heartbeat", self._beat, priority=TaskPriority.HIGH)
        for entry in self._entries.values():
            self._watch(entry)

    async def _do_cleanup(self) -> None:
        # The checks were background tasks and are gone; the entries stay, so that the last report
        # stays true.
        for entry in self._entries.values():
            entry.task = None

    async def _do_health_check(self) -> bool:
        return all(
            entry.task is not None and not entry.task.done() for entry in self._entries.values()
        )

    # -- the work

    def _watch(self, entry: HealthEntry) -> None:
        entry.task = self._task_manager.start_task(
            f"check:{entry.resource.resource_id}", lambda: self._run(entry)
        )

    async def _run(self, entry: HealthEntry) -> None:
        while True:
            try:
                await self._check(entry)
                if entry.recover and entry.resource.state is ResourceState.ERROR:
                    await self._recover(entry)
            except Exception:
                # A resource that breaks the contract of check_health is no reason to check it never
                # again.
                log.exception(
                    "the check of %s failed in an unforeseen way", entry.resource.resource_id
                )
            await asyncio.sleep(entry.interval * random.uniform(0.9, 1.1))

    async def _check(self, entry: HealthEntry) -> None:
        resource = entry.resource
        if not resource.is_usable:
            return
        started = time.monotonic()
        healthy = await resource.check_health()
        now = time.monotonic()
        reason = None if healthy else resource.state_reason
        entry.record(
            CheckRecord(at=now, healthy=healthy, latency_seconds=now - started, reason=reason)
        )
        self._tell()

    async def _recover(self, entry: HealthEntry) -> None:
        """Until it is up and its check passes. What came back counts as ready only after that
        check.
        """
        resource = entry.resource
        entry.recovering = True
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
                await self._confirm(entry)
            if resource.state is ResourceState.ERROR:
                await asyncio.sleep(backoff(attempt, RECOVER_BASE, RECOVER_MOST))
        entry.recovering = False
        self._tell()

    async def _confirm(self, entry: HealthEntry) -> None:
        await self._check(entry)
        while entry.resource.is_usable and not entry.serving:
            await asyncio.sleep(min(entry.interval, RECOVER_BASE))
            await self._check(entry)

    async def _beat(self) -> None:
        while True:
            expected = time.monotonic() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._beat_at = time.monotonic()
            self._lag = max(0.0, self._beat_at - expected)

    def _reasons_live(self, now: float) -> dict[str, str]:
        """Asked on the event loop's own thread, the loop makes progress;
        else its heartbeat tells.
        """
        if not self.is_usable or threading.get_ident() == self._loop_thread:
            return {}
        silent = now - self._beat_at
        if silent > self._stall_seconds:
            return {"event_loop": f"no progress for {silent:.0f} s"}
        return {}

    def _has_run(self) -> bool:
        return self.state in (ResourceState.CLOSING, ResourceState.CLOSED)

    def _changed(self, entry: HealthEntry) -> None:
        entry.was_up = entry.was_up or entry.resource.is_usable
        self._tell()

    def _tell(self) -> None:
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
