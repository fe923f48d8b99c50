"""Things that break and come back: recovery, retry, a circuit breaker, and a fallback that shows.

Run: python examples/lifecycle/recovery.py
"""

import asyncio

from exo.lifecycle import AsyncResource, ResourceState
from exo.utils.error_handling import (
    CircuitBreaker,
    CircuitOpen,
    classify,
    degradations,
    retrying,
    with_fallbacks,
)
from exo.utils.health_check import HealthMonitor


class Link(AsyncResource):
    """A connection that can be cut; starting it again repairs it."""

    RESOURCE_TYPE = "link"
    cut = False

    async def _do_initialize(self) -> None:
        self.cut = False

    async def _do_health_check(self) -> bool:
        return not self.cut


async def recovers() -> None:
    async with Link(resource_id="link-1", failure_threshold=2) as link, HealthMonitor() as monitor:
        monitor.register(link, interval=0.02, recover=True)
        link.add_listener(lambda change: print(f"  {change.old.name} -> {change.new.name}"))
        link.cut = True
        await link.wait_for(ResourceState.ERROR)
        await link.wait_for(ResourceState.READY)
        print("  recoveries:", link.statistics().recoveries)


async def retries() -> None:
    tries = 0

    @retrying(on=[ConnectionError], idempotent=True, attempts=3, base=0.01)
    async def fetch() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionResetError("peer went away")
        return "the answer"

    print(f"  {await fetch()} after {tries} tries")
    print("  a reset connection is:", classify(ConnectionResetError()))


async def breaks() -> None:
    breaker = CircuitBreaker("peer node-b", failures=2, reset_after=60)

    async def call() -> None:
        raise ConnectionRefusedError

    for _ in range(3):
        try:
            await breaker.call(call)
        except ConnectionRefusedError:
            print("  refused by the peer")
        except CircuitOpen as refused:
            print("  refused by the breaker:", refused.name)


async def falls_back() -> None:
    async def onnx() -> str:
        raise OSError("no onnxruntime here")

    async def numpy() -> str:
        return "numpy engine"

    async with Link(resource_id="engine-1") as engine:
        print(
            "  using the",
            await with_fallbacks(
                "engine", {"onnx": onnx, "numpy": numpy}, on=[OSError], resource=engine
            ),
        )
        print("  state:", engine.state.name)
        print("  shown as:", degradations()[0])


async def main() -> None:
    for title, part in {
        "recovery": recovers,
        "retry": retries,
        "breaker": breaks,
        "fallback": falls_back,
    }.items():
        print(f"{title}:")
        await part()


if __name__ == "__main__":
    asyncio.run(main())
