"""`Transcript`: the tokens of one answer as chunks of text, up to its end. Pure; lives at the entry
node.
"""

from __future__ import annotations

from typing import Protocol

from exo.inference.generation import FinishReason, GenerationChunk, GenerationRequest, TokenLogprob
from exo.inference.text.detokenizer import IncrementalDetokenizer, StopMatcher
from exo.inference.text.tokenizer import Tokenizer
from exo.networking.messages import Token


class Detokenizer(Protocol):
    """`exo.inference.text.detokenizer.IncrementalDetokenizer` is one."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class NoText:
    """The detokenizer of a model without a tokenizer: its answers are token ids only."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


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

    @classmethod
    def of(
        cls, request: GenerationRequest, tokenizer: Tokenizer | None, ends: frozenset[int]
    ) -> Transcript:
        detokenizer = NoText() if tokenizer is None else IncrementalDetokenizer(tokenizer)
        return cls(request, detokenizer, ends)

    def is_end(self, token: int, count: int) -> bool:
        """Whether the answer ends with `token` as its `count`-th, stop strings aside."""
        return token in self._ends or count >= self._request.max_tokens

    def push(self, token: Token) -> GenerationChunk:
        """The next token. Its chunk has a `finish_reason` when it is the last one."""
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
        return GenerationChunk(
            text=text,
            tokens=() if token is None else (token.token,),
            logprob=_chosen(token),
            top_logprobs=_top(token),
            finish_reason=reason,
            prompt_tokens=len(self._request.prompt_tokens),
            completion_tokens=self._count,
        )


def _chosen(token: Token | None) -> TokenLogprob | None:
    if token is None or token.logprob is None:
        return None
    return TokenLogprob(token=token.token, logprob=token.logprob)


def _top(token: Token | None) -> tuple[TokenLogprob, ...]:
    pairs = () if token is None else token.top_logprobs
    return tuple(TokenLogprob(token=each, logprob=value) for each, value in pairs)
