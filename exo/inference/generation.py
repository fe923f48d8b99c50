"""What a caller asks of a node and what it gets back, token by token. Pure data shared by API and
orchestration.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

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


class Backend(Protocol):
    """What the HTTP API needs of a node; `exo.orchestration.Node` is one."""

    def models(self) -> list[dict[str, Any]]:
        """The models served: `{"id": ..., "created": ..., "owned_by": ..., "context_length":
        ...}`.
        """
        ...

    async def render_chat(
        self,
        model_id: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        """Chat template and tokenizer. Raises `exo.inference.errors.InvalidRequest` for messages it
        refuses.
        """
        ...

    async def render_prompt(self, model_id: str, prompt: str) -> tuple[int, ...]: ...

    def process_tokens(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        """Generate; closing the iterator cancels the sequence and frees its KV on every stage.

        Raises (at the first step) `Overloaded` (429), `ModelNotFound` (404), `InvalidRequest`
        (400), `NodeDraining` or `RingUnavailable` (503), all from `exo.inference.errors`.
        """
        ...

    def token_bytes(self, model_id: str, token: int) -> bytes:
        """The bytes that one token stands for (half a character, perhaps); the logprobs of the API
        show them.
        """
        ...


class NodeView(Protocol):
    """What the dashboard, `exo status` and the operator read of a node; `exo.orchestration.Node` is
    one.

    All answers are ready for JSON, cheap, and never wait; they work in every state of the node.
    """

    @property
    def node_id(self) -> str: ...

    def describe_topology(self) -> dict[str, Any]:
        """`{"node_id", "nodes": [{"id", "address", "memory_mib", "chip", "state"}], "edges":
        [{"from", "to"}]}`.
        """
        ...

    def describe_ring(self) -> dict[str, Any]:
        """`{"formed", "reason", "model_id", "n_layers", "epoch", "standby": [id], "stages":
        [{"node_id", "start_layer",
        "end_layer"}]}`: the plan in force, and while there is none, why (`reason`)."""
        ...

    def describe_requests(self) -> list[dict[str, Any]]:
        """Live sequences:
        `{"request_id", "model_id", "state", "prompt_tokens", "completion_tokens", "age_seconds",
        "tokens_per_second"}`."""
        ...

    def describe_progress(self) -> str | None:
        """What a node that is not ready yet is doing ("loading model 43 %"), or "draining"; None
        when neither.
        """
        ...
