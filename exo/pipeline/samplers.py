"""The last stage's samplers: from a row of logits to the next token of a sequence.

Sampling runs on the event loop if it is cheap, otherwise in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from exo.inference.engines.worker import Worker
from exo.inference.sampling import sampling
from exo.networking.messages import Open, Token

Array = np.ndarray[Any, Any]
# An argmax over this many logits (ten rows of 49152) takes well under 0.1 ms: less than the round
# trip to a thread.
INLINE_LOGITS = 1 << 19
# What a choice costs per logit, in argmaxes: taking the largest, drawing, and whatever calls a
# library or sorts all of them.
ARGMAX, DRAW, SLOW = 1, 8, 1000


class TokenSampler(Protocol):
    """Chooses the tokens of one sequence. Same logits and position: same choice."""

    @property
    def cost(self) -> int:
        """Of one choice: argmaxes per logit."""
        ...

    def choose(self, logits: Array, position: int) -> Token:
        """logits: float32 (vocab,) after the token at `position - 1`. The choice joins the
        sequence's history.
        """
        ...


class Constraint(Protocol):
    """`exo.inference.sampling.constraints.JsonConstraint` is one."""

    def allowed(self) -> Array: ...

    def accept(self, *tokens: int) -> None: ...


class SequenceSampler:
    """Same parameters, history and logits: same choice on any node, because the random number is
    derived from the position. A replay therefore goes on with the same tokens.
    """

    def __init__(self, opened: Open, constraint: Constraint | None = None) -> None:
        self._opened = opened
        self._constraint = constraint
        if constraint is not None:
            constraint.accept(*opened.tokens[opened.prompt_length :])
        self._history = list(opened.tokens)
        self._is_argmax = opened.params.is_argmax
        slow = constraint is not None or opened.params.is_slow
        self.cost = ARGMAX if self._is_argmax else SLOW if slow else DRAW

    def choose(self, logits: Array, position: int) -> Token:
        """Raises `ValueError` for a position that is not the next one."""
        if position != len(self._history):
            raise ValueError(
                f"position {position} is to be sampled, {len(self._history)} tokens are known"
            )
        if self._is_argmax:
            token = int(logits.argmax())
            sampling.check_number(float(logits[token]))
            self._history.append(token)
            return self._token(position, token)
        allowed = None if self._constraint is None else self._constraint.allowed()
        token, logprob, top = sampling.sample(
            logits,
            self._opened.params,
            self._history,
            self._opened.prompt_length,
            position,
            allowed,
        )
        if self._constraint is not None:
            self._constraint.accept(token)
        self._history.append(token)
        return self._token(position, token, logprob, top)

    def _token(
        self,
        position: int,
        token: int,
        logprob: float | None = None,
        top: tuple[tuple[int, float], ...] = (),
    ) -> Token:
        return Token(
            sequence_id=self._opened.sequence_id,
            epoch=self._opened.epoch,
            position=position,
            token=token,
            logprob=logprob,
            top_logprobs=top,
        )


# One row to sample: logits (1, vocab), and the position the token will have.
Draw = tuple[TokenSampler, Array, int]


async def sample(draws: Sequence[Draw], worker: Worker) -> list[Token | Exception]:
    """One result per draw, in order; an exception fails its own sequence only."""
    if sum(sampler.cost * logits.size for sampler, logits, _ in draws) <= INLINE_LOGITS:
        return _choose(draws)
    return await worker.submit(_choose, draws)


def _choose(draws: Sequence[Draw]) -> list[Token | Exception]:
    chosen: list[Token | Exception] = []
    for sampler, logits, position in draws:
        try:
            chosen.append(sampler.choose(logits[-1], position))
        except Exception as error:  # noqa: BLE001 - handed to the sequence it belongs to
            chosen.append(error)
    return chosen
