"""`Embedding`: hidden states of token ids, from the checkpoint's own rows in a file. Knows no graph
and no sequences.

Rows are read where they are needed, not mapped: a mapping would make up to a huge page around each
row resident, and for a prompt the whole table. They stay in the stored format, so nothing is
rounded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.dequantize import block_layout, to_float32
from exo.inference.checkpoints.tensors import RawTensor
from exo.inference.onnx.graph.layout import EMBEDDING_FILE

# Rows copied at a time when the file is written.
ROWS: Final = 4096
# Rows of single tokens that are kept: a text has few different ones.
REMEMBERED: Final = 256
# Up to this many ids are a step of a batch, not a part of a prompt.
STEP: Final = 32


class Embedding:
    """dtype: the stored type. width: values per row. scale: what each is multiplied by.

    Raises `OSError`.
    """

    def __init__(self, folder: Path, *, dtype: str, width: int, scale: float = 1.0) -> None:
        values, n_bytes = block_layout(dtype)
        self._dtype, self._width, self._scale = dtype, width, np.float32(scale)
        self._row_bytes = width // values * n_bytes
        self._file = (folder / EMBEDDING_FILE).open("rb", buffering=0)
        self._row = lru_cache(REMEMBERED)(lambda token: self._read(np.array([token])))

    def rows(self, ids: Array) -> Array:
        """float32 (n, width) of int64 (n,); not to be written to."""
        if len(ids) == 1:
            return self._row(int(ids[0]))
        return (
            np.concatenate([self._row(token) for token in ids.tolist()])
            if len(ids) <= STEP
            else self._read(ids)
        )

    def _read(self, ids: Array) -> Array:
        size, fd = self._row_bytes, self._file.fileno()
        data = b"".join(os.pread(fd, size, token * size) for token in ids.tolist())
        stored = np.frombuffer(data, np.uint8).reshape(len(ids), size)
        values = to_float32(RawTensor(self._dtype, (len(ids), self._width), stored))
        return values if self._scale == 1 else values * self._scale

    def close(self) -> None:
        self._file.close()


def write_embedding(folder: Path, raw: RawTensor, between: Callable[[], object]) -> None:
    """Copy the stored rows. `between` is called now and then, so that the caller can drop what was
    read.
    """
    data = raw.data.reshape(raw.shape[0], -1)
    with (folder / EMBEDDING_FILE).open("wb") as file:
        for start in range(0, len(data), ROWS):
            file.write(np.ascontiguousarray(data[start : start + ROWS]).data)
            between()
