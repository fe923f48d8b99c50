"""What a caller asks of a node and what it gets back, token by token. Pure data shared by the API
and the node.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from exo.inference.errors import ContextExceeded, InvalidRequest
from exo.inference.sampling.params import SamplingParams

# A `max_tokens` that asks for as much as the context window has left.
FILL_WINDOW: Final = 2**31 - 1


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens or the context window


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to produce. `prompt_tokens` come from the tokenizer; text never travels the
    ring. `request_id` is the HTTP request's: the sequences of one request share it.
    """

    request_id: str
    model_id: str
    prompt_tokens: tuple[int, ...]
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def fitted(self, context_length: int) -> GenerationRequest:
        """The request with `max_tokens` cut to what the context window leaves after the prompt.

        Raises `ContextExceeded` when that is nothing.
        """
        left = context_length - len(self.prompt_tokens)
        if left < 1:
            raise ContextExceeded(len(self.prompt_tokens), context_length)
        return self if self.max_tokens <= left else replace(self, max_tokens=left)

    def check_tokens(self, vocab: int) -> None:
        """Raises `InvalidRequest`, naming the field and a token id that a model with `vocab` tokens
        does not have.
        """
        for field_, tokens in (
            ("prompt", self.prompt_tokens),
            ("logit_bias", self.params.logit_bias),
        ):
            wrong = next((token for token in tokens if not 0 <= token < vocab), None)
            if wrong is not None:
                message = (
                    f"'{self.model_id}' has no token {wrong}: its vocabulary has {vocab}, with ids"
                    f" 0 to {vocab - 1}."
                )
                raise InvalidRequest(f"Invalid value for '{field_}': {message}", field=field_)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    token: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationChunk:
    """One step of the answer. `text` may be empty (half a character, or the beginning of a stop
    string).

    Only the last chunk has a `finish_reason`. `prompt_tokens` and `completion_tokens` count so far.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprob: TokenLogprob | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
