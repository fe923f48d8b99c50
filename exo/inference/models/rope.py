"""Rotary frequencies and their scalings. Pure.

`RopeConfig` holds divisors of frequencies, so that Hugging Face's rope_parameters, GGUF's
rope_freqs and the linear factor are the same thing. Formulas as in transformers'
modeling_rope_utils.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from exo.inference.arrays import Array
from exo.inference.models.config import RopeConfig, size

SUPPORTED = ("default", "linear", "llama3", "yarn", "longrope")


def inverse_frequencies(rope: RopeConfig, *, long: bool = False) -> Array:
    """float32 (dims / 2,): position p turns pair i by p * result[i]. `long`: with the factors for
    long sequences.
    """
    # Rounded to float32 after each step, as the references are: at position 1000 the last bit shows
    # in the logits. (Their power is rounded correctly; numpy's in float32 is not.)
    exponents = np.arange(0, rope.dims, 2, dtype=np.float32) / np.float32(rope.dims)
    powers = np.power(np.float64(rope.theta), exponents.astype(np.float64)).astype(np.float32)
    divisors = np.asarray(
        rope.long_divisors if long and rope.long_divisors else rope.divisors or 1, dtype=np.float32
    )
    one = np.float32(1.0)
    frequencies: Array = (
        one / (divisors * powers) if rope.long_divisors else one / powers / divisors
    )
    return frequencies


def cos_sin(rope: RopeConfig, positions: Array, *, long: bool = False) -> tuple[Array, Array]:
    """cos and sin, float32 (T, dims / 2) each, for integer positions (T,)."""
    angles = positions.astype(np.float32)[:, None] * inverse_frequencies(rope, long=long)[None, :]
    return np.cos(angles) * np.float32(rope.scale), np.sin(angles) * np.float32(rope.scale)


def rope_from_hf(
    config: dict[str, Any], head_dim: int, context_length: int, *, partial: bool = False
) -> RopeConfig:
    """From config.json, in the older style (rope_theta, rope_scaling) or the newer one
    (rope_parameters).

    partial: the family obeys `partial_rotary_factor`; in transformers the others rotate whole heads
        whatever it says. Raises `ValueError` for an unknown scaling, `KeyError` for one that lacks
        a parameter.
    """
    scaling = _of_all_layers(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "su":
        kind = "longrope"  # its name before transformers 4.43
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10000.0)
    share = scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    dims = size("head_dim", int(head_dim * float(share)) if partial else head_dim)
    original = int(
        config.get("original_max_position_embeddings")
        or scaling.get("original_max_position_embeddings")
        or context_length
    )
    base = RopeConfig(theta=theta, dims=dims)
    if kind == "default":
        return base
    if kind == "linear":
        return RopeConfig(
            theta=theta, dims=dims, divisors=(float(scaling["factor"]),) * (dims // 2)
        )
    if kind == "llama3":
        return RopeConfig(
            theta=theta, dims=dims, divisors=_llama3_divisors(base, scaling, original)
        )
    if kind == "yarn":
        divisors, scale = _yarn(base, scaling, original, context_length)
        return RopeConfig(theta=theta, dims=dims, divisors=divisors, scale=scale)
    if kind == "longrope":
        return RopeConfig(
            theta=theta,
            dims=dims,
            divisors=tuple(map(float, scaling["short_factor"])),
            long_divisors=tuple(map(float, scaling["long_factor"])),
            original_context=original,
            scale=_longrope_scale(scaling, original, context_length),
        )
    raise ValueError(f"rope scaling {kind!r} is not supported; supported: {', '.join(SUPPORTED)}")


def _of_all_layers(scaling: dict[str, Any]) -> dict[str, Any]:
    """Parameters may be given per kind of layer. Raises `ValueError` where they differ: all layers
    rotate in the same way here.
    """
    by_kind = [value for value in scaling.values() if isinstance(value, dict)]
    if any(value != by_kind[0] for value in by_kind):
        raise ValueError("rope parameters that differ between layers are not supported")
    return by_kind[0] if by_kind else scaling


def rope_from_gguf(
    metadata: dict[str, Any], arch: str, head_dim: int, divisors: tuple[float, ...]
) -> RopeConfig:
    """From GGUF keys; `divisors` are the contents of rope_freqs.weight, where the file has it."""
    dims = size("head_dim", metadata.get(f"{arch}.rope.dimension_count", head_dim))
    theta = float(metadata.get(f"{arch}.rope.freq_base", 10000.0))
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    factor = float(
        metadata.get(f"{arch}.rope.scaling.factor", metadata.get(f"{arch}.rope.scale_linear", 0.0))
        or 1.0
    )
    if kind in {"none", "longrope"}:
        factor = 1.0
    elif kind != "linear":
        raise ValueError(
            f"rope scaling {kind!r} is not supported in GGUF; supported: none, linear, longrope"
        )
    if factor != 1.0:
        divisors = tuple(factor * d for d in divisors or (1.0,) * (dims // 2))
    return RopeConfig(theta=theta, dims=dims, divisors=divisors)


def _llama3_divisors(base: RopeConfig, scaling: dict[str, Any], original: int) -> tuple[float, ...]:
    factor, low, high = (
        float(scaling[k]) for k in ("factor", "low_freq_factor", "high_freq_factor")
    )
    wavelength = 2 * math.pi / inverse_frequencies(base)
    smooth = (original / wavelength - low) / (high - low)
    with np.errstate(all="ignore"):  # outside its band it is not used, and may divide by zero
        between = 1 / ((1 - smooth) / factor + smooth)
    divisors = np.where(
        wavelength < original / high, 1.0, np.where(wavelength > original / low, factor, between)
    )
    return tuple(float(d) for d in divisors)


def _yarn(
    base: RopeConfig, scaling: dict[str, Any], original: int, context_length: int
) -> tuple[tuple[float, ...], float]:
    """Slow frequencies are interpolated, fast ones kept, with a ramp between them.
    https://arxiv.org/abs/2309.00071
    """
    factor = float(scaling.get("factor") or context_length / original)

    def pair_that_turns(times: float) -> float:
        return base.dims * math.log(original / (times * 2 * math.pi)) / (2 * math.log(base.theta))

    low = pair_that_turns(float(scaling.get("beta_fast") or 32))
    high = pair_that_turns(float(scaling.get("beta_slow") or 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, base.dims - 1)
    ramp = np.clip((np.arange(base.dims // 2) - low) / (high - low or 0.001), 0, 1)
    divisors = tuple(float(d) for d in 1 / (ramp / factor + (1 - ramp)))
    if scaling.get("attention_factor") is not None:
        return divisors, float(scaling["attention_factor"])

    def attention(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if scaling.get("mscale") and scaling.get("mscale_all_dim"):
        return divisors, attention(float(scaling["mscale"])) / attention(
            float(scaling["mscale_all_dim"])
        )
    return divisors, attention(1.0)


def _longrope_scale(scaling: dict[str, Any], original: int, context_length: int) -> float:
    if scaling.get("attention_factor") is not None:
        return float(scaling["attention_factor"])
    factor = float(scaling.get("factor") or context_length / original)
    return 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
