"""Rows of the embedding: the same values as the checkpoint's whole tensor, whatever its type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize

from exo.inference.checkpoints.dequantize import to_float32
from exo.inference.checkpoints.tensors import RawTensor
from exo.inference.onnx.run.embedding import Embedding, write_embedding
from exo.inference.onnx.run.sequences import chunks_of

VOCAB, WIDTH = 5000, 64


def stored(dtype: str) -> RawTensor:
    values = np.random.default_rng(3).normal(size=(VOCAB, WIDTH)).astype(np.float32)
    if dtype == "F16":
        return RawTensor(dtype, values.shape, values.astype("<f2").view(np.uint8))
    return RawTensor(dtype, values.shape, quantize(values, GGMLQuantizationType[dtype]))


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_1", "Q5_0"])
@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_rows_are_those_of_the_checkpoint_times_the_scale(
    tmp_path: Path, dtype: str, scale: float
) -> None:
    raw = stored(dtype)
    pauses: list[None] = []
    write_embedding(tmp_path, raw, lambda: pauses.append(None))
    embedding = Embedding(tmp_path, dtype=dtype, width=WIDTH, scale=scale)
    ids = np.array([0, VOCAB - 1, 17, 17, 4096])
    np.testing.assert_array_equal(embedding.rows(ids), to_float32(raw)[ids] * np.float32(scale))
    assert len(pauses) == 2
    embedding.close()


@pytest.mark.parametrize(
    ("length", "sizes"),
    [
        (1, [1]),
        (2, [2]),
        (64, [64]),
        (65, [65]),
        (66, [64, 2]),
        (129, [64, 65]),
        (130, [64, 64, 2]),
    ],
)
def test_a_prompt_is_read_in_chunks_and_never_ends_in_a_single_token(
    length: int, sizes: list[int]
) -> None:
    assert [stop - start for start, stop in chunks_of(length, 64)] == sizes
