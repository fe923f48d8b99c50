"""What every request passes: its id, the API key, errors as JSON, metrics and one line in the
access log.

Plain ASGI, so that a streamed answer passes through untouched.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final

import structlog
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exo.api import metrics as meters
from exo.api.context import FACTS, ApiSettings
from exo.api.openai.streams import ClientGone
from exo.api.problems import Problem, Unauthorized, problem_of
from exo.contract import LIVE_PATH, METRICS_PATH, READY_PATH, STARTED_PATH
from exo.inference.errors import NodeDraining

_log = structlog.get_logger("exo.api")
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
_KEYED: Final = ("/v1/", "/api/")
_QUIET: Final = frozenset({LIVE_PATH, READY_PATH, STARTED_PATH, METRICS_PATH})
CLIENT_GONE: Final = 499


class Gate:
    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, send)
        route = _label(scope["path"])
        with meters.IN_FLIGHT.labels(route).track_inprogress():
            try:
                self._authorize(scope)
                await self._app(scope, receive, exchange.send)
            except ClientGone:
                exchange.status = CLIENT_GONE
            except asyncio.CancelledError:  # the server stops; this is the task's outermost frame
                await exchange.fail(NodeDraining("the node stops"), receive)
            # The outermost frame: every error becomes an answer here.
            except Exception as error:  # noqa: BLE001
                await exchange.fail(error, receive)
        exchange.report(route)

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


@dataclass(slots=True)
class _Exchange:
    """One request and how its answer goes."""

    scope: Scope
    raw_send: Send
    request_id: str = ""
    status: int = 0
    started: float = 0.0
    error: Problem | None = None

    def __post_init__(self) -> None:
        given = Headers(scope=self.scope).get("x-request-id", "")
        self.request_id = given if _ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        self.started = time.monotonic()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        await self.raw_send(message)

    async def fail(self, error: Exception, receive: Receive) -> None:
        self.error = problem_of(error)
        if self.error.status >= 500 and self.error.type == "server_error":
            _log.error(
                "request failed",
                request_id=self.request_id,
                path=self.scope["path"],
                exc_info=error,
            )
        # Else the answer has begun: its writer has told the client in its own way.
        if not self.status:
            answer = JSONResponse(self.error.body(), self.error.status, headers=self.error.headers)
            await answer(self.scope, receive, self.send)

    def report(self, route: str) -> None:
        seconds = time.monotonic() - self.started
        method = self.scope["method"]
        meters.REQUESTS.labels(route, _method(method), str(self.status)).inc()
        meters.SECONDS.labels(route).observe(seconds)
        path = self.scope["path"]
        # Probes, scrapers and open dashboards ask every second: they would drown what people look
        # for.
        log = _log.debug if path in _QUIET or path.startswith("/api/") else _log.info
        facts: dict[str, Any] = {**self.scope.get(FACTS, {})}
        if self.error is not None:
            facts["error"] = self.error.message
        log(
            "request",
            request_id=self.request_id,
            method=method,
            path=path[:256],
            status=self.status,
            duration_ms=round(seconds * 1000, 1),
            **facts,
        )


_ROUTES: Final = frozenset(
    {
        "/",
        "/chat",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/api/v1/topology",
        "/api/v1/resources",
        "/api/v1/ring",
        "/api/v1/requests",
        *_QUIET,
    }
)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})


def _label(path: str) -> str:
    if path.startswith("/v1/models/"):
        return "/v1/models/{id}"
    return path if path in _ROUTES else "other"


def _method(method: str) -> str:
    return method if method in _METHODS else "other"
