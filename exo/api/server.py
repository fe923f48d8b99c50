"""`ApiServer`: the HTTP face as an `AsyncResource`, on the node's own event loop.

It starts before the model is loaded, so that probes have an answer from the first moment. It closes
last.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import ClassVar

import structlog
import uvicorn

from exo.api.app import build_app
from exo.api.backend import Backend, NodeView
from exo.api.context import Context
from exo.api.probes import HealthProbes
from exo.api.settings import ApiSettings
from exo.lifecycle import AsyncResource, TaskPriority
from exo.utils.health_check import HealthMonitor
from exo.utils.listening import BACKLOG, listening_socket

_log = structlog.get_logger("exo.api")
# How long the last bytes of an answer that was cut may take to be sent.
_LAST_BYTES_SECONDS = 1.0


class ApiServer(AsyncResource):
    """Serves `backend` on `settings.host` and `settings.port`; port 0 takes any free one.

    `cleanup` stops accepting, lets running answers finish for at most `drain_seconds`, and cuts off
    the rest.
    """

    RESOURCE_TYPE: ClassVar[str] = "api_server"

    def __init__(
        self, backend: Backend, view: NodeView, monitor: HealthMonitor, settings: ApiSettings
    ) -> None:
        super().__init__(
            resource_id=f"api-{view.node_id}",
            display_name=f"HTTP API of node {view.node_id}",
            cleanup_timeout=settings.drain_seconds + 10.0,
        )
        self.settings = settings
        self._context = Context(backend, view, HealthProbes(monitor, view), settings)
        self._server: _Uvicorn | None = None
        self._port = settings.port

    @property
    def port(self) -> int:
        """The port in use; before `initialize`, the one asked for."""
        return self._port

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.settings.host, self.settings.host)
        return f"http://{host}:{self._port}"

    async def _do_initialize(self) -> None:
        bound = listening_socket(self.settings.host, self.settings.port, "api_port")
        self._port = bound.getsockname()[1]
        try:
            self._server = _Uvicorn(_config(self._context, self.settings))
            await self._server.open(bound)
        except BaseException:
            bound.close()
            raise
        _log.info("listening", url=self.url, port=self._port)
        self._task_manager.start_task(
            "api server ticks", self._server.main_loop, priority=TaskPriority.CRITICAL
        )

    async def _do_cleanup(self) -> None:
        server, self._server = self._server, None
        self._port = self.settings.port
        if server is not None:
            await server.close(self.settings.drain_seconds)

    async def _do_health_check(self) -> bool:
        return self._server is not None and self._server.is_accepting


def _config(context: Context, settings: ApiSettings) -> uvicorn.Config:
    return uvicorn.Config(
        build_app(context),
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=75,
        h11_max_incomplete_event_size=64 * 1024,
    )


class _Uvicorn(uvicorn.Server):
    """uvicorn driven by our own lifecycle: it does not bind, handle signals or exit the process."""

    async def open(self, bound: socket.socket) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.on_tick(0)  # the Date header is there from the first answer
        await self.startup(sockets=[bound])

    @property
    def is_accepting(self) -> bool:
        return bool(self.servers) and all(server.is_serving() for server in self.servers)

    async def close(self, drain_seconds: float) -> None:
        """Stop accepting. Idle connections close at once, running answers get `drain_seconds`."""
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        try:
            await asyncio.wait_for(self._answered(), drain_seconds)
        except TimeoutError:
            await self._cut()

    async def _answered(self) -> None:
        while tasks := set(self.server_state.tasks):
            await asyncio.wait(tasks)
        # The last bytes of an answer may still be in a buffer. Its connection closes once they are
        # written.
        while self.server_state.connections:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)

    async def _cut(self) -> None:
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel("the server stops")
        await asyncio.gather(*tasks, return_exceptions=True)
        # Closing sends what is buffered. A client that does not read gets nothing more.
        for connection in list(self.server_state.connections):
            connection.transport.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered(), _LAST_BYTES_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # the sockets close in the loop's next turn
