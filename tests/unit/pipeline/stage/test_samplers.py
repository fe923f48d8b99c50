from __future__ import annotations

import numpy as np
import pytest

from exo.inference.sampling.params import SamplingParams
from exo.networking.messages import Open
from exo.pipeline.samplers import ARGMAX, DRAW, SLOW, SequenceSampler

LOGITS = np.array([0.0, 3.0, 2.0, 1.0], np.float32)


def sampler(constraint: Only | None = None, **params: object) -> SequenceSampler:
    chosen = SamplingParams(**{"temperature": 0.0, **params})  # type: ignore[arg-type]
    opened = Open(
        sequence_id="s", epoch="e", entry="n", tokens=(0, 1), prompt_length=1, params=chosen
    )
    return SequenceSampler(opened, constraint)


class Only:
    """Allows one token."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.accepted: list[int] = []

    def allowed(self) -> np.ndarray:
        return np.arange(4) == self.token

    def accept(self, *tokens: int) -> None:
        self.accepted += tokens


def test_greedy_takes_the_largest_logit_and_costs_no_more() -> None:
    one = sampler()
    assert one.cost == ARGMAX
    assert one.choose(LOGITS, 2).token == 1


@pytest.mark.parametrize(
    "params",
    [
        {"repetition_penalty": 9.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"logit_bias": {1: -9.0}},
    ],
)
def test_what_was_produced_and_asked_for_counts(params: dict[str, object]) -> None:
    one = sampler(**params)
    assert one.cost == DRAW
    assert one.choose(LOGITS, 2).token == 2


def test_a_constraint_leaves_only_what_it_allows_and_knows_what_was_produced_before_a_replay() -> (
    None
):
    constraint = Only(3)
    one = sampler(constraint, json_schema={})
    assert one.cost == SLOW
    assert one.choose(LOGITS, 2).token == 3
    assert constraint.accepted == [1, 3]


def test_a_position_that_is_not_the_next_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="position 5 is to be sampled, 2 tokens are known"):
        sampler(logprobs=1).choose(LOGITS, 5)
