"""Hugging Face folders: config.json and safetensors, one file or several with an index. No pickle,
no remote code.

The `safetensors` library checks headers and maps the files. Names in the index are file names of
the same folder, never paths. A link may only lead to the folder itself or, in a hub cache, to the
`blobs` next to its `snapshots`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import ml_dtypes  # noqa: F401  registers "bfloat16" with numpy, which safetensors looks up by name
import numpy as np

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.tensors import RawTensor, TensorInfo
from exo.inference.errors import CheckpointError

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
# No config or index comes near this; a tokenizer.json may have 30 MB.
MAX_JSON: Final = 256 << 20
PICKLES: Final = {".bin", ".pt", ".pth", ".ckpt"}
ITEM_SIZE: Final = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint folder. Raises `CheckpointError`."""
    try:
        check_inside(path)
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"larger than {MAX_JSON} bytes", path=str(path))
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", path=str(path)
        ) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"is not JSON: {error}", path=str(path)) from None
    if not isinstance(value, dict):
        raise CheckpointError("is not a JSON object", path=str(path))
    return value


def check_inside(path: Path) -> None:
    """Raises `CheckpointError` for anything but a file, and for a link that leaves its folder and
    the hub cache that the folder is in.
    """
    home, real = path.parent.resolve(), path.resolve()
    if home not in real.parents and home.parent.parent / "blobs" != real.parent:
        raise CheckpointError(
            f"{path.name!r} is a link to a place outside the folder", path=str(path.parent)
        )
    if real.exists() and not real.is_file():  # reading a pipe would block
        raise CheckpointError("is not a file", path=str(path))


class SafetensorsCheckpoint(Checkpoint):
    FORMAT: ClassVar[Literal["safetensors"]] = "safetensors"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.metadata = read_json(path / "config.json")
        self._open: dict[Path, Any] = {}
        self._where: dict[str, Path] = {}
        infos: dict[str, TensorInfo] = {}
        try:
            for file, names in self._plan().items():
                for info in self._table(file, names):
                    infos[info.name] = info
                    self._where[info.name] = file
        except BaseException:
            self.close()
            raise
        self.tensors = infos

    def _plan(self) -> dict[Path, tuple[str, ...] | None]:
        """Which tensors to take from which file; None: all that it has."""
        index = self.path / INDEX
        if not index.exists():
            self._refuse_pickles()
            return {self._inside(SINGLE): None}
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError("has no weight_map", path=str(index))
        plan: dict[Path, list[str]] = {}
        for name, file in weight_map.items():
            if not isinstance(file, str):
                raise CheckpointError(f"weight_map names no file for {name!r}", path=str(index))
            plan.setdefault(self._inside(file), []).append(name)
        return {file: tuple(names) for file, names in plan.items()}

    def _refuse_pickles(self) -> None:
        pickles = [p.name for p in sorted(self.path.iterdir()) if p.suffix in PICKLES]
        if pickles and not (self.path / SINGLE).exists():
            message = (
                f"no such file; {pickles[0]!r} next to it is a pickle, which is never opened: save"
                " it as safetensors"
            )
            raise CheckpointError(message, path=str(self.path / SINGLE))

    def _inside(self, name: str) -> Path:
        if (
            name != Path(name).name
            or name in {"", ".", ".."}
            or "\\" in name
            or not name.isprintable()
        ):
            raise CheckpointError(
                f"the index names {name!r}, which is not a file name", path=str(self.path)
            )
        check_inside(self.path / name)
        return self.path / name

    def _table(self, file: Path, names: tuple[str, ...] | None) -> Iterator[TensorInfo]:
        handle = self._handle(file)
        there = set(handle.keys())
        for name in sorted(there) if names is None else names:
            if name not in there:
                raise CheckpointError(
                    f"tensor {name!r} is missing, though the index says it is here", path=str(file)
                )
            part = handle.get_slice(name)
            shape, dtype = tuple(part.get_shape()), part.get_dtype()
            yield TensorInfo(name, shape, dtype, math.prod(shape) * ITEM_SIZE.get(dtype, 0))

    def _handle(self, file: Path) -> Any:
        from safetensors import SafetensorError, safe_open

        if file not in self._open:
            # The handle can only be closed as a context manager.
            try:
                self._open[file] = safe_open(str(file), framework="numpy")
            except FileNotFoundError:
                raise CheckpointError("no such file", path=str(file)) from None
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(
                    f"cannot be read as safetensors: {error}", path=str(file)
                ) from error
        return self._open[file]

    def raw(self, name: str) -> RawTensor:
        from safetensors import SafetensorError

        info = self.info(name)
        file = self._where[name]
        if info.dtype not in ITEM_SIZE:
            message = f"tensor {name!r} is of type {info.dtype}; supported: {', '.join(ITEM_SIZE)}"
            raise CheckpointError(message, path=str(file))
        try:
            value = np.ascontiguousarray(self._handle(file).get_tensor(name))
        except (SafetensorError, OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"tensor {name!r}: {error}", path=str(file)) from error
        rows = math.prod(info.shape[:-1])
        return RawTensor(info.dtype, info.shape, value.view(np.uint8).reshape(rows, -1))

    def files(self) -> tuple[Path, ...]:
        return (self.path / "config.json", *sorted(self._open))

    def close(self) -> None:
        for handle in self._open.values():
            with contextlib.suppress(Exception):
                handle.__exit__(None, None, None)
        self._open.clear()
