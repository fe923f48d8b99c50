"""The route label of a request comes from the app's own routes."""

from __future__ import annotations

import pytest
from api_fakes import Fakes
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from exo.api.app import build_app
from exo.api.route_labels import RouteLabels
from exo.contract import LIVE_PATH


def label(app: FastAPI, path: str, method: str = "GET") -> str:
    return RouteLabels(app.routes).of({"type": "http", "path": path, "method": method})


@pytest.mark.parametrize(
    ("path", "method", "expected"),
    [
        (LIVE_PATH, "GET", LIVE_PATH),
        ("/v1/chat/completions", "POST", "/v1/chat/completions"),
        ("/v1/chat/completions", "GET", "/v1/chat/completions"),
        ("/v1/models", "GET", "/v1/models"),
        ("/v1/models/some/name", "GET", "/v1/models/{id}"),
        ("/", "GET", "/"),
        ("/nowhere", "GET", "other"),
        ("/v1/chat/completions/x", "POST", "other"),
    ],
)
def test_a_path_has_the_label_of_its_route(path: str, method: str, expected: str) -> None:
    assert label(build_app(Fakes().context()), path, method) == expected


def test_a_route_that_is_added_has_a_label_at_once() -> None:
    async def hello(_: Request) -> Response:
        return Response()

    app = build_app(Fakes().context())
    labels = RouteLabels(app.routes)
    app.add_route("/hello/{who}", hello)
    assert labels.of({"type": "http", "path": "/hello/you", "method": "GET"}) == "/hello/{id}"
