"""The last stage's sampler of one sequence: its parameters and its history. Pure."""

from __future__ import annotations

from exo.inference.sampling import sample
from exo.networking.messages import Open
from exo.orchestration.forward_pass import Array, Choice


class SequenceSampler:
    """Same parameters, history and logits: same choice, on whatever node (the random number is counter based)."""

    def __init__(self, opened: Open) -> None:
        self._params = opened.params
        self._history = list(opened.tokens)
        self._prompt_length = opened.prompt_length

    @property
    def is_cheap(self) -> bool:
        params = self._params
        return params.temperature == 0 and params.logprobs is None and params.repetition_penalty == 1.0

    def choose(self, logits: Array, position: int) -> Choice:
        """Raises `ValueError` for a position that is not the next one."""
        if position != len(self._history):
            raise ValueError(f"position {position} is to be sampled, {len(self._history)} tokens are known")
        token, logprob, top = sample(logits, self._params, self._history, self._prompt_length, position)
        self._history.append(token)
        return Choice(token, logprob, top)
