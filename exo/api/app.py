"""The routes: each path and the handler that answers it. Nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from exo import __version__
from exo.api import views
from exo.api.context import Context
from exo.api.middleware import RequestMiddleware
from exo.api.openai.chat import chat_completions
from exo.api.openai.completions import completions, embeddings
from exo.api.openai.schema import ChatRequest, CompletionRequest
from exo.api.problems import problem_of
from exo.contract import LIVE_PATH, METRICS_PATH, READY_PATH, STARTED_PATH

Handler = Callable[[Request], Awaitable[Response]]


def build_app(context: Context) -> FastAPI:
    # No built-in documentation pages: they load scripts from other hosts. /openapi.json is there.
    app = FastAPI(title="exo", version=__version__, docs_url=None, redoc_url=None)
    app.state.context = context
    app.add_middleware(RequestMiddleware, settings=context.settings, routes=app.routes)
    app.add_exception_handler(HTTPException, _http_problem)
    _add_openai(app)
    _add_views(app)
    return app


def _add_openai(app: FastAPI) -> None:
    def post(path: str, handler: Handler, body: dict[str, Any] | None = None) -> None:
        app.add_api_route(path, handler, methods=["POST"], response_model=None, openapi_extra=body)

    post("/v1/chat/completions", chat_completions, _body(ChatRequest))
    post("/v1/completions", completions, _body(CompletionRequest))
    post("/v1/embeddings", embeddings)
    app.add_api_route("/v1/models", views.list_models, response_model=None)
    app.add_api_route("/v1/models/{model:path}", views.get_model, response_model=None)


@cache
def _body(kind: type[BaseModel]) -> dict[str, Any]:
    """The body's part of the OpenAPI document. The handlers parse bodies themselves, so that errors
    have OpenAI's shape; FastAPI would not know of them.
    """
    schema = kind.model_json_schema()
    defs = schema.pop("$defs", {})
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _inlined(schema, defs)}},
        }
    }


def _inlined(schema: Any, defs: dict[str, Any]) -> Any:
    """The schema with its references filled in: OpenAPI resolves references against the whole
    document, which does not have these definitions.
    """
    if isinstance(schema, list):
        return [_inlined(item, defs) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(defs[schema["$ref"].rpartition("/")[2]], defs)
    return {key: _inlined(value, defs) for key, value in schema.items()}


def _add_views(app: FastAPI) -> None:
    routes: dict[str, Handler] = {
        LIVE_PATH: views.livez,
        READY_PATH: views.readyz,
        STARTED_PATH: views.startupz,
        METRICS_PATH: views.metrics,
        "/api/v1/topology": views.topology,
        "/api/v1/resources": views.resource_list,
        "/api/v1/ring": views.ring,
        "/api/v1/requests": views.requests,
        "/": views.page("dashboard.html"),
        "/chat": views.page("chat.html"),
    }
    for path, handler in routes.items():
        app.add_route(path, handler, methods=["GET"], include_in_schema=False)


async def _http_problem(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    return JSONResponse(problem.body(), problem.status, headers=problem.headers)
