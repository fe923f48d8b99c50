"""The handlers that only show something: `/api/v1/*` (the JSON behind the dashboard and
`exo status`), health endpoints, metrics, models and pages.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from functools import cache
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from exo.api.context import Context
from exo.api.probes import Probe, describe_degradations
from exo.observability.metrics import render


def _context(request: Request) -> Context:
    context: Context = request.app.state.context
    return context


def _probe(request: Request, probe: Probe) -> Response:
    body = probe.body()
    if "verbose" in request.query_params:
        body["resources"] = _context(request).probes.resources()
    return JSONResponse(body, 200 if probe.ok else 503, headers={"Cache-Control": "no-store"})


async def livez(request: Request) -> Response:
    return _probe(request, _context(request).probes.live())


async def readyz(request: Request) -> Response:
    return _probe(request, _context(request).probes.ready())


async def startupz(request: Request) -> Response:
    return _probe(request, _context(request).probes.started())


async def metrics(request: Request) -> Response:
    body, content_type = render(request.headers.get("accept", ""))
    return Response(body, headers={"Content-Type": content_type})


async def list_models(request: Request) -> Response:
    models = _context(request).backend.models()
    return JSONResponse({"object": "list", "data": [_model(model) for model in models]})


async def get_model(request: Request) -> Response:
    return JSONResponse(_model(_context(request).require_model(request.path_params["model"])))


def _model(described: dict[str, Any]) -> dict[str, Any]:
    return {"object": "model", "created": 0, "owned_by": "exo", **described}


async def topology(request: Request) -> Response:
    return JSONResponse(_context(request).view.describe_topology())


async def ring(request: Request) -> Response:
    return JSONResponse(_context(request).view.describe_ring())


async def requests(request: Request) -> Response:
    context = _context(request)
    return JSONResponse(
        {"requests": context.view.describe_requests(), "totals": asdict(context.totals)}
    )


async def resource_list(request: Request) -> Response:
    context = _context(request)
    probes = {
        "live": context.probes.live(),
        "ready": context.probes.ready(),
        "started": context.probes.started(),
    }
    return JSONResponse(
        {
            "node_id": context.view.node_id,
            "draining": context.view.is_draining,
            "progress": context.view.describe_progress(),
            **{name: probe.body() for name, probe in probes.items()},
            "resources": context.probes.resources(),
            "degradations": describe_degradations(),
        }
    )


# The pages load nothing from other hosts, and the browser enforces it.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@cache
def page(name: str) -> Callable[[Request], Awaitable[Response]]:
    """The handler of a page. Its text is read once."""
    pages = resources.files("exo.api") / "pages"
    theme = (pages / "theme.css").read_text(encoding="utf-8")
    html = (pages / name).read_text(encoding="utf-8").replace("/*theme*/", theme)

    async def serve(request: Request) -> Response:
        return HTMLResponse(html, headers=_PAGE_HEADERS)

    return serve
