"""What every request passes: its id, the API key, errors as JSON, metrics, and its log line.

Plain ASGI, so that a streamed answer passes through untouched.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Iterable
from typing import Final

import structlog
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exo.api import metrics
from exo.api.exchange import Exchange
from exo.api.openai.streams import ClientGone
from exo.api.problems import Problem, Unauthorized, problem_of
from exo.api.route_labels import RouteLabels
from exo.api.settings import ApiSettings
from exo.contract import LIVE_PATH, METRICS_PATH, READY_PATH, STARTED_PATH
from exo.inference.errors import NodeDraining

_log = structlog.get_logger("exo.api")
_KEYED: Final = ("/v1/", "/api/")
_QUIET: Final = frozenset({LIVE_PATH, READY_PATH, STARTED_PATH, METRICS_PATH})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
CLIENT_GONE: Final = 499


class RequestMiddleware:
    """The outermost layer: nothing that a handler raises goes past it."""

    def __init__(self, app: ASGIApp, settings: ApiSettings, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        self._settings = settings
        self._labels = RouteLabels(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange.open(scope)
        # Each request runs in a task of its own (uvicorn's), so the variable is this request's
        # only. Tasks and generators that the handler starts inherit it.
        with structlog.contextvars.bound_contextvars(request_id=exchange.request_id):
            await self._answer(_Reply(scope, send, exchange), scope, receive)

    async def _answer(self, reply: _Reply, scope: Scope, receive: Receive) -> None:
        route = self._labels.of(scope)
        with metrics.IN_FLIGHT.labels(route).track_inprogress():
            try:
                self._authorize(scope)
                await self._app(scope, receive, reply.send)
            except ClientGone:
                reply.status = CLIENT_GONE
            except asyncio.CancelledError:  # the server stops; this is the task's outermost frame
                await reply.fail(NodeDraining("the node stops"), receive)
            # The outermost frame: every error becomes an answer here.
            except Exception as error:  # noqa: BLE001
                await reply.fail(error, receive)
        reply.report(route)

    def _authorize(self, scope: Scope) -> None:
        key = self._settings.api_key
        if key is None or not scope["path"].startswith(_KEYED):
            return
        given = Headers(scope=scope).get("authorization", "")
        kind, _, token = given.partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Unauthorized(
                "an API key is needed: send the header 'Authorization: Bearer <key>'"
            )
        if not hmac.compare_digest(token.strip().encode(), key.encode()):
            raise Unauthorized("the API key is not the right one")


class _Reply:
    """How the answer to one request goes: what was sent, what went wrong, how long it took."""

    def __init__(self, scope: Scope, send: Send, exchange: Exchange) -> None:
        self.status = 0
        self._scope = scope
        self._send = send
        self._exchange = exchange
        self._problem: Problem | None = None
        self._started = time.monotonic()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = (b"x-request-id", self._exchange.request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), own]}
        await self._send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        problem = self._problem = problem_of(error, self._exchange.params)
        if problem.status >= 500 and problem.type == "server_error":
            _log.error("request failed", path=self._scope["path"], exc_info=error)
        # Once the answer has begun, the one who writes it reports the error inside it.
        if not self.status:
            answer = JSONResponse(problem.body(), problem.status, headers=problem.headers)
            await answer(self._scope, receive, self.send)

    def report(self, route: str) -> None:
        seconds = time.monotonic() - self._started
        method, path = self._scope["method"], self._scope["path"]
        known = method if method in _METHODS else "other"
        metrics.REQUESTS.labels(route, known, str(self.status)).inc()
        metrics.SECONDS.labels(route).observe(seconds)
        # Probes, scrapers and open dashboards ask every second; at info level their lines would
        # hide the others.
        log = _log.debug if path in _QUIET or path.startswith("/api/") else _log.info
        problem = {} if self._problem is None else {"error": self._problem.message}
        log(
            "request",
            method=method,
            path=path[:256],
            status=self.status,
            duration_ms=round(seconds * 1000, 1),
            **self._exchange.facts,
            **problem,
        )
