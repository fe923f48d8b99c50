"""Puts the operator together and runs it: HTTP server, Lease, cache, workers, kopf. The composition
root.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable
from typing import Any

import kopf
import structlog

from exo_operator import settings
from exo_operator import uninstall as drain
from exo_operator.controller import metrics as metrics_module
from exo_operator.controller import watches as handlers
from exo_operator.controller.controller import OWN_KINDS, Controller
from exo_operator.controller.reconcile import Reconciler
from exo_operator.exonode.node_client import NodeClient
from exo_operator.kube.client import Cluster, ClusterError, connect
from exo_operator.kube.leader import Leadership
from exo_operator.kube.store import Store
from exo_operator.settings import Settings

log = structlog.get_logger("exo_operator.main")


def configure_logging(level: str, format_: str) -> None:
    """One line per event on stderr, our own and the libraries' alike."""
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
    # kopf tells each call of each handler; ours are only enqueues.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))


async def wait_for_crds(cluster: Cluster, namespaces: tuple[str, ...], stop: asyncio.Event) -> None:
    """kopf looks for its resources once, at its start; so wait until they are served."""
    while not stop.is_set():
        try:
            for kind in OWN_KINDS:
                async for _ in cluster.list_all(kind, namespaces[0] if namespaces else ""):
                    break
        except (ClusterError, OSError, TimeoutError) as error:
            log.info("waiting for the custom resources", error=str(error))
            await _sleep(2.0, stop)
        else:
            return


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except TimeoutError:
        return


async def run(options: Settings) -> int:
    """Run until a signal (returns 0) or until something that must not end ends (returns 1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    metrics, health = metrics_module.Metrics(), metrics_module.Health()
    server = await metrics_module.serve(metrics, health, options.port)
    api = await connect()
    cluster, nodes = Cluster(api), NodeClient()
    leadership = Leadership(api, options.lease_name, options.lease_namespace, options.identity)
    tasks = [asyncio.create_task(health.beat(), name="heartbeat")]
    try:
        await wait_for_crds(cluster, options.namespaces, stop)
        if options.leader_election:
            # A replica that waits for its turn is ready: it would take over.
            health.synced = True
            campaign = asyncio.create_task(leadership.campaign(), name="leader")
            tasks.append(campaign)
            await _first(stop.wait(), leadership.gained.wait(), campaign)
            if campaign.done() and not stop.is_set():
                log.error("the election ended", error=repr(campaign.exception()))
                return 1
        if stop.is_set():
            return 0
        metrics.leader.set(1)
        return await _lead(options, cluster, nodes, metrics, health, leadership, stop, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await leadership.release()
        await nodes.close()
        await cluster.close()
        await server.cleanup()


async def _lead(
    options: Settings,
    cluster: Cluster,
    nodes: NodeClient,
    metrics: metrics_module.Metrics,
    health: metrics_module.Health,
    leadership: Leadership,
    stop: asyncio.Event,
    tasks: list[asyncio.Task[None]],
) -> int:
    reconciler = Reconciler(cluster, Store(), nodes, options.defaults, metrics)
    controller = Controller(reconciler, health, options.namespaces)
    # The first look at the world comes before the first decision.
    await controller.prime()
    workers = [
        asyncio.create_task(reconciler.queue.work(reconciler.run), name=f"worker-{i}")
        for i in range(options.workers)
    ]
    workers.append(asyncio.create_task(controller.resync_for_ever(options.resync_s), name="resync"))
    tasks.extend(workers)
    watching = asyncio.create_task(
        kopf.operator(
            registry=handlers.register(controller),
            settings=settings.for_kopf(),
            # Ours, as kopf's own guess needs the numeric user to have a name.
            # A NewType that kopf does not export.
            identity=options.identity,  # type: ignore[arg-type]
            standalone=True,
            clusterwide=not options.namespaces,
            namespaces=options.namespaces,
            stop_flag=stop,
        ),
        name="kopf",
    )
    lost = asyncio.create_task(leadership.lost.wait(), name="lease")
    tasks.append(lost)  # type: ignore[arg-type]  # its result is never read
    log.info(
        "operator started",
        namespaces=options.namespaces or "all",
        node_image=options.defaults.image,
    )
    # What runs for as long as the operator does: the heartbeat, the election, the workers.
    endless = [task for task in tasks if task.get_name() != lost.get_name()]
    done, _ = await asyncio.wait([watching, lost, *endless], return_when=asyncio.FIRST_COMPLETED)
    broken = [task for task in done if task not in (watching, lost)]
    for task in broken:
        log.error("a task ended that must not", task=task.get_name(), error=repr(task.exception()))
    stopped_by_signal = watching in done and not broken
    stop.set()
    try:
        await asyncio.wait_for(watching, 15.0)
    except (asyncio.CancelledError, TimeoutError):
        log.warning("the watches did not end in time")
    except Exception:
        log.exception("watching failed")
        return 1
    return 0 if stopped_by_signal else 1


async def _first(*waits: Awaitable[Any]) -> None:
    tasks = {wait: asyncio.ensure_future(wait) for wait in waits}
    await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
    for wait, task in tasks.items():
        # A task that was handed in goes on.
        if task is not wait:
            task.cancel()


def main(argv: list[str] | None = None) -> int:
    """`python -m exo_operator [drain]`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["drain"]:
        configure_logging("info", "console")
        return asyncio.run(drain.main(arguments[1:]))
    options = settings.parse(arguments)
    configure_logging(options.log_level, options.log_format)
    return asyncio.run(run(options))
