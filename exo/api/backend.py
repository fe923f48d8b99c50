"""What the HTTP API needs of a node: `Backend` to generate text, `NodeView` to show its state.

`exo.node.backend.NodeBackend` is the one, `exo.node.node.Node` the other. The API owns these
protocols, so that it works with any object that has their methods and imports no part of a node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol

from exo.inference.generation import GenerationChunk, GenerationRequest


class Backend(Protocol):
    """Generates. All errors are from `exo.inference.errors`; `exo.api.problems` translates them."""

    def models(self) -> list[dict[str, Any]]:
        """The models served: `{"id", "created", "owned_by", "context_length"}` each."""
        ...

    async def render_chat(
        self,
        model_id: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        """The tokens of a conversation, by the model's chat template and tokenizer.

        Raises `InvalidRequest` for messages that the template refuses.
        """
        ...

    async def render_prompt(self, model_id: str, prompt: str) -> tuple[int, ...]:
        """The tokens of a text."""
        ...

    def process_tokens(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        """Generate. Closing the iterator cancels the sequence and frees its KV cache on every
        stage.

        Raises, at the first step, `Overloaded` (429), `ModelNotFound` (404), `InvalidRequest`
        (400), `NodeDraining` or `RingUnavailable` (503).
        """
        ...

    def token_bytes(self, model_id: str, token: int) -> bytes:
        """The bytes that one token stands for, for logprobs. They may be half a character."""
        ...


class NodeView(Protocol):
    """What the dashboard, `exo status` and the operator read of a node.

    All answers are ready for JSON and cheap; they never wait, and work in every state of the node.
    """

    @property
    def node_id(self) -> str: ...

    @property
    def is_draining(self) -> bool:
        """True from the moment the node admits no new request because it is shutting down."""
        ...

    def describe_topology(self) -> dict[str, Any]:
        """`{"node_id", "nodes": [{"id", "address", "memory_mib", "chip", "state"}],
        "edges": [{"from", "to"}]}`.
        """
        ...

    def describe_ring(self) -> dict[str, Any]:
        """The plan in force; while there is none, `reason` says why: `{"formed", "reason",
        "model_id", "n_layers", "epoch", "standby": [id], "stages": [{"node_id", "start_layer",
        "end_layer"}]}`.
        """
        ...

    def describe_requests(self) -> list[dict[str, Any]]:
        """Live sequences: `{"request_id", "model_id", "state", "prompt_tokens",
        "completion_tokens", "age_seconds", "tokens_per_second"}` each.
        """
        ...

    def describe_progress(self) -> str | None:
        """What a node that is not ready is doing ("loading model 43 %"), or how far its drain is;
        None when neither. For people only: code asks `is_draining`.
        """
        ...
