"""A request's token ids are those of the model, wherever they stand in it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exo.inference.errors import ContextExceeded, InvalidRequest
from exo.inference.generation import FILL_WINDOW, GenerationRequest
from exo.inference.sampling.params import SamplingParams


def request(
    prompt: tuple[int, ...] = (1,), bias: dict[int, float] | None = None
) -> GenerationRequest:
    params = SamplingParams(logit_bias=bias or {})
    return GenerationRequest(
        request_id="r", model_id="tiny", prompt_tokens=prompt, max_tokens=1, params=params
    )


@pytest.mark.parametrize("wrong", [100, -1, 10**17])
def test_a_token_the_model_does_not_have_is_refused_by_field_id_and_size_of_the_vocabulary(
    wrong: int,
) -> None:
    for field, asked in (
        ("prompt", request(prompt=(1, wrong))),
        ("logit_bias", request(bias={1: 1.0, wrong: -100.0})),
    ):
        with pytest.raises(InvalidRequest) as refused:
            asked.check_tokens(100)
        assert refused.value.field == field
        assert (
            str(refused.value)
            == f"Invalid value for '{field}': 'tiny' has no token {wrong}: its vocabulary has 100,"
            " with ids 0 to 99."
        )


def test_the_first_and_the_last_token_of_the_vocabulary_are_taken() -> None:
    request(prompt=(0, 99), bias={0: 1.0, 99: 1.0}).check_tokens(100)


def test_an_answer_is_cut_to_what_the_context_window_leaves() -> None:
    asked = replace(request(prompt=(1, 2, 3)), max_tokens=FILL_WINDOW)
    assert asked.fitted(10).max_tokens == 7
    assert asked.fitted(4).max_tokens == 1
    assert request(prompt=(1, 2, 3)).fitted(10).max_tokens == 1


@pytest.mark.parametrize("context", [2, 3])
def test_a_prompt_that_fills_the_context_window_is_refused(context: int) -> None:
    with pytest.raises(ContextExceeded) as refused:
        request(prompt=(1, 2, 3)).fitted(context)
    assert (refused.value.field, refused.value.tokens, refused.value.limit) == (
        "prompt",
        3,
        context,
    )
