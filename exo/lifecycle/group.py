"""`ResourceGroup`: resources started in the order of their dependencies and closed in reverse.

Knows nothing of what its members do. A group is itself a resource, so groups nest.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any, TypeVar

from exo.lifecycle.core import arguments
from exo.lifecycle.core.state import ResourceState
from exo.lifecycle.errors import (
    ResourceDegraded,
    ResourceError,
    ResourceInitializationError,
    ResourceUnavailable,
)
from exo.lifecycle.resource import AsyncResource

log = logging.getLogger("exo.lifecycle")

E = TypeVar("E", bound=ResourceError)


class GroupError(ResourceError, ValueError):
    """A group that cannot exist: a duplicate or unknown name, a cycle."""


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    resource: AsyncResource
    depends_on: tuple[str, ...]
    required: bool


class ResourceGroup(AsyncResource):
    """Members start level by level, in parallel within one level.

    A failed start closes what was started, in reverse. A time-out that is not given is as long as
    the members' own time-outs together.
    """

    RESOURCE_TYPE = "group"

    def __init__(
        self,
        *,
        resource_id: str | None = None,
        resource_type: str | None = None,
        display_name: str | None = None,
        initialize_timeout: float | None = None,
        cleanup_timeout: float | None = None,
        health_check_timeout: float | None = None,
        failure_threshold: int = 3,
    ) -> None:
        super().__init__(
            resource_id=resource_id,
            resource_type=resource_type,
            display_name=display_name,
            initialize_timeout=30.0 if initialize_timeout is None else initialize_timeout,
            cleanup_timeout=30.0 if cleanup_timeout is None else cleanup_timeout,
            health_check_timeout=5.0 if health_check_timeout is None else health_check_timeout,
            failure_threshold=failure_threshold,
        )
        self._own_timeouts = (initialize_timeout, cleanup_timeout, health_check_timeout)
        self._members: dict[str, _Member] = {}

    # -- membership

    def add(
        self,
        resource: AsyncResource,
        *,
        name: str | None = None,
        depends_on: Iterable[str | AsyncResource] = (),
        required: bool = True,
    ) -> None:
        """Add a member. If the group is up already, the next `sync()` initializes it.

        name: by default its `resource_id`.
        depends_on: members, or names of members that were added or will be.

        Raises `GroupError` (a ValueError) for a duplicate or a cycle, which it names; the group is
        then unchanged.
        """
        if not isinstance(resource, AsyncResource):
            raise TypeError(
                f"group {self.resource_id!r}: a member must be an AsyncResource, got {resource!r}"
            )
        name = arguments.text(
            f"group {self.resource_id!r}", "name", resource.resource_id if name is None else name
        )
        if name in self._members:
            raise self._error(GroupError, f"has a member {name!r} already")
        if resource is self or any(
            member.resource is resource for member in self._members.values()
        ):
            raise self._error(GroupError, f"cannot hold {resource.resource_id!r} twice, nor itself")
        member = _Member(name, resource, self._names(name, depends_on), required)
        _levels(self, {**self._members, name: member})
        self._members[name] = member

    def remove(self, member: str | AsyncResource) -> AsyncResource:
        """Take a member out without closing it, and return it. `GroupError` if others need it."""
        name = self._name_of(member)
        users = sorted(other.name for other in self._members.values() if name in other.depends_on)
        if users:
            raise self._error(GroupError, f"cannot remove {name!r}: needed by {', '.join(users)}")
        return self._members.pop(name).resource

    def get(self, name: str) -> AsyncResource:
        """The member of that name; KeyError that lists the names that exist."""
        if name not in self._members:
            known = ", ".join(sorted(self._members)) or "none"
            raise KeyError(f"group {self.resource_id!r} has no member {name!r}; members: {known}")
        return self._members[name].resource

    def __iter__(self) -> Iterator[AsyncResource]:
        """Members in start order."""
        return iter([member.resource for level in _levels(self, self._members) for member in level])

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, member: object) -> bool:
        return member in self._members or any(
            member is held.resource for held in self._members.values()
        )

    async def sync(self) -> None:
        """Initialize the members that were added since the group came up.

        Raises as `initialize` does, but closes nothing else.
        """
        if not self.is_usable:
            raise self._error(ResourceUnavailable, f"is {self.state.name}: sync() needs it up")
        await self._bring_up(only=ResourceState.UNINITIALIZED)

    # -- time-outs: unless given, never shorter than what the members need

    @property
    def initialize_timeout(self) -> float:
        return self._span(
            0, [member.resource.initialize_timeout for member in self._members.values()]
        )

    @property
    def cleanup_timeout(self) -> float:
        return self._span(1, [member.resource.cleanup_timeout for member in self._members.values()])

    @property
    def health_check_timeout(self) -> float:
        checks = [member.resource.health_check_timeout for member in self._members.values()]
        return self._span(2, [max(checks, default=0.0)])

    def _span(self, which: int, needed: list[float]) -> float:
        given = self._own_timeouts[which]
        if given is not None:
            return given
        return max(self._lifecycle_limits[which], sum(needed) * 1.1 + 1.0)

    # -- hooks

    async def _do_initialize(self) -> None:
        known = set(self._members)
        for member in self._members.values():
            missing = sorted(set(member.depends_on) - known)
            if missing:
                raise self._error(
                    GroupError,
                    f"member {member.name!r} depends on unknown {', '.join(map(repr, missing))}",
                )
        await self._bring_up(only=None)

    async def _bring_up(self, only: ResourceState | None) -> None:
        for level in _levels(self, self._members):
            await self._start_level([m for m in level if only is None or m.resource.state is only])

    async def _start_level(self, level: list[_Member]) -> None:
        """Start all at once. The first failure of a required member cancels the others."""
        if not level:
            return
        tasks = {asyncio.ensure_future(member.resource.initialize()): member for member in level}
        pending = set(tasks)
        failed: list[tuple[_Member, BaseException]] = []
        try:
            while pending and not any(member.required for member, _ in failed):
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                failed += [
                    (tasks[task], error) for task in done if (error := _error_of(task)) is not None
                ]
        finally:
            for task in pending:
                task.cancel()
            if pending:
                await asyncio.wait(pending)
                for task in pending:
                    _error_of(task)
        for member, error in failed:
            log.error(
                "group %r: member %r failed to start: %r", self.resource_id, member.name, error
            )
        errors = [
            error for member, error in failed if member.required and isinstance(error, Exception)
        ]
        if errors:
            names = ", ".join(sorted(member.name for member, _ in failed if member.required))
            raise ExceptionGroup(f"group {self.resource_id!r}: failed to start: {names}", errors)

    async def _do_cleanup(self) -> None:
        """Close every member in reverse start order, one after the other.

        A member that was never started stays as it is. If the time runs out, the rest begin their
        cleanup and nothing waits for them.
        """
        deadline = time.monotonic() + self.cleanup_timeout * 0.8
        left = [member for level in _levels(self, self._members) for member in level]
        errors: list[Exception] = []
        try:
            while left:
                error = await self._close_member(left.pop(), deadline)
                if error is not None:
                    errors.append(error)
        except asyncio.CancelledError:
            for member in reversed(left):
                asyncio.ensure_future(member.resource.cleanup()).add_done_callback(_error_of)
            raise
        if errors:
            raise self._error(
                ResourceError, f"closed with {len(errors)} failing member(s)"
            ) from ExceptionGroup(f"group {self.resource_id!r}: cleanup", errors)

    async def _close_member(self, member: _Member, deadline: float) -> Exception | None:
        if member.resource.state in (ResourceState.UNINITIALIZED, ResourceState.CLOSED):
            return None
        closing = asyncio.ensure_future(member.resource.cleanup())
        closing.add_done_callback(_error_of)
        await asyncio.wait({closing}, timeout=max(0.0, deadline - time.monotonic()))
        if not closing.done():
            return TimeoutError(f"member {member.name!r} is still closing")
        error = _error_of(closing)
        if not isinstance(error, Exception):
            return None
        error.add_note(f"member {member.name!r} of group {self.resource_id!r}")
        return error

    async def _do_health_check(self) -> bool:
        """True when all members are healthy. An unhealthy optional one only degrades the group."""
        members = list(self._members.values())
        results = await asyncio.gather(
            *(member.resource.check_health() for member in members), return_exceptions=True
        )
        bad = [
            member for member, result in zip(members, results, strict=True) if result is not True
        ]
        required = [member for member in bad if member.required]
        if required:
            names = ", ".join(f"{m.name} ({m.resource.state.name})" for m in required)
            raise self._error(ResourceUnavailable, f"has unhealthy members: {names}")
        if bad:
            names = ", ".join(f"{m.name} ({m.resource.state.name})" for m in bad)
            raise self._error(ResourceDegraded, f"runs without optional members: {names}")
        return True

    # -- details

    def _names(self, name: str, depends_on: Iterable[str | AsyncResource]) -> tuple[str, ...]:
        if isinstance(depends_on, str | AsyncResource):
            raise TypeError(
                f"group {self.resource_id!r}: depends_on of {name!r} must be a list of names, got"
                f" {depends_on!r}"
            )
        return tuple(
            dict.fromkeys(d if isinstance(d, str) else self._name_of(d) for d in depends_on)
        )

    def _name_of(self, member: str | AsyncResource) -> str:
        if isinstance(member, str):
            if member not in self._members:
                known = ", ".join(sorted(self._members)) or "none"
                raise self._error(GroupError, f"has no member {member!r}; members: {known}")
            return member
        for held in self._members.values():
            if held.resource is member:
                return held.name
        raise self._error(GroupError, f"does not hold {member!r}")

    def _error(self, kind: type[E], what: str) -> E:
        return kind(
            f"{self.resource_type} {self.resource_id!r} {what}",
            resource_id=self.resource_id,
            state=self.state,
        )


def _levels(group: ResourceGroup, members: dict[str, _Member]) -> list[list[_Member]]:
    """Members by start level, in the order of their addition within one.

    Names of members that are not added yet are left out.
    """
    sorter: TopologicalSorter[str] = TopologicalSorter(
        {name: [d for d in member.depends_on if d in members] for name, member in members.items()}
    )
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise group._error(GroupError, f"has a cycle of dependencies: {cycle}") from None
    position = {name: index for index, name in enumerate(members)}
    levels = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=position.__getitem__)
        levels.append([members[name] for name in ready])
        sorter.done(*ready)
    return levels


def _error_of(task: asyncio.Future[Any]) -> BaseException | None:
    if task.cancelled():
        return ResourceInitializationError("cancelled")
    return task.exception()
