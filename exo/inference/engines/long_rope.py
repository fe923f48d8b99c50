"""`LongRope`: which sequences need the rope factors for long contexts. Pure bookkeeping.

A model with `longrope` rotates the keys of a short sequence with one set of factors, and those of a
long one with another. A sequence that outgrows the short factors while it is generated must be
computed again from its first token: it is lost once, and its prefill then uses the long factors,
even when it is shorter than the limit.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from exo.inference.engines.inference_engine import Step
from exo.inference.errors import SequenceLost
from exo.inference.models.config import RopeConfig

# How many sequences that outgrew the short factors are remembered.
REMEMBERED: Final = 1024


class LongRope:
    def __init__(self, rope: RopeConfig) -> None:
        self._rope = rope
        self._outgrown: OrderedDict[str, None] = OrderedDict()

    def is_needed(self, sequence_id: str, length: int) -> bool:
        """Whether a sequence of this length, begun now, takes the long factors."""
        return bool(self._rope.long_divisors) and (
            length > self._rope.original_context or sequence_id in self._outgrown
        )

    def check(self, step: Step, *, is_long: bool) -> None:
        """Raises `SequenceLost` where the step makes its sequence outgrow the short factors.

        is_long: the keys that are held were rotated with the long ones.
        """
        if step.position == 0 or is_long:
            return
        if self.is_needed(step.sequence_id, step.position + len(step.values)):
            self._outgrown[step.sequence_id] = None
            if len(self._outgrown) > REMEMBERED:
                self._outgrown.popitem(last=False)
            raise SequenceLost(step.sequence_id, expected=step.position, held=None)
