"""How many threads the matrix products take: as many as the container may use, not as the machine
has.

OpenBLAS counts the machine's cores. Where a cgroup's quota allows fewer, its threads spin for each
other's time slices and a product takes many times as long. numpy has no call for this, so the
library in its wheel is called by name.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np

logger = logging.getLogger(__name__)

# Names of the function in the wheels of different numpy versions; `get` and `set` go in place of
# the braces.
SYMBOLS: Final = (
    "scipy_openblas_{}_num_threads64_",
    "openblas_{}_num_threads64_",
    "openblas_{}_num_threads",
)


def limit_threads(threads: int) -> bool:
    """Let products use at most `threads` threads; False where numpy has another library.

    The number is never more than the library started with: a user may have set that lower.
    """
    found = _library()
    if found is None:
        logger.info("the threads of matrix products stay as they are: no OpenBLAS in numpy.libs")
        return False
    library, symbol, started_with = found
    library[symbol.format("set")](ctypes.c_int(min(threads, started_with)))
    return True


@lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, str, int] | None:
    """The library, the form of its names, and how many threads it started with."""
    for path in sorted((Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*")):
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for symbol in SYMBOLS:
            if hasattr(library, symbol.format("set")):
                return library, symbol, int(library[symbol.format("get")]())
    return None
