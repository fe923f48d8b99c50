"""`HealthServer`: grpc.health.v1 on a plaintext port of its own, for the kubelet.

Names: `live`, `started`, `ready`, one per resource type, and "" for the whole server, which means
`ready`. Answers come from the monitor's latest report, so a slow health check delays no probe. It
is not a part of the node, because it must answer while the node is still starting.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from exo.contract import HEALTH_PORT, LIVE_SERVICE, READY_SERVICE, STARTED_SERVICE
from exo.networking.grpc.listening import listen
from exo.networking.server import Server
from exo.utils.health_check import HealthMonitor, HealthReport

log = logging.getLogger(__name__)

SERVICE = "grpc.health.v1.Health"
MAX_WATCHERS = 64
# No probe's request comes near it.
MAX_REQUEST_BYTES = 4096
# A view can change with time alone, when a result grows old. No subscription reports that.
WATCH_INTERVAL = 1.0

Status = health_pb2.HealthCheckResponse
_VIEWS = {
    LIVE_SERVICE: lambda report: report.is_live,
    STARTED_SERVICE: lambda report: report.is_started,
    READY_SERVICE: lambda report: report.is_ready,
    "": lambda report: report.is_ready,
}


def status_of(report: HealthReport, service: str) -> int:
    """A `ServingStatus`. SERVICE_UNKNOWN for a name that is neither a view nor the type of a
    monitored resource.
    """
    view = _VIEWS.get(service)
    if view is not None:
        return int(Status.SERVING if view(report) else Status.NOT_SERVING)
    if all(health.resource_type != service for health in report.resources.values()):
        return int(Status.SERVICE_UNKNOWN)
    return int(Status.NOT_SERVING if report.of_type(service) else Status.SERVING)


class HealthServer(Server):
    RESOURCE_TYPE = "health_server"

    def __init__(
        self, node_id: str, host: str, monitor: HealthMonitor, *, port: int = HEALTH_PORT
    ) -> None:
        super().__init__(node_id, host, port)
        self._monitor = monitor
        self._server: Any = None
        self._watchers: set[asyncio.Event] = set()
        self._unsubscribe = _nothing

    async def _do_initialize(self) -> None:
        server = grpc.aio.server(
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ],
            maximum_concurrent_rpcs=2 * MAX_WATCHERS,
        )
        self._server = server
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(
                self._check, health_pb2.HealthCheckRequest.FromString, Status.SerializeToString
            ),
            "Watch": grpc.unary_stream_rpc_method_handler(
                self._watch, health_pb2.HealthCheckRequest.FromString, Status.SerializeToString
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = listen(server, self._host, self._port, setting="health_port")
        await server.start()
        self._real_port = port
        self._unsubscribe = self._monitor.subscribe(self._wake)

    async def _do_cleanup(self) -> None:
        self._unsubscribe()
        self._unsubscribe = _nothing
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0.1)
        self._real_port = self._port

    async def _do_health_check(self) -> bool:
        return self._server is not None

    async def _check(self, request: Any, context: Any) -> Any:
        status = status_of(self._monitor.report(), request.service)
        if status == Status.SERVICE_UNKNOWN:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service {request.service[:64]!r}"
            )
        return Status(status=status)

    async def _watch(self, request: Any, context: Any) -> None:
        """The status now, and again whenever it changes, until the client goes."""
        if len(self._watchers) >= MAX_WATCHERS:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_WATCHERS} watchers already"
            )
        changed = asyncio.Event()
        self._watchers.add(changed)
        last = -1
        try:
            while True:
                changed.clear()
                status = status_of(self._monitor.report(), request.service)
                if status != last:
                    last = status
                    await context.write(Status(status=status))
                try:
                    async with asyncio.timeout(WATCH_INTERVAL):
                        await changed.wait()
                except TimeoutError:
                    pass
        finally:
            self._watchers.discard(changed)

    def _wake(self, _: HealthReport) -> None:
        for changed in self._watchers:
            changed.set()


def _nothing() -> None:
    return None
