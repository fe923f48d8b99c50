"""What the environment says about folders, the hub and threads. Nothing below the command line
reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exo import contract
from exo.contract import env_name
from exo.inference.engines.options import EngineOptions

# A user who sets one of these has chosen the threads of numpy's matrix products.
BLAS_THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def cache_dir(chosen: str | Path | None, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder chosen, else the image's where it can be written to, else the user's."""
    chosen = chosen or environ.get(env_name("cache-dir"))
    if chosen:
        return Path(chosen)
    shared = Path(contract.CACHE_DIR)
    if shared.is_dir() and os.access(shared, os.W_OK):
        return shared
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exo"


def models_dir(
    chosen: str | Path | None = None, environ: Mapping[str, str] = os.environ
) -> Path | None:
    """The folder chosen; None: the image's."""
    chosen = chosen or environ.get(env_name("models-dir"))
    return Path(chosen) if chosen else None


def hub_endpoint(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the hub is, by the variable that Hugging Face's own tools read."""
    return environ.get("HF_ENDPOINT") or None


def engine_options(
    cache: Path | None = None, environ: Mapping[str, str] = os.environ
) -> EngineOptions:
    """cache: see `cache_dir`; None for a node, whose settings name it."""
    return EngineOptions(
        cache_dir=cache, keep_blas_threads=any(environ.get(name) for name in BLAS_THREADS)
    )
