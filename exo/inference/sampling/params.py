"""`SamplingParams`: how the next token is chosen. Pure data, checked once at the edge; travels the
ring as JSON.

The random choice is counter based: token at position p of a sequence depends only on the logits,
these parameters, the seed and p. So a replayed sequence, on whatever node, chooses the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Names and order of application as in Hugging Face transformers;
    `temperature` 0 means greedy.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    # How many alternatives to report with each token; 0: the chosen one only.
    logprobs: int | None = None
    json_schema: dict[str, Any] | None = None  # constrain to this schema; {} means any JSON object
