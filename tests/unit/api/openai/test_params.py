"""From a body to sequences: OpenAI's defaults, seeds per choice, and what the context window
leaves.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import MISSING, Field
from typing import Any

import pytest
from sampling_values import values

from exo.api.openai import params
from exo.api.openai.schema import ChatRequest, CompletionRequest, parse
from exo.inference.errors import InvalidRequest
from exo.inference.generation import GenerationRequest
from exo.inference.sampling.params import RULES, SamplingParams


def chat(**fields: Any) -> ChatRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(ChatRequest, json.dumps(body).encode())


def sequences(body: ChatRequest | CompletionRequest, prompt: int = 10) -> list[GenerationRequest]:
    return params.sequences(body, request_id="r", prompt=tuple(range(prompt)), seed=7)


def default(of: Field[Any]) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


def test_what_is_left_out_is_openais_default() -> None:
    (sequence,) = sequences(chat())
    chosen = sequence.params
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.seed, chosen.logprobs) == (
        1.0,
        1.0,
        0,
        7,
        None,
    )
    assert chosen.json_schema is None
    assert (sequence.stop, sequence.ignore_eos, sequence.request_id) == ((), False, "r")


# Fields of `SamplingParams` that a body has in another form.
IN_ANOTHER_FORM: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "json_schema": {"response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize("name", RULES)
def test_each_sampling_parameter_comes_from_the_body(name: str) -> None:
    """At a value that is not its default: the first that the API allows."""
    if name in IN_ANOTHER_FORM:
        chosen = sequences(chat(**IN_ANOTHER_FORM[name]))[0].params
    else:
        chosen = sequences(chat(**{name: allowed(name)}))[0].params
    assert getattr(chosen, name) != default(SamplingParams.__dataclass_fields__[name])


def allowed(name: str) -> Any:
    """A value of a sampling parameter as JSON has it, within the limits of the API."""
    for value in values(name):
        given = {str(key): each for key, each in value.items()} if name == "logit_bias" else value
        with suppress(InvalidRequest):
            chat(**{name: given})
            return given
    raise AssertionError(f"the API allows none of {values(name)} for {name}")


def test_a_bias_comes_with_its_token_as_a_number() -> None:
    assert sequences(chat(logit_bias={"3": 2.0}))[0].params.logit_bias == {3: 2.0}


def test_each_field_of_the_body_is_a_sampling_parameter_or_named_here() -> None:
    """Otherwise a parameter would be accepted and ignored, or could not be sent."""
    elsewhere = {"model", "stream", "stream_options", "n", "max_tokens", "stop", "user"}
    elsewhere |= {"ignore_eos"}
    shared = (set(ChatRequest.model_fields) & set(CompletionRequest.model_fields)) - elsewhere
    assert shared - RULES.keys() == set(), "fields of the body that `SamplingParams` lacks"
    # A schema is the only one that the legacy endpoint has in no form.
    lacking = RULES.keys() - shared - {"json_schema"}
    assert lacking == set(), "add them to `_Sampling` in exo/api/openai/schema.py"


def test_zero_is_a_value_and_not_left_out() -> None:
    chosen = sequences(chat(temperature=0, seed=0, top_p=0))[0].params
    assert (chosen.temperature, chosen.seed, chosen.top_p) == (0.0, 0, 0.0)


def test_choices_share_the_requests_id_and_have_seeds_that_follow_from_the_first() -> None:
    made = sequences(chat(n=3, seed=-1))
    assert [one.request_id for one in made] == ["r", "r", "r"]
    assert [one.params.seed for one in made] == [2**63 - 1, 0, 1]


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 90),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6}, 6),
        ({"max_tokens": 5, "max_completion_tokens": 6}, 6),
        ({"max_tokens": 10**9}, 90),
    ],
)
def test_an_answer_may_fill_what_the_window_has_left(fields: dict[str, Any], limit: int) -> None:
    assert sequences(chat(**fields))[0].fitted(100).max_tokens == limit


def test_the_legacy_endpoint_answers_sixteen_tokens_by_default() -> None:
    body = parse(CompletionRequest, b'{"model": "m", "prompt": "x"}')
    assert sequences(body)[0].max_tokens == 16


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        sequences(chat(), prompt=0)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [({}, None), ({"logprobs": True}, 0), ({"logprobs": True, "top_logprobs": 3}, 3)],
)
def test_logprobs_count_the_alternatives(fields: dict[str, Any], asked: int | None) -> None:
    assert params.sampling(chat(**fields), seed=0).logprobs == asked


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, {}),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
            {"type": "object"},
        ),
    ],
)
def test_a_response_format_is_a_constraint(form: dict[str, Any], schema: Any) -> None:
    assert params.sampling(chat(response_format=form), seed=0).json_schema == schema


TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
    },
    {"type": "function", "function": {"name": "now"}},
]


def test_a_forced_tool_constrains_the_answer_to_a_call_of_it() -> None:
    body = chat(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "now"}})
    schema = params.sampling(body, seed=0).json_schema
    assert schema is not None
    assert schema["properties"]["name"] == {"const": "now"}


def test_a_required_call_may_be_of_any_tool() -> None:
    schema = params.sampling(chat(tools=TOOLS, tool_choice="required"), seed=0).json_schema
    assert schema is not None
    assert [call["properties"]["name"]["const"] for call in schema["anyOf"]] == ["add", "now"]


def test_tools_that_may_not_be_called_are_not_shown_to_the_model() -> None:
    assert params.chat_tools(chat(tools=TOOLS, tool_choice="none")) is None
    assert params.chat_tools(chat(tools=TOOLS)) == TOOLS


def test_templates_know_no_developer_and_no_missing_content() -> None:
    body = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        ]
    )
    assert params.chat_messages(body.messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
    ]
