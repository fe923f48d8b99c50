"""`ModelConfig`: everything an engine must know of a decoder-only transformer besides its weights.
Pure data.

The block that all families share: x + attention(norm(x)), then x + mlp(norm(x)), RMS norms, rotary
positions on the two halves of each head, grouped-query attention, gated MLP. The fields say where a
family differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

# Larger than any model's, so that the sizes in a broken file are refused.
LIMITS: Final = {
    "n_layers": 1024,
    "heads": 4096,
    "kv_heads": 4096,
    "head_dim": 8192,
    "context_length": 1 << 31,
}
MAX_SIZE: Final = 1 << 24


def size(name: str, value: object) -> int:
    """`value` as the size `name` of a model. Raises `ValueError` unless it is a whole number in a
    sensible range.
    """
    limit = LIMITS.get(name, MAX_SIZE)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise ValueError(f"{name} is {value!r}, not a number from 1 to {limit}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary embedding. `dims` of each head are rotated (the first ones), the rest passes through.

    divisors: each frequency is divided by its own (llama3, GGUF rope_freqs, longrope's short
        factors); () is none.
    long_divisors: used instead where a sequence is longer than `original_context` (longrope).
    scale: multiplies cos and sin.
    """

    theta: float = 10000.0
    dims: int
    divisors: tuple[float, ...] = ()
    long_divisors: tuple[float, ...] = ()
    original_context: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.theta, self.scale, *self.divisors, *self.long_divisors)
        if not all(1e-6 < abs(n) < 1e12 and n > 0 for n in numbers):
            raise ValueError(
                f"rope theta {self.theta!r}, scale {self.scale!r} or a factor is not a sensible"
                " number"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    family: str
    n_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context_length: int
    norm_eps: float
    rope: RopeConfig
    # The head is the embedding matrix.
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    # RMS norm of each q and k head before rotation (qwen3).
    qk_norm: bool = False
    # A second norm after attention and after the MLP, before the residual sum (gemma2).
    post_norms: bool = False
    # Per layer: position i sees j with 0 <= i - j < window; None sees all. () is None everywhere.
    windows: tuple[int | None, ...] = ()
    # logits -> cap * tanh(logits / cap), of attention scores and of the head.
    attn_softcap: float | None = None
    final_softcap: float | None = None
    # Attention scores are q . k * query_scale; 0 means head_dim ** -0.5.
    query_scale: float = 0.0
    embed_scale: float = 1.0
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (
            "n_layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab",
            "context_length",
        ):
            size(name, getattr(self, name))
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads")
        if self.rope.dims % 2 or not 0 < self.rope.dims <= self.head_dim:
            raise ValueError(f"rope rotates {self.rope.dims} of {self.head_dim} dimensions")
        for divisors in (self.rope.divisors, self.rope.long_divisors):
            if divisors and len(divisors) != self.rope.dims // 2:
                raise ValueError(
                    f"{len(divisors)} rope factors for {self.rope.dims // 2} frequencies"
                )
        if not 0 < self.norm_eps < 1:
            raise ValueError(f"norm_eps is {self.norm_eps!r}")
        for name in ("attn_softcap", "final_softcap", "query_scale", "embed_scale"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e6:
                raise ValueError(f"{name} is {value!r}")
        if self.windows and len(self.windows) != self.n_layers:
            raise ValueError(f"{len(self.windows)} attention windows for {self.n_layers} layers")

    def window(self, layer: int) -> int | None:
        return self.windows[layer] if self.windows else None

    @property
    def attention_scale(self) -> float:
        return self.query_scale or self.head_dim**-0.5

    @property
    def kv_values_per_token_and_layer(self) -> int:
        """Numbers in the keys and values of one token."""
        return 2 * self.kv_heads * self.head_dim
