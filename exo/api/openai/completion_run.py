"""The sequences of one answer, run at the same time: one stream of (choice index, chunk), and what
became of each choice.

Leaving the iteration early, or being cancelled in it, closes every sequence at the backend.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

from exo.api import metrics
from exo.api.backend import Backend
from exo.api.metrics import Totals
from exo.api.openai.responses import CompletedChoice
from exo.inference.generation import GenerationChunk, GenerationRequest

# Steps that the sequences may be ahead of the client before they wait: enough to even out their
# speeds, few enough to bound memory.
_AHEAD = 64

Indexed = tuple[int, GenerationChunk]


class CompletionRun:
    """Use it once: either `steps`, within `contextlib.aclosing`, or `finish`."""

    def __init__(
        self,
        backend: Backend,
        requests: Sequence[GenerationRequest],
        totals: Totals,
        facts: dict[str, Any],
    ) -> None:
        """`facts`: gets what the access log says about the run when it ends."""
        self._backend = backend
        self._totals = totals
        self._facts = facts
        self._requests = requests
        self.choices = [CompletedChoice() for _ in requests]
        self.started = time.monotonic()
        self.first_token_s: float | None = None

    async def finish(self) -> None:
        async with contextlib.aclosing(self.steps()) as steps:
            async for _ in steps:
                pass

    async def steps(self) -> AsyncGenerator[Indexed, None]:
        steps = self._one() if len(self._requests) == 1 else self._many()
        try:
            async with contextlib.aclosing(steps):
                async for index, chunk in steps:
                    self._note(index, chunk)
                    yield index, chunk
            self._totals.answered += 1
        except Exception:
            self._totals.failed += 1
            raise
        finally:
            self._observe()

    async def _one(self) -> AsyncGenerator[Indexed, None]:
        async with _closing(self._backend.process_tokens(self._requests[0])) as chunks:
            async for chunk in chunks:
                yield 0, chunk

    async def _many(self) -> AsyncGenerator[Indexed, None]:
        """Each sequence is read by its own task; the first that fails ends the answer."""
        queue: asyncio.Queue[Indexed | BaseException | None] = asyncio.Queue(_AHEAD)
        pumps = [
            asyncio.create_task(
                self._pump(index, request, queue), name=f"choice {index} of {request.request_id}"
            )
            for index, request in enumerate(self._requests)
        ]
        try:
            live = len(pumps)
            while live:
                item = await queue.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    live -= 1
                else:
                    yield item
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(
        self,
        index: int,
        request: GenerationRequest,
        queue: asyncio.Queue[Indexed | BaseException | None],
    ) -> None:
        try:
            async with _closing(self._backend.process_tokens(request)) as chunks:
                async for chunk in chunks:
                    await queue.put((index, chunk))
        # Handed to the reader of the queue, which raises it.
        except Exception as error:  # noqa: BLE001
            await queue.put(error)
        else:
            await queue.put(None)

    def _note(self, index: int, chunk: GenerationChunk) -> None:
        choice = self.choices[index]
        new = chunk.completion_tokens - choice.completion_tokens
        if self.first_token_s is None and new:
            self.first_token_s = time.monotonic() - self.started
            metrics.FIRST_TOKEN.observe(self.first_token_s)
        choice.add(chunk)
        self._totals.completion_tokens += new
        metrics.TOKENS.labels("completion").inc(new)

    def _observe(self) -> None:
        # Choices of one prompt share the tuple of its tokens, which counts once, as in `usage`.
        prompts = {
            id(r.prompt_tokens): c.prompt_tokens
            for r, c in zip(self._requests, self.choices, strict=True)
        }
        prompt = sum(prompts.values())
        self._totals.prompt_tokens += prompt
        metrics.TOKENS.labels("prompt").inc(prompt)
        self._facts |= {
            "model": self._requests[0].model_id,
            "prompt_tokens": prompt,
            "completion_tokens": sum(choice.completion_tokens for choice in self.choices),
            "first_token_ms": None
            if self.first_token_s is None
            else round(self.first_token_s * 1000, 1),
        }
        if self.first_token_s is None:
            return
        decoded = sum(max(choice.completion_tokens - 1, 0) for choice in self.choices)
        seconds = time.monotonic() - self.started - self.first_token_s
        if decoded and seconds > 0:
            metrics.TOKEN_RATE.observe(decoded / seconds)


@contextlib.asynccontextmanager
async def _closing(
    chunks: AsyncIterator[GenerationChunk],
) -> AsyncIterator[AsyncIterator[GenerationChunk]]:
    """`aclosing` for an iterator: the protocol does not promise that it has `aclose`."""
    try:
        yield chunks
    finally:
        close = getattr(chunks, "aclose", None)
        if close is not None:
            await close()
