"""A class with start and stop, before and after it became a resource.

docs/conversion-guide.md explains the steps. Run: python examples/lifecycle/conversion.py
"""

import asyncio
import contextlib

from exo.lifecycle import AsyncResource, ResourceState


class TickerBefore:
    """Counts in the background.

    It does not say what a second start, a failed start or a stop in between does.
    """

    def __init__(self) -> None:
        self.ticks = 0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            self.ticks += 1
            await asyncio.sleep(0.01)


class Ticker(AsyncResource):
    """The same as a resource; `start` and `stop` stay for existing callers."""

    RESOURCE_TYPE = "ticker"

    def __init__(self) -> None:
        super().__init__(resource_id="ticker-1")
        self.ticks = 0
        self._seen = 0

    async def start(self) -> None:
        await self.initialize()

    async def stop(self) -> None:
        await self.cleanup()

    async def _do_initialize(self) -> None:
        self._task_manager.start_task("tick", self._run)

    async def _do_health_check(self) -> bool:
        return any(task.name == "tick" for task in self._task_manager.tasks)

    async def _run(self) -> None:
        while True:
            self.ticks += 1
            await asyncio.sleep(0.01)

    async def count(self) -> int:
        await self.ensure_ready()
        return self.ticks


async def main() -> None:
    before = TickerBefore()
    await before.start()
    # The first task is lost and keeps running.
    await before.start()
    await before.stop()
    stray = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    print("before: tasks left after stop:", len(stray))
    for task in stray:
        task.cancel()

    after = Ticker()
    await after.start()
    await after.start()
    print("after:  counts:", await after.count() >= 0, "healthy:", await after.check_health())
    await after.stop()
    left = [
        task
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task() and not task.cancelling()
    ]
    print("after:  tasks left after stop:", len(left), "state:", after.state.name)
    assert after.state is ResourceState.CLOSED


if __name__ == "__main__":
    asyncio.run(main())
