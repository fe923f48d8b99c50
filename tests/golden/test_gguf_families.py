"""The golden models of every family, written as GGUF the way llama.cpp's converter does, give the
same logits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from golden_data import Case, folder_cases

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.engines.inference_engine import Step
from exo.inference.models import ModelConfig, read_config
from exo.inference.numpy.engine import NumpyEngine
from exo.inference.shard import Shard

# Mistral goes as llama in GGUF, which has no window; nor have qwen2 and qwen3 there.
CASES = [c for c in folder_cases() if not c.name.startswith("mistral") and "-window" not in c.name]
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name: str, family: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in TOP:
        return f"{TOP[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    if family == "gemma2" and rest == "post_attention_layernorm":
        return f"blk.{layer}.post_attention_norm.{kind}"
    return f"blk.{layer}.{NAMES[rest]}.{kind}"


def interleaved(value: Any, heads: int) -> Any:
    """Rows of q or k in llama.cpp's order for the llama architecture."""
    rest = value.shape[1:]
    return value.reshape(heads, 2, -1, *rest).swapaxes(1, 2).reshape(value.shape)


def tensor_for_gguf(name: str, value: Any, config: ModelConfig) -> Any:
    if config.family == "llama" and ".q_proj" in name:
        return interleaved(value, config.heads)
    if config.family == "llama" and ".k_proj" in name:
        return interleaved(value, config.kv_heads)
    return value + 1 if config.family == "gemma2" and "norm" in name else value


def write(path: Path, checkpoint: Checkpoint) -> None:
    config, arch = read_config(checkpoint), str(checkpoint.metadata["model_type"])
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.ffn)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.rope.dims)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    window = next((w for w in config.windows if w), None)
    if window:
        writer.add_sliding_window(window)
    if config.family == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_softcap or 0.0)
        writer.add_final_logit_softcapping(config.final_softcap or 0.0)
    if config.rope.long_divisors:
        writer.add_rope_scaling_orig_ctx_len(config.rope.original_context)
        writer.add_rope_scaling_attn_factors(config.rope.scale)
        writer.add_tensor(
            "rope_factors_long.weight", np.array(config.rope.long_divisors, np.float32)
        )
        writer.add_tensor("rope_factors_short.weight", np.array(config.rope.divisors, np.float32))
    elif len(set(config.rope.divisors)) == 1:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope.divisors[0])
    elif config.rope.divisors:
        writer.add_tensor("rope_freqs.weight", np.array(config.rope.divisors, np.float32))
    for name in checkpoint.tensors:
        writer.add_tensor(
            gguf_name(name, config.family), tensor_for_gguf(name, checkpoint.tensor(name), config)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
async def test_a_model_as_gguf_gives_the_logits_of_its_folder(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with open_checkpoint(case.checkpoint) as checkpoint:
        config = read_config(checkpoint)
        write(path, checkpoint)
    if config.family == "gemma2" and config.attention_scale != pytest.approx(config.head_dim**-0.5):
        # GGUF has no key for it; both readers take the size of a head. Undo it in the queries.
        rescale_queries(path, config.attention_scale * config.head_dim**0.5)
    shard = Shard.whole("m", config.n_layers)
    async with NumpyEngine(kv_budget=32 << 20) as engine:
        await engine.load_checkpoint(shard, path)
        for i, tokens in enumerate(case.sequences()):
            (got,) = await engine.infer_batch(shard, [Step(f"s{i}", tokens, 0, "all")])
            np.testing.assert_allclose(got, case.load()[f"logits_{i}"], atol=1e-4, rtol=0)


def rescale_queries(path: Path, factor: float) -> None:
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if tensor.name.endswith("attn_q.weight"):
            tensor.data[...] = tensor.data * np.float32(factor)
    reader.data.flush()
