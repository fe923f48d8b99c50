"""`Weights`: a checkpoint's tensors by canonical name, in one layout for all families and formats.

Canonical names. Of the model: `embed` (vocab, hidden), `norm` (hidden,), `head` (vocab, hidden; the
embedding where tied). Of layer i, as `"{i}.q"`: q k v o gate up down, rows = outputs; q_bias k_bias
v_bias o_bias gate_bias up_bias down_bias; attn_norm ffn_norm, q_norm k_norm (head_dim,),
post_attn_norm post_ffn_norm. Norm weights are the factors themselves. Rotary pairs are (j, j + dims
/ 2) of each head, so GGUF's interleaved q and k rows are re-ordered. A part of a packed tensor
(phi3) is its rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.tensors import RawTensor, TensorInfo
from exo.inference.errors import CheckpointError
from exo.inference.models.config import ModelConfig
from exo.inference.models.registry import Family, family_of, read_config
from exo.inference.shard import Shard


@dataclass(frozen=True, slots=True)
class Source:
    """Where a canonical tensor is: rows `start` to `stop` of the tensor `name`, re-ordered by
    `order` if given.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    order: Array | None = None


class Weights:
    """Raises `CheckpointError` for a tensor that is missing or has a different shape than the
    configuration says.
    """

    def __init__(self, checkpoint: Checkpoint, family: Family, config: ModelConfig) -> None:
        self.checkpoint = checkpoint
        self.config = config
        self._family = family
        self._names = family.gguf_names if checkpoint.FORMAT == "gguf" else family.hf_names

    def names(self, shard: Shard) -> tuple[str, ...]:
        """The canonical tensors a shard needs: `embed` with the first layer, `norm` and `head` with
        the last.
        """
        out = [
            f"{i}.{part}"
            for i in range(shard.start_layer, shard.end_layer + 1)
            for part in self._layer_parts()
        ]
        if shard.is_first_layer():
            out.insert(0, "embed")
        if shard.is_last_layer():
            out += ["norm", "head"]
        return tuple(out)

    def check(self, shard: Shard) -> None:
        """Raises unless every tensor of the shard is there with the right shape."""
        if shard.n_layers != self.config.n_layers:
            message = (
                f"the model has {self.config.n_layers} layers, the shard is of one with"
                f" {shard.n_layers}"
            )
            raise CheckpointError(message, path=str(self.checkpoint.path))
        for name in self.names(shard):
            self.source(name)

    def tensor(self, name: str) -> Array:
        """As float32, a copy."""
        value = self.checkpoint.floats(self.source(name).name, self.raw(name))
        if (
            self._family.norm_offset
            and self.checkpoint.FORMAT == "safetensors"
            and name.endswith("norm")
        ):
            value += np.float32(self._family.norm_offset)
        return value

    def raw(self, name: str) -> RawTensor:
        """The stored blocks, for engines that keep them; rows re-ordered as above. Norm offsets are
        not applied.
        """
        source = self.source(name)
        raw = self.checkpoint.raw(source.name)
        if len(source.shape) == 1:  # a vector is one row of blocks; only plain types are re-ordered
            if source.order is None:
                return raw
            return RawTensor(
                raw.dtype,
                source.shape,
                raw.data.reshape(source.shape[0], -1)[source.order].reshape(1, -1),
            )
        data = raw.data[source.start : source.start + source.shape[0]]
        if source.order is not None:
            data = data[source.order]
        return RawTensor(raw.dtype, source.shape, data)

    def n_bytes(self, name: str) -> int:
        """Bytes on disk."""
        source = self.source(name)
        info = self._info(source)
        return info.n_bytes * math.prod(source.shape) // max(1, math.prod(info.shape))

    def source(self, name: str) -> Source:
        layer, _, part = name.rpartition(".")
        if part in {"embed", "head"} and self.config.tied:
            part = "embed" if self._names["embed"] in self.checkpoint.tensors else "head"
        template = self._names.get(part)
        if template is None:
            raise CheckpointError(
                f"{self._family.name} has no tensor {part!r}", path=str(self.checkpoint.path)
            )
        shape, start = self._shape(part), 0
        # Packed tensors hold several parts one after the other.
        packed = [p for p in self._pack(part) if self._names.get(p) == template]
        for other in packed[: packed.index(part)] if part in packed else ():
            start += self._shape(other)[0]
        rows = sum(self._shape(p)[0] for p in packed) if len(packed) > 1 else shape[0]
        source = Source(template.format(i=layer), shape, start, self._order(part))
        info = self.checkpoint.info(source.name)
        if info.shape != (rows, *shape[1:]):
            message = (
                f"tensor {source.name!r} has the shape {info.shape}, expected {(rows, *shape[1:])}"
            )
            raise CheckpointError(message, path=str(self.checkpoint.path))
        return source

    def _info(self, source: Source) -> TensorInfo:
        return self.checkpoint.info(source.name)

    @staticmethod
    def _pack(part: str) -> tuple[str, ...]:
        if part in {"q", "k", "v"}:
            return ("q", "k", "v")
        return ("gate", "up") if part in {"gate", "up"} else (part,)

    def _layer_parts(self) -> list[str]:
        c = self.config
        parts = ["attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "up", "down"]
        parts += ["q_bias", "k_bias", "v_bias"] if c.qkv_bias else []
        parts += ["o_bias"] if c.o_bias else []
        parts += ["gate_bias", "up_bias", "down_bias"] if c.mlp_bias else []
        parts += ["q_norm", "k_norm"] if c.qk_norm else []
        return parts + (["post_attn_norm", "post_ffn_norm"] if c.post_norms else [])

    def _shape(self, part: str) -> tuple[int, ...]:
        c = self.config
        if part in {"embed", "head"}:
            return (c.vocab, c.hidden)
        if part in {"q_norm", "k_norm"}:
            return (c.head_dim,)
        if part.endswith("norm"):
            return (c.hidden,)
        out = {
            "q": c.heads * c.head_dim,
            "k": c.kv_heads * c.head_dim,
            "v": c.kv_heads * c.head_dim,
            "o": c.hidden,
            "gate": c.ffn,
            "up": c.ffn,
            "down": c.hidden,
        }
        if part.endswith("_bias"):
            return (out[part.removesuffix("_bias")],)
        return (out[part], {"o": c.heads * c.head_dim, "down": c.ffn}.get(part, c.hidden))

    def _order(self, part: str) -> Array | None:
        """Row order that undoes llama.cpp's interleaving: row 2j, 2j + 1 of a head become j, j +
        half.
        """
        if not (self._family.gguf_interleaved and self.checkpoint.FORMAT == "gguf"):
            return None
        if part not in {"q", "k", "q_bias", "k_bias"}:
            return None
        heads = self.config.heads if part.startswith("q") else self.config.kv_heads
        rows = np.arange(heads * self.config.head_dim).reshape(heads, self.config.head_dim)
        dims = self.config.rope.dims
        turned = rows[:, :dims].reshape(heads, dims // 2, 2).swapaxes(1, 2).reshape(heads, dims)
        return np.concatenate([turned, rows[:, dims:]], axis=1).reshape(-1)


def open_weights(checkpoint: Checkpoint) -> Weights:
    """Raises `UnsupportedModel` or `CheckpointError`."""
    return Weights(checkpoint, family_of(checkpoint), read_config(checkpoint))
