"""The last stage's sampler of one sequence: its parameters and its history. Pure."""

from __future__ import annotations

from typing import Protocol

from exo.inference.sampling.params import SamplingParams
from exo.inference.sampling.sampling import check_number, sample
from exo.networking.messages import Open
from exo.pipeline.forward_pass import ARGMAX, DRAW, SLOW, Array, Choice


class Constraint(Protocol):
    """`exo.inference.sampling.constraints.JsonConstraint` is one."""

    def allowed(self) -> Array: ...

    def accept(self, *tokens: int) -> None: ...


class SequenceSampler:
    """Same parameters, history and logits: same choice, on whatever node (the random number is
    counter based).
    """

    def __init__(self, opened: Open, constraint: Constraint | None = None) -> None:
        self._params = opened.params
        self._constraint = constraint
        if constraint is not None:
            constraint.accept(*opened.tokens[opened.prompt_length :])
        self._history = list(opened.tokens)
        self._prompt_length = opened.prompt_length
        self._plain = _is_plain(opened.params)
        slow = constraint is not None or opened.params.typical_p < 1.0
        self.cost = ARGMAX if self._plain else SLOW if slow else DRAW

    def choose(self, logits: Array, position: int) -> Choice:
        """Raises `ValueError` for a position that is not the next one."""
        if position != len(self._history):
            raise ValueError(
                f"position {position} is to be sampled, {len(self._history)} tokens are known"
            )
        if self._plain:
            choice = Choice(int(logits.argmax()))
            check_number(float(logits[choice.token]))
            self._history.append(choice.token)
            return choice
        allowed = None if self._constraint is None else self._constraint.allowed()
        token, logprob, top = sample(
            logits, self._params, self._history, self._prompt_length, position, allowed
        )
        if self._constraint is not None:
            self._constraint.accept(token)
        self._history.append(token)
        return Choice(token, logprob, top)


def _is_plain(params: SamplingParams) -> bool:
    """Whether the choice is the largest logit, whatever came before."""
    return (
        params.temperature == 0
        and params.repetition_penalty == 1.0
        and not (params.presence_penalty or params.frequency_penalty or params.logit_bias)
        and params.logprobs is None
        and params.json_schema is None
    )
