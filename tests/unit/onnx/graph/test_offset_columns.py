"""Offsets as columns: the product is that of the affine blocks, whatever the offsets are."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize as ggml_quantize
from hypothesis import given
from hypothesis import strategies as st

from exo.inference.arrays import Array
from exo.inference.checkpoints.tensors import RawTensor
from exo.inference.onnx.graph import formats
from exo.inference.onnx.graph.formats import (
    BLOCK,
    Packed,
    dequantize,
    take_over,
    unpack_nibbles,
    widen,
)
from exo.inference.onnx.graph.offset_columns import DIGITS, Folded, fold


def affine(mean: float = 0.1, *, n: int = 8, k: int = 576, seed: int = 0) -> Packed:
    """Q4_1 blocks of normal values around `mean`."""
    values = np.random.default_rng(seed).normal(mean, 1, (n, k)).astype(np.float32)
    data = ggml_quantize(values, GGMLQuantizationType.Q4_1).view(np.uint8)
    return take_over(RawTensor("Q4_1", values.shape, data.reshape(n, -1)))


def unfold(matrix: Folded) -> Array:
    """float32 (N, k): the columns as MatMulNBits takes them."""
    wide, zeros = matrix.codes, matrix.zero_points
    if matrix.bits == 4:
        wide, zeros = unpack_nibbles(wide), unpack_nibbles(zeros)[:, : matrix.scales.shape[1]]
    values = (wide.astype(np.float32) - zeros[..., None]) * matrix.scales[..., None]
    return np.ascontiguousarray(values.reshape(matrix.n, -1)[:, : matrix.k])


def extended(x: Array, folded: Folded) -> Array:
    """The input as the graph makes it: x, then for each digit the sums of its blocks, zeros in
    between.
    """
    sums = x.reshape(len(x), -1, BLOCK).sum(-1)
    between = np.zeros((len(x), folded.pad), x.dtype)
    return np.concatenate([x, sums, *[between, sums] * (DIGITS - 1)], axis=-1)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("k", [32, 96, 576, 1024, 1536])
def test_the_product_is_that_of_the_affine_blocks(k: int, bits: int) -> None:
    matrix = affine(k=k) if bits == 4 else widen(affine(k=k))
    folded = fold(matrix)
    assert folded is not None
    assert (folded.bits, folded.n) == (bits, matrix.n)
    assert folded.codes.shape == (8, folded.scales.shape[1], 4 * bits)
    assert folded.zero_points.shape == (8, -(-folded.scales.shape[1] * bits // 8))
    x = np.random.default_rng(1).normal(0.5, 1, (3, k)).astype(np.float32)
    right = x.astype(np.float64) @ dequantize(matrix).astype(np.float64).T
    ours = extended(x, folded).astype(np.float64) @ unfold(folded).astype(np.float64).T
    # A hundredth of what rounding to 4 bits did to these products.
    step = float(np.sqrt(np.mean(np.square(matrix.scales.astype(np.float64))))) * 2 ** (bits - 4)
    assert np.abs(ours - right).max() <= 0.01 * step * float(np.linalg.norm(x, axis=1).max()) * 4


@given(mean=st.floats(-20, 20), seed=st.integers(0, 2**16))
def test_blocks_far_from_zero_are_folded_well_or_not_at_all(mean: float, seed: int) -> None:
    matrix = affine(mean, n=2, k=64, seed=seed)
    folded = fold(matrix)
    if folded is not None:
        columns = unfold(folded)
        # Every weight once more: its own column plus the columns of its block.
        offsets = sum(columns[:, 64 + digit * BLOCK :][:, :2] for digit in range(DIGITS))
        weights = columns[:, :64] + np.repeat(np.asarray(offsets), BLOCK, axis=1)
        assert np.abs(weights - dequantize(matrix)).max() <= 0.05 * float(matrix.scales.max())


def test_a_block_of_equal_values_is_its_offset() -> None:
    matrix = affine(k=64)
    scales = matrix.scales.copy()
    scales[:, 0] = 0
    assert matrix.offsets is not None
    offsets = matrix.offsets.copy()
    offsets[:, 0] = 0.25 * scales[:, 1]
    flat = Packed(4, 64, matrix.codes, scales, offsets)
    folded = fold(flat)
    assert folded is not None
    x = np.ones((1, 64), np.float32)
    ours = extended(x, folded) @ unfold(folded).T
    np.testing.assert_allclose(ours, x @ dequantize(flat).T, atol=0.02 * float(scales.max()) * 8)


def test_offsets_that_columns_cannot_carry_are_left_alone() -> None:
    matrix = affine()
    assert matrix.offsets is not None
    far = Packed(
        4,
        576,
        matrix.codes,
        matrix.scales,
        matrix.offsets * np.geomspace(1, 1e4, 18, dtype=np.float32),
    )
    assert fold(far) is None


def test_without_offsets_or_with_a_short_last_block_nothing_is_folded() -> None:
    assert fold(formats.quantize(np.ones((2, 64), np.float32), 4)) is None
    short = Packed(
        4,
        40,
        np.zeros((2, 2, 16), np.uint8),
        np.ones((2, 2), np.float32),
        np.ones((2, 2), np.float32),
    )
    assert fold(short) is None
