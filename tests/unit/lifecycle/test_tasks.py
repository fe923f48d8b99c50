"""`TaskManager`: start, cancel, priorities, failures, bounded memory."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import pytest
from specimens import Specimen, turns

from exo.lifecycle import ResourceClosed, TaskHandle, TaskManager, TaskPriority
from exo.lifecycle.tasks import HISTORY

pytestmark = pytest.mark.virtual_clock


async def forever() -> None:
    await asyncio.Event().wait()


async def boom() -> None:
    raise RuntimeError("lost it")


class Ignoring:
    """A task that ignores its cancellation until it is released."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()

    async def __call__(self) -> None:
        while not self.let_go.is_set():
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                continue


async def test_start_task_is_a_plain_function_and_the_task_runs():
    manager = TaskManager("owner")
    ran = asyncio.Event()

    async def work() -> str:
        ran.set()
        return "done"

    handle = manager.start_task("work", work)
    assert isinstance(handle, TaskHandle)
    assert (handle.name, handle.priority, handle.done()) == ("work", TaskPriority.NORMAL, False)
    assert handle.started_at <= time.monotonic()
    assert await handle.wait() == "done"
    assert ran.is_set()
    assert (handle.done(), handle.cancelled(), handle.exception()) == (True, False, None)


async def test_two_tasks_may_share_a_name_and_both_run():
    manager = TaskManager("owner")
    ran: list[int] = []

    def work(number: int) -> Any:
        async def run() -> None:
            ran.append(number)

        return run

    handles = [manager.start_task("same", work(i)) for i in range(11)]
    assert len({handle.id for handle in handles}) == 11
    await asyncio.gather(*(handle.wait() for handle in handles))
    assert ran == list(range(11))


async def test_a_task_may_start_its_own_successor_under_the_same_name():
    manager = TaskManager("owner")
    steps: list[int] = []
    finished = asyncio.Event()

    async def step() -> None:
        steps.append(len(steps))
        if len(steps) == 11:
            finished.set()
        else:
            manager.start_task("forward_tensor_1", step)

    manager.start_task("forward_tensor_1", step)
    await asyncio.wait_for(finished.wait(), 5)
    assert len(steps) == 11


async def test_a_failing_task_is_logged_counted_and_handed_over(caplog: pytest.LogCaptureFixture):
    manager = TaskManager("owner")
    errors: list[BaseException] = []
    handle = manager.start_task("work", boom, on_error=errors.append)
    with pytest.raises(RuntimeError, match="lost it"):
        await handle.wait()
    await turns()
    assert isinstance(errors[0], RuntimeError)
    assert handle.exception() is errors[0]
    assert manager.statistics().failed == 1
    assert "'owner' failed: RuntimeError('lost it')" in caplog.text


async def test_a_failing_task_without_a_waiter_causes_no_never_retrieved_warning():
    unhandled: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    manager = TaskManager("owner")
    manager.start_task("work", boom)
    await turns()
    gc.collect()
    assert unhandled == []
    assert manager.statistics().failed == 1


async def test_an_on_error_that_fails_is_logged(caplog: pytest.LogCaptureFixture):
    manager = TaskManager("owner")
    manager.start_task("work", boom, on_error=lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    await turns()
    assert "on_error of task" in caplog.text


async def test_a_cancelled_task_is_no_error():
    manager = TaskManager("owner")
    errors: list[BaseException] = []
    handle = manager.start_task("work", forever, on_error=errors.append)
    assert await manager.cancel_task(handle)
    assert handle.cancelled()
    assert errors == []
    assert not await manager.cancel_task(handle)
    with pytest.raises(asyncio.CancelledError):
        await handle.wait()


async def test_a_task_cancelled_before_its_first_step_leaves_no_coroutine_unawaited():
    manager = TaskManager("owner")
    called: list[int] = []

    def factory() -> Any:
        called.append(1)
        return forever()

    handle = manager.start_task("work", factory)
    await manager.cancel_task("work")
    assert handle.cancelled()
    assert called == []
    assert manager.tasks == ()


async def test_cancelling_by_name_takes_all_of_that_name_only():
    manager = TaskManager("owner")
    same = [manager.start_task("same", forever) for _ in range(3)]
    other = manager.start_task("other", forever)
    assert await manager.cancel_task("same")
    assert all(handle.cancelled() for handle in same)
    assert manager.tasks == (other,)
    assert not await manager.cancel_task("unknown")
    await manager.cancel_all_tasks()


async def test_a_waiters_timeout_never_cancels_the_task():
    manager = TaskManager("owner")
    handle = manager.start_task("work", forever)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle.wait(), 0.01)
    assert not handle.done()
    await manager.cancel_all_tasks()


async def test_low_priorities_end_before_higher_ones_are_cancelled():
    manager = TaskManager("owner")
    ended: list[str] = []

    def work(name: str) -> Any:
        async def run() -> None:
            try:
                await forever()
            finally:
                await asyncio.sleep(0.002)
                ended.append(name)

        return run

    for priority in (
        TaskPriority.CRITICAL,
        TaskPriority.LOW,
        TaskPriority.HIGH,
        TaskPriority.NORMAL,
    ):
        manager.start_task(priority.name, work(priority.name), priority=priority)
    await asyncio.sleep(0)
    assert await manager.cancel_all_tasks() == 4
    assert ended == ["LOW", "NORMAL", "HIGH", "CRITICAL"]


async def test_tasks_started_while_others_are_cancelled_do_not_survive():
    manager = TaskManager("owner")
    spawned: list[TaskHandle] = []

    async def spawn_at_the_end() -> None:
        try:
            await forever()
        finally:
            spawned.append(manager.start_task("child", forever))

    manager.start_task("parent", spawn_at_the_end)
    await asyncio.sleep(0)
    assert await manager.cancel_all_tasks() == 2
    assert spawned[0].cancelled()


async def test_the_task_that_cancels_all_is_spared_even_through_a_child():
    manager = TaskManager("owner")
    other = manager.start_task("other", forever)

    async def clear() -> int:
        return await asyncio.wait_for(manager.cancel_all_tasks(), 5)

    me = manager.start_task("me", clear)
    assert await me.wait() == 1
    assert other.cancelled()


async def test_one_that_ignores_cancellation_is_left_behind_and_named_and_the_rest_is_cancelled(
    caplog: pytest.LogCaptureFixture,
):
    manager = TaskManager("owner")
    ignoring = Ignoring()
    manager.start_task("stubborn", ignoring, priority=TaskPriority.LOW)
    critical = manager.start_task("critical", forever, priority=TaskPriority.CRITICAL)
    await asyncio.sleep(0)
    started = time.monotonic()
    assert await manager.cancel_all_tasks(timeout=0.05) == 2
    assert time.monotonic() - started < 1.0
    assert critical.cancelled()
    assert manager.tasks == ()
    assert manager.statistics().abandoned == 1
    assert "stubborn" in caplog.text
    ignoring.let_go.set()
    await turns()


async def test_without_waiting_it_returns_at_once():
    manager = TaskManager("owner")
    handle = manager.start_task("work", forever)
    assert await manager.cancel_all_tasks(wait=False) == 1
    assert not handle.done()
    await turns()
    assert handle.cancelled()


async def test_after_shutdown_new_work_is_refused_and_its_factory_not_called():
    manager = TaskManager("owner")
    manager.start_task("work", forever)
    assert await manager.shutdown() == 1
    called: list[int] = []
    with pytest.raises(ResourceClosed, match="'owner'"):
        manager.start_task("late", lambda: called.append(1))  # type: ignore[arg-type,return-value]
    assert called == []
    assert await manager.shutdown() == 0


async def test_finished_tasks_are_forgotten_but_for_a_bounded_history():
    manager = TaskManager("owner")
    for _ in range(3 * HISTORY):
        manager.start_task("work", turns)
    assert manager.statistics().running == 3 * HISTORY
    while manager.tasks:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert len(manager.history) == HISTORY
    statistics = manager.statistics()
    assert (statistics.started, statistics.running, statistics.succeeded) == (
        3 * HISTORY,
        0,
        3 * HISTORY,
    )


async def test_bad_arguments_are_refused_by_name():
    manager = TaskManager("owner")
    with pytest.raises(TypeError, match="pass the function"):
        manager.start_task("work", forever())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name"):
        manager.start_task("", forever)
    with pytest.raises(TypeError, match="priority"):
        manager.start_task("work", forever, priority=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="timeout"):
        await manager.cancel_all_tasks(timeout=-1)
    handle = manager.start_task("work", lambda: 42)  # type: ignore[arg-type,return-value]
    with pytest.raises(TypeError, match="must return a coroutine"):
        await handle.wait()


def test_without_an_event_loop_it_says_so():
    with pytest.raises(RuntimeError, match="no running event loop"):
        TaskManager("owner").start_task("work", forever)


async def test_every_resource_has_one_named_after_it():
    part = Specimen("part-7")
    assert part._task_manager.owner == "part-7"
