"""`cleanup`: single flight, bounded, always CLOSED; and closed stays closed."""

from __future__ import annotations

import asyncio
import time

import pytest
from specimens import Specimen, Stubborn, turns

from exo.lifecycle import (
    ResourceClosed,
    ResourceInitializationError,
    ResourceState,
    ResourceTimeout,
)

pytestmark = pytest.mark.virtual_clock

S = ResourceState


async def closing(part: Specimen) -> asyncio.Task[None]:
    """A cleanup that waits inside its hook."""
    part.gates["cleanup"].clear()
    task = asyncio.create_task(part.cleanup())
    await part.inside["cleanup"].wait()
    return task


async def test_it_goes_through_closing_to_closed_and_is_idempotent():
    part = Specimen()
    await part.initialize()
    await part.cleanup()
    await part.cleanup()
    assert (part.path, part.cleaned) == ("INITIALIZING READY CLOSING CLOSED", 1)


async def test_from_uninitialized_it_closes_without_the_hook():
    part = Specimen()
    await part.cleanup()
    assert (part.path, part.cleaned) == ("CLOSED", 0)


async def test_a_second_caller_waits_for_the_same_cleanup():
    part = Specimen()
    await part.initialize()
    first = await closing(part)
    second = asyncio.create_task(part.cleanup())
    await turns()
    assert not second.done(), "it must not return while the resource is still closing"
    part.gates["cleanup"].set()
    await asyncio.gather(first, second)
    assert part.cleaned == 1


async def test_a_cancelled_caller_does_not_stop_it():
    part = Specimen()
    await part.initialize()
    caller = await closing(part)
    caller.cancel()
    await asyncio.wait({caller})
    assert part.state is S.CLOSING
    part.gates["cleanup"].set()
    await part.wait_for(S.CLOSED, timeout=1)
    assert part.cleaned == 1


async def test_a_hook_that_raises_closes_records_and_raises_once():
    part = Specimen()
    await part.initialize()
    part.fails["cleanup"] = OSError("stuck")
    results = await asyncio.gather(*(part.cleanup() for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results if result is not None] == ["stuck"]
    assert part.state is S.CLOSED
    assert isinstance(part.last_error, OSError)
    await part.cleanup()


async def test_the_error_still_reaches_a_caller_when_the_first_one_has_left():
    part = Specimen()
    await part.initialize()
    part.fails["cleanup"] = OSError("stuck")
    first = await closing(part)
    second = asyncio.create_task(part.cleanup())
    await turns()
    first.cancel()
    part.gates["cleanup"].set()
    with pytest.raises(OSError, match="stuck"):
        await second


async def test_a_hanging_hook_is_bounded_by_the_cleanup_timeout():
    part = Specimen(cleanup_timeout=0.02)
    await part.initialize()
    part.gates["cleanup"].clear()
    with pytest.raises(ResourceTimeout, match=r"0\.02 s"):
        await part.cleanup()
    assert part.state is S.CLOSED


async def test_a_hook_that_ignores_cancellation_delays_no_caller():
    part = Stubborn("cleanup", cleanup_timeout=0.02)
    await part.initialize()
    started = time.monotonic()
    with pytest.raises(ResourceTimeout):
        await part.cleanup()
    assert time.monotonic() - started < 1.0
    assert (part.state, part.statistics().abandoned_hooks) == (S.CLOSED, 1)
    part.released.set()
    await turns()


async def test_during_initialize_it_stops_the_attempt_and_the_waiters_get_closed_never_true():
    part = Specimen()
    part.gates["initialize"].clear()
    waiters = [asyncio.create_task(part.initialize()) for _ in range(3)]
    waiters.append(asyncio.create_task(part.ensure_ready()))  # type: ignore[arg-type]
    await part.inside["initialize"].wait()
    await part.cleanup()
    results = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [ResourceClosed] * 4
    assert (part.path, part.cleaned) == ("INITIALIZING CLOSING CLOSED", 1)


async def test_it_shows_closing_at_once_even_while_the_attempt_winds_down():
    part = Specimen()
    part.gates["initialize"].clear()
    waiter = asyncio.create_task(part.initialize())
    await part.inside["initialize"].wait()
    closer = asyncio.create_task(part.cleanup())
    await asyncio.sleep(0)
    assert part.state is S.CLOSING
    await closer
    await asyncio.wait({waiter})
    assert isinstance(waiter.exception(), ResourceClosed)


async def test_during_the_roll_back_of_a_failed_start_the_hook_runs_once():
    part = Specimen()
    part.fails["initialize"] = OSError("no")
    part.gates["cleanup"].clear()
    waiter = asyncio.create_task(part.initialize())
    await part.inside["cleanup"].wait()
    closer = asyncio.create_task(part.cleanup())
    await turns()
    part.gates["cleanup"].set()
    await closer
    await asyncio.wait({waiter})
    assert isinstance(waiter.exception(), ResourceClosed)
    assert (part.state, part.cleaned) == (S.CLOSED, 1)


async def test_after_a_failed_start_it_only_closes_for_the_roll_back_ran_the_hook():
    part = Specimen()
    part.fails["initialize"] = OSError("no")
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    await part.cleanup()
    assert (part.path, part.cleaned) == ("INITIALIZING ERROR CLOSING CLOSED", 1)


async def test_after_failed_health_checks_it_runs_the_hook():
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part.healthy = False
    await part.check_health()
    assert part.state is S.ERROR
    await part.cleanup()
    assert (part.state, part.cleaned) == (S.CLOSED, 1)


@pytest.mark.parametrize("closed", [False, True])
async def test_a_late_call_never_reopens_what_is_closing_or_closed(closed: bool):
    part = Specimen()
    await part.initialize()
    task = await closing(part)
    if closed:
        part.gates["cleanup"].set()
        await task
    for late in (part.ensure_ready, part.recover):
        with pytest.raises(ResourceClosed) as refused:
            await late()
        assert refused.value.state in (S.CLOSING, S.CLOSED)
    assert await part.check_health() is False
    part.gates["cleanup"].set()
    await task
    assert (part.state, part.initialized) == (S.CLOSED, 1)


async def test_it_stops_a_health_check_before_it_closes_anything():
    part = Specimen()
    await part.initialize()
    part.gates["health_check"].clear()
    check = asyncio.create_task(part.check_health())
    await part.inside["health_check"].wait()
    await part.cleanup()
    assert await check is False
    assert part.path == "INITIALIZING READY CLOSING CLOSED"


async def test_background_tasks_are_cancelled_before_the_hook_runs():
    class Working(Specimen):
        task_done_at_cleanup = False

        async def _do_initialize(self) -> None:
            self.handle = self._task_manager.start_task("work", asyncio.Event().wait)

        async def _do_cleanup(self) -> None:
            self.task_done_at_cleanup = self.handle.cancelled()

    part = Working()
    await part.initialize()
    await part.cleanup()
    assert part.task_done_at_cleanup
    with pytest.raises(ResourceClosed):
        part._task_manager.start_task("late", asyncio.Event().wait)
    await part.initialize()
    part._task_manager.start_task("a new life", asyncio.Event().wait)
    await part.cleanup()


async def test_tasks_started_before_any_initialize_are_cancelled_too():
    part = Specimen()
    handle = part._task_manager.start_task("early", asyncio.Event().wait)
    await part.cleanup()
    assert handle.cancelled()
    assert (part.path, part.cleaned) == ("CLOSED", 0)


async def test_a_background_task_may_close_its_own_resource():
    part = Specimen()
    seen: list[ResourceState] = []

    async def give_up() -> None:
        await asyncio.wait_for(part.cleanup(), 5)
        seen.append(part.state)

    await part.initialize()
    handle = part._task_manager.start_task("give up", give_up)
    other = part._task_manager.start_task("other", asyncio.Event().wait)
    await handle.wait()
    assert seen == [S.CLOSED]
    assert other.cancelled()
    assert not handle.cancelled()


async def test_a_background_task_started_from_the_init_hook_is_not_inside_it():
    class Restarting(Specimen):
        async def _do_initialize(self) -> None:
            await super()._do_initialize()
            self._task_manager.start_task("watch", self.watch)
            await asyncio.sleep(0)

        async def watch(self) -> None:
            await self.ensure_ready()

    part = Restarting()
    await part.initialize()
    await turns()
    assert part._task_manager.statistics().failed == 0
    await part.cleanup()


def test_an_event_loop_that_is_shut_down_during_a_cleanup_still_closes():
    part = Stubborn("initialize", initialize_timeout=30)
    tasks: list[asyncio.Task[object]] = []

    async def main() -> None:
        tasks.append(asyncio.create_task(part.initialize()))
        await part.inside["initialize"].wait()
        tasks.append(asyncio.create_task(part.cleanup()))
        await asyncio.sleep(0)
        part.stubborn = ""
        assert part.state is S.CLOSING

    asyncio.run(main())
    assert part.state is S.CLOSED
