"""Each sampling parameter does what its rule says, and the fast paths notice that it is set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from exo.inference.sampling.params import RULES, Effect, SamplingParams
from exo.inference.sampling.sampling import HEADS, distribution, sample

# Wide enough for the fast path; the history has the best token in it.
LOGITS = np.random.default_rng(5).standard_normal(4 * HEADS[0] + 1).astype(np.float32)
BEST = int(LOGITS.argmax())
HISTORY = [1, BEST, BEST]
# For each parameter a value that makes a difference to these logits.
SET: dict[str, Any] = {
    "temperature": 0.5,
    "top_p": 0.5,
    "top_k": 3,
    "min_p": 0.5,
    "typical_p": 0.5,
    "repetition_penalty": 2.0,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "logit_bias": {BEST: -50.0},
    "seed": 1,
    "logprobs": 2,
    "json_schema": {},
}
OF = {effect: [name for name, rule in RULES.items() if rule.effect is effect] for effect in Effect}


def likely(params: SamplingParams) -> dict[int, float]:
    ids, probabilities = distribution(LOGITS, params, HISTORY, 1)
    return dict(zip(ids.tolist(), probabilities.tolist(), strict=True))


def test_no_parameter_is_forgotten_here() -> None:
    assert SET.keys() == RULES.keys()


def test_the_defaults_leave_the_models_own_distribution() -> None:
    plain = SamplingParams()
    assert (plain.cuts, plain.is_slow, plain.is_argmax) == (False, False, False)
    weights = np.exp(LOGITS.astype(np.float64))
    assert likely(plain)[BEST] == pytest.approx(weights[BEST] / weights.sum())


@pytest.mark.parametrize("name", OF[Effect.CUT])
def test_what_cuts_leaves_tokens_out_and_keeps_the_fast_path_away(name: str) -> None:
    params = SamplingParams(**{name: SET[name]})
    assert params.cuts
    kept = likely(params)
    assert len(kept) < len(LOGITS)
    assert {sample(LOGITS, params, HISTORY, 1, p)[0] for p in range(3, 200)} <= kept.keys()


@pytest.mark.parametrize("name", OF[Effect.SCORES])
def test_what_changes_scores_counts_for_a_greedy_choice_too(name: str) -> None:
    value = {BEST: -50.0} if name == "logit_bias" else 50.0
    params = SamplingParams(**{"temperature": 0.0, name: value})
    assert not params.is_argmax
    assert sample(LOGITS, params, HISTORY, 1, 3)[0] != BEST
    assert likely(SamplingParams(**{name: SET[name]}))[BEST] < likely(SamplingParams())[BEST]


@pytest.mark.parametrize("name", OF[Effect.DRAW])
def test_what_acts_on_the_draw_changes_it(name: str) -> None:
    def drawn(params: SamplingParams) -> list[int]:
        return [sample(LOGITS, params, HISTORY, 1, p)[0] for p in range(3, 50)]

    assert drawn(SamplingParams(**{name: SET[name]})) != drawn(SamplingParams())
    assert SamplingParams(**{name: SET[name]}).cuts is False


@pytest.mark.parametrize("name", RULES)
def test_a_greedy_choice_is_the_largest_logit_where_only_the_draw_or_what_is_left_out_is_set(
    name: str,
) -> None:
    params = SamplingParams(**{name: SET[name], "temperature": 0.0})
    unimportant = RULES[name].effect in {Effect.CUT, Effect.DRAW}
    assert params.is_argmax == unimportant
    if unimportant:
        assert sample(LOGITS, params, HISTORY, 1, 3)[0] == BEST


@pytest.mark.parametrize("name", RULES)
def test_limits_hold_what_does_nothing_and_what_does_something(name: str) -> None:
    rule, neutral = RULES[name], getattr(SamplingParams(), name)
    assert rule.least <= rule.most
    for value in (neutral, SET[name]):
        if isinstance(value, int | float):
            assert rule.least <= value <= rule.most


def test_what_sorts_everything_or_calls_a_library_is_slow() -> None:
    slow = {name for name in RULES if SamplingParams(**{name: SET[name]}).is_slow}
    assert slow == {"typical_p", "json_schema"}
