"""`open_checkpoint`: the reader that fits what lies at a path."""

from __future__ import annotations

from pathlib import Path

from exo.inference.checkpoints.checkpoint import Checkpoint
from exo.inference.checkpoints.gguf import GGUFCheckpoint
from exo.inference.checkpoints.safetensors import SafetensorsCheckpoint, check_inside
from exo.inference.errors import CheckpointError


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a GGUF file, a folder with one GGUF file, or a folder with config.json and safetensors.

    Raises `CheckpointError`: not there, not readable, another format, truncated, inconsistent.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return GGUFCheckpoint(path)
        if (path / "config.json").is_file():
            return SafetensorsCheckpoint(path)
        found = sorted(path.glob("*.gguf"))
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}", path=str(path)
        ) from error
    if len(found) == 1:
        check_inside(found[0])
        return GGUFCheckpoint(found[0])
    what = (
        "several .gguf files; name one of them"
        if found
        else "neither a config.json nor a .gguf file in this folder"
    )
    raise CheckpointError(what, path=str(path))
