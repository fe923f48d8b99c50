"""The API client, and the HTTP server that it talks to in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from exo_operator.kube.client import KubeClient
from kubernetes.aio import client

from .http_server import Server


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


@pytest.fixture
async def kube(server: Server) -> AsyncIterator[KubeClient]:
    made = KubeClient(client.ApiClient(client.Configuration(host=server.url)))
    yield made
    await made.close()
