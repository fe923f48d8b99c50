"""What the lifecycle costs, as ratios to bare asyncio measured in the same run.

Run: python benchmarks/lifecycle.py

1. `ensure_ready()` on a READY resource against awaiting an empty coroutine: at most 3.
2. 10,000 resources with hooks, initialized and cleaned up, against 10,000 bare tasks: at most 30.
3. 1,000 callers of one `initialize()` against 1,000 tasks that wait for one shared future.

Measures processor time of this process, the best of several rounds, so that other work on the
machine has little effect.
"""

from __future__ import annotations

import asyncio
import gc
import json
import time
from collections.abc import Awaitable, Callable

from exo.lifecycle import AsyncResource

ROUNDS = 7
CALLS = 200_000
RESOURCES = 10_000
CALLERS = 1_000
LIMITS = {"ensure_ready_over_empty_coroutine": 3.0, "resource_life_over_bare_task": 30.0}


class Part(AsyncResource):
    RESOURCE_TYPE = "part"

    async def _do_initialize(self) -> None:
        pass

    async def _do_cleanup(self) -> None:
        pass


async def nothing() -> None:
    pass


async def seconds(work: Callable[[], Awaitable[None]]) -> float:
    """Processor seconds of one run, with the garbage collector off."""
    gc.collect()
    gc.disable()
    started = time.process_time()
    await work()
    spent = time.process_time() - started
    gc.enable()
    return spent


async def best(*works: Callable[[], Awaitable[None]]) -> list[float]:
    """The least seconds of each, in alternating rounds."""
    rounds = [[await seconds(work) for work in works] for _ in range(ROUNDS)]
    return [min(column) for column in zip(*rounds, strict=True)]


async def ready_calls() -> tuple[float, float]:
    part = Part()
    await part.initialize()

    async def ours() -> None:
        for _ in range(CALLS):
            await part.ensure_ready()

    async def bare() -> None:
        for _ in range(CALLS):
            await nothing()

    spent = await best(ours, bare)
    await part.cleanup()
    return spent[0] / CALLS, spent[1] / CALLS


async def lives() -> tuple[float, float]:
    async def ours() -> None:
        for _ in range(RESOURCES):
            part = Part()
            await part.initialize()
            await part.cleanup()

    async def bare() -> None:
        for _ in range(RESOURCES):
            await asyncio.create_task(nothing())

    spent = await best(ours, bare)
    return spent[0] / RESOURCES, spent[1] / RESOURCES


async def crowd() -> tuple[float, float]:
    async def ours() -> None:
        part = Part()
        await asyncio.gather(*(part.initialize() for _ in range(CALLERS)))

    async def bare() -> None:
        shared = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await shared

        asyncio.get_running_loop().call_soon(shared.set_result, None)
        await asyncio.gather(*(wait() for _ in range(CALLERS)))

    spent = await best(ours, bare)
    return spent[0] / CALLERS, spent[1] / CALLERS


async def main() -> None:
    ready, empty = await ready_calls()
    life, task = await lives()
    shared, future = await crowd()
    figures = {
        "ensure_ready_us": ready * 1e6,
        "empty_coroutine_us": empty * 1e6,
        "resource_life_us": life * 1e6,
        "bare_task_us": task * 1e6,
        "shared_initialize_us_per_caller": shared * 1e6,
        "shared_future_us_per_caller": future * 1e6,
    }
    ratios = {
        "ensure_ready_over_empty_coroutine": ready / empty,
        "resource_life_over_bare_task": life / task,
        "shared_initialize_over_shared_future": shared / future,
    }
    for name, value in figures.items():
        print(f"{name:34} {value:9.3f}")
    for name, value in ratios.items():
        limit = f"  (at most {LIMITS[name]:g})" if name in LIMITS else ""
        print(f"{name:38} {value:6.2f}{limit}")
    rounded = [
        {key: round(value, 4) for key, value in table.items()} for table in (figures, ratios)
    ]
    print(json.dumps({"name": "lifecycle", "figures": rounded[0], "ratios": rounded[1]}))


if __name__ == "__main__":
    asyncio.run(main())
