"""A model of a few kilobytes in both formats, for tests that break it on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from exo.inference.arrays import Array

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tensors(config: dict[str, Any] = CONFIG, seed: int = 0) -> dict[str, Array]:
    """Random float32 tensors under Hugging Face's names."""
    rng = np.random.default_rng(seed)
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for i in range(config["num_hidden_layers"]):
        shapes |= {
            f"model.layers.{i}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "post_attention_layernorm": (hidden,),
                "self_attn.q_proj": (hidden, hidden),
                "self_attn.k_proj": (kv, hidden),
                "self_attn.v_proj": (kv, hidden),
                "self_attn.o_proj": (hidden, hidden),
                "mlp.gate_proj": (ffn, hidden),
                "mlp.up_proj": (ffn, hidden),
                "mlp.down_proj": (hidden, ffn),
            }.items()
        }
    return {
        name: rng.standard_normal(shape).astype(np.float32) * 0.3 for name, shape in shapes.items()
    }


def write_folder(
    folder: Path,
    config: dict[str, Any] | None = None,
    values: dict[str, Array] | None = None,
    files: int = 1,
) -> Path:
    """config.json and `files` safetensors; with more than one, an index."""
    from safetensors.numpy import save_file

    config = CONFIG if config is None else config
    values = tensors() if values is None else values
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        save_file(values, str(folder / "model.safetensors"))
        return folder
    weight_map = {name: f"part-{i % files}.safetensors" for i, name in enumerate(sorted(values))}
    for file in set(weight_map.values()):
        save_file({n: v for n, v in values.items() if weight_map[n] == file}, str(folder / file))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


def write_tokenizer(folder: Path) -> Path:
    """tokenizer.json of the 256 bytes and one control token, and a chat template of the contents
    alone.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(alphabet, []))
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    made.add_special_tokens([AddedToken("<|im_end|>", special=True)])
    made.save(str(folder / "tokenizer.json"))
    settings = {
        "eos_token": "<|im_end|>",
        "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_gguf(
    path: Path, extra: dict[str, tuple[Array, Any]] | None = None, **numbers: int
) -> Path:
    """The same model as GGUF, F32, with a few words for a vocabulary. extra: name -> (raw array,
    ggml type).
    """
    import gguf

    c = CONFIG | numbers
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    names = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for name, value in tensors().items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            writer.add_tensor(f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight", value)
        else:
            writer.add_tensor(
                "token_embd.weight" if "embed" in name else "output_norm.weight", value
            )
    for name, (raw, kind) in (extra or {}).items():
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
