"""Resources to experiment on: their hooks can be held, failed and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from exo.lifecycle import AsyncResource, StateChange


class Specimen(AsyncResource):
    """Counts its hooks' runs. A hook waits while its gate is closed and fails with what stands in
    `fails`.
    """

    RESOURCE_TYPE = "specimen"
    RECOVER_BASE_DELAY = 0.001
    RECOVER_MAX_DELAY = 0.002

    def __init__(self, resource_id: str = "s1", **settings: Any) -> None:
        super().__init__(resource_id=resource_id, **settings)
        self.initialized = 0
        self.cleaned = 0
        self.checked = 0
        self.fails: dict[str, BaseException | list[BaseException | None]] = {}
        self.healthy: object = True
        self.gates = {name: asyncio.Event() for name in ("initialize", "cleanup", "health_check")}
        self.inside = {name: asyncio.Event() for name in self.gates}
        for gate in self.gates.values():
            gate.set()
        self.changes: list[StateChange] = []
        self.add_listener(self.changes.append)

    @property
    def path(self) -> str:
        """The states gone through, as their names' first letters would be ambiguous: in full."""
        return " ".join(change.new.name for change in self.changes)

    async def _do_initialize(self) -> None:
        self.initialized += 1
        await self._step("initialize")

    async def _do_cleanup(self) -> None:
        self.cleaned += 1
        await self._step("cleanup")

    async def _do_health_check(self) -> bool:
        self.checked += 1
        await self._step("health_check")
        return self.healthy  # type: ignore[return-value]  # some tests return what they should not

    async def _step(self, name: str) -> None:
        self.inside[name].set()
        await self.gates[name].wait()
        failure = self.fails.get(name)
        if isinstance(failure, list):
            failure = failure.pop(0) if failure else None
        if failure is not None:
            raise failure


class Stubborn(Specimen):
    """One of its hooks ignores cancellation until `released`."""

    def __init__(self, hook: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.stubborn = hook
        self.released = asyncio.Event()

    async def _step(self, name: str) -> None:
        self.inside[name].set()
        while name == self.stubborn and not self.released.is_set():
            try:
                await self.released.wait()
            except asyncio.CancelledError:
                continue


async def until(condition: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait for something that the event loop is about to bring about."""
    async with asyncio.timeout(timeout):
        while not condition():  # noqa: ASYNC110  # the condition may be anything
            await asyncio.sleep(0.001)


async def turns(number: int = 5) -> None:
    """Let the event loop turn a few times."""
    for _ in range(number):
        await asyncio.sleep(0)
