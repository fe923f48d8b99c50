"""Mistral: llama with a sliding attention window in every layer. Its GGUF files say `llama` and
have no window.
"""

from __future__ import annotations

from typing import Any

from exo.inference.models.common import HF_NAMES, hf_fields, hf_windows
from exo.inference.models.config import ModelConfig
from exo.inference.models.registry import Family, register


def from_hf(config: dict[str, Any]) -> ModelConfig:
    # As transformers where the keys are absent.
    config = {"num_key_value_heads": 8, "bos_token_id": 1, "eos_token_id": 2, **config}
    fields = hf_fields(config, tied=False, norm_eps=1e-6, context_length=4096 * 32)
    # transformers' default where the key is absent; null means none.
    window = config.get("sliding_window", 4096)
    return ModelConfig(
        family="mistral",
        windows=hf_windows(config, window, (True,) * int(fields["n_layers"])),
        **fields,
    )


register(
    Family(
        name="mistral",
        hf_type="mistral",
        gguf_arch=None,
        from_hf=from_hf,
        from_gguf=None,
        hf_names=HF_NAMES,
    )
)
