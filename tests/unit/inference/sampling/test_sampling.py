"""The next token: order and meaning of the parameters beside the golden distributions, and
determinism.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.inference.errors import ExoError
from exo.inference.sampling import sampling
from exo.inference.sampling.params import SamplingParams
from exo.inference.sampling.sampling import HEADS, distribution, penalised, sample

RNG = np.random.default_rng(3)
LOGITS = RNG.standard_normal(500).astype(np.float32) * 3
LARGE = RNG.standard_normal(20_000).astype(np.float32) * 3


def test_temperature_zero_is_the_largest_logit_after_penalties() -> None:
    best, second = np.argsort(-LOGITS)[:2]
    assert sample(LOGITS, SamplingParams(temperature=0), [], 0, 0)[0] == best
    biased = SamplingParams(temperature=0, logit_bias={int(best): -100.0})
    assert sample(LOGITS, biased, [], 0, 0)[0] == second


def test_a_draw_depends_on_seed_and_position_and_nothing_else() -> None:
    def draws(seed: int) -> list[int]:
        return [sample(LOGITS, SamplingParams(seed=seed), [1] * p, 0, p)[0] for p in range(64)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert len(set(draws(5))) > 1
    np.random.seed(0)  # the global generator has no part in it
    assert draws(5) == draws(5)


@pytest.mark.parametrize("seed", [-1, 0, 1 << 63, -(1 << 80), 1 << 200])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    token = sample(LOGITS, SamplingParams(seed=seed), [], 0, 3)[0]
    assert 0 <= token < len(LOGITS)


def test_logits_a_little_off_give_the_same_draws() -> None:
    params = SamplingParams(temperature=0.8, top_p=0.95, seed=11)
    noise = RNG.standard_normal(len(LOGITS)).astype(np.float32) * 1e-6
    same = sum(
        sample(LOGITS, params, [], 0, p)[0] == sample(LOGITS + noise, params, [], 0, p)[0]
        for p in range(500)
    )
    assert same == 500


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_the_short_cut_for_large_vocabularies_changes_nothing(top_p: float, scale: float) -> None:
    logits = LARGE * np.float32(scale)
    assert len(logits) > 4 * HEADS[0]
    ids, probabilities = distribution(logits, SamplingParams(top_p=top_p, seed=1), [])
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    before = np.concatenate([[0], np.cumsum(weights[order] / weights.sum())[:-1]])
    want = order[before < top_p]
    assert abs(len(ids) - len(want)) <= 1
    assert np.array_equal(ids[: len(want) - 1], want[: len(ids)][: len(want) - 1])
    assert math.isclose(probabilities.sum(), 1.0)


def test_repetition_penalises_prompt_and_answer_presence_and_frequency_the_answer_only() -> None:
    logits = np.array([2.0, -2.0, 1.0, 1.0], np.float32)
    history = [0, 1, 3, 3]
    assert penalised(logits, SamplingParams(repetition_penalty=2.0), history, 2).tolist() == [
        1.0,
        -4.0,
        1.0,
        0.5,
    ]
    got = penalised(
        logits, SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), history, 2
    )
    assert got.tolist() == [2.0, -2.0, 1.0, 0.0]


def test_a_bias_outside_the_vocabulary_is_nothing() -> None:
    assert (
        sample(
            LOGITS, SamplingParams(temperature=0, logit_bias={10**9: 100.0, -1: 100.0}), [], 0, 0
        )[0]
        < 500
    )


def test_a_constraint_leaves_only_what_it_allows() -> None:
    allowed = np.zeros(500, bool)
    allowed[[7, 9]] = True
    drawn = {
        sample(LOGITS, SamplingParams(temperature=5.0), [], 0, p, allowed)[0] for p in range(200)
    }
    assert drawn == {7, 9}
    for top_k, top_p in ((1, 1.0), (400, 0.5), (0, 0.01)):
        assert sample(LOGITS, SamplingParams(top_k=top_k, top_p=top_p), [], 0, 0, allowed)[0] in {
            7,
            9,
        }


def test_log_probabilities_are_the_models_own_and_sorted() -> None:
    params = SamplingParams(temperature=3.0, logprobs=5, logit_bias={0: 50.0})
    token, logprob, top = sample(LOGITS, params, [], 0, 0)
    reference = LOGITS.astype(np.float64) - np.log(np.exp(LOGITS.astype(np.float64)).sum())
    assert token == 0
    assert logprob == pytest.approx(reference[0])
    assert [t for t, _ in top] == np.argsort(-LOGITS)[:5].tolist()
    assert [p for _, p in top] == pytest.approx(np.sort(reference)[::-1][:5])


def test_no_alternatives_are_told_where_only_the_chosen_one_was_asked_for() -> None:
    assert sample(LOGITS, SamplingParams(logprobs=0), [], 0, 0)[2] == ()
    assert sample(LOGITS, SamplingParams(), [], 0, 0)[1:] == (None, ())


def test_the_quick_draw_from_the_likeliest_tokens_is_the_draw_from_all_of_them() -> None:
    rng, drawn = np.random.default_rng(1), 0
    for seed in range(40):
        logits = (rng.standard_normal(20_000) * rng.choice([1, 3, 6])).astype(np.float32)
        allowed = rng.random(20_000) < 0.01 if seed % 4 == 0 else None
        params = SamplingParams(
            temperature=float(rng.choice([0.5, 1.0, 1.5])), seed=seed, repetition_penalty=1.1
        )
        quick = sampling._draw_from_head(logits, params, [1, 2, 3], 3, 7, allowed)
        ids, probabilities = sampling.distribution(logits, params, [1, 2, 3], 3, allowed)
        assert quick in (None, sampling._draw(ids, probabilities, sampling._uniform(seed, 7)))
        drawn += quick is not None
    assert drawn > 20


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1e-320])
@pytest.mark.parametrize("bad", [[NAN, 1.0], [NAN, NAN], [-INF, -INF], [INF, 1.0]])
@pytest.mark.parametrize("padding", [0, 9000])
def test_logits_that_are_no_numbers_are_told_and_choose_nothing(
    bad: list[float], temperature: float, padding: int
) -> None:
    logits = np.array([*bad, *[-INF] * padding], np.float32)
    with pytest.raises(ExoError, match="no token can be chosen"):
        sample(logits, SamplingParams(temperature=temperature), [], 0, 0)


def test_a_constraint_that_allows_nothing_is_told() -> None:
    with pytest.raises(ExoError, match="no token can be chosen"):
        sample(LOGITS, SamplingParams(), [], 0, 0, np.zeros(len(LOGITS), bool))


@pytest.mark.parametrize(
    "params", [{"temperature": 1e-320}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {}]
)
def test_one_finite_logit_is_always_chosen(params: dict[str, float]) -> None:
    for size in (3, 9000):
        logits = np.full(size, -INF, np.float32)
        logits[1] = -5.0
        assert sample(logits, SamplingParams(**params, logprobs=2), [0, 1], 1, 2)[0] == 1  # type: ignore[arg-type]


def test_the_smallest_temperature_is_greedy() -> None:
    greedy = sample(LOGITS, SamplingParams(temperature=0), [], 0, 0)[0]
    assert {
        sample(LOGITS, SamplingParams(temperature=5e-324, seed=s), [], 0, 0)[0] for s in range(20)
    } == {greedy}


def by_the_book(logits: np.ndarray, p: SamplingParams) -> np.ndarray:  # type: ignore[type-arg]
    """Every filter on the whole vocabulary, one after the other, as Hugging Face's warpers are
    written.
    """
    scores = logits.astype(np.float64) / p.temperature

    def probabilities() -> np.ndarray:  # type: ignore[type-arg]
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()

    if p.top_k:
        scores[scores < np.sort(scores)[-min(p.top_k, len(scores))]] = -INF
    if p.top_p < 1:
        rising = np.argsort(scores)
        gone = np.cumsum(probabilities()[rising]) <= 1 - p.top_p
        gone[-1] = False
        scores[rising[gone]] = -INF
    if p.min_p:
        scores[probabilities() < p.min_p * probabilities().max()] = -INF
    if p.typical_p < 1:
        now = probabilities()
        surprise = -np.log(now, where=now > 0, out=np.full_like(now, -INF))
        away = np.abs(surprise - (now * np.where(now > 0, surprise, 0)).sum())
        order = np.argsort(away, kind="stable")
        last = min((np.cumsum(now[order]) < p.typical_p).sum(), len(now) - 1)
        scores[away > away[order[last]]] = -INF
    return probabilities()


@settings(deadline=None, max_examples=150, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([2, 30, 700, 5000]),
    temperature=st.sampled_from([0.01, 0.6, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 7, 10_000]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 0.0]),
    min_p=st.sampled_from([0.0, 0.07, 1.0]),
    typical_p=st.sampled_from([1.0, 0.9, 0.2]),
)
def test_all_filters_together_are_those_of_the_book_and_a_draw_is_one_of_them(
    seed: int, size: int, **given: float
) -> None:
    logits = (np.random.default_rng(seed).standard_normal(size) * 4).astype(np.float32)
    params = SamplingParams(**given, seed=seed)  # type: ignore[arg-type]
    ids, chances = distribution(logits, params, [])
    got = np.zeros(size)
    got[ids] = chances
    np.testing.assert_allclose(got, by_the_book(logits, params), atol=1e-9)
    assert got[sample(logits, params, [], 0, seed % 50)[0]] > 0
