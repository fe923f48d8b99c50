"""Qwen3: each q and k head is RMS-normalised before rotation; biases only where `attention_bias` is
set.
"""

from __future__ import annotations

from typing import Any

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.models.common import GGUF_NAMES, HF_NAMES, gguf_fields, hf_fields
from exo.inference.models.config import ModelConfig
from exo.inference.models.families.qwen2 import qwen_windows
from exo.inference.models.registry import Family, register


def from_hf(config: dict[str, Any]) -> ModelConfig:
    # transformers' default head size is 128, not hidden / heads.
    config = {**config, "head_dim": config.get("head_dim") or 128}
    fields = hf_fields(config, tied=False, norm_eps=1e-6, context_length=32768)
    bias = bool(config.get("attention_bias", False))
    return ModelConfig(
        family="qwen3",
        qk_norm=True,
        qkv_bias=bias,
        o_bias=bias,
        windows=qwen_windows(config, fields["n_layers"]),
        **fields,
    )


def from_gguf(checkpoint: Checkpoint) -> ModelConfig:
    return ModelConfig(family="qwen3", **{**gguf_fields(checkpoint, "qwen3"), "qk_norm": True})


register(
    Family(
        name="qwen3",
        hf_type="qwen3",
        gguf_arch="qwen3",
        from_hf=from_hf,
        from_gguf=from_gguf,
        hf_names=HF_NAMES,
        gguf_names=GGUF_NAMES,
    )
)
