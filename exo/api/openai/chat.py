"""`POST /v1/chat/completions`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from exo.api.context import FACTS, Context, read_body
from exo.api.openai import params
from exo.api.openai import responses as replies
from exo.api.openai.completion_run import Run
from exo.api.openai.responses import Envelope, Json
from exo.api.openai.schema import ChatRequest, parse
from exo.api.openai.streams import EventStream, unless_gone
from exo.api.openai.tools import ToolCall, may_hold_calls, parse_calls
from exo.inference.errors import InvalidRequest
from exo.inference.generation import GenerationChunk
from exo.inference.sampling.constraints import FIELD as SCHEMA_FIELD


async def chat_completions(request: Request) -> Response:
    context: Context = request.app.state.context
    body = parse(ChatRequest, await read_body(request))
    context.admit()
    reply = ChatReply(context, body, context.envelope(body.model, "chatcmpl"))
    request.scope[FACTS] = reply.facts
    if body.stream:
        return EventStream(reply.events())
    return JSONResponse(await unless_gone(request.receive, reply.whole()))


class ChatReply:
    """One reply in the making."""

    def __init__(self, context: Context, body: ChatRequest, envelope: Envelope) -> None:
        self._context = context
        self.body = body
        self._envelope = envelope
        self.facts: dict[str, Any] = {}
        self.names = (
            {tool.function.name for tool in body.tools or []}
            if body.tool_choice != "none"
            else set()
        )
        self.token_bytes = partial(context.backend.token_bytes, body.model)

    async def whole(self) -> Json:
        run = await self._run()
        async with _schema_of(self.body):
            await run.finish()
        choices = []
        for index, choice in enumerate(run.choices):
            text, calls = self.read(index, choice.text)
            choices.append(
                replies.chat_choice(
                    index, choice, text, calls, self.token_bytes, logprobs=bool(self.body.logprobs)
                )
            )
        return self._envelope.wrap("chat.completion", choices, usage=replies.usage(run.choices))

    async def events(self) -> AsyncGenerator[Json, None]:
        run = await self._run()
        deltas = [_Deltas(self, index) for index in range(self.body.n or 1)]
        async with _schema_of(self.body), contextlib.aclosing(run.steps()) as steps:
            opened = False
            async for index, chunk in steps:
                if not opened:  # only now is it known that the request is accepted
                    for delta in deltas:
                        yield self._chunk(delta.opening())
                    opened = True
                for choice in deltas[index].take(chunk):
                    yield self._chunk(choice)
        if self._wants_usage:
            yield self._envelope.wrap("chat.completion.chunk", [], usage=replies.usage(run.choices))

    async def _run(self) -> Run:
        body, backend = self.body, self._context.backend
        model = self._context.model(body.model)
        prompt = await backend.render_chat(
            body.model, params.chat_messages(body.messages), params.chat_tools(body)
        )
        requests = params.sequences(
            body,
            request_id=self._envelope.id,
            prompt=prompt,
            context=model.context_length,
            seed=self._context.new_seed(),
            field="messages",
        )
        return Run(backend, requests, self._context.totals, self.facts)

    @property
    def _wants_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.include_usage)

    def _chunk(self, choice: Json) -> Json:
        rest: dict[str, Any] = {"usage": None} if self._wants_usage else {}
        return self._envelope.wrap("chat.completion.chunk", [choice], **rest)

    def read(self, index: int, text: str) -> tuple[str, list[ToolCall]]:
        if not self.names:
            return text, []
        return parse_calls(
            text,
            self.names,
            id_prefix=f"{self._envelope.id.removeprefix('chatcmpl-')[:24]}_{index}_",
        )


@contextlib.asynccontextmanager
async def _schema_of(body: ChatRequest) -> AsyncIterator[None]:
    """Where the answer must be a tool call, a schema that cannot be used is not
    `response_format`'s.
    """
    try:
        yield
    except InvalidRequest as error:
        if error.field == SCHEMA_FIELD and params.is_forced(body):
            error.field = "tools"
        raise


class _Deltas:
    """What of one choice's text is sent when: text that may yet become a tool call waits until it
    is known.
    """

    def __init__(self, reply: ChatReply, index: int) -> None:
        self._reply = reply
        self._index = index
        self._held = ""
        self._held_chunks: list[GenerationChunk] = []
        self._sent = False

    def opening(self) -> Json:
        return replies.chat_delta(
            self._index, {"role": "assistant", "content": "", "refusal": None}
        )

    def take(self, chunk: GenerationChunk) -> list[Json]:
        self._held += chunk.text
        self._held_chunks.append(chunk)
        if chunk.finish_reason is not None:
            return self._closing(chunk)
        if not self._held or (
            self._reply.names and may_hold_calls(self._held, at_start=not self._sent)
        ):
            return []
        return [self._flush(self._held)]

    def _flush(self, text: str) -> Json:
        logprobs = None
        if self._reply.body.logprobs:
            logprobs = replies.chat_logprobs(self._held_chunks, self._reply.token_bytes)
        self._held, self._held_chunks, self._sent = "", [], True
        return replies.chat_delta(self._index, {"content": text}, logprobs=logprobs)

    def _closing(self, chunk: GenerationChunk) -> list[Json]:
        text, calls = self._reply.read(self._index, self._held)
        out = [self._flush(text)] if text or any(c.logprob for c in self._held_chunks) else []
        out += [
            replies.chat_delta(self._index, {"tool_calls": [{"index": at, **call.to_dict()}]})
            for at, call in enumerate(calls)
        ]
        finish = "tool_calls" if calls else replies.finish_reason(chunk.finish_reason)
        return [*out, replies.chat_delta(self._index, {}, finish=finish)]
