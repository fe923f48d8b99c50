"""Many concurrent callers, random operations, cancellation on one resource: what always holds."""

from __future__ import annotations

import asyncio
import gc
import random
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from specimens import Specimen, Stubborn, turns, until

from exo.lifecycle import AsyncResource, ResourceClosed, ResourceError, ResourceState, TaskManager
from exo.lifecycle.testing.interruption import Interrupted

S = ResourceState
SETTLED = {S.UNINITIALIZED, S.READY, S.DEGRADED, S.ERROR, S.CLOSED}


@pytest.mark.parametrize("call", ["initialize", "ensure_ready"])
async def test_a_thousand_callers_are_one_run_of_the_hook(call: str):
    part = Specimen()
    await asyncio.gather(*(getattr(part, call)() for _ in range(1000)))
    assert (part.initialized, part.state) == (1, S.READY)
    await asyncio.gather(*(part.cleanup() for _ in range(1000)))
    assert (part.cleaned, part.state) == (1, S.CLOSED)


async def test_a_thousand_callers_of_which_all_but_one_are_cancelled_still_get_it_done():
    part = Specimen()
    part.gates["initialize"].clear()
    callers = [asyncio.create_task(part.initialize()) for _ in range(1000)]
    await part.inside["initialize"].wait()
    for caller in callers[1:]:
        caller.cancel()
    await asyncio.wait(callers[1:])
    part.gates["initialize"].set()
    assert await callers[0]
    assert part.initialized == 1


class Balanced(AsyncResource):
    """Checks that its own hooks alternate, never overlap, and leave nothing open at the end."""

    RESOURCE_TYPE = "balanced"
    RECOVER_BASE_DELAY = 0.0005
    RECOVER_MAX_DELAY = 0.001

    def __init__(self, rng: random.Random) -> None:
        super().__init__(
            initialize_timeout=5, cleanup_timeout=5, health_check_timeout=1, failure_threshold=2
        )
        self.rng = rng
        self.running = 0
        self.begun = 0
        self.cleaned = 0
        self.open = False
        self.broken: list[str] = []

    async def _work(self, what: str, failing: float) -> None:
        self.running += 1
        if self.running != 1:
            self.broken.append(f"{what} overlaps another hook")
        try:
            for _ in range(self.rng.randrange(4)):
                await asyncio.sleep(0 if self.rng.random() < 0.7 else 0.0005)
            if self.rng.random() < failing:
                raise RuntimeError(what)
        finally:
            self.running -= 1

    async def _do_initialize(self) -> None:
        if self.open:
            self.broken.append("initialize on something open")
        self.open = True
        self.begun += 1
        await self._work("initialize", 0.2)

    async def _do_cleanup(self) -> None:
        if not self.open:
            self.broken.append("cleanup of something closed")
        self.cleaned += 1
        try:
            await self._work("cleanup", 0.1)
        finally:
            self.open = False

    async def _do_health_check(self) -> bool:
        if not self.open:
            self.broken.append("health check of something closed")
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        return self.rng.random() < 0.7


@pytest.mark.parametrize("seed", range(6))
async def test_a_storm_of_fifty_actors_breaks_no_invariant(seed: int):
    rng = random.Random(seed)
    part = Balanced(rng)
    operations: list[Callable[[], Awaitable[Any]]] = [
        *[part.initialize] * 4,
        part.cleanup,
        *[part.ensure_ready] * 4,
        *[part.check_health] * 8,
        *[part.recover] * 2,
        lambda: part.initialize(timeout=0.0005),
    ]

    async def actor() -> None:
        for _ in range(250):
            task = asyncio.ensure_future(_swallow(rng.choice(operations)))
            await asyncio.sleep(0 if rng.random() < 0.8 else 0.0005)
            if rng.random() < 0.3:
                task.cancel()
            await asyncio.wait({task})

    async with asyncio.timeout(60):
        await asyncio.gather(*(actor() for _ in range(50)))
        await until(lambda: part.state in SETTLED)
        await _swallow(part.cleanup)
    assert part.broken == []
    assert part.state is S.CLOSED
    assert not part.open
    assert part.begun == part.cleaned, "every initialize begun was cleaned up exactly once"
    assert part.begun > 20, "the storm did something"
    await turns(20)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def _swallow(operation: Callable[[], Awaitable[Any]]) -> None:
    try:
        await operation()
    except (ResourceError, RuntimeError):
        pass


class Stepping(Specimen):
    """Its hooks wait three times each."""

    async def _step(self, name: str) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await super()._step(name)


@pytest.mark.parametrize(
    "operation", ["initialize", "ensure_ready", "cleanup", "recover", "check_health"]
)
async def test_cancellation_at_each_turn_of_the_caller_never_leaves_a_transient_state(
    operation: str,
):
    for turn in range(40):
        part = Stepping()
        if operation != "initialize":
            await part.initialize()
        if operation == "recover":
            part.healthy = False
            await part.check_health()
            part.healthy = True
        caller = asyncio.create_task(getattr(part, operation)())
        await turns(turn)
        caller.cancel()
        await asyncio.wait({caller})
        await until(lambda part=part: part.state in SETTLED)  # type: ignore[misc]
        if part.state is not S.CLOSED:
            assert await asyncio.wait_for(part.recover(), 5)
        await asyncio.wait_for(part.cleanup(), 5)
        assert part.initialized == part.cleaned


@pytest.mark.parametrize(
    "operation", ["initialize", "ensure_ready", "cleanup", "recover", "check_health", "both"]
)
def test_an_event_loop_closed_at_each_turn_leaves_no_transient_state_and_another_loop_goes_on(
    operation: str,
):
    """Closing a loop cancels all its tasks at once, including those that have not begun."""
    for turn in range(30):
        part = Stepping(failure_threshold=2)
        started: list[asyncio.Task[Any]] = []

        async def life(
            part: Stepping = part, turn: int = turn, started: list[asyncio.Task[Any]] = started
        ) -> None:
            if operation not in ("initialize", "ensure_ready", "both"):
                await part.initialize()
            if operation == "recover":
                part.healthy = False
                await part.check_health()
                part.healthy = True
            first = "initialize" if operation == "both" else operation
            started.append(asyncio.create_task(getattr(part, first)()))
            if operation == "both":
                await asyncio.sleep(0)
                started.append(asyncio.create_task(part.cleanup()))
            await turns(turn)

        asyncio.run(life())
        for task in started:
            if not task.cancelled():
                task.exception()
        assert part.state in SETTLED
        assert part.initialized - part.cleaned == int(part.is_usable)

        async def another_life(part: Stepping = part) -> None:
            await part.initialize()
            await part.cleanup()

        asyncio.run(another_life())
        assert part.initialized == part.cleaned


async def test_cancellation_at_each_await_of_the_callers_own_frames():
    """Throws the cancellation into the caller itself, wherever it waits."""
    for point in range(1, 30):
        part = Stepping()
        task: list[asyncio.Task[Any]] = []

        async def caller(
            part: Stepping = part, point: int = point, task: list[asyncio.Task[Any]] = task
        ) -> None:
            async def whole() -> None:
                await part.initialize()
                await part.check_health()
                await part.cleanup()

            await Interrupted(whole(), call_at=point, call=lambda: task[0].cancel())

        task.append(asyncio.create_task(caller()))
        await asyncio.wait(task)
        await until(lambda part=part: part.state in SETTLED)  # type: ignore[misc]
        await asyncio.wait_for(part.cleanup(), 5)
        assert part.initialized == part.cleaned


async def test_hooks_that_ignore_cancellation_never_hold_up_a_new_life():
    for hook in ("initialize", "cleanup", "health_check"):
        # Only the time-out of this hook: on a busy machine the others may take as long.
        part = Stubborn(hook, **{f"{hook}_timeout": 0.02})
        for _ in range(5):
            await _swallow(part.initialize)
            await part.check_health()
            await _swallow(part.cleanup)
            assert part.state is S.CLOSED
        assert part.statistics().abandoned_hooks == 5
        part.released.set()
        await turns(10)
        await part.initialize()
        await part.cleanup()


async def test_closing_against_late_calls_never_reopens():
    for turn in range(30):
        part = Stepping()
        await part.initialize()
        closing = asyncio.create_task(part.cleanup())
        await turns(turn)
        late = [
            asyncio.create_task(call())
            for call in (part.ensure_ready, part.recover)
            for _ in range(10)
        ]
        results = await asyncio.gather(*late, return_exceptions=True)
        await closing
        if turn:
            assert all(isinstance(result, ResourceClosed) for result in results)
        assert (part.state, part.initialized) == (S.CLOSED, 1)


async def test_ten_thousand_tasks_leave_memory_flat():
    manager = TaskManager("owner")

    async def round_of(number: int) -> None:
        for _ in range(number):
            manager.start_task("work", turns)
        await until(lambda: not manager.tasks)

    await round_of(1000)
    tracemalloc.start()
    try:
        await round_of(1000)
        # So that the result does not depend on when the collector last ran.
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(8):
            await round_of(1000)
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert manager.statistics().succeeded == 10_000
    assert after - before < 200_000, "bytes gained over 8,000 tasks"


async def test_ten_thousand_tasks_are_cancelled_together():
    manager = TaskManager("owner")
    for _ in range(10_000):
        manager.start_task("work", asyncio.Event().wait)
    assert await manager.cancel_all_tasks(timeout=30) == 10_000
    assert (manager.tasks, manager.statistics().cancelled) == ((), 10_000)
