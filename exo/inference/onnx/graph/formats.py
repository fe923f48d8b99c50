"""Weight formats: from stored tensors to what `MatMulNBits`, `Gemm` and `Gather` take. Pure numpy;
knows no graph.

A matrix is (N outputs, K inputs). `Packed` rows are blocks of 32 weights: w = scale * (code -
2**(bits-1)) + offset. `MatMulNBits` computes only the first part (its int8 kernels take integer
zero points, and that of a Q4_1 block is not one). The offset is added by a small product with the
sums of the input over each block, so Q4_1 stays exact. ggml's blocks:
https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.dequantize import to_float32
from exo.inference.checkpoints.tensors import RawTensor

BLOCK: Final = 32
# Stored types whose blocks map to MatMulNBits without rounding, and the bits they take there.
DIRECT: Final = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
# Rows that are converted at a time, where all at once would take much memory.
ROWS: Final = 2048


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """codes: uint8 (N, blocks, block * bits / 8).
    scales: float32 (N, blocks).
    offsets: float32 (N, blocks) or None.

    Blocks of a size other than 32 have 8-bit codes and no offsets.
    """

    bits: int
    k: int
    codes: Array
    scales: Array
    offsets: Array | None = None
    block: int = BLOCK

    @property
    def n(self) -> int:
        return int(self.codes.shape[0])


@dataclass(frozen=True, slots=True, eq=False)
class Dense:
    """values: float32 (N, K)."""

    values: Array

    @property
    def n(self) -> int:
        return int(self.values.shape[0])

    @property
    def k(self) -> int:
        return int(self.values.shape[1])


Matrix = Packed | Dense


def is_direct(raw: RawTensor) -> bool:
    """Whether the stored blocks can be taken over without rounding."""
    return raw.dtype in DIRECT and raw.shape[-1] % BLOCK == 0


def take_over(raw: RawTensor) -> Packed:
    """Q4_0, Q4_1 and Q8_0 without rounding. Raises `KeyError` for other types."""
    n, k = int(np.prod(raw.shape[:-1])), int(raw.shape[-1])
    bits, head = DIRECT[raw.dtype], 4 if raw.dtype == "Q4_1" else 2
    blocks = raw.data.reshape(n, k // BLOCK, head + 4 * bits)
    # (n, blocks, 1 or 2).
    halves = np.ascontiguousarray(blocks[:, :, :head]).view("<f2").astype(np.float32)
    scales = np.ascontiguousarray(halves[:, :, 0])
    if bits == 8:  # int8 codes: adding 128 is flipping the top bit
        return Packed(8, k, blocks[:, :, head:] ^ np.uint8(0x80), scales)
    codes = _pair_nibbles(blocks[:, :, head:])
    # w = d*q + m = d*(q - 8) + (m + 8*d)
    offsets = halves[:, :, 1] + 8 * scales if raw.dtype == "Q4_1" else None
    return Packed(4, k, codes, scales, offsets)


def _pair_nibbles(stored: Array) -> Array:
    """ggml puts weights i and i + 16 into one byte, MatMulNBits 2*i and 2*i + 1; both have the
    first one in the low half.
    """
    return pack_nibbles(np.concatenate((stored & 15, stored >> 4), axis=-1))  # (n, blocks, 32)


def pack_nibbles(codes: Array) -> Array:
    """uint8 (..., 2 * n) below 16 to (..., n), the first of two in the low half."""
    packed: Array = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed


def unpack_nibbles(packed: Array) -> Array:
    """uint8 (..., n) to (..., 2 * n)."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:-1], -1)


def quantize(values: Array, bits: int, block: int = BLOCK) -> Packed:
    """float32 (N, K) to symmetric blocks of `bits` (4 or 8); zeros pad the last block."""
    n, k = values.shape
    pad = -k % block
    blocks = np.pad(values, ((0, 0), (0, pad))) if pad else values
    blocks = blocks.reshape(n, -1, block)
    top = 2 ** (bits - 1)
    # 4 bit: the value of largest magnitude maps to -8, as in Q4_0, so that no code is wasted.
    if bits == 4:
        peak = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)[..., 0]
        scales = peak / -top
    else:
        scales = np.abs(blocks).max(-1) / (top - 1)
    scales = scales.astype(np.float32)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    codes = np.clip(np.rint(blocks * inverse[..., None]) + top, 0, 2 * top - 1).astype(np.uint8)
    if bits == 4:
        codes = pack_nibbles(codes)
    return Packed(bits, k, np.ascontiguousarray(codes), scales, block=block)


def in_larger_blocks(matrix: Packed, block: int) -> Packed:
    """8-bit codes without offsets in blocks of `block`. This rounds again, by up to half an 8-bit
    step of the larger block.
    """
    codes = np.empty((matrix.n, matrix.k // block, block), np.uint8)
    scales = np.empty(codes.shape[:2], np.float32)
    # All at once as float32 it would take four times its size.
    for start in range(0, matrix.n, ROWS):
        rows = slice(start, start + ROWS)
        part = quantize(dequantize(take_rows(matrix, np.arange(matrix.n)[rows])), 8, block)
        codes[rows], scales[rows] = part.codes, part.scales
    return Packed(8, matrix.k, codes, scales, block=block)


def widen(matrix: Packed) -> Packed:
    """The same weights in 8-bit codes, exactly: a 4-bit step is sixteen 8-bit ones."""
    if matrix.bits == 8:
        return matrix
    return Packed(
        8, matrix.k, unpack_nibbles(matrix.codes) << 4, matrix.scales / 16, matrix.offsets
    )


def dequantize(matrix: Matrix) -> Array:
    """float32 (N, K)."""
    if isinstance(matrix, Dense):
        return matrix.values
    wide = widen(matrix)
    values = (wide.codes.astype(np.float32) - 128) * wide.scales[..., None]
    if wide.offsets is not None:
        values += wide.offsets[..., None]
    return np.ascontiguousarray(values.reshape(wide.n, -1)[:, : wide.k])


def convert(raw: RawTensor, bits: int | None) -> Matrix:
    """A stored matrix in the format asked for.

    bits: 32: float32. 8: exact where the stored blocks are of a format of `DIRECT` with 8 bits or
        fewer, otherwise rounded to 8. 4: the same, but without offsets. None: the stored blocks
        where their format is in `DIRECT`, otherwise 8.
    """
    if bits == 32:
        return Dense(to_float32(raw).reshape(-1, raw.shape[-1]))
    if (
        is_direct(raw)
        and (bits is None or DIRECT[raw.dtype] == bits)
        and not (bits == 4 and raw.dtype == "Q4_1")
    ):
        return take_over(raw)
    if is_direct(raw) and bits == 8:
        return widen(take_over(raw))
    return quantize(to_float32(raw).reshape(-1, raw.shape[-1]), bits or 8)


def take_rows(matrix: Matrix, rows: Array) -> Matrix:
    """Rows in the order of `rows`; -1 gives a row of zeros."""
    missing = rows < 0
    if isinstance(matrix, Dense):
        values = matrix.values[rows]
        values[missing] = 0
        return Dense(values)
    scales = matrix.scales[rows]
    scales[missing] = 0
    offsets = matrix.offsets
    if offsets is not None:
        offsets = offsets[rows]
        offsets[missing] = 0
    return replace(matrix, codes=matrix.codes[rows], scales=scales, offsets=offsets)


def take_columns(matrix: Matrix, columns: Array) -> Matrix:
    """Columns in the order of `columns`; -1 gives zeros. This breaks blocks up, so packed weights
    become 8 bit.
    """
    values = dequantize(matrix)[:, columns]
    values[:, columns < 0] = 0
    return Dense(values) if isinstance(matrix, Dense) else quantize(values, 8)


def stack(matrices: list[Matrix]) -> Matrix:
    """One matrix of all rows. Mixed formats become the widest of them, without rounding."""
    if all(isinstance(m, Packed) for m in matrices):
        packed = [m for m in matrices if isinstance(m, Packed)]
        if len({m.bits for m in packed}) > 1:
            packed = [widen(m) for m in packed]
        offsets = None
        if any(m.offsets is not None for m in packed):
            offsets = np.concatenate(
                [np.zeros_like(m.scales) if m.offsets is None else m.offsets for m in packed]
            )
        codes, scales = (
            np.concatenate([getattr(m, name) for m in packed]) for name in ("codes", "scales")
        )
        return Packed(packed[0].bits, packed[0].k, codes, scales, offsets)
    return Dense(np.concatenate([dequantize(m) for m in matrices]))
