"""Pauses between attempts."""

from __future__ import annotations

import random


def backoff(attempt: int, base: float, most: float) -> float:
    """Exponential with jitter: from half to all of min(most, base * 2**(attempt - 1)) seconds."""
    ceiling = min(most, base * 2 ** min(attempt - 1, 32))
    return random.uniform(ceiling / 2, ceiling)
