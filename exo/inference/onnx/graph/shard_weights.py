"""`ShardWeights`: the canonical tensors of a checkpoint in the form the decoder graph wants. Knows
no ONNX.

Two things change. The format of each matrix is chosen (`formats.convert`). And heads are laid out
for GroupQueryAttention: its head size is a multiple of 16, and it rotates the pairs (j, j +
head_dim / 2) of the whole head. So heads of other sizes are padded with zeros, and where only part
of a head is rotated, its rows are re-ordered (the remaining pairs are rotated by an angle of 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.options import WeightFormat
from exo.inference.models import ModelConfig, Weights
from exo.inference.models.rope import cos_sin
from exo.inference.onnx.graph import formats
from exo.inference.onnx.graph.decoder import DecoderSpec
from exo.inference.onnx.graph.formats import Matrix, Packed
from exo.inference.shard import Shard

# Bits of `formats.convert`; None keeps the blocks that the file has.
BITS: Final[dict[WeightFormat, int | None]] = {"stored": None, "float32": 32, "8bit": 8, "4bit": 4}
HEAD_MULTIPLE: Final = 16
# `auto`: a shard whose weights take at most this many bytes as float32 runs in float32, exactly:
# small matrices gain nothing from fewer bits. Larger shards run as `stored`.
FLOAT_LIMIT: Final = 64 << 20
# A head of at least this many weights is most of what a step reads. In blocks of 64 it is a tenth
# smaller and its kernel faster (decision 0009); smaller heads gain nothing.
WIDE_HEAD: Final = 16 << 20
HEAD_BLOCK: Final = 64
_NORMS: Final = {
    "input": "attn_norm",
    "pre_mlp": "ffn_norm",
    "post_attention": "post_attn_norm",
    "post_mlp": "post_ffn_norm",
}


@dataclass(frozen=True, slots=True, eq=False)
class HeadLayout:
    """Where the dimensions of a head go: `rotary` for q and k, `plain` for v; -1 is a zero."""

    size: int
    rotary: Array
    plain: Array

    @classmethod
    def of(cls, config: ModelConfig) -> HeadLayout:
        size = -(-config.head_dim // HEAD_MULTIPLE) * HEAD_MULTIPLE
        rotary, plain = np.full(size, -1), np.full(size, -1)
        plain[: config.head_dim] = np.arange(config.head_dim)
        turned, half = config.rope.dims // 2, size // 2
        rotary[:turned] = np.arange(turned)
        rotary[half : half + turned] = np.arange(turned, 2 * turned)
        rest = np.concatenate([np.arange(turned, half), np.arange(half + turned, size)])
        unturned = np.arange(2 * turned, config.head_dim)
        rotary[rest[: len(unturned)]] = unturned
        return cls(size, rotary, plain)

    def rows(self, kind: Literal["rotary", "plain"], n_heads: int, head_dim: int) -> Array | None:
        """Row order of a matrix of `n_heads` heads; None: unchanged."""
        order: Array = getattr(self, kind)
        if len(order) == head_dim and (order == np.arange(head_dim)).all():
            return None
        heads = np.arange(n_heads)[:, None] * head_dim
        return np.where(order < 0, -1, heads + order).reshape(-1)


def rotary_caches(
    config: ModelConfig, positions: int, *, long: bool = False
) -> tuple[Array, Array]:
    """cos and sin, float32 (positions, padded head_dim / 2)."""
    cos, sin = cos_sin(config.rope, np.arange(positions), long=long)
    rest = HeadLayout.of(config).size // 2 - cos.shape[1]
    cos, sin = np.pad(cos, ((0, 0), (0, rest)), constant_values=1), np.pad(sin, ((0, 0), (0, rest)))
    return np.ascontiguousarray(cos, np.float32), np.ascontiguousarray(sin, np.float32)


def decoder_spec(config: ModelConfig, shard: Shard) -> DecoderSpec:
    layers = tuple(range(shard.start_layer, shard.end_layer + 1))
    padded = HeadLayout.of(config).size
    return DecoderSpec(
        hidden=config.hidden,
        n_heads=config.heads,
        n_kv_heads=config.kv_heads,
        head_dim=padded,
        vocab=config.vocab,
        layers=layers,
        first=shard.is_first_layer(),
        last=shard.is_last_layer(),
        eps=config.norm_eps,
        # The mean over a padded head is too small by head_dim / padded; see `ShardWeights.qk_norm`.
        qk_norm_eps=config.norm_eps * config.head_dim / padded,
        attention_scale=config.attention_scale,
        attention_softcap=config.attn_softcap or 0.0,
        logit_softcap=config.final_softcap or 0.0,
        activation=config.activation,
        qk_norm=config.qk_norm,
        post_norms=config.post_norms,
        windows=tuple(config.window(layer) or 0 for layer in layers),
    )


class ShardWeights:
    """`DecoderWeights` on the weights of a checkpoint. Raises `CheckpointError` where they cannot
    be read.
    """

    def __init__(self, weights: Weights, shard: Shard, weight_format: WeightFormat) -> None:
        self._weights = weights
        self._config = weights.config
        if weight_format == "auto":
            weight_format = "float32" if float_bytes(weights, shard) <= FLOAT_LIMIT else "stored"
        self._bits = BITS[weight_format]
        self._layout = HeadLayout.of(weights.config)

    def norm(
        self, layer: int, name: Literal["input", "pre_mlp", "post_attention", "post_mlp"]
    ) -> Array:
        return self._weights.tensor(f"{layer}.{_NORMS[name]}")

    def final_norm(self) -> Array:
        return self._weights.tensor("norm")

    def head(self) -> tuple[Matrix, Array | None]:
        matrix = formats.convert(self._weights.raw("head"), 32 if self._bits == 32 else 8)
        if isinstance(matrix, Packed) and _is_wide(matrix):
            matrix = formats.in_larger_blocks(matrix, HEAD_BLOCK)
        return matrix, None

    def qkv(self, layer: int) -> tuple[Matrix, Array | None]:
        c = self._config
        parts: list[Matrix] = []
        biases: list[Array] = []
        for part, n_heads in (("q", c.heads), ("k", c.kv_heads), ("v", c.kv_heads)):
            matrix = self._matrix(f"{layer}.{part}")
            rows = self._layout.rows("plain" if part == "v" else "rotary", n_heads, c.head_dim)
            parts.append(matrix if rows is None else formats.take_rows(matrix, rows))
            if c.qkv_bias:
                bias = self._weights.tensor(f"{layer}.{part}_bias")
                biases.append(
                    bias if rows is None else np.where(rows < 0, 0, bias[rows]).astype(np.float32)
                )
        return formats.stack(parts), np.concatenate(biases) if biases else None

    def qk_norm(self, layer: int) -> tuple[Array, Array]:
        """Factors for the padded head. Padding lowers the mean square; the factor (and epsilon)
        compensates.
        """
        order = self._layout.rotary
        shrink = np.float32((self._config.head_dim / self._layout.size) ** 0.5)
        q, k = (self._weights.tensor(f"{layer}.{name}") for name in ("q_norm", "k_norm"))
        # Two of them.
        return tuple(
            np.where(order < 0, 0, gamma[order] * shrink).astype(np.float32) for gamma in (q, k)
        )  # type: ignore[return-value]

    def attention_output(self, layer: int) -> tuple[Matrix, Array | None]:
        matrix = self._matrix(f"{layer}.o")
        columns = self._layout.rows("plain", self._config.heads, self._config.head_dim)
        if columns is not None:
            matrix = formats.take_columns(matrix, columns)
        return matrix, self._bias(layer, ("o",), self._config.o_bias)

    def gate_up(self, layer: int) -> tuple[Matrix, Array | None]:
        parts = [self._matrix(f"{layer}.{part}") for part in ("gate", "up")]
        return formats.stack(parts), self._bias(layer, ("gate", "up"), self._config.mlp_bias)

    def down(self, layer: int) -> tuple[Matrix, Array | None]:
        return self._matrix(f"{layer}.down"), self._bias(layer, ("down",), self._config.mlp_bias)

    def _matrix(self, name: str) -> Matrix:
        return formats.convert(self._weights.raw(name), self._bits)

    def _bias(self, layer: int, parts: tuple[str, ...], present: bool) -> Array | None:
        if not present:
            return None
        return np.concatenate([self._weights.tensor(f"{layer}.{part}_bias") for part in parts])


def _is_wide(head: Packed) -> bool:
    return head.offsets is None and head.n * head.k >= WIDE_HEAD and head.k % HEAD_BLOCK == 0


def float_bytes(weights: Weights, shard: Shard) -> int:
    """What the shard's weights take as float32."""
    return sum(4 * math.prod(weights.source(name).shape) for name in weights.names(shard))
