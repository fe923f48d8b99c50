"""What the probes say: periodic checks, three views, and a check that hangs.

Run: python examples/lifecycle/health.py
"""

import asyncio
import time

from exo.lifecycle import AsyncResource, ResourceDegraded, ResourceState
from exo.utils.health_check import HealthMonitor


class Disk(AsyncResource):
    RESOURCE_TYPE = "disk"

    def __init__(self) -> None:
        super().__init__(resource_id="disk-1", health_check_timeout=0.2)
        self.condition = "fine"

    async def _do_health_check(self) -> bool:
        match self.condition:
            case "slow":
                raise ResourceDegraded("serving from the mirror")
            case "hangs":
                await asyncio.sleep(3600)
            case "full":
                return False
        return True


def show(monitor: HealthMonitor) -> None:
    report = monitor.report()
    why = f" because {dict(report.reasons_ready)}" if report.reasons_ready else ""
    print(f"  live {report.is_live}, started {report.is_started}, ready {report.is_ready}{why}")


async def main() -> None:
    disk, monitor = Disk(), HealthMonitor()
    monitor.register(disk, interval=0.02)
    async with monitor:
        print("before the start:")
        show(monitor)

        async with disk:
            print("up:")
            show(monitor)

            print("degraded, but serving:")
            disk.condition = "slow"
            await disk.wait_for(ResourceState.DEGRADED)
            show(monitor)

            print("full:")
            disk.condition = "full"
            await disk.wait_for(ResourceState.ERROR)
            show(monitor)
            disk.condition = "fine"
            await disk.recover()

            print("a check that hangs does not delay the answer:")
            disk.condition = "hangs"
            started = time.perf_counter()
            monitor.report()
            print("  answered within a millisecond or so:", time.perf_counter() - started < 0.05)
            disk.condition = "fine"

        print("drained:")
        undo = monitor.add_readiness("draining", lambda: "the node is leaving")
        show(monitor)
        undo()


if __name__ == "__main__":
    asyncio.run(main())
