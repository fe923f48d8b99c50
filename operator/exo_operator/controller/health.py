"""The operator's own health, and the small HTTP server for its probes and metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from exo_operator.controller.metrics import Metrics

# An operator whose event loop was blocked for this long is not healthy.
MAX_LAG_S = 10.0


class Health:
    """What the operator's own probes answer: reasons against it. It is healthy while there are
    none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat = clock()
        # Set by others: name -> what is wrong.
        self.problems: dict[str, str] = {}
        # Whether the cache has been filled once, or this replica only waits for its turn.
        self.synced = False

    async def beat(self) -> None:
        """Run forever. The time of the last beat shows how long the loop has been blocked."""
        while True:
            self._beat = self._clock()
            await asyncio.sleep(1.0)

    def reasons(self) -> dict[str, str]:
        """Why the operator is not healthy."""
        lag = self._clock() - self._beat
        late = {"loop": f"the event loop stood still for {lag:.0f} s"} if lag > MAX_LAG_S else {}
        return self.problems | late

    def unready_reasons(self) -> dict[str, str]:
        """Why the operator is not ready."""
        return self.reasons() | ({} if self.synced else {"sync": "not started yet"})


def _answer(reasons: dict[str, str]) -> web.Response:
    return web.json_response({"failing": reasons}, status=503 if reasons else 200)


async def serve(
    metrics: Metrics, health: Health, port: int, host: str = "0.0.0.0"
) -> web.AppRunner:
    """Start the server. `cleanup()` of the result stops it. Port 0 takes a free one."""

    async def healthz(_: web.Request) -> web.Response:
        return _answer(health.reasons())

    async def readyz(_: web.Request) -> web.Response:
        return _answer(health.unready_reasons())

    async def metrics_page(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(metrics.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics_page),
        ]
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
