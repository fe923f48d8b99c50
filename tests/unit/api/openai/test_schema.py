"""Bodies are validated as OpenAI does: the field that is wrong is named, what is unknown is
ignored.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from exo.api.openai.schema import ChatRequest, CompletionRequest, parse
from exo.inference.errors import InvalidRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: Any) -> ChatRequest:
    return parse(ChatRequest, json.dumps({**CHAT, **fields}).encode())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "pope", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content",
        ),
        ({"messages": [{"role": "user", "content": {"{x}": 1}}]}, "messages[0].content"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"seed": 2**63}, "seed"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": []}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"messages": [{"role": "user", "content": "x"}] * 4097}, "messages"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"user": 5}, "user"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert caught.value.field == named
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 10_000, "not valid JSON"),
        (b'{"model": "\\ud800"}', "not valid JSON"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "'model'"),
        (b'{"model": "m"}', "'messages'"),
    ],
)
def test_a_body_that_is_no_request_says_why(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse(ChatRequest, body)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused(number: str) -> None:
    body = (
        b'{"model": "m", "temperature": %s, "messages": [{"role": "user", "content": "x"}]}'
        % number.encode()
    )
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, body)
    assert caught.value.field == "temperature"


def test_unknown_fields_and_nulls_are_ignored() -> None:
    body = chat(
        reasoning_effort="high",
        store=True,
        temperature=None,
        stop=None,
        logit_bias=None,
        n=None,
        tools=None,
    )
    assert (body.temperature, body.stop, body.logit_bias, body.n) == (None, [], {}, None)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert chat(stop="END").stop == ["END"]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert chat(messages=[{"role": "user", "content": parts}]).messages[0].content == "ab"


def test_a_message_keeps_what_only_its_template_knows() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1"}],
        "reasoning": "because",
    }
    assert chat(messages=[message]).messages[0].model_dump(exclude_unset=True) == message


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [(1, 2)]), ([[1], [2, 3]], [(1,), (2, 3)])],
)
def test_a_prompt_has_openais_four_forms(prompt: Any, parsed: Any) -> None:
    body = parse(CompletionRequest, json.dumps({"model": "m", "prompt": prompt}).encode())
    assert body.prompt == parsed


@pytest.mark.parametrize("prompt", [None, 3, [], [[]], [True], [-1], ["a", 1], [2**40], {}])
def test_any_other_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(CompletionRequest, json.dumps({"model": "m", "prompt": prompt}).encode())
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("fields", "named"), [({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of")]
)
def test_what_the_legacy_endpoint_cannot_do_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(CompletionRequest, json.dumps({"model": "m", "prompt": "x", **fields}).encode())
    assert caught.value.field == named
