"""Each sampling parameter does what its rule says, and the fast paths notice that it is set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sampling_values import SHAPED, values

from exo.inference.sampling.params import RULES, Effect, SamplingParams
from exo.inference.sampling.sampling import HEADS, distribution, sample

# Wide enough for the fast path; the history has the best token in it.
LOGITS = np.random.default_rng(5).standard_normal(4 * HEADS[0] + 1).astype(np.float32)
BEST = int(LOGITS.argmax())
HISTORY = [1, BEST, BEST]
OF = {effect: [name for name, rule in RULES.items() if rule.effect is effect] for effect in Effect}


def likely(params: SamplingParams) -> dict[int, float]:
    ids, probabilities = distribution(LOGITS, params, HISTORY, 1)
    return dict(zip(ids.tolist(), probabilities.tolist(), strict=True))


def params_of(name: str) -> list[SamplingParams]:
    """The parameter alone, at each value to try; a bias is on the best token."""
    tried = [{BEST: -50.0}] if name == "logit_bias" else values(name)
    return [SamplingParams(**{name: value}) for value in tried]


def drawn(params: SamplingParams, count: int = 60) -> list[int]:
    return [sample(LOGITS, params, HISTORY, 1, 3 + i)[0] for i in range(count)]


def test_the_defaults_leave_the_models_own_distribution() -> None:
    plain = SamplingParams()
    assert (plain.cuts, plain.is_slow, plain.is_argmax) == (False, False, False)
    weights = np.exp(LOGITS.astype(np.float64))
    assert likely(plain)[BEST] == pytest.approx(weights[BEST] / weights.sum())


@pytest.mark.parametrize("name", OF[Effect.CUT])
def test_what_cuts_leaves_tokens_out_and_keeps_the_fast_path_away(name: str) -> None:
    cutting = [params for params in params_of(name) if len(likely(params)) < len(LOGITS)]
    assert cutting, f"no value of {name} leaves a token out: is it in `distribution`?"
    for params in cutting:
        assert params.cuts
        assert set(drawn(params, 200)) <= likely(params).keys()


@pytest.mark.parametrize("name", OF[Effect.SCORES])
def test_what_changes_scores_changes_the_distribution_and_rules_out_the_plain_argmax(
    name: str,
) -> None:
    plain = likely(SamplingParams())
    changed = [params for params in params_of(name) if likely(params) != plain]
    assert changed, f"no value of {name} changes the distribution: is it in `penalised`?"
    assert not any(replace(params, temperature=0.0).is_argmax for params in changed)


@pytest.mark.parametrize("name", OF[Effect.SCORES])
def test_what_changes_scores_counts_on_the_fast_path_too(name: str) -> None:
    """The fast path sees what `penalised` does, and not what only `distribution` does. A `min_p`
    this small leaves nothing out, but keeps the fast path away.
    """
    slow = [drawn(replace(params, min_p=1e-300)) for params in params_of(name)]
    assert any(tokens != drawn(SamplingParams()) for tokens in slow)
    assert [drawn(params) for params in params_of(name)] == slow, f"move {name} to `penalised`"


@pytest.mark.parametrize(
    "name", ["repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias"]
)
def test_a_penalty_counts_against_a_token_in_a_greedy_choice_too(name: str) -> None:
    value = {BEST: -50.0} if name == "logit_bias" else 50.0
    params = SamplingParams(**{"temperature": 0.0, name: value})
    assert sample(LOGITS, params, HISTORY, 1, 3)[0] != BEST
    light = value if name == "logit_bias" else 2.0
    assert likely(SamplingParams(**{name: light}))[BEST] < likely(SamplingParams())[BEST]


@pytest.mark.parametrize("name", OF[Effect.DRAW])
def test_what_acts_on_the_draw_changes_it(name: str) -> None:
    assert any(drawn(params) != drawn(SamplingParams()) for params in params_of(name))
    assert not any(params.cuts for params in params_of(name))


@pytest.mark.parametrize("name", RULES)
def test_a_greedy_choice_is_the_largest_logit_where_only_the_draw_or_what_is_left_out_is_set(
    name: str,
) -> None:
    unimportant = RULES[name].effect in {Effect.CUT, Effect.DRAW}
    for params in (replace(each, temperature=0.0) for each in params_of(name)):
        assert params.is_argmax == unimportant
        if unimportant:
            assert sample(LOGITS, params, HISTORY, 1, 3)[0] == BEST


@pytest.mark.parametrize("name", RULES)
def test_limits_hold_what_does_nothing_and_what_does_something(name: str) -> None:
    rule, neutral = RULES[name], getattr(SamplingParams(), name)
    assert rule.least <= rule.most
    assert name in SHAPED or len(values(name)) > 0
    if isinstance(neutral, int | float):
        assert rule.least <= neutral <= rule.most


def test_what_sorts_everything_or_calls_a_library_is_slow() -> None:
    slow = {name for name in RULES if any(params.is_slow for params in params_of(name))}
    assert slow == {name for name, rule in RULES.items() if rule.is_slow}
    assert slow >= {"typical_p", "json_schema"}
