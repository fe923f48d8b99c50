"""`POST /v1/completions`: the legacy endpoint, and what `/v1/embeddings` has to say."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from exo.api.context import FACTS, Context, read_body
from exo.api.openai import params
from exo.api.openai import responses as replies
from exo.api.openai.completion_run import Run
from exo.api.openai.responses import Choice, Envelope, Json
from exo.api.openai.schema import CompletionRequest, Prompt, parse
from exo.api.openai.streams import EventStream, unless_gone
from exo.inference.errors import InvalidRequest
from exo.inference.generation import GenerationChunk, GenerationRequest


async def completions(request: Request) -> Response:
    context: Context = request.app.state.context
    body = parse(CompletionRequest, await read_body(request))
    context.admit()
    reply = TextReply(context, body, context.envelope(body.model, "cmpl"))
    request.scope[FACTS] = reply.facts
    if body.stream:
        return EventStream(reply.events())
    return JSONResponse(await unless_gone(request.receive, reply.whole()))


async def embeddings(request: Request) -> Response:
    await read_body(request)
    raise InvalidRequest(
        "The models of this node generate text; none of them makes embeddings.", field="model"
    )


class TextReply:
    """One reply in the making: `n` choices for each prompt, in the order of the prompts."""

    def __init__(self, context: Context, body: CompletionRequest, envelope: Envelope) -> None:
        self._context = context
        self._body = body
        self._envelope = envelope
        self.facts: dict[str, Any] = {}
        self._token_bytes = partial(context.backend.token_bytes, body.model)

    async def whole(self) -> Json:
        run, echoes = await self._run()
        await run.finish()
        choices = [
            replies.text_choice(
                index,
                echo + choice.text,
                finish=replies.finish_reason(choice.finish),
                logprobs=self._logprobs(choice.chunks, len(echo)),
            )
            for index, (choice, echo) in enumerate(zip(run.choices, echoes, strict=True))
        ]
        return self._envelope.wrap("text_completion", choices, usage=self._usage(run.choices))

    async def events(self) -> AsyncGenerator[Json, None]:
        run, echoes = await self._run()
        offsets = [0] * len(echoes)
        async with contextlib.aclosing(run.steps()) as steps:
            async for index, chunk in steps:
                text = echoes[index] + chunk.text
                echoes[index] = ""
                if text or chunk.finish_reason is not None:
                    yield self._chunk(index, text, chunk, offsets[index])
                offsets[index] += len(text)
        if self._wants_usage:
            yield self._envelope.wrap("text_completion", [], usage=self._usage(run.choices))

    async def _run(self) -> tuple[Run, list[str]]:
        body = self._body
        model = self._context.model(body.model)
        requests: list[GenerationRequest] = []
        echoes: list[str] = []
        for at, prompt in enumerate(body.prompt):
            wanted = params.sequences(
                body,
                request_id=self._envelope.id if not at else f"{self._envelope.id}-p{at}",
                prompt=await self._tokens(prompt),
                context=model.context_length,
                seed=self._context.new_seed(),
                field="prompt",
            )
            requests += wanted
            echoes += [self._echo(prompt)] * len(wanted)
        return Run(self._context.backend, requests, self._context.totals, self.facts), echoes

    async def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await self._context.backend.render_prompt(self._body.model, prompt)
        return prompt

    def _echo(self, prompt: Prompt) -> str:
        if not self._body.echo:
            return ""
        if isinstance(prompt, str):
            return prompt
        return b"".join(map(self._token_bytes, prompt)).decode(errors="replace")

    def _chunk(self, index: int, text: str, chunk: GenerationChunk, offset: int) -> Json:
        choice = replies.text_choice(
            index,
            text,
            finish=replies.finish_reason(chunk.finish_reason),
            logprobs=self._logprobs([chunk], offset),
        )
        rest = {"usage": None} if self._wants_usage else {}
        return self._envelope.wrap("text_completion", [choice], **rest)

    def _logprobs(self, chunks: list[GenerationChunk], offset: int) -> Json | None:
        if self._body.logprobs is None:
            return None
        return replies.text_logprobs(chunks, self._token_bytes, offset=offset)

    def _usage(self, choices: list[Choice]) -> Json:
        return replies.usage(choices, prompts=len(self._body.prompt))

    @property
    def _wants_usage(self) -> bool:
        options = self._body.stream_options
        return bool(options and options.include_usage)
