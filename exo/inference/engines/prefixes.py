"""When the beginning of a new sequence is worth taking from one that is held. Pure."""

from __future__ import annotations

from typing import Final

import numpy as np

from exo.inference.arrays import Array

# A shorter common beginning is not worth a copy.
SHORTEST_PREFIX: Final = 16


def common_length(a: Array, b: Array) -> int:
    """How many first token ids are the same."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
