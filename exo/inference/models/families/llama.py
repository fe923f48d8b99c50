"""Llama 2, 3, SmolLM2 and similar models: the plain block, llama3 or linear rope scaling, biases
where configured.
"""

from __future__ import annotations

from typing import Any

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.models.common import GGUF_NAMES, HF_NAMES, gguf_fields, hf_fields
from exo.inference.models.config import ModelConfig
from exo.inference.models.registry import Family, register


def from_hf(config: dict[str, Any]) -> ModelConfig:
    # As transformers where the keys are absent.
    config = {"bos_token_id": 1, "eos_token_id": 2, **config}
    bias = bool(config.get("attention_bias", False))
    fields = hf_fields(config, tied=False, norm_eps=1e-6, context_length=2048)
    return ModelConfig(
        family="llama",
        qkv_bias=bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        **fields,
    )


def from_gguf(checkpoint: Checkpoint) -> ModelConfig:
    fields = gguf_fields(checkpoint, "llama")
    if checkpoint.metadata.get("llama.expert_count"):
        raise ValueError("mixtures of experts are not supported")
    return ModelConfig(family="llama", **fields)


register(
    Family(
        name="llama",
        hf_type="llama",
        gguf_arch="llama",
        from_hf=from_hf,
        from_gguf=from_gguf,
        hf_names=HF_NAMES,
        gguf_names=GGUF_NAMES,
        gguf_interleaved=True,
    )
)
