"""Phi-3 and 3.5 mini: q, k, v packed in one tensor, gate and up in another; longrope in the models
with a long context.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.models.common import GGUF_NAMES, HF_NAMES, gguf_fields, hf_fields, hf_windows
from exo.inference.models.config import ModelConfig
from exo.inference.models.registry import Family, register


def from_hf(config: dict[str, Any]) -> ModelConfig:
    # In transformers the class has this value, which takes precedence over one in rope_scaling.
    config = {"original_max_position_embeddings": 4096, "eos_token_id": 32000, **config}
    fields = hf_fields(config, tied=False, norm_eps=1e-5, context_length=4096, partial_rotary=True)
    window = config.get("sliding_window")
    return ModelConfig(
        family="phi3", windows=hf_windows(config, window, (True,) * fields["n_layers"]), **fields
    )


def from_gguf(checkpoint: Checkpoint) -> ModelConfig:
    meta, fields = checkpoint.metadata, gguf_fields(checkpoint, "phi3")
    window = meta.get("phi3.attention.sliding_window") or 0
    if "rope_factors_long.weight" in checkpoint.tensors:
        original = int(meta["phi3.rope.scaling.original_context_length"])
        ratio = fields["context_length"] / original
        natural = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
        fields["rope"] = replace(
            fields["rope"],
            divisors=tuple(map(float, checkpoint.tensor("rope_factors_short.weight").reshape(-1))),
            long_divisors=tuple(
                map(float, checkpoint.tensor("rope_factors_long.weight").reshape(-1))
            ),
            original_context=original,
            scale=float(meta.get("phi3.rope.scaling.attn_factor") or natural),
        )
    return ModelConfig(
        family="phi3", windows=(int(window),) * fields["n_layers"] if window else (), **fields
    )


QKV = "model.layers.{i}.self_attn.qkv_proj.weight"
GATE_UP = "model.layers.{i}.mlp.gate_up_proj.weight"
GGUF_QKV = "blk.{i}.attn_qkv.weight"
GGUF_GATE_UP = "blk.{i}.ffn_up.weight"

register(
    Family(
        name="phi3",
        hf_type="phi3",
        gguf_arch="phi3",
        from_hf=from_hf,
        from_gguf=from_gguf,
        hf_names={**HF_NAMES, "q": QKV, "k": QKV, "v": QKV, "gate": GATE_UP, "up": GATE_UP},
        gguf_names={
            **GGUF_NAMES,
            "q": GGUF_QKV,
            "k": GGUF_QKV,
            "v": GGUF_QKV,
            "gate": GGUF_GATE_UP,
            "up": GGUF_GATE_UP,
        },
    )
)
