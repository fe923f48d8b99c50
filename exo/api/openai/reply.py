"""The handler of both completion endpoints, and `Reply`: what their answers have in common.

An endpoint is a subclass of `Reply`. It says which body it parses, which prompts that body has,
and how a choice looks whole and as stream events.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import ClassVar, Generic, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from exo.api.context import Context, read_body
from exo.api.exchange import Exchange, answer_id
from exo.api.openai import params, responses
from exo.api.openai.completion_run import CompletionRun
from exo.api.openai.responses import CompletedChoice, Envelope, Json
from exo.api.openai.schema import ChatRequest, CompletionRequest, parse
from exo.api.openai.streams import EventStream, unless_gone
from exo.inference.generation import GenerationChunk

BodyT = TypeVar("BodyT", ChatRequest, CompletionRequest)


async def answer(request: Request, kind: type[Reply[BodyT]]) -> Response:
    """Parse the body, check that this node takes it, and answer whole or as a stream."""
    context: Context = request.app.state.context
    body = parse(kind.BODY, await read_body(request))
    context.admit()
    context.require_model(body.model)
    exchange = Exchange.of(request.scope)
    reply = kind(context, body, exchange)
    exchange.params = reply.param_names()
    if body.stream:
        return EventStream(reply.events())
    return JSONResponse(await unless_gone(request.receive, reply.whole()))


class ChoiceStream(ABC):
    """One choice of a streamed answer: turns the chunks of its sequence into stream events."""

    def opening(self) -> list[Json]:
        """What is sent before the first text of any choice."""
        return []

    @abstractmethod
    def take(self, chunk: GenerationChunk) -> list[Json]: ...


class Reply(ABC, Generic[BodyT]):
    """One answer in the making. Use `whole` or `events`, once."""

    BODY: type[BodyT]
    ID_PREFIX: ClassVar[str]
    OBJECT: ClassVar[str]
    CHUNK_OBJECT: ClassVar[str]

    def __init__(self, context: Context, body: BodyT, exchange: Exchange) -> None:
        self._context = context
        self._request_id = exchange.request_id
        self._facts = exchange.facts
        self.body: BodyT = body
        self.envelope = Envelope(
            id=answer_id(self.ID_PREFIX, exchange.request_id),
            created=int(time.time()),
            model=body.model,
        )
        self.token_bytes = partial(context.backend.token_bytes, body.model)
        self._facts["answer_id"] = self.envelope.id

    def param_names(self) -> Mapping[str, str]:
        """What this endpoint calls the fields that errors from below the API name."""
        return {}

    @abstractmethod
    async def prompts(self) -> Sequence[tuple[int, ...]]:
        """The tokens of each prompt; each has `n` choices, in this order."""

    @abstractmethod
    def choice(self, index: int, made: CompletedChoice) -> Json:
        """A choice of an answer that is sent whole."""

    @abstractmethod
    def choice_stream(self, index: int) -> ChoiceStream: ...

    async def whole(self) -> Json:
        run = await self._run()
        await run.finish()
        choices = [self.choice(index, made) for index, made in enumerate(run.choices)]
        return self.envelope.wrap(self.OBJECT, choices, usage=self._usage(run))

    async def events(self) -> AsyncGenerator[Json, None]:
        run = await self._run()
        streams = [self.choice_stream(index) for index in range(len(run.choices))]
        async with contextlib.aclosing(run.steps()) as steps:
            opened = False
            async for index, chunk in steps:
                if not opened:  # the first step has shown that the request is accepted
                    opened = True
                    for each in streams:
                        for choice in each.opening():
                            yield self._event(choice)
                for choice in streams[index].take(chunk):
                    yield self._event(choice)
        if self._wants_usage:
            yield self.envelope.wrap(self.CHUNK_OBJECT, [], usage=self._usage(run))

    async def _run(self) -> CompletionRun:
        requests = [
            sequence
            for prompt in await self.prompts()
            for sequence in params.sequences(
                self.body, request_id=self._request_id, prompt=prompt, seed=self._context.new_seed()
            )
        ]
        return CompletionRun(self._context.backend, requests, self._context.totals, self._facts)

    def _event(self, choice: Json) -> Json:
        rest: Json = {"usage": None} if self._wants_usage else {}
        return self.envelope.wrap(self.CHUNK_OBJECT, [choice], **rest)

    def _usage(self, run: CompletionRun) -> Json:
        return responses.usage(run.choices, per_prompt=self.body.n or 1)

    @property
    def _wants_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.include_usage)
