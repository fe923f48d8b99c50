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
from exo.api.settings import ApiSettings
from exo.inference.errors import ModelNotFound, NodeDraining, RingUnavailable


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
