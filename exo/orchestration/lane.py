"""`Lane`: one sequence on one stage. Plain data; the stage owns what it means."""

from __future__ import annotations

from dataclasses import dataclass

from exo.orchestration.assignment import Assignment
from exo.orchestration.forward_pass import TokenSampler


@dataclass(slots=True, eq=False)
class Lane:
    """expected: position of the next token or forward that is in order; limit: what it said it can grow to.

    tokens: those read as a prompt.
    """

    sequence_id: str
    entry: str
    assignment: Assignment
    expected: int
    limit: int
    tokens: tuple[int, ...]
    sampler: TokenSampler | None
