"""`POST /v1/completions`, the legacy endpoint, and `POST /v1/embeddings`, which is refused."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from exo.api.context import read_body
from exo.api.openai import responses
from exo.api.openai.reply import ChoiceStream, Reply, answer
from exo.api.openai.responses import CompletedChoice, Json
from exo.api.openai.schema import CompletionRequest, Prompt
from exo.inference.errors import InvalidRequest
from exo.inference.generation import FinishReason, GenerationChunk


async def completions(request: Request) -> Response:
    return await answer(request, TextReply)


async def embeddings(request: Request) -> Response:
    await read_body(request)
    raise InvalidRequest(
        "The models of this node generate text; none of them makes embeddings.", field="model"
    )


class TextReply(Reply[CompletionRequest]):
    """Several prompts, `n` choices each, and the prompt's text before the answer with `echo`."""

    BODY = CompletionRequest
    ID_PREFIX = "cmpl"
    OBJECT = CHUNK_OBJECT = "text_completion"

    async def prompts(self) -> Sequence[tuple[int, ...]]:
        return [await self._tokens(prompt) for prompt in self.body.prompt]

    async def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        if isinstance(prompt, str):
            return await self._context.backend.render_prompt(self.body.model, prompt)
        return prompt

    def choice(self, index: int, made: CompletedChoice) -> Json:
        echo = self._echo(index)
        return self.event(index, echo + made.text, made.finish, made.chunks, offset=len(echo))

    def choice_stream(self, index: int) -> ChoiceStream:
        return _TextStream(self, index, self._echo(index))

    def _echo(self, index: int) -> str:
        if not self.body.echo:
            return ""
        prompt = self.body.prompt[index // (self.body.n or 1)]
        if isinstance(prompt, str):
            return prompt
        return b"".join(map(self.token_bytes, prompt)).decode(errors="replace")

    def event(
        self,
        index: int,
        text: str,
        finish: FinishReason | None,
        chunks: Sequence[GenerationChunk],
        *,
        offset: int,
    ) -> Json:
        logprobs = None
        if self.body.logprobs is not None:
            logprobs = responses.text_logprobs(chunks, self.token_bytes, offset=offset)
        reason = responses.finish_reason(finish)
        return responses.text_choice(index, text, finish=reason, logprobs=logprobs)


class _TextStream(ChoiceStream):
    def __init__(self, reply: TextReply, index: int, echo: str) -> None:
        self._reply = reply
        self._index = index
        self._echo = echo
        self._offset = 0

    def take(self, chunk: GenerationChunk) -> list[Json]:
        text, self._echo = self._echo + chunk.text, ""
        offset, self._offset = self._offset, self._offset + len(text)
        if not text and chunk.finish_reason is None:
            return []
        return [self._reply.event(self._index, text, chunk.finish_reason, [chunk], offset=offset)]
