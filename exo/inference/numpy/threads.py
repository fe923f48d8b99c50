"""How many threads the matrix products take: as many as the container may use, not as the machine
has.

OpenBLAS counts the machine's cores. Where a cgroup's quota allows fewer, its threads spin for each
other's time slices and a product takes many times as long. numpy has no call for it, so the library
in its wheel is asked by name.
"""

from __future__ import annotations

import ctypes
import logging
import os
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

# Who sets one of these has decided.
SETTINGS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
SYMBOLS = (
    "scipy_openblas_set_num_threads64_",
    "openblas_set_num_threads64_",
    "openblas_set_num_threads",
)


def limit_threads(cores: int) -> bool:
    """Let products use at most `cores` threads; False if the environment decides or numpy has
    another library.
    """
    if any(os.environ.get(name) for name in SETTINGS):
        return False
    for path in sorted((Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for symbol in SYMBOLS:
            if hasattr(library, symbol):
                getattr(library, symbol)(ctypes.c_int(cores))
                return True
    logger.info(
        "the number of threads for matrix products is left as it is: no OpenBLAS in numpy.libs"
    )
    return False
