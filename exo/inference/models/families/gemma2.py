"""Gemma 2: norms around each half, scaled embeddings, soft-capped scores and logits, a window in
every other layer.
"""

from __future__ import annotations

from typing import Any

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.models.common import GGUF_NAMES, HF_NAMES, gguf_fields, hf_fields, hf_windows
from exo.inference.models.config import ModelConfig
from exo.inference.models.registry import Family, register


def _alternating(n_layers: int) -> tuple[bool, ...]:
    """Layers 0, 2, 4 ... have the window."""
    return tuple(i % 2 == 0 for i in range(n_layers))


def from_hf(config: dict[str, Any]) -> ModelConfig:
    # As transformers where the keys are absent.
    config = {
        "num_key_value_heads": 4,
        "bos_token_id": 2,
        "eos_token_id": 1,
        **config,
        "head_dim": config.get("head_dim") or 256,
        "hidden_activation": config.get("hidden_activation") or "gelu_pytorch_tanh",
    }
    fields = hf_fields(config, tied=True, norm_eps=1e-6, context_length=8192)
    bias = bool(config.get("attention_bias", False))
    return ModelConfig(
        family="gemma2",
        qkv_bias=bias,
        o_bias=bias,
        post_norms=True,
        windows=hf_windows(
            config, config.get("sliding_window", 4096), _alternating(fields["n_layers"])
        ),
        attn_softcap=config.get("attn_logit_softcapping", 50.0),
        final_softcap=config.get("final_logit_softcapping", 30.0),
        query_scale=float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
        embed_scale=float(config["hidden_size"]) ** 0.5,
        **fields,
    )


def from_gguf(checkpoint: Checkpoint) -> ModelConfig:
    meta, fields = checkpoint.metadata, gguf_fields(checkpoint, "gemma2")
    window = int(meta.get("gemma2.attention.sliding_window", 4096))
    # As llama.cpp: only the 27B model (46 layers) does not scale by a head's width.
    width = fields["hidden"] // fields["heads"] if fields["n_layers"] == 46 else fields["head_dim"]
    return ModelConfig(
        family="gemma2",
        post_norms=True,
        windows=tuple(window if s else None for s in _alternating(fields["n_layers"])),
        attn_softcap=float(meta.get("gemma2.attn_logit_softcapping", 50.0)),
        final_softcap=float(meta.get("gemma2.final_logit_softcapping", 30.0)),
        query_scale=float(width) ** -0.5,
        embed_scale=float(fields["hidden"]) ** 0.5,
        activation="gelu_tanh",
        **fields,
    )


register(
    Family(
        name="gemma2",
        hf_type="gemma2",
        gguf_arch="gemma2",
        from_hf=from_hf,
        from_gguf=from_gguf,
        hf_names={
            **HF_NAMES,
            "post_attn_norm": "model.layers.{i}.post_attention_layernorm.weight",
            "ffn_norm": "model.layers.{i}.pre_feedforward_layernorm.weight",
            "post_ffn_norm": "model.layers.{i}.post_feedforward_layernorm.weight",
        },
        gguf_names={
            **GGUF_NAMES,
            "post_attn_norm": "blk.{i}.post_attention_norm.weight",
            "post_ffn_norm": "blk.{i}.post_ffw_norm.weight",
        },
        norm_offset=1.0,
    )
)
