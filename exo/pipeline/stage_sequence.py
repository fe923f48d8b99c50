"""`StageSequence`: one sequence on one stage, and what the stage says of it. The stage owns what it
means. No I/O.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from exo.networking.messages import Close, Failed, Forward, Token
from exo.pipeline.assignment import Assignment
from exo.pipeline.forward_pass import Choice, TokenSampler
from exo.pipeline.scheduler import Piece

Array = np.ndarray[Any, Any]
# Closed sequences whose messages may still be under way; one that is older is answered "unknown".
TOMBSTONES: Final = 4096


@dataclass(slots=True, eq=False)
class StageSequence:
    """expected: position of the next token or forward that is in order; limit: what it said it can
    grow to.

    tokens: those read as a prompt.
    """

    sequence_id: str
    entry: str
    assignment: Assignment
    expected: int
    limit: int
    tokens: tuple[int, ...]
    sampler: TokenSampler | None

    def forward(self, piece: Piece, hidden: Array) -> Forward:
        values = np.ascontiguousarray(hidden, dtype=np.float32)
        return Forward(
            sequence_id=self.sequence_id,
            epoch=self.assignment.epoch,
            position=piece.position,
            values=values,
            sample=piece.sample,
        )

    def token(self, position: int, choice: Choice) -> Token:
        return Token(
            sequence_id=self.sequence_id,
            epoch=self.assignment.epoch,
            position=position,
            token=choice.token,
            logprob=choice.logprob,
            top_logprobs=choice.top_logprobs,
        )

    def failed(self, node_id: str, reason: str, *, retryable: bool) -> Failed:
        return Failed(
            sequence_id=self.sequence_id,
            epoch=self.assignment.epoch,
            node=node_id,
            reason=reason[:1000],
            retryable=retryable,
        )

    def close(self) -> Close:
        return Close(sequence_id=self.sequence_id, epoch=self.assignment.epoch)


class Tombstones:
    """The ids of what was closed last."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._ids

    def add(self, sequence_id: str) -> None:
        self._ids[sequence_id] = None
        while len(self._ids) > TOMBSTONES:
            self._ids.popitem(last=False)
