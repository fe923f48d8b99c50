"""What a checkpoint says of a tensor, and a tensor as it is stored. Pure data."""

from __future__ import annotations

from dataclasses import dataclass

from exo.inference.arrays import Array


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of a tensor: row-major shape, stored type (`F32`, `BF16`, `Q4_1`, ...),
    bytes on disk.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """A tensor as stored. `data` is uint8 (rows, bytes per row), read-only, and may be a view of
    the mapped file.
    """

    dtype: str
    shape: tuple[int, ...]
    data: Array
