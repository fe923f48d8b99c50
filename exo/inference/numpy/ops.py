"""The arithmetic of a transformer block in numpy. Pure functions on float32; shapes in the
comments.

N rows (tokens of all sequences of a pass), H heads, G key-value heads, D head size.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from exo.inference.arrays import Array

# Queries are taken in blocks, so that scores above the diagonal are mostly never computed.
QUERY_BLOCK: Final = 128
SQRT_2_OVER_PI: Final = np.float32(0.7978845608028654)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""
    mean = np.einsum("...i,...i->...", x, x) / np.float32(x.shape[-1])
    out: Array = x * (np.float32(1.0) / np.sqrt(mean + np.float32(eps)))[..., None]
    out *= weight
    return out


def rotate(x: Array, cos: Array, sin: Array) -> None:
    """Rotary positions, in place. x: (N, heads, D); cos, sin: (N, dims / 2); pairs: (j, j + dims /
    2).
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = first * cos
    turned -= second * sin
    second *= cos
    second += first * sin
    first[...] = turned


def activate(gate: Array, kind: str) -> Array:
    """silu, gelu, or gelu by tanh."""
    if kind == "silu":
        out: Array = gate / (np.float32(1.0) + np.exp(-gate))
        return out
    if kind == "gelu_tanh":
        inner = SQRT_2_OVER_PI * (gate + np.float32(0.044715) * gate * gate * gate)
        out = np.float32(0.5) * gate * (np.float32(1.0) + np.tanh(inner))
        return out
    out = np.float32(0.5) * gate * (np.float32(1.0) + _erf(gate * np.float32(0.7071067811865476)))
    return out


def attend(
    queries: Array,
    keys: Array,
    values: Array,
    position: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Array:
    """Causal attention of T queries at `position`, `position` + 1, ... over the keys so far.

    queries (T, H, D); keys and values (G, position + T, D); query head h belongs to key-value head
    h // (H / G). Returns (T, H * D).
    """
    T, H, D = queries.shape
    G = keys.shape[0]
    # (G, H/G, T, D).
    grouped = (queries * np.float32(scale)).reshape(T, G, H // G, D).transpose(1, 2, 0, 3)
    out = np.empty((T, G, H // G, D), np.float32)
    for begin in range(0, T, QUERY_BLOCK):
        end = min(T, begin + QUERY_BLOCK)
        low = 0 if window is None else max(0, position + begin - window + 1)
        high = position + end
        block = grouped[:, :, begin:end].reshape(G, -1, D)  # (G, H/G * t, D)
        scores = block @ keys[:, low:high].transpose(0, 2, 1)
        if softcap is not None:
            scores = np.tanh(scores / np.float32(softcap)) * np.float32(softcap)
        if end - begin > 1:
            _mask(scores.reshape(G, H // G, end - begin, high - low), position + begin, low, window)
        scores -= scores.max(axis=-1, keepdims=True)
        np.exp(scores, out=scores)
        mixed = scores @ values[:, low:high]  # (G, H/G * t, D)
        mixed /= scores.sum(axis=-1, keepdims=True)
        out[begin:end] = mixed.reshape(G, H // G, end - begin, D).transpose(2, 0, 1, 3)
    return out.reshape(T, H * D)


def _mask(scores: Array, first: int, low: int, window: int | None) -> None:
    """Hide what a query must not see, in place: later keys, and keys `window` or more positions
    before it. Last axes (t, keys).
    """
    t, n = scores.shape[-2:]
    rows = np.arange(first, first + t)[:, None]
    # Only the last t columns can lie above the diagonal.
    later = np.arange(low + n - t, low + n)[None, :] > rows
    scores[..., n - t :][..., later] = -np.inf
    if window is not None:
        gone = np.arange(low, low + n)[None, :] <= rows - window
        scores[..., gone] = -np.inf


def _erf(x: Array) -> Array:
    """Error function, which numpy lacks. Abramowitz and Stegun 7.1.26 in float64: absolute error
    below 1.5e-7.
    """
    z = np.abs(x.astype(np.float64))
    t = 1.0 / (1.0 + 0.3275911 * z)
    poly = t * (
        0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429)))
    )
    out: Array = (np.sign(x) * (1.0 - poly * np.exp(-z * z))).astype(np.float32)
    return out
