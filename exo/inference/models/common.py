"""What the families share: reading the usual keys of config.json and of GGUF, and the usual tensor
names.
"""

from __future__ import annotations

from typing import Any, Final

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.models.config import size
from exo.inference.models.rope import rope_from_gguf, rope_from_hf

HF_TOP: Final = {
    "embed": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}
HF_ATTENTION: Final = {
    name: f"model.layers.{{i}}.self_attn.{part}"
    for name, part in {
        "q": "q_proj.weight",
        "k": "k_proj.weight",
        "v": "v_proj.weight",
        "o": "o_proj.weight",
        "q_bias": "q_proj.bias",
        "k_bias": "k_proj.bias",
        "v_bias": "v_proj.bias",
        "o_bias": "o_proj.bias",
        "q_norm": "q_norm.weight",
        "k_norm": "k_norm.weight",
    }.items()
}
HF_MLP: Final = {
    name: f"model.layers.{{i}}.mlp.{part}"
    for name, part in {
        "gate": "gate_proj.weight",
        "up": "up_proj.weight",
        "down": "down_proj.weight",
        "gate_bias": "gate_proj.bias",
        "up_bias": "up_proj.bias",
        "down_bias": "down_proj.bias",
    }.items()
}
HF_NORMS: Final = {
    "attn_norm": "model.layers.{i}.input_layernorm.weight",
    "ffn_norm": "model.layers.{i}.post_attention_layernorm.weight",
}
HF_NAMES: Final = {**HF_TOP, **HF_ATTENTION, **HF_MLP, **HF_NORMS}

GGUF_NAMES: Final = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
    **{
        name: f"blk.{{i}}.{part}"
        for name, part in {
            "attn_norm": "attn_norm.weight",
            "ffn_norm": "ffn_norm.weight",
            "q": "attn_q.weight",
            "k": "attn_k.weight",
            "v": "attn_v.weight",
            "o": "attn_output.weight",
            "q_bias": "attn_q.bias",
            "k_bias": "attn_k.bias",
            "v_bias": "attn_v.bias",
            "o_bias": "attn_output.bias",
            "q_norm": "attn_q_norm.weight",
            "k_norm": "attn_k_norm.weight",
            "gate": "ffn_gate.weight",
            "up": "ffn_up.weight",
            "down": "ffn_down.weight",
            "gate_bias": "ffn_gate.bias",
            "up_bias": "ffn_up.bias",
            "down_bias": "ffn_down.bias",
        }.items()
    },
}

# The type of control tokens in GGUF, and texts of those that end an answer.
CONTROL: Final = 3
TURN_ENDS: Final = {"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"}

ACTIVATIONS: Final = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def hf_fields(
    config: dict[str, Any],
    *,
    tied: bool,
    norm_eps: float,
    context_length: int,
    partial_rotary: bool = False,
) -> dict[str, Any]:
    """The fields of `ModelConfig` that all families read in the same way; the arguments are the
    family's defaults.
    """
    heads = size("heads", config["num_attention_heads"])
    hidden = size("hidden", config["hidden_size"])
    head_dim = size("head_dim", config.get("head_dim") or hidden // heads)
    context = size("context_length", config.get("max_position_embeddings") or context_length)
    kv_heads = config.get("num_key_value_heads")
    tie = config.get("tie_word_embeddings")
    activation = config.get("hidden_activation") or config.get("hidden_act") or "silu"
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation {activation!r} is not supported; supported: {', '.join(ACTIVATIONS)}"
        )
    return {
        "n_layers": size("n_layers", config["num_hidden_layers"]),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "ffn": config["intermediate_size"],
        "vocab": config["vocab_size"],
        "context_length": context,
        "norm_eps": float(config.get("rms_norm_eps", norm_eps)),
        "rope": rope_from_hf(config, head_dim, context, partial=partial_rotary),
        "tied": tied if tie is None else bool(tie),
        "activation": ACTIVATIONS[activation],
        "bos_id": _first(config.get("bos_token_id")),
        "eos_ids": id_list(config.get("eos_token_id")),
    }


def hf_windows(
    config: dict[str, Any], window: int | None, sliding: tuple[bool, ...]
) -> tuple[int | None, ...]:
    """Windows per layer: by `layer_types` where config.json has it, otherwise by the family's rule
    `sliding`.
    """
    if not window:
        return ()
    types = config.get("layer_types")
    if types:
        unknown = set(types) - {"sliding_attention", "full_attention"}
        if unknown:
            raise ValueError(f"layer type {unknown.pop()!r} is not supported")
        sliding = tuple(t == "sliding_attention" for t in types)
    return tuple(int(window) if s else None for s in sliding)


def id_list(value: Any) -> tuple[int, ...]:
    """Token ids from a number, a list or nothing."""
    if value is None:
        return ()
    return tuple(int(v) for v in (value if isinstance(value, list) else [value]))


def _first(value: Any) -> int | None:
    ids = id_list(value)
    return ids[0] if ids else None


def gguf_fields(checkpoint: Checkpoint, arch: str) -> dict[str, Any]:
    """The same fields from GGUF keys. Biases and norms exist where their tensors do."""
    meta, tensors = dict(checkpoint.metadata), checkpoint.tensors
    heads = _uniform(meta[f"{arch}.attention.head_count"], "head_count")
    hidden = size("hidden", meta[f"{arch}.embedding_length"])
    head_dim = size(
        "head_dim", meta.get(f"{arch}.attention.key_length") or hidden // size("heads", heads)
    )
    if int(meta.get(f"{arch}.attention.value_length") or head_dim) != head_dim:
        raise ValueError("keys and values of different sizes are not supported")
    divisors: tuple[float, ...] = ()
    if "rope_freqs.weight" in tensors:
        divisors = tuple(float(v) for v in checkpoint.tensor("rope_freqs.weight").reshape(-1))
    return {
        "n_layers": size("n_layers", meta[f"{arch}.block_count"]),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": _uniform(meta.get(f"{arch}.attention.head_count_kv", heads), "head_count_kv"),
        "head_dim": head_dim,
        "ffn": _uniform(meta[f"{arch}.feed_forward_length"], "feed_forward_length"),
        # The tensor decides: the vocabulary key is often absent.
        "vocab": checkpoint.info("token_embd.weight").shape[0],
        "context_length": int(meta[f"{arch}.context_length"]),
        "norm_eps": float(meta[f"{arch}.attention.layer_norm_rms_epsilon"]),
        "rope": rope_from_gguf(meta, arch, head_dim, divisors),
        "tied": "output.weight" not in tensors,
        "qkv_bias": "blk.0.attn_q.bias" in tensors,
        "o_bias": "blk.0.attn_output.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
        "bos_id": _first(meta.get("tokenizer.ggml.bos_token_id")),
        "eos_ids": gguf_eos(meta),
    }


def gguf_eos(meta: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that the keys name and, as in llama.cpp, control tokens that end a turn by their
    text: older files name only one.
    """
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    ids = [meta.get(f"tokenizer.ggml.{key}") for key in keys]
    tokens, types = (
        meta.get("tokenizer.ggml.tokens") or [],
        meta.get("tokenizer.ggml.token_type") or [],
    )
    ids += [
        i
        for i, (t, kind) in enumerate(zip(tokens, types, strict=False))
        if kind == CONTROL and t in TURN_ENDS
    ]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def _uniform(value: Any, name: str) -> int:
    """GGUF allows one value per layer; only models with equal layers are supported."""
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise ValueError(f"{name} differs between layers, which is not supported")
        value = value[0]
    return int(value)
