"""Architecture families: what a checkpoint's configuration means and how its tensors are called.
Knows no engine.

Each family is one small file in `families/` that registers itself. Engines see only `ModelConfig`
and the canonical tensor names of `weights.py`. `supported_families()` lists the families.
"""

from __future__ import annotations

from exo.inference.models import families
from exo.inference.models.config import ModelConfig, RopeConfig
from exo.inference.models.registry import read_config, supported_families
from exo.inference.models.weights import Weights, open_weights

__all__ = [
    "ModelConfig",
    "RopeConfig",
    "Weights",
    "families",
    "open_weights",
    "read_config",
    "supported_families",
]
