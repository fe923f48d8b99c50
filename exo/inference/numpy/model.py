"""`NumpyModel`: one shard's layers on rows of several sequences. Knows its weights and the cache,
no asyncio.

The rows of all steps are stacked, so that each weight matrix is read once per pass; only attention
runs sequence by sequence. Matrices that share their input (q, k, v; gate, up) are one matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from exo.inference.arrays import Array
from exo.inference.models import ModelConfig, Weights
from exo.inference.models.rope import cos_sin
from exo.inference.numpy import kv_cache
from exo.inference.numpy.ops import activate, attend, rms_norm, rotate
from exo.inference.shard import Shard


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """A sequence's share of a pass: `count` rows from row `start` on, at `position` of the
    sequence.
    """

    sequence: kv_cache.Sequence
    start: int
    count: int
    position: int


@dataclass(slots=True, eq=False)
class Layer:
    """Matrices are (outputs, inputs). Biases and further norms: None where the family has none."""

    attn_norm: Array
    qkv: Array
    qkv_bias: Array | None
    qk_norm: Array | None  # (H + G, D)
    o: Array
    o_bias: Array | None
    post_attn_norm: Array | None
    ffn_norm: Array
    gate_up: Array
    gate_up_bias: Array | None
    down: Array
    down_bias: Array | None
    post_ffn_norm: Array | None
    window: int | None


class NumpyModel:
    def __init__(
        self, weights: Weights, shard: Shard, advance: Callable[[int], None] = lambda _: None
    ) -> None:
        self.config = weights.config
        self.shard = shard
        load = _Loader(weights, advance)
        self.embed = load.one("embed") if shard.is_first_layer() else None
        self.layers = [load.layer(i) for i in range(shard.start_layer, shard.end_layer + 1)]
        self.norm: Array | None = None
        self.head: Array | None = None
        if shard.is_last_layer():
            self.norm = load.one("norm")
            # Tied and whole: one matrix serves both.
            shared = self.config.tied and self.embed is not None
            self.head = self.embed if shared else load.one("head")

    def n_bytes(self) -> int:
        """Of all weights."""
        matrices = [
            m for layer in self.layers for m in (layer.qkv, layer.o, layer.gate_up, layer.down)
        ]
        tables = {id(t): t for t in (self.embed, self.head) if t is not None}
        return sum(m.nbytes for m in (*matrices, *tables.values()))

    def embed_tokens(self, tokens: Array) -> Array:
        assert self.embed is not None  # the caller has checked the shard
        rows: Array = self.embed[tokens]
        return (
            rows * np.float32(self.config.embed_scale) if self.config.embed_scale != 1.0 else rows
        )

    def run_layers(
        self, x: Array, rows: Sequence[Rows], between: Callable[[], None] = lambda: None
    ) -> Array:
        """x: float32 (N, hidden), changed in place. Keys and values are written from each
        sequence's `position` on.

        `between` is called before each layer and may raise. Advancing the lengths of sequences is
        left to the caller.
        """
        cos, sin = self._angles(rows)
        eps = self.config.norm_eps
        # exp(-x) of a very negative gate is infinite and its silu 0, which is right.
        with np.errstate(over="ignore"):
            for index, layer in enumerate(self.layers):
                between()
                mixed = self._attention(
                    layer, index, rms_norm(x, layer.attn_norm, eps), rows, cos, sin
                )
                x += (
                    mixed
                    if layer.post_attn_norm is None
                    else rms_norm(mixed, layer.post_attn_norm, eps)
                )
                mixed = self._mlp(layer, rms_norm(x, layer.ffn_norm, eps))
                x += (
                    mixed
                    if layer.post_ffn_norm is None
                    else rms_norm(mixed, layer.post_ffn_norm, eps)
                )
        return x

    def logits(self, x: Array) -> Array:
        """(n, hidden) -> (n, vocab)"""
        assert self.head is not None
        assert self.norm is not None
        out: Array = rms_norm(x, self.norm, self.config.norm_eps) @ self.head.T
        cap = self.config.final_softcap
        if cap is not None:
            out = np.tanh(out / np.float32(cap)) * np.float32(cap)
        return out

    def _angles(self, rows: Sequence[Rows]) -> tuple[Array, Array]:
        rope = self.config.rope
        parts = [
            cos_sin(rope, np.arange(r.position, r.position + r.count), long=r.sequence.long)
            for r in rows
        ]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _attention(
        self, layer: Layer, index: int, h: Array, rows: Sequence[Rows], cos: Array, sin: Array
    ) -> Array:
        c = self.config
        H, G, D = c.heads, c.kv_heads, c.head_dim
        qkv = h @ layer.qkv.T
        if layer.qkv_bias is not None:
            qkv += layer.qkv_bias
        heads = qkv.reshape(-1, H + 2 * G, D)
        turned = heads[:, : H + G]
        if layer.qk_norm is not None:
            turned[...] = rms_norm(turned, layer.qk_norm, c.norm_eps)
        rotate(turned, cos, sin)
        out = np.empty((len(h), H * D), np.float32)
        for r in rows:
            stop, total = r.start + r.count, r.position + r.count
            keys, values = r.sequence.keys[index], r.sequence.values[index]
            keys[:, r.position : total] = heads[r.start : stop, H : H + G].swapaxes(0, 1)
            values[:, r.position : total] = heads[r.start : stop, H + G :].swapaxes(0, 1)
            out[r.start : stop] = attend(
                heads[r.start : stop, :H],
                keys[:, :total],
                values[:, :total],
                r.position,
                c.attention_scale,
                layer.window,
                c.attn_softcap,
            )
        mixed: Array = out @ layer.o.T
        return mixed if layer.o_bias is None else mixed + layer.o_bias

    def _mlp(self, layer: Layer, h: Array) -> Array:
        both = h @ layer.gate_up.T
        if layer.gate_up_bias is not None:
            both += layer.gate_up_bias
        inner = activate(both[:, : self.config.ffn], self.config.activation)
        inner *= both[:, self.config.ffn :]
        out: Array = inner @ layer.down.T
        return out if layer.down_bias is None else out + layer.down_bias


class _Loader:
    """Builds layers. Packed matrices are filled part by part, so no tensor is in memory twice."""

    def __init__(self, weights: Weights, advance: Callable[[int], None]) -> None:
        self._weights = weights
        self._advance = advance

    def one(self, name: str) -> Array:
        value = self._weights.tensor(name)
        self._advance(self._weights.n_bytes(name))
        return value

    def packed(self, names: Sequence[str]) -> Array:
        shapes = [self._weights.source(name).shape for name in names]
        out = np.empty((sum(s[0] for s in shapes), *shapes[0][1:]), np.float32)
        at = 0
        for name, shape in zip(names, shapes, strict=True):
            out[at : at + shape[0]] = self.one(name)
            at += shape[0]
        return out

    def layer(self, i: int) -> Layer:
        c: ModelConfig = self._weights.config
        qkv, gate_up = (f"{i}.q", f"{i}.k", f"{i}.v"), (f"{i}.gate", f"{i}.up")
        return Layer(
            attn_norm=self.one(f"{i}.attn_norm"),
            qkv=self.packed(qkv),
            qkv_bias=self.packed([f"{n}_bias" for n in qkv]) if c.qkv_bias else None,
            qk_norm=self._head_norms(i) if c.qk_norm else None,
            o=self.one(f"{i}.o"),
            o_bias=self.one(f"{i}.o_bias") if c.o_bias else None,
            post_attn_norm=self.one(f"{i}.post_attn_norm") if c.post_norms else None,
            ffn_norm=self.one(f"{i}.ffn_norm"),
            gate_up=self.packed(gate_up),
            gate_up_bias=self.packed([f"{n}_bias" for n in gate_up]) if c.mlp_bias else None,
            down=self.one(f"{i}.down"),
            down_bias=self.one(f"{i}.down_bias") if c.mlp_bias else None,
            post_ffn_norm=self.one(f"{i}.post_ffn_norm") if c.post_norms else None,
            window=c.window(i),
        )

    def _head_norms(self, i: int) -> Array:
        """One weight row per q and k head, so that all are normalised at once."""
        c = self._weights.config
        q, k = self.one(f"{i}.q_norm"), self.one(f"{i}.k_norm")
        return np.concatenate([np.tile(q, (c.heads, 1)), np.tile(k, (c.kv_heads, 1))])
