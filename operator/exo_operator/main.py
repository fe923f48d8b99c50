"""Puts the operator together and runs it: HTTP server, Lease, cache, workers, kopf. The composition
root.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

import kopf
import structlog

from exo_operator import settings, uninstall
from exo_operator.controller import health as health_module
from exo_operator.controller import watches
from exo_operator.controller.controller import Controller
from exo_operator.controller.health import Health
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.reconcile import Reconciler
from exo_operator.exonode.node_client import NodeClient
from exo_operator.kube import kinds
from exo_operator.kube.client import KubeClient, KubeError, connect
from exo_operator.kube.leader import Leadership
from exo_operator.kube.store import Store
from exo_operator.settings import Settings

log = structlog.get_logger("exo_operator.main")

# How long the watches may take to stop.
STOP_S = 15.0


def configure_logging(level: str, format_: str) -> None:
    """One line per event on stderr, from us and from libraries alike."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format_ == "json"
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    # kopf logs each call of each handler, and ours only enqueue.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))


async def wait_for_crds(
    client: KubeClient, namespaces: tuple[str, ...], stop: asyncio.Event
) -> None:
    """Wait until the custom resources are served: kopf looks for them only once, when it starts."""
    while not stop.is_set():
        try:
            for kind in kinds.CUSTOM:
                async for _ in client.list_all(kind, namespaces[0] if namespaces else ""):
                    break
        except (KubeError, OSError, TimeoutError) as error:
            log.info("waiting for the custom resources", error=str(error))
            await _sleep(2.0, stop)
        else:
            return


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


@dataclass(slots=True)
class Operator:
    """The parts of a running operator, and how they start and end."""

    options: Settings
    client: KubeClient
    leadership: Leadership
    nodes: NodeClient
    metrics: Metrics
    health: Health
    stop: asyncio.Event
    # What runs as long as the operator does: the heartbeat, the election, the workers.
    endless: list[asyncio.Task[None]] = field(default_factory=list)

    async def run(self) -> int:
        """Wait for the Lease, then lead. Returns the exit code."""
        self.endless.append(asyncio.create_task(self.health.beat(), name="heartbeat"))
        try:
            await wait_for_crds(self.client, self.options.namespaces, self.stop)
            if self.options.leader_election and not await self._win():
                return 1
            return 0 if self.stop.is_set() else await self._lead()
        finally:
            for task in self.endless:
                task.cancel()
            await asyncio.gather(*self.endless, return_exceptions=True)
            await self.leadership.release()

    async def _win(self) -> bool:
        """Wait for the Lease, or for the signal to stop. Returns False if the election broke."""
        # A replica that waits for its turn is ready: it would take over.
        self.health.synced = True
        campaign = asyncio.create_task(self.leadership.campaign(), name="leader")
        self.endless.append(campaign)
        await _first(self.stop.wait(), self.leadership.gained.wait(), campaign)
        if campaign.done() and not self.stop.is_set():
            log.error("the election ended", error=repr(campaign.exception()))
            return False
        return True

    async def _lead(self) -> int:
        """Reconcile until a signal, until the Lease is lost, or until something breaks."""
        self.metrics.leader.set(1)
        controller = await self._start()
        watching = asyncio.create_task(self._watch(controller), name="kopf")
        lost = asyncio.create_task(self.leadership.lost.wait(), name="lease")
        log.info(
            "operator started",
            namespaces=self.options.namespaces or "all",
            node_image=self.options.defaults.image,
        )
        done, _ = await asyncio.wait(
            [watching, lost, *self.endless], return_when=asyncio.FIRST_COMPLETED
        )
        lost.cancel()
        broken = [task for task in self.endless if task in done]
        for task in broken:
            error = repr(task.exception())
            log.error("a task ended that must not", task=task.get_name(), error=error)
        by_signal = watching in done and not broken
        self.stop.set()
        return 0 if await _ended(watching) and by_signal else 1

    async def _start(self) -> Controller:
        """Fill the cache, then start the workers: no decision comes before the first list."""
        reconciler = Reconciler(
            self.client, Store(), self.nodes, self.options.defaults, self.metrics
        )
        controller = Controller(reconciler, self.health, self.options.namespaces)
        await controller.sync()
        for number in range(self.options.workers):
            work = reconciler.queue.work(reconciler.run)
            self.endless.append(asyncio.create_task(work, name=f"worker-{number}"))
        resync = controller.resync_forever(self.options.resync_s)
        self.endless.append(asyncio.create_task(resync, name="resync"))
        return controller

    async def _watch(self, controller: Controller) -> None:
        await kopf.operator(
            registry=watches.register(controller),
            settings=settings.for_kopf(),
            # Ours, because kopf's own guess needs a name for the numeric user. kopf does not export
            # the NewType.
            identity=self.options.identity,  # type: ignore[arg-type]
            standalone=True,
            clusterwide=not self.options.namespaces,
            namespaces=self.options.namespaces,
            stop_flag=self.stop,
        )


async def _ended(watching: asyncio.Task[None]) -> bool:
    """Wait a while for the watches to stop. Returns False if they failed."""
    try:
        await asyncio.wait_for(watching, STOP_S)
    except (asyncio.CancelledError, TimeoutError):
        log.warning("the watches did not end in time")
    except Exception:
        log.exception("watching failed")
        return False
    return True


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = {wait: asyncio.ensure_future(wait) for wait in waits}
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    for wait, task in tasks.items():
        # A task that was passed in goes on.
        if task is not wait:
            task.cancel()


async def run(options: Settings) -> int:
    """Run until a signal (returns 0) or until something ends that must not (returns 1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics, health = Metrics(), Health()
    server = await health_module.serve(metrics, health, options.port)
    api = await connect()
    client, nodes = KubeClient(api), NodeClient()
    leadership = Leadership(api, options.lease_name, options.lease_namespace, options.identity)
    operator = Operator(options, client, leadership, nodes, metrics, health, stop)
    try:
        return await operator.run()
    finally:
        await nodes.close()
        await client.close()
        await server.cleanup()


def main(argv: list[str] | None = None) -> int:
    """`python -m exo_operator [drain]`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["drain"]:
        configure_logging("info", "console")
        return asyncio.run(uninstall.main(arguments[1:]))
    options = settings.parse(arguments)
    configure_logging(options.log_level, options.log_format)
    return asyncio.run(run(options))
