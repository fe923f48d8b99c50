"""Architecture families: what a checkpoint's configuration means and how its tensors are called. Knows no engine.

Each family is one small file that registers itself; engines see `ModelConfig` and the canonical tensor names of
`weights.py` only. Supported: see `supported_families()`.
"""

from __future__ import annotations

# Imported for their registration.
from exo.inference.models import gemma2, llama, mistral, phi3, qwen2, qwen3
from exo.inference.models.config import ModelConfig, RopeConfig
from exo.inference.models.registry import read_config, supported_families
from exo.inference.models.weights import Weights, open_weights

__all__ = [
    "ModelConfig",
    "RopeConfig",
    "Weights",
    "gemma2",
    "llama",
    "mistral",
    "open_weights",
    "phi3",
    "qwen2",
    "qwen3",
    "read_config",
    "supported_families",
]
