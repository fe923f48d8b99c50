"""Between tokens and text at the entry node: the tokenizer's parts, and what stands in where a
model has none. Pure.
"""

from __future__ import annotations

from typing import Any

from exo.inference.text.chat_template import encode_chat
from exo.inference.text.detokenizer import IncrementalDetokenizer
from exo.inference.text.tokenizer import Tokenizer
from exo.pipeline.transcript import Detokenizer


def encode_messages(
    tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> tuple[int, ...]:
    """Raises `InvalidRequest`."""
    return tuple(encode_chat(tokenizer, messages, tools))


def detokenizer(tokenizer: Tokenizer | None) -> Detokenizer:
    return NoText() if tokenizer is None else IncrementalDetokenizer(tokenizer)


class NoText:
    """For a model without a tokenizer: its answers are token ids."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""
