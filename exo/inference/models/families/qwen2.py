"""Qwen2 and 2.5: biases on q, k and v; a sliding window in the upper layers where
`use_sliding_window` is set.
"""

from __future__ import annotations

from typing import Any

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.models.common import GGUF_NAMES, HF_NAMES, gguf_fields, hf_fields, hf_windows
from exo.inference.models.config import ModelConfig
from exo.inference.models.registry import Family, register


def qwen_windows(config: dict[str, Any], n_layers: int) -> tuple[int | None, ...]:
    """Layers from `max_window_layers` on have the window."""
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = int(config.get("max_window_layers", 28))
    return hf_windows(config, window, tuple(i >= first for i in range(n_layers)))


def from_hf(config: dict[str, Any]) -> ModelConfig:
    fields = hf_fields(config, tied=False, norm_eps=1e-6, context_length=32768)
    return ModelConfig(
        family="qwen2", qkv_bias=True, windows=qwen_windows(config, fields["n_layers"]), **fields
    )


def from_gguf(checkpoint: Checkpoint) -> ModelConfig:
    return ModelConfig(family="qwen2", **gguf_fields(checkpoint, "qwen2"))


register(
    Family(
        name="qwen2",
        hf_type="qwen2",
        gguf_arch="qwen2",
        from_hf=from_hf,
        from_gguf=from_gguf,
        hf_names=HF_NAMES,
        gguf_names=GGUF_NAMES,
    )
)
