"""`exo serve`: builds the node and its API server, runs them as one group, and ends them in order
on SIGTERM.

The API server starts first, so that probes have an answer ("loading model 43 %") from the first
moment. It closes last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Mapping
from typing import Any

import structlog

from exo.api.probes import drain_reason
from exo.api.server import ApiServer
from exo.cli.failures import explain
from exo.cli.settings import defaults
from exo.cli.settings.environment import misspelt
from exo.cli.settings.records import ServeSettings, check_files, serve_settings
from exo.cli.startup import LateStderr, startup_bar
from exo.lifecycle import ResourceGroup
from exo.lifecycle.faults import use_folder as use_fault_folder
from exo.networking.grpc.health_server import HealthServer
from exo.node.build import build_node
from exo.node.node import Node
from exo.observability.logging import configure_logging
from exo.observability.metrics import install as count_lifecycle

_log = structlog.get_logger("exo.serve")
# All is closed by then. Only a thread that cannot be stopped may still run.
LEAVE_SECONDS = 3.0
# How often the health of a resource is checked: well within the periods of the probes.
CHECK_SECONDS = 2.0


def serve(values: Mapping[str, Any]) -> int:
    """Runs until a signal; the exit code. `values`: of all settings, by key. Wrong ones are refused
    before anything else happens.
    """
    settings = serve_settings(values, os.environ)
    check_files(values)
    process = settings.process
    # LateStderr is a TextIO in all that a log handler needs.
    configure_logging(process.log_format, process.log_level, LateStderr())  # type: ignore[arg-type]
    for variable, meant in misspelt(os.environ):
        _log.warning("unknown variable ignored", variable=variable, meant=meant)
    use_fault_folder(defaults.fault_dir(os.environ))
    count_lifecycle()
    return asyncio.run(_serve(settings))


async def _serve(settings: ServeSettings) -> int:
    stop = Stop()
    stop.listen()
    node = build_node(settings.node)
    server = ApiServer(node.backend, node, node.monitor, settings.api)
    group = compose(node, server, settings.process.health_port)
    starting = asyncio.create_task(group.initialize(), name="start")
    stopping = asyncio.create_task(stop.asked.wait(), name="wait for a signal")
    try:
        async with startup_bar(node.describe_progress):
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
            _log.info(
                "ready", node_id=node.node_id, model=settings.node.model, dashboard=server.url
            )
            await stopping
    except Exception as error:
        failure = explain(error)
        _log.error("start failed", error=str(failure))
        await _close(group)
        stop.ignore()
        raise failure from error
    finally:
        stopping.cancel()
    _log.info("stopping", reason=stop.reason, drain_seconds=settings.node.drain_seconds)
    await _close_or_hurry(group, node, stop)
    await asyncio.gather(starting, stopping, return_exceptions=True)
    stop.ignore()
    _log.info("stopped")
    _leave_within(LEAVE_SECONDS)
    return 0


def _leave_within(seconds: float) -> None:
    """Exit even if a thread hangs in an engine: the interpreter would wait for it without end."""
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


def compose(node: Node, server: ApiServer, health_port: int) -> ResourceGroup:
    """The whole process as one resource. Members start from first to last and close in reverse."""
    group = ResourceGroup(resource_id=f"exo-{node.node_id}", resource_type="process")
    node.monitor.register(server, interval=CHECK_SECONDS)
    # So that the gRPC probes say the same as /readyz.
    node.monitor.add_readiness("node", lambda: drain_reason(node))
    group.add(server, name="api")
    group.add(
        HealthServer(node.node_id, server.settings.host, node.monitor, port=health_port),
        name="health",
    )
    group.add(node, name="node", depends_on=("api", "health"))
    return group


async def _close_or_hurry(group: ResourceGroup, node: Node, stop: Stop) -> None:
    """Close. Running requests may finish, unless a second signal ends them; the order of closing
    stays the same.
    """
    closing = asyncio.create_task(_close(group), name="close")
    again = asyncio.create_task(stop.again.wait(), name="wait for a second signal")
    await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():
        _log.warning("drain cut short", reason=stop.reason)
        node.abort_requests("this node must stop at once")
    again.cancel()
    await asyncio.gather(closing, again, return_exceptions=True)


async def _close(group: ResourceGroup) -> None:
    """Close everything in order. An error while closing is logged and does not change the exit
    code.
    """
    try:
        await group.cleanup()
    # The rest of the shutdown goes on.
    except Exception as error:  # noqa: BLE001
        _log.error("cleanup failed", error=str(explain(error)))


class Stop:
    """SIGTERM and SIGINT: the first asks to stop, the second to hurry, later ones change nothing.

    The loop's own handlers would not do: removing them restores the default action for a moment,
    and a signal in that moment would kill the process.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.again = asyncio.Event()
        self.reason = ""
        self._hear, self._tell = socket.socketpair()

    def listen(self) -> None:
        for end in (self._hear, self._tell):
            end.setblocking(False)
        signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)
        asyncio.get_running_loop().add_reader(self._hear, self._heard)
        for number in self.SIGNALS:
            # The interpreter writes the signal's number to the socket; that is what we read.
            signal.signal(number, lambda *_: None)

    def ignore(self) -> None:
        """Ignore signals from now on: all is closed, a late signal must not spoil exit code 0."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        asyncio.get_running_loop().remove_reader(self._hear)
        for end in (self._hear, self._tell):
            end.close()

    def _heard(self) -> None:
        for number in self._hear.recv(64):
            if number in self.SIGNALS:
                self.reason = signal.Signals(number).name
                (self.again if self.asked.is_set() else self.asked).set()
