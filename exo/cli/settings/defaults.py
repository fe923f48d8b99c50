"""Defaults that are found at run time: folders, this node's address, the hub, the form of the log.

This package reads the environment for the whole program; everything below the command line is
given what it needs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from exo.contract import CACHE_DIR, env_name

Environment = Mapping[str, str]
# A user who sets one of these has chosen the threads of numpy's matrix products.
BLAS_THREADS: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")


def cache_dir(environ: Environment) -> Path:
    """The image's cache folder where that can be written to, else one in the user's cache."""
    shared = Path(CACHE_DIR)
    if shared.is_dir() and os.access(shared, os.W_OK):
        return shared
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "exo"


def log_format(_: Environment) -> str:
    """JSON for machines: whenever the log is not a terminal."""
    return "console" if sys.stderr.isatty() else "json"


# By the key of a setting that has no value. The same rule for every command.
FOUND: Final[Mapping[str, Callable[[Environment], Any]]] = {
    "cache_dir": cache_dir,
    "advertise_host": lambda environ: environ.get("POD_IP", ""),
    "log_format": log_format,
}
# By field: what no setting fills. HF_ENDPOINT is the variable of Hugging Face's own tools.
BESIDES: Final[Mapping[str, Callable[[Environment], Any]]] = {
    "node.hub_endpoint": lambda environ: environ.get("HF_ENDPOINT") or None,
    "engine.keep_blas_threads": lambda environ: any(environ.get(name) for name in BLAS_THREADS),
}


def fault_dir(environ: Environment) -> Path | None:
    """The folder of `exo.lifecycle.faults`; None outside tests."""
    folder = environ.get(env_name("fault-dir"))
    return Path(folder) if folder else None
