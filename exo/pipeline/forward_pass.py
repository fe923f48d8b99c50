"""One forward pass on an engine, with the failures sorted out per sequence. Knows no messages and
no peers.

Also the sampling of its rows: on the event loop where that is a trifle, else in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from exo.inference.engines.inference_engine import InferenceEngine, Step
from exo.inference.engines.worker import Worker
from exo.inference.errors import SequenceLost
from exo.inference.shard import Shard
from exo.pipeline.assignment import Assignment
from exo.pipeline.scheduler import Work

Array = np.ndarray[Any, Any]
# An argmax over this many logits (ten rows of 49152) takes well under 0.1 ms: less than the round
# trip to a thread.
INLINE_LOGITS = 1 << 19
# What choosing costs for each logit, in argmaxes: the largest one, a draw, and what calls a library
# or sorts all.
ARGMAX, DRAW, SLOW = 1, 8, 1000


@dataclass(frozen=True, slots=True)
class Choice:
    """A sampled token; logprobs where the request asked for them."""

    token: int
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()


class TokenSampler(Protocol):
    """Chooses the tokens of one sequence, which it knows; the same logits and position give the
    same choice.
    """

    @property
    def cost(self) -> int:
        """Of a choice, for each logit, in argmaxes."""
        ...

    def choose(self, logits: Array, position: int) -> Choice:
        """logits: float32 (vocab,) after the token at `position - 1`. The choice joins the
        sequence's history.
        """
        ...


def step_of(work: Work, assignment: Assignment) -> Step:
    values = work.piece.values
    if not isinstance(values, np.ndarray):
        values = np.asarray(values, dtype=np.int64)
    rows: Literal["last", "none"] = (
        "last" if work.piece.sample or not assignment.is_last else "none"
    )
    return Step(work.lane_id, values, work.piece.position, rows)


async def run_pass(
    engine: InferenceEngine, shard: Shard, steps: Sequence[Step]
) -> list[Array | Exception]:
    """One result per step, in order: its array, or why this step alone failed.

    A lost sequence leaves the batch and the others run; after any other failure each step runs
    alone, so that a sequence that breaks the engine takes no other with it.
    """
    results: dict[str, Array | Exception] = {}
    left = list(steps)
    while left:
        try:
            arrays = await engine.infer_batch(shard, left)
        except SequenceLost as error:
            lost = [step for step in left if step.sequence_id == error.sequence_id]
            if not lost:
                results.update((step.sequence_id, error) for step in left)
                break
            results[error.sequence_id] = error
            left = [step for step in left if step not in lost]
        # An engine may raise anything; it is reported per sequence.
        except Exception as error:  # noqa: BLE001
            if len(left) == 1:
                results[left[0].sequence_id] = error
                break
            for step in left:
                results[step.sequence_id] = (await run_pass(engine, shard, [step]))[0]
            break
        else:
            results.update(
                (step.sequence_id, array) for step, array in zip(left, arrays, strict=True)
            )
            break
    return [results[step.sequence_id] for step in steps]


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One row to sample: logits (1, vocab) and the position that the token will have."""

    sampler: TokenSampler
    logits: Array
    position: int


async def sample(draws: Sequence[Draw], worker: Worker) -> list[Choice | Exception]:
    """One result per draw, in order; an exception fails its own sequence only."""
    if sum(draw.sampler.cost * draw.logits.size for draw in draws) <= INLINE_LOGITS:
        return _choose(draws)
    return await worker.submit(_choose, draws)


def _choose(draws: Sequence[Draw]) -> list[Choice | Exception]:
    chosen: list[Choice | Exception] = []
    for draw in draws:
        try:
            chosen.append(draw.sampler.choose(draw.logits[-1], draw.position))
        except Exception as error:  # noqa: BLE001 - handed to the sequence it belongs to
            chosen.append(error)
    return chosen
