"""What every handler works with: the node behind the API, its health, the limits of this server."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request

from exo.api.backend import Backend, NodeView
from exo.api.metrics import Totals
from exo.api.probes import HealthProbes
from exo.api.problems import TooLarge, TooSlow
from exo.inference.errors import ModelNotFound, NodeDraining, RingUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Raises `ValueError` naming the field.

    api_key: when set, `/v1` and `/api/v1` ask for it; health, metrics and the pages do not.
    body_seconds: the time in which a request's body must arrive.
    drain_seconds: the time that running answers get to finish once the server stops.
    """

    host: str = "0.0.0.0"
    port: int = 0
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is no port (0 to 65535)")
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes: {self.max_body_bytes} must be at least 1")
        if self.drain_seconds < 0:
            raise ValueError(f"drain_seconds: {self.drain_seconds} must be 0 or more seconds")


@dataclass(frozen=True, slots=True)
class Context:
    backend: Backend
    view: NodeView
    probes: HealthProbes
    settings: ApiSettings
    totals: Totals = field(default_factory=Totals)

    def admit(self) -> None:
        """Raises `NodeDraining` or `RingUnavailable` when this node takes no new completions."""
        if self.view.is_draining:
            raise NodeDraining
        started = self.probes.started()
        if not started.ok:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in started.failing.items())
            raise RingUnavailable(f"this node is starting ({reasons})")

    def require_model(self, name: str) -> dict[str, Any]:
        """The model as `Backend.models` describes it. Raises `ModelNotFound`."""
        models = {str(model["id"]): model for model in self.backend.models()}
        if name not in models:
            raise ModelNotFound(name, tuple(models))
        return models[name]

    def new_seed(self) -> int:
        return secrets.randbits(63)


async def read_body(request: Request) -> bytes:
    """Raises `TooLarge` as soon as the length is over the limit, `TooSlow` when the body takes too
    long.
    """
    settings = request.app.state.context.settings
    try:
        async with asyncio.timeout(settings.body_seconds):
            return await _read(request, settings.max_body_bytes)
    except TimeoutError:
        raise TooSlow(settings.body_seconds) from None


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge(limit)
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            raise TooLarge(limit)
    return bytes(body)
