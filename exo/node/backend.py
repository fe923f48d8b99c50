"""`NodeBackend`: what the HTTP API asks of a node: its models, prompts as tokens, answers."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncGenerator, Callable
from typing import Any

from exo.inference.errors import InvalidRequest
from exo.inference.generation import GenerationChunk, GenerationRequest
from exo.inference.sampling.constraints import check_schema
from exo.inference.text.chat_template import encode_chat
from exo.node.model_loader import LocalModel
from exo.pipeline.frontend import Frontend


class NodeBackend:
    """check_usable: raises where the node can take no request in its present state."""

    def __init__(
        self, model: LocalModel, frontend: Frontend, check_usable: Callable[[], None]
    ) -> None:
        self._model = model
        self._frontend = frontend
        self._check_usable = check_usable

    def models(self) -> list[dict[str, Any]]:
        served = self._model.served
        if served is None:
            return []
        return [
            {
                "id": served.model_id,
                "object": "model",
                "created": served.created,
                "owned_by": "exo",
                "context_length": served.context_length,
            }
        ]

    async def render_chat(
        self,
        model_id: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        tokenizer = self._model.require(model_id).require_tokenizer()
        return tuple(await asyncio.to_thread(encode_chat, tokenizer, messages, tools))

    async def render_prompt(self, model_id: str, prompt: str) -> tuple[int, ...]:
        tokenizer = self._model.require(model_id).require_tokenizer()
        return tuple(await asyncio.to_thread(tokenizer.encode_prompt, prompt))

    def token_bytes(self, model_id: str, token: int) -> bytes:
        tokenizer = self._model.require(model_id).tokenizer
        return b"" if tokenizer is None else tokenizer.token_bytes(token, skip_special=False)

    async def process_tokens(
        self, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """See `exo.api.backend.Backend`."""
        # A node that drains is not usable in the end. The caller is to know that another node is.
        self._frontend.check_not_draining()
        self._check_usable()
        served = self._model.require(request.model_id)
        if not request.prompt_tokens:
            raise InvalidRequest("the prompt has no tokens", field="prompt")
        request.check_tokens(served.vocab)
        fitted = request.fitted(served.context_length)
        schema = request.params.json_schema
        if schema is not None:
            await asyncio.to_thread(
                check_schema, served.tokenizer, schema, served.ends, served.vocab
            )
        async with contextlib.aclosing(self._frontend.generate(fitted)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def answer(
        self, model_id: str, prompt: str, *, request_id: str | None = None, max_tokens: int
    ) -> list[int]:
        """The tokens of a whole answer, chosen with the default sampling parameters."""
        request = GenerationRequest(
            request_id=request_id or secrets.token_hex(8),
            model_id=model_id,
            prompt_tokens=await self.render_prompt(model_id, prompt),
            max_tokens=max_tokens,
        )
        async with contextlib.aclosing(self.process_tokens(request)) as chunks:
            return [token async for chunk in chunks for token in chunk.tokens]
