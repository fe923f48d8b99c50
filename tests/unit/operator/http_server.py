"""A small HTTP server on loopback in place of the API server."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web


class Server:
    """Gives the answers of a list in turn, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, dict[str, str], str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        body = json.loads(text) if text else None
        kind = request.headers.get("Content-Type", "")
        self.asked.append((request.method, request.path, dict(request.query), kind, body))
        status, answer = self.answers.pop(0) if self.answers else (200, {})
        return web.json_response(answer, status=status, headers=self.headers)
