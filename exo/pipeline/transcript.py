"""`Transcript`: the tokens of one answer as chunks of text, up to its end. Pure; lives at the entry
node.
"""

from __future__ import annotations

from typing import Protocol

from exo.inference.generation import FinishReason, GenerationChunk, GenerationRequest, TokenLogprob
from exo.inference.text.detokenizer import StopMatcher
from exo.networking.messages import Token


class Detokenizer(Protocol):
    """`exo.inference.text.detokenizer.IncrementalDetokenizer` is one."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class Transcript:
    """`ends`: ids that end the answer and are not part of it."""

    def __init__(
        self, request: GenerationRequest, detokenizer: Detokenizer, ends: frozenset[int]
    ) -> None:
        self._request = request
        self._detokenizer = detokenizer
        self._stops = StopMatcher(request.stop)
        self._ends = frozenset() if request.ignore_eos else ends
        self._count = 0

    def is_end(self, token: int, count: int) -> bool:
        """Whether the answer ends with `token` as its `count`-th, stop strings aside."""
        return token in self._ends or count >= self._request.max_tokens

    def push(self, token: Token) -> GenerationChunk:
        """The next token; its chunk has a `finish_reason` when it is the last one."""
        self._count += 1
        if token.token in self._ends:
            return self._last(FinishReason.STOP)
        text, stopped = self._stops.push(self._detokenizer.push(token.token))
        if stopped:
            return self._chunk(text, token, FinishReason.STOP)
        if self._count >= self._request.max_tokens:
            rest, stopped = self._stops.push(self._detokenizer.flush())
            text += rest + self._stops.flush()
            return self._chunk(text, token, FinishReason.STOP if stopped else FinishReason.LENGTH)
        return self._chunk(text, token, None)

    def empty(self) -> GenerationChunk:
        """The answer of no tokens at all."""
        return self._last(FinishReason.LENGTH)

    def _last(self, reason: FinishReason) -> GenerationChunk:
        text, stopped = self._stops.push(self._detokenizer.flush())
        text += "" if stopped else self._stops.flush()
        return self._chunk(text, None, reason)

    def _chunk(
        self, text: str, token: Token | None, reason: FinishReason | None
    ) -> GenerationChunk:
        chosen = (
            None
            if token is None or token.logprob is None
            else TokenLogprob(token=token.token, logprob=token.logprob)
        )
        top = token.top_logprobs if token is not None else ()
        return GenerationChunk(
            text=text,
            tokens=() if token is None else (token.token,),
            logprob=chosen,
            top_logprobs=tuple(TokenLogprob(token=each, logprob=value) for each, value in top),
            finish_reason=reason,
            prompt_tokens=len(self._request.prompt_tokens),
            completion_tokens=self._count,
        )
