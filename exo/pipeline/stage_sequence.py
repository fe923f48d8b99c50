"""`StageSequence`: one sequence on one stage, and the messages the stage sends about it. No I/O.

The stage owns what it means, the scheduler owns `steps` and `reserve`.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from exo.inference.engines.inference_engine import Step
from exo.networking.messages import Close, Failed, Forward, Open, Token
from exo.pipeline.assignment import Assignment
from exo.pipeline.samplers import TokenSampler

Array = np.ndarray[Any, Any]
# How long a sequence may become if it does not say.
MAX_LENGTH: Final = 1 << 20
# Engines hand out memory in blocks: a sequence may occupy up to one more than its tokens need.
BLOCK_TOKENS: Final = 64
# Closed sequences that are remembered.
TOMBSTONES: Final = 4096


@dataclass(slots=True, eq=False)
class StageSequence:
    """limit: how many tokens it may grow to; reserve: tokens of KV set aside while it runs.

    sampler: on the last stage only.
    expected: position of the next token or forward that is in order.
    steps: chunks that have arrived and have not run, in order. With `rows` "last" a chunk is to be
        sampled, with "none" it is not; stages before the last carry this on.
    """

    sequence_id: str
    request_id: str
    entry: str
    assignment: Assignment
    limit: int
    reserve: int
    sampler: TokenSampler | None = None
    expected: int = 0
    steps: deque[Step] = field(default_factory=deque)

    @classmethod
    def of(cls, opened: Open, assignment: Assignment) -> StageSequence:
        length = max(opened.max_length, len(opened.tokens))
        return cls(
            opened.sequence_id,
            opened.request_id,
            opened.entry,
            assignment,
            limit=length if opened.max_length else MAX_LENGTH,
            reserve=length + BLOCK_TOKENS,
        )

    def step(self, values: Array, position: int, *, sample: bool) -> Step:
        return Step(self.sequence_id, values, position, "last" if sample else "none")

    def token_step(self, token: Token) -> Step:
        return self.step(np.array([token.token], np.int64), token.position, sample=True)

    def opening_steps(self, opened: Open, *, by_step: bool) -> list[Step]:
        """What the first stage begins with: all tokens as one prompt.

        by_step: what was produced before a replay goes in token by token, as it did the first time
        (for engines whose result depends on that in the last bit).
        """
        tokens = np.asarray(opened.tokens, np.int64)
        prompt = max(1, opened.prompt_length) if by_step else len(tokens)
        bounds = [0, *range(prompt, len(tokens) + 1)]
        return [
            self.step(tokens[start:stop], start, sample=stop == len(tokens))
            for start, stop in itertools.pairwise(bounds)
        ]

    def forwards(self, step: Step, hidden: Array) -> list[Forward]:
        """What the next stage gets of a chunk: one message if it fits."""
        return Forward(
            sequence_id=self.sequence_id,
            epoch=self.assignment.epoch,
            position=step.position,
            values=np.ascontiguousarray(hidden, dtype=np.float32),
            sample=step.rows == "last",
        ).parts()

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
    """The ids of the sequences that were closed most recently.

    The messages of one sequence come from different nodes over different streams. So a `Close`
    (from the entry) may overtake the `Open` and the forwards (from the stage before). An id in here
    means: whatever still comes for it is late, ignore it. Otherwise an `Open` that was overtaken
    would start a sequence that no `Close` ends, and each late forward would be reported as one of
    an unknown sequence. An id is used once (each attempt has its own), so the oldest can be
    forgotten once their messages can no longer be under way.
    """

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._ids

    def add(self, sequence_id: str) -> None:
        self._ids[sequence_id] = None
        while len(self._ids) > TOMBSTONES:
            self._ids.popitem(last=False)
