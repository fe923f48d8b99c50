"""Offsets of affine blocks as integer zero points and a few more columns. Pure numpy; knows no
graph.

A row of blocks is w = d * (q - 8) + o (4 bit; 128 for 8 bit). With the integer zero point z nearest
to 8 - o / d it is w = d * (q - z) + r, and |r| is at most d / 2. The product with r is r times the
sums of the input over each block: with those sums appended to the input, the r of a row's blocks
are a few more columns of the same matrix, in codes of the same width.

One code is too coarse, so there are two digits: the second holds what rounding the first has left.
Each digit is in blocks of its own, and so has scales of its own. The loss is too small to measure.
Compared with a separate float32 product it saves up to half of the bytes of the offsets, and an
operator per matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.onnx.graph.formats import BLOCK, Packed, dequantize, pack_nibbles, quantize

DIGITS: Final = 2
# What rounding the columns may add to the rounding noise of the weights (a step / sqrt(12)). Both
# are root mean squares.
MAX_NOISE: Final = 0.01


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A matrix for an input of `k` values: the matrix's own, then for each digit the sums of its
    blocks of 32. `pad` zeros stand between the digits.

    codes: uint8 (N, blocks, 4 * bits).
    scales: float32 (N, blocks).
    zero_points: uint8 (N, bytes), as MatMulNBits takes them: for 4 bits two to a byte, the first
        one in the low half.
    """

    bits: int
    k: int
    pad: int
    codes: Array
    scales: Array
    zero_points: Array

    @property
    def n(self) -> int:
        return int(self.codes.shape[0])


def fold(matrix: Packed) -> Folded | None:
    """None without offsets, or where rounding the columns would lose more than `MAX_NOISE`."""
    if matrix.offsets is None or matrix.k % BLOCK:
        return None
    zeros, rest = _split(matrix)
    digits = []
    for _ in range(DIGITS):
        digits.append(quantize(rest, matrix.bits))
        rest = rest - dequantize(digits[-1])
    if _rms(rest) > MAX_NOISE * _rms(matrix.scales) / 12**0.5:
        return None
    sums, blocks = rest.shape[1], digits[0].scales.shape[1]
    middle = np.full((matrix.n, DIGITS * blocks), 2 ** (matrix.bits - 1), np.uint8)
    return Folded(
        bits=matrix.bits,
        k=matrix.k + (DIGITS - 1) * blocks * BLOCK + sums,
        pad=blocks * BLOCK - sums,
        codes=np.concatenate([matrix.codes, *(digit.codes for digit in digits)], axis=1),
        scales=np.concatenate([matrix.scales, *(digit.scales for digit in digits)], axis=1),
        zero_points=_pack(np.concatenate((zeros, middle), axis=1), matrix.bits),
    )


def _split(matrix: Packed) -> tuple[Array, Array]:
    """Zero points, uint8 (N, blocks), and what they leave of the offsets, float32 (N, blocks)."""
    assert matrix.offsets is not None
    top = 2 ** (matrix.bits - 1)
    steps = np.divide(
        matrix.offsets, matrix.scales, out=np.zeros_like(matrix.offsets), where=matrix.scales != 0
    )
    zeros = np.clip(np.rint(top - steps), 0, 2 * top - 1)
    rest = matrix.offsets - matrix.scales * (top - zeros)
    return zeros.astype(np.uint8), rest.astype(np.float32)


def _pack(zeros: Array, bits: int) -> Array:
    if bits == 8:
        return zeros
    if zeros.shape[1] % 2:
        zeros = np.pad(zeros, ((0, 0), (0, 1)), constant_values=8)
    return pack_nibbles(zeros)


def _rms(values: Array) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))) if values.size else 0.0
