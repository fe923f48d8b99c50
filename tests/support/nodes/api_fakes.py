"""Small stand-ins for the node behind the API: a backend that says given words, a view, a
monitor; and how a test asks them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx

from exo.api.app import build_app
from exo.api.context import Context
from exo.api.probes import HealthProbes
from exo.api.settings import ApiSettings
from exo.inference.generation import FinishReason, GenerationChunk, GenerationRequest, TokenLogprob

WORDS = ("The", " capital", " of", " France", " is", " Paris", ".")
ANSWER = "".join(WORDS)
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class FakeBackend:
    """Says `words`, one token each (token i is word i), then stops; `max_tokens` cuts it.

    `error` is raised at step `error_at`. While `hold` is set, steps after the first wait for it.
    """

    words: tuple[str, ...] = WORDS
    context: int = 512
    error: Exception | None = None
    error_at: int = 0
    hold: asyncio.Event | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    chats: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = field(
        default_factory=list
    )
    open: set[int] = field(default_factory=set)  # numbers of sequences: 0, 1, ...
    closed: list[int] = field(default_factory=list)

    def models(self) -> list[dict[str, Any]]:
        return [{"id": "tiny", "created": 1, "owned_by": "exo", "context_length": self.context}]

    async def render_chat(
        self,
        model_id: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        self.chats.append((messages, tools))
        return tuple(range(sum(len(m["content"]) for m in messages) + 4))

    async def render_prompt(self, model_id: str, prompt: str) -> tuple[int, ...]:
        return tuple(range(len(prompt)))

    def token_bytes(self, model_id: str, token: int) -> bytes:
        return self.words[token % len(self.words)].encode()

    async def process_tokens(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        request, number = request.fitted(self.context), len(self.requests)
        self.requests.append(request)
        self.open.add(number)
        try:
            for step, word in enumerate(self.words):
                if self.error is not None and step == self.error_at:
                    raise self.error
                if step and self.hold is not None:
                    await self.hold.wait()
                yield self._chunk(request, step, word)
                if step + 1 == min(request.max_tokens, len(self.words)):
                    return
        finally:
            self.open.discard(number)
            self.closed.append(number)

    def _chunk(self, request: GenerationRequest, step: int, word: str) -> GenerationChunk:
        cut = step + 1 == request.max_tokens < len(self.words)
        last = step + 1 == len(self.words)
        top = request.params.logprobs
        return GenerationChunk(
            text=word,
            tokens=(step,),
            logprob=None if top is None else TokenLogprob(token=step, logprob=-0.5),
            top_logprobs=tuple(TokenLogprob(token=t, logprob=-0.5 - t) for t in range(top or 0)),
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP if last else None,
            prompt_tokens=len(request.prompt_tokens),
            completion_tokens=step + 1,
        )


@dataclass
class FakeView:
    node_id: str = "node-a"
    progress: str | None = None
    is_draining: bool = False

    def describe_topology(self) -> dict[str, Any]:
        return {"node_id": self.node_id, "nodes": [], "edges": []}

    def describe_ring(self) -> dict[str, Any]:
        return {
            "formed": True,
            "reason": "",
            "model_id": "tiny",
            "n_layers": 2,
            "epoch": "e",
            "standby": [],
            "stages": [],
        }

    def describe_requests(self) -> list[dict[str, Any]]:
        return []

    def describe_progress(self) -> str | None:
        return self.progress


@dataclass
class FakeMonitor:
    """A monitor whose report is what the test says."""

    live: Mapping[str, str] = field(default_factory=dict)
    started: Mapping[str, str] = field(default_factory=dict)
    ready: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, Any] = field(default_factory=dict)

    def report(self) -> Any:
        return SimpleNamespace(
            is_live=not self.live,
            is_started=not self.started,
            is_ready=not self.ready,
            reasons_live=self.live,
            reasons_started=self.started,
            reasons_ready=self.ready,
            resources=self.resources,
        )


@dataclass
class Fakes:
    backend: FakeBackend = field(default_factory=FakeBackend)
    view: FakeView = field(default_factory=FakeView)
    monitor: FakeMonitor = field(default_factory=FakeMonitor)
    settings: ApiSettings = field(default_factory=ApiSettings)

    def context(self) -> Context:
        return Context(
            self.backend, self.view, HealthProbes(self.monitor, self.view), self.settings
        )  # type: ignore[arg-type]

    def transport(self) -> httpx.ASGITransport:
        return httpx.ASGITransport(build_app(self.context()), raise_app_exceptions=True)

    def http(self, **headers: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=self.transport(), base_url="http://node", headers=headers
        )


async def ask(fakes: Fakes, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    async with fakes.http() as http:
        return await http.post(path, json=body)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    """The objects of a streamed answer, which must have ended well."""
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
