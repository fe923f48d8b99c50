"""`DecodeFastPath`: a batch that decodes step after step. Pure: where its sequences are, as long as
none comes, goes or moves.

Nearly every pass is the previous one with one more token. What was found out about the batch then
(slots, window, order) is used again, which leaves little to do around a step. Everything else goes
the long way through `Sequences`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import Step
from exo.inference.onnx.run.slots import GRAIN, SlotTable


@dataclass(frozen=True, slots=True, eq=False)
class DecodeFastPath:
    """Sequences in adjacent slots from `start` on, with no other sequence in between.

    moves: `SlotTable.moves` when this was found out.
    slots: in the order of the steps.
    at: the row of each step in the window.
    order: which step is in each row.
    """

    moves: int
    slots: Sequence[int]
    start: int
    at: Array
    order: list[int]

    @classmethod
    def of(cls, table: SlotTable, slots: Sequence[int], start: int) -> DecodeFastPath:
        at = np.array(slots) - start
        return cls(table.moves, slots, start, at, np.argsort(at).tolist())

    def goes_on(self, steps: Sequence[Step], table: SlotTable, capacity: int) -> bool:
        """Whether these steps are one more token of each sequence, and the budget and `capacity`
        positions have room for it.
        """
        if self.moves != table.moves:
            return False
        grains = 0
        for step, slot in zip(steps, self.slots, strict=True):
            position = step.position
            if not 0 < position == table[slot].length < capacity - 1 or len(step.values) != 1:
                return False
            grains += not position % GRAIN
        return not grains or table.has_room(grains * GRAIN)

    def values(self, steps: Sequence[Step]) -> Array:
        """(batch, 1) token ids or (batch, 1, hidden), in the order of the slots."""
        return np.stack([steps[i].values for i in self.order])

    def lengths(self, steps: Sequence[Step]) -> Array:
        """Tokens of each slot after the step."""
        return np.array([steps[i].position + 1 for i in self.order])
