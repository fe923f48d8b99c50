"""The decoder as an ONNX graph: one shard's layers, from hidden states to hidden states or logits.

Theory of operation. Activations are (batch, length, hidden). GroupQueryAttention takes packed q, k
and v, applies rotary embedding, causal mask, window and softcap, and appends to a KV cache that is
input and output at once: the caller binds the same memory to `past_*` and `present_*`. Each row has
its own length (`seqlens_k`: tokens after this step, minus 1). Rotary pairs are (j, j + head_dim /
2) of each head; `DecoderWeights` re-orders rows that are stored differently.

The residual stream is carried as (sum so far, what to add). SkipSimplifiedLayerNormalization adds
and norms at once, also at a shard's first layer, so that several shards compute bit for bit what
one graph does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

import numpy as np

from exo.inference.arrays import Array
from exo.inference.onnx.graph.formats import Matrix
from exo.inference.onnx.graph.layout import CONTRIB, KV_DTYPE
from exo.inference.onnx.graph.products import Products

if TYPE_CHECKING:  # it imports the onnx package, which a warm start does not need
    from exo.inference.onnx.graph.graph_writer import GraphWriter


# The first layers make the attention sinks; all later layers see what these round.
SINK_LAYERS: Final = 4
KV_TYPE: Final = np.dtype(KV_DTYPE).name


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """What the graph needs to know of a model and shard. `head_dim` is the padded one."""

    hidden: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab: int
    layers: tuple[int, ...]
    first: bool
    last: bool
    eps: float
    qk_norm_eps: float
    attention_scale: float
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    qk_norm: bool = False
    # gemma2: the outputs of attention and MLP are normed before they are added.
    post_norms: bool = False
    # Per layer of `layers`: how many tokens a query sees, itself included; 0: all.
    windows: tuple[int, ...] = ()


class DecoderWeights(Protocol):
    """Weights of one shard in the layout the graph expects. `layer` is the index in the whole
    model.
    """

    def norm(
        self, layer: int, name: Literal["input", "pre_mlp", "post_attention", "post_mlp"]
    ) -> Array: ...
    def qkv(self, layer: int) -> tuple[Matrix, Array | None]: ...
    def qk_norm(self, layer: int) -> tuple[Array, Array]: ...
    def attention_output(self, layer: int) -> tuple[Matrix, Array | None]: ...
    def gate_up(self, layer: int) -> tuple[Matrix, Array | None]: ...
    def down(self, layer: int) -> tuple[Matrix, Array | None]: ...
    def final_norm(self) -> Array: ...
    def head(self) -> tuple[Matrix, Array | None]: ...


class DecoderGraph:
    """Writes the graph of a `DecoderSpec`, part by part, so that the caller can report progress in
    between.
    """

    def __init__(self, spec: DecoderSpec, weights: DecoderWeights, writer: GraphWriter) -> None:
        self._spec = spec
        self._weights = weights
        self._g = writer
        self._products = Products(writer)
        self._residual = ""  # (batch, length, hidden): the sum so far
        self._delta = ""  # what the next norm adds to it; empty: nothing

    def begin(self) -> None:
        """Inputs. In a first shard the hidden states are rows of the embedding."""
        spec, g = self._spec, self._g
        hidden = self._residual = g.input("hidden_in", "float32", ["batch", "length", spec.hidden])
        self._delta = g.node(
            "ConstantOfShape", [g.node("Shape", [hidden], "hidden_shape")], "nothing_to_add"
        )
        g.input("seqlens_k", "int32", ["batch"])
        g.input("total_length", "int32", [])
        half = spec.head_dim // 2
        for name in ("cos_cache", "sin_cache"):
            g.input(name, "float32", ["positions", half])
        if spec.last:
            g.input("rows", "int64", ["n_rows"])
        self._products.begin(hidden)

    def layer(self, position: int) -> None:
        """The layer at `position` of `spec.layers`."""
        spec, weights = self._spec, self._weights
        index = spec.layers[position]
        name = f"l{index}"
        x = self._norm(weights.norm(index, "input"), f"{name}.n1")
        x = self._attention(x, position, name)
        x = self._products.linear(x, *weights.attention_output(index), f"{name}.o")
        if spec.post_norms:
            x = self._plain_norm(x, weights.norm(index, "post_attention"), f"{name}.n2")
        self._delta = x
        x = self._norm(weights.norm(index, "pre_mlp"), f"{name}.n3")
        x = self._products.linear(
            self._mlp_gate(x, index, name), *weights.down(index), f"{name}.down"
        )
        if spec.post_norms:
            x = self._plain_norm(x, weights.norm(index, "post_mlp"), f"{name}.n4")
        self._delta = x

    def end(self) -> None:
        """Outputs; in a last shard also the final norm and the head, for the rows asked for."""
        spec, g = self._spec, self._g
        if not spec.last:
            g.node("Add", [self._residual, self._delta], "hidden_out")
            g.output("hidden_out", "float32", ["batch", "length", spec.hidden])
            return
        self._residual = self._pick_rows(self._residual, "picked_residual")
        self._delta = self._pick_rows(self._delta, "picked_delta")
        x = self._norm(self._weights.final_norm(), "final")
        capped = spec.logit_softcap != 0
        x = self._products.head(x, *self._weights.head(), "head" if capped else "logits")
        if capped:
            x = self._times(x, 1 / spec.logit_softcap, "head_small")
            self._times(g.node("Tanh", [x], "head_tanh"), spec.logit_softcap, "logits")
        g.output("logits", "float32", [1, "n_rows", spec.vocab])

    def _pick_rows(self, x: str, out: str) -> str:
        """(1, rows, hidden) of (batch, length, hidden)."""
        g = self._g
        shape = g.constant("one_row", np.array([1, -1, self._spec.hidden]))
        return g.node("Gather", [g.node("Reshape", [x, shape], f"{out}.flat"), "rows"], out, axis=1)

    def _times(self, x: str, factor: float, out: str) -> str:
        constant = self._g.constant(f"{out}.factor", np.array(factor, np.float32))
        return self._g.node("Mul", [x, constant], out)

    def _plain_norm(self, x: str, gamma: Array, out: str) -> str:
        gamma_name = self._g.constant(f"{out}.gamma", gamma)
        return self._g.node(
            "SimplifiedLayerNormalization", [x, gamma_name], out, axis=-1, epsilon=self._spec.eps
        )

    def _norm(self, gamma: Array, out: str) -> str:
        """Add what is pending to the residual stream and return its norm."""
        if not self._delta:
            return self._plain_norm(self._residual, gamma, out)
        inputs = [self._residual, self._delta, self._g.constant(f"{out}.gamma", gamma)]
        outputs = [out, "", "", f"{out}.sum"]
        self._g.node(
            "SkipSimplifiedLayerNormalization",
            inputs,
            outputs,
            domain=CONTRIB,
            epsilon=self._spec.eps,
        )
        self._residual, self._delta = f"{out}.sum", ""
        return out

    def _attention(self, x: str, position: int, name: str) -> str:
        spec, g = self._spec, self._g
        index = spec.layers[position]
        x = self._products.careful(x, *self._weights.qkv(index), f"{name}.qkv")
        cache: list[str | int] = ["slots", spec.n_kv_heads, "capacity", spec.head_dim]
        past = [g.input(f"past_{kind}.{index}", KV_TYPE, cache) for kind in ("key", "value")]
        present = [f"present_{kind}.{index}" for kind in ("key", "value")]
        for output in present:
            g.output(output, KV_TYPE, cache)
        qkv = self._normed_qkv(x, index, name) if spec.qk_norm else [x, "", ""]
        inputs = [*qkv, *past, "seqlens_k", "total_length", "cos_cache", "sin_cache"]
        attributes: dict[str, Any] = {}
        if spec.windows and spec.windows[position]:
            attributes["local_window_size"] = spec.windows[position]
        if spec.attention_softcap:
            attributes["softcap"] = spec.attention_softcap
        return g.node(
            "GroupQueryAttention",
            inputs,
            [f"{name}.attention", *present],
            domain=CONTRIB,
            num_heads=spec.n_heads,
            kv_num_heads=spec.n_kv_heads,
            scale=spec.attention_scale,
            do_rotary=1,
            rotary_interleaved=0,
            **attributes,
        )

    def _normed_qkv(self, x: str, index: int, name: str) -> list[str]:
        """q, k and v apart, each head of q and k normed: the CPU kernel of GroupQueryAttention does
        not do it.
        """
        spec, g = self._spec, self._g
        widths = np.array([spec.n_heads, spec.n_kv_heads, spec.n_kv_heads]) * spec.head_dim
        parts = [f"{name}.{kind}" for kind in ("q", "k", "v")]
        g.node("Split", [x, g.constant("qkv_widths", widths)], parts, axis=-1)
        per_head = g.constant("per_head", np.array([0, 0, -1, spec.head_dim]))
        whole = g.constant("whole", np.array([0, 0, -1]))
        for i, gamma in enumerate(self._weights.qk_norm(index)):
            heads = g.node("Reshape", [parts[i], per_head], f"{parts[i]}.heads")
            inputs = [heads, g.constant(f"{parts[i]}_norm.gamma", gamma)]
            normed = g.node(
                "SimplifiedLayerNormalization",
                inputs,
                f"{parts[i]}.normed",
                axis=-1,
                epsilon=spec.qk_norm_eps,
            )
            parts[i] = g.node("Reshape", [normed, whole], f"{parts[i]}.whole")
        return parts

    def _mlp_gate(self, x: str, index: int, name: str) -> str:
        g = self._g
        linear = self._products.careful if index < SINK_LAYERS else self._products.linear
        both = linear(x, *self._weights.gate_up(index), f"{name}.gate_up")
        gate, up = f"{name}.gate", f"{name}.up"
        g.node("Split", [both], [gate, up], axis=-1, num_outputs=2)
        if self._spec.activation == "silu":
            act = g.node("QuickGelu", [gate], f"{name}.act", domain=CONTRIB, alpha=1.0)
        else:
            approximate = "tanh" if self._spec.activation == "gelu_tanh" else "none"
            act = g.node("Gelu", [gate], f"{name}.act", approximate=approximate)
        return g.node("Mul", [act, up], f"{name}.mlp")
