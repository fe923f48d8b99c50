"""GGUF files: header, key-values and tensor table. Every length is checked against the file before
it is used.

The header is read here and not by `gguf.GGUFReader`, which makes several arrays for each of 100,000
vocabulary entries (seconds, and hundreds of MB) and trusts the counts in the file. The block
formats come from the package.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.dequantize import block_layout
from exo.inference.checkpoints.tensors import RawTensor, TensorInfo
from exo.inference.errors import CheckpointError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
MAX_DIMS: Final = 4
MAX_NAME: Final = 1024
STRING: Final = 8
ARRAY: Final = 9
# Type code of a scalar -> struct format.
SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}

ARRAY_TYPES: Final = {
    0: "u1",
    1: "i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "u1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


class _Broken(Exception):
    """The header cannot be right; the message says where."""


class _Cursor:
    """Reads little-endian values from a buffer, and nothing beyond its end."""

    def __init__(self, data: mmap.mmap | bytes) -> None:
        self.data = data
        self.size = len(data)
        self.at = 0

    def take(self, count: int, what: str) -> int:
        """Reserve `count` bytes; returns where they begin."""
        start = self.at
        if count < 0 or count > self.size - start:
            raise _Broken(
                f"truncated: {what} needs {count} bytes at offset {start}, the file has {self.size}"
            )
        self.at = start + count
        return start

    def scalar(self, code: str, what: str) -> Any:
        start = self.take(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.data, start)[0]

    def string(self, what: str) -> str:
        length = self.scalar("Q", what)
        start = self.take(length, what)
        return self.data[start : start + length].decode("utf-8", "replace")

    def strings(self, count: int, what: str) -> list[str]:
        out: list[str] = []
        unpack, data, size, at = struct.Struct("<Q").unpack_from, self.data, self.size, self.at
        for _ in range(count):  # a tight loop: vocabularies have 10^5 entries
            if at + 8 > size:
                raise _Broken(f"truncated: {what} ends within its entry {len(out)}")
            length = unpack(data, at)[0]
            at += 8
            if length > size - at:
                raise _Broken(f"truncated: {what} entry {len(out)} claims {length} bytes")
            out.append(data[at : at + length].decode("utf-8", "replace"))
            at += length
        self.at = at
        return out

    def value(self, kind: int, what: str) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind], what)
        if kind == STRING:
            return self.string(what)
        if kind != ARRAY:
            raise _Broken(f"{what} has the unknown value type {kind}")
        return self.array(what)

    def array(self, what: str) -> list[Any]:
        kind, count = self.scalar("I", what), self.scalar("Q", what)
        if kind == STRING:
            if count * 8 > self.size - self.at:
                raise _Broken(f"truncated: {what} claims {count} entries")
            return self.strings(count, what)
        if kind not in SCALARS:
            raise _Broken(f"{what} is an array of the unknown value type {kind}")
        dtype = np.dtype(ARRAY_TYPES[kind])
        start = self.take(count * dtype.itemsize, what)
        values: list[Any] = np.frombuffer(self.data, dtype, count, start).tolist()
        return values


class GGUFCheckpoint(Checkpoint):
    FORMAT: ClassVar[Literal["gguf"]] = "gguf"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._offsets: dict[str, int] = {}
        self._map = _map_file(path)
        try:
            self._read_header()
        except _Broken as error:
            self.close()
            raise CheckpointError(str(error), path=str(path)) from None
        except BaseException:
            self.close()
            raise

    def _read_header(self) -> None:
        cursor = _Cursor(self._map)
        if bytes(self._map[:4]) != MAGIC:
            raise _Broken(
                f"not a GGUF file: it begins with {bytes(self._map[:4])!r}, not {MAGIC!r}"
            )
        cursor.at = 4
        version = cursor.scalar("I", "version")
        if version not in VERSIONS:
            raise _Broken(
                f"GGUF version {version} is not supported; supported:"
                f" {', '.join(map(str, VERSIONS))}"
            )
        n_tensors, n_values = (
            cursor.scalar("Q", "tensor count"),
            cursor.scalar("Q", "key-value count"),
        )
        # The smallest key-value has 13 bytes, the smallest tensor entry 32.
        if n_values * 13 + n_tensors * 32 > cursor.size:
            claim = f"{n_tensors} tensors and {n_values} key-values"
            raise _Broken(
                f"truncated or damaged: claims {claim}, more than its {cursor.size} bytes can hold"
            )
        metadata: dict[str, Any] = {}
        for i in range(n_values):
            key = cursor.string(f"key {i}")
            if key in metadata:
                raise _Broken(f"key {key!r} is there twice")
            metadata[key] = cursor.value(
                cursor.scalar("I", f"type of {key[:MAX_NAME]!r}"), f"value of {key!r}"
            )
        if (parts := metadata.get("split.count", 1)) != 1:
            raise _Broken(
                f"one of {parts} parts of a split model; merge them first (llama-gguf-split"
                " --merge)"
            )
        self.metadata = metadata
        self._read_tensor_table(cursor, n_tensors)

    def _read_tensor_table(self, cursor: _Cursor, n_tensors: int) -> None:
        table = [_tensor_entry(cursor, i) for i in range(n_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20:
            raise _Broken(f"general.alignment is {alignment!r}")
        base = -(-cursor.at // alignment) * alignment
        infos: dict[str, TensorInfo] = {}
        for info, offset in table:
            end = base + offset + info.n_bytes
            if end > cursor.size:
                raise _Broken(
                    f"truncated: tensor {info.name!r} ends at byte {end}, the file has"
                    f" {cursor.size} ({end - cursor.size} bytes are missing)"
                )
            if info.name in infos:
                raise _Broken(f"tensor {info.name!r} is there twice")
            infos[info.name] = info
            self._offsets[info.name] = base + offset
        self._check_apart(infos)
        self.tensors = infos

    def _check_apart(self, infos: dict[str, TensorInfo]) -> None:
        """Each byte belongs to one tensor; otherwise a small file could claim to hold a large
        model.
        """
        order = sorted(infos.values(), key=lambda info: self._offsets[info.name])
        for one, other in pairwise(order):
            if self._offsets[one.name] + one.n_bytes > self._offsets[other.name]:
                raise _Broken(f"tensors {one.name!r} and {other.name!r} share bytes")

    def raw(self, name: str) -> RawTensor:
        info = self.info(name)
        flat = np.frombuffer(self._map, np.uint8, info.n_bytes, self._offsets[name])
        rows = math.prod(info.shape[:-1])
        return RawTensor(info.dtype, info.shape, flat.reshape(rows, -1))

    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def close(self) -> None:
        try:
            self._map.close()
        except BufferError:
            pass  # a view is still in use; the mapping goes with the last of them


def _map_file(path: Path) -> mmap.mmap:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would block
            raise CheckpointError("is not a file", path=str(path))
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CheckpointError("no such file", path=str(path)) from None
    except ValueError:
        raise CheckpointError("the file is empty", path=str(path)) from None
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", path=str(path)
        ) from error


def _tensor_entry(cursor: _Cursor, index: int) -> tuple[TensorInfo, int]:
    """One line of the tensor table: (info, offset from the start of the data)."""
    from gguf.constants import GGMLQuantizationType

    name = cursor.string(f"name of tensor {index}")
    if not name or len(name) > MAX_NAME:
        raise _Broken(f"tensor {index} has a name of {len(name)} characters")
    n_dims = cursor.scalar("I", f"dimensions of {name!r}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise _Broken(f"tensor {name!r} has {n_dims} dimensions")
    dims = [cursor.scalar("Q", f"dimensions of {name!r}") for _ in range(n_dims)]
    kind = cursor.scalar("I", f"type of {name!r}")
    offset = cursor.scalar("Q", f"offset of {name!r}")
    try:
        dtype = GGMLQuantizationType(kind).name
        values, n_bytes = block_layout(dtype)
    except ValueError as error:
        raise _Broken(f"tensor {name!r} is of ggml type {kind}: {error}") from None
    if min(dims) < 1 or dims[0] % values:
        raise _Broken(
            f"tensor {name!r} has the shape {dims[::-1]}, not rows of whole {dtype} blocks of"
            f" {values}"
        )
    # ggml writes the fastest dimension first.
    return TensorInfo(name, tuple(dims[::-1]), dtype, math.prod(dims) // values * n_bytes), offset
