"""The operator's Prometheus metrics, and the small HTTP server for them and for the operator's own
probes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

# An operator whose event loop stood still this long is not healthy.
MAX_LAG_S = 10.0


class Metrics:
    """All metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.reconciles = Counter(
            "exo_operator_reconciles",
            "Reconciles by kind and result.",
            ["kind", "result"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "exo_operator_reconcile_seconds",
            "Duration of a reconcile.",
            ["kind"],
            registry=self.registry,
        )
        self.actions = Counter(
            "exo_operator_actions",
            "What the operator did, by action and kind.",
            ["action", "kind"],
            registry=self.registry,
        )
        self.events = Counter(
            "exo_operator_watch_events", "Watch events by kind.", ["kind"], registry=self.registry
        )
        self.queue = Gauge(
            "exo_operator_queue_length", "Keys waiting in the work queue.", registry=self.registry
        )
        self.objects = Gauge(
            "exo_operator_objects", "Objects in the cache.", registry=self.registry
        )
        self.leader = Gauge(
            "exo_operator_leader", "1 on the replica that leads.", registry=self.registry
        )
        self.nodes = Gauge(
            "exo_operator_nodes", "ExoNodes by readiness.", ["ready"], registry=self.registry
        )


class Health:
    """What the operator's own probes answer: reasons against it; healthy while there are none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat = clock()
        # Set by others: name -> what is wrong.
        self.problems: dict[str, str] = {}
        self.synced = False

    async def beat(self) -> None:
        """Runs for ever; its last beat shows how long the loop stands still."""
        while True:
            self._beat = self._clock()
            await asyncio.sleep(1.0)

    def reasons(self) -> dict[str, str]:
        lag = self._clock() - self._beat
        late = {"loop": f"the event loop stood still for {lag:.0f} s"} if lag > MAX_LAG_S else {}
        return self.problems | late


async def serve(
    metrics: Metrics, health: Health, port: int, host: str = "0.0.0.0"
) -> web.AppRunner:
    """Start the server; `cleanup()` of the result ends it. Port 0 takes a free one."""

    async def healthz(_: web.Request) -> web.Response:
        reasons = health.reasons()
        return web.json_response({"failing": reasons}, status=503 if reasons else 200)

    async def readyz(_: web.Request) -> web.Response:
        reasons = health.reasons() | ({} if health.synced else {"sync": "not started yet"})
        return web.json_response({"failing": reasons}, status=503 if reasons else 200)

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
