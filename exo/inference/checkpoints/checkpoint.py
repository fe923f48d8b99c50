"""`Checkpoint`: the metadata and tensors of a model on disk, read through mmap. Knows no model
family.

Two formats: a GGUF file, and a Hugging Face folder (config.json and safetensors, one file or
several with an index). Every fault of a file is a `CheckpointError` that names it. Nothing outside
the given file or folder is opened.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.dequantize import to_float32
from exo.inference.checkpoints.tensors import RawTensor, TensorInfo
from exo.inference.errors import CheckpointError


class Checkpoint(ABC):
    """An open checkpoint. Use as a context manager; views that `raw` returned keep the mapping
    alive until they are dropped.
    """

    FORMAT: ClassVar[Literal["gguf", "safetensors"]]

    def __init__(self, path: Path) -> None:
        self.path = path
        # GGUF key-values, or the contents of config.json.
        self.metadata: Mapping[str, Any] = {}
        self.tensors: Mapping[str, TensorInfo] = {}

    @abstractmethod
    def raw(self, name: str) -> RawTensor:
        """The stored bytes. Raises `CheckpointError` for a tensor that is not there."""

    @abstractmethod
    def files(self) -> tuple[Path, ...]:
        """The files whose bytes make the model, in a stable order."""

    @abstractmethod
    def close(self) -> None: ...

    def tensor(self, name: str) -> Array:
        """The tensor as float32 of the header's shape, always a copy."""
        return self.floats(name, self.raw(name))

    def floats(self, name: str, raw: RawTensor) -> Array:
        """`raw`, all or part of the tensor `name`, as float32.

        Raises `CheckpointError` for values that are not finite.
        """
        try:
            value = to_float32(raw)
        except (ValueError, NotImplementedError) as error:
            raise CheckpointError(f"tensor {name!r}: {error}", path=str(self.path)) from error
        if value.size and not (np.isfinite(value.min()) and np.isfinite(value.max())):
            raise CheckpointError(
                f"tensor {name!r} has values that are not finite", path=str(self.path)
            )
        return value

    def info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"tensor {name!r} is missing", path=str(self.path)) from None

    def content_hash(self) -> str:
        """BLAKE2b-128 over the model's files. It does not depend on where they are."""
        import hashlib

        digest = hashlib.blake2b(digest_size=16)
        for path in self.files():
            digest.update(path.name.encode() + b"\0" if self.FORMAT == "safetensors" else b"")
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
