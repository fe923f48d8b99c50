"""Weight formats: what is taken over is taken over exactly, what is rounded is rounded by
little.
"""

from __future__ import annotations

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize as ggml_quantize

from exo.inference.arrays import Array
from exo.inference.checkpoints.dequantize import to_float32
from exo.inference.checkpoints.tensors import RawTensor
from exo.inference.onnx.graph import formats
from exo.inference.onnx.graph.formats import Dense, Packed


def weights(n: int = 6, k: int = 96, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(0.1, 1, (n, k)).astype(np.float32)


def stored(dtype: str, values: Array | None = None) -> RawTensor:
    values = weights() if values is None else values
    data = ggml_quantize(values, GGMLQuantizationType[dtype]).view(np.uint8)
    return RawTensor(dtype, values.shape, data.reshape(values.shape[0], -1))


@pytest.mark.parametrize(("dtype", "bits"), [("Q4_0", 4), ("Q4_1", 4), ("Q8_0", 8)])
def test_ggml_blocks_are_taken_over_without_rounding(dtype: str, bits: int) -> None:
    raw = stored(dtype)
    packed = formats.take_over(raw)
    assert packed.bits == bits
    np.testing.assert_allclose(formats.dequantize(packed), to_float32(raw), atol=1e-6)


def test_only_affine_blocks_have_offsets() -> None:
    assert formats.take_over(stored("Q4_1")).offsets is not None
    assert formats.take_over(stored("Q4_0")).offsets is None
    assert formats.take_over(stored("Q8_0")).offsets is None


@pytest.mark.parametrize("dtype", ["Q4_0", "Q4_1"])
def test_widening_to_eight_bits_changes_no_weight(dtype: str) -> None:
    packed = formats.take_over(stored(dtype))
    np.testing.assert_allclose(
        formats.dequantize(formats.widen(packed)), formats.dequantize(packed), atol=1e-6
    )


@pytest.mark.parametrize(("bits", "steps"), [(8, 254), (4, 14)])
@pytest.mark.parametrize("k", [32, 84, 96])
def test_quantising_is_off_by_half_a_step_at_most(bits: int, steps: int, k: int) -> None:
    values = weights(k=k)
    packed = formats.quantize(values, bits)
    assert packed.codes.shape == (6, -(-k // 32), 4 * bits)
    padded = np.pad(np.abs(values), ((0, 0), (0, -k % 32))).reshape(6, -1, 32)
    half_steps = np.repeat(padded.max(-1) / steps, 32, axis=1)[:, :k]
    # 4 bit: the side that does not reach -8 ends at 7, one step early.
    allowed = half_steps * (1 if bits == 8 else 2.3) + 1e-6
    assert (np.abs(formats.dequantize(packed) - values) <= allowed).all()


def test_a_block_of_zeros_stays_zero() -> None:
    for bits in (4, 8):
        assert not formats.dequantize(formats.quantize(np.zeros((2, 32), np.float32), bits)).any()


@pytest.mark.parametrize("bits", [None, 4, 8, 32])
@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0"])
def test_every_stored_type_converts_to_every_format(dtype: str, bits: int | None) -> None:
    raw = stored(dtype)
    matrix = formats.convert(raw, bits)
    assert isinstance(matrix, Dense if bits == 32 else Packed)
    error = np.abs(formats.dequantize(matrix) - to_float32(raw)).max()
    assert error <= (0.5 if bits == 4 else 0.02)


def test_rows_can_be_reordered_and_left_out() -> None:
    order = np.array([3, -1, 0])
    for matrix in (Dense(weights()), formats.take_over(stored("Q4_1"))):
        picked = formats.dequantize(formats.take_rows(matrix, order))
        whole = formats.dequantize(matrix)
        np.testing.assert_array_equal(picked, np.stack([whole[3], np.zeros(96), whole[0]]))


def test_columns_can_be_reordered_and_left_out() -> None:
    columns = np.concatenate([np.arange(90), [-1] * 6])
    dense = formats.take_columns(Dense(weights()), columns)
    np.testing.assert_array_equal(formats.dequantize(dense)[:, :90], weights()[:, :90])
    packed = formats.take_columns(formats.take_over(stored("Q4_0")), columns)
    assert not formats.dequantize(packed)[:, 90:].any()


def test_stacked_matrices_of_different_formats_keep_their_weights() -> None:
    parts = [
        formats.take_over(stored(dtype, weights(seed=i)))
        for i, dtype in enumerate(("Q4_1", "Q8_0", "Q4_0"))
    ]
    together = formats.stack(list(parts))
    assert isinstance(together, Packed)
    assert together.bits == 8
    np.testing.assert_allclose(
        formats.dequantize(together),
        np.concatenate([formats.dequantize(p) for p in parts]),
        atol=1e-6,
    )


def test_stacking_float_with_packed_gives_float() -> None:
    together = formats.stack([Dense(weights()), formats.take_over(stored("Q8_0"))])
    assert isinstance(together, Dense)
    assert together.values.shape == (12, 96)


def test_larger_blocks_round_by_half_a_step_of_theirs_at_most() -> None:
    matrix = formats.take_over(stored("Q8_0", weights(n=5000, k=128)))
    larger = formats.in_larger_blocks(matrix, 64)
    assert (larger.block, larger.codes.shape, larger.scales.shape) == (64, (5000, 2, 64), (5000, 2))
    before, after = formats.dequantize(matrix), formats.dequantize(larger)
    allowed = np.repeat(np.abs(before).reshape(5000, 2, 64).max(-1) / 254, 64, axis=1)
    assert (np.abs(after - before) <= allowed + 1e-6).all()
