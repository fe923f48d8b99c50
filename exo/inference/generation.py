"""What a caller asks of a node and what it gets back, token by token. Pure data shared by the API
and the node.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from exo.inference.errors import InvalidRequest
from exo.inference.sampling.params import SamplingParams


class FinishReason(StrEnum):
    STOP = "stop"  # end-of-sequence token or a stop string
    LENGTH = "length"  # max_tokens or the context window
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One sequence to produce. `prompt_tokens` come from the tokenizer; text never travels the
    ring.
    """

    request_id: str
    model_id: str
    prompt_tokens: tuple[int, ...]
    max_tokens: int
    params: SamplingParams = field(default_factory=SamplingParams)
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def check_tokens(self, vocab: int) -> None:
        """Raises `InvalidRequest` naming a token id that a model with so many tokens does not have,
        and its field.
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
    """One step of the answer. `text` may be empty (half a character, or a stop string in the
    making).

    The last chunk, and only it, has `finish_reason`. `usage` counts tokens so far.
    """

    text: str
    tokens: tuple[int, ...] = ()
    logprob: TokenLogprob | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
