"""A wrong body is answered in our words: the field, what was expected, what came. Never in the
validator's.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from exo.api.openai.schema import ChatRequest, CompletionRequest, parse
from exo.inference.errors import InvalidRequest

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
TEXT: dict[str, Any] = {"model": "m", "prompt": "hi"}
FUNCTION: dict[str, Any] = {"type": "function", "function": {"name": "f"}}


def refused(fields: dict[str, Any]) -> str:
    kind, good = (
        (CompletionRequest, TEXT)
        if fields.keys() & {"prompt", "echo", "best_of"}
        else (ChatRequest, CHAT)
    )
    with pytest.raises(InvalidRequest) as caught:
        parse(kind, json.dumps({**good, **fields}).encode())
    return str(caught.value)


def message(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x", **fields}]}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": []}, "'messages': expected a list of at least 1 entry, got an empty list."),
        ({"messages": "hello"}, "'messages': expected a list, got a string."),
        ({"messages": None}, "'messages': expected a list, got null."),
        ({"messages": ["hello"]}, "'messages[0]': expected an object, got a string."),
        (message(role="pope"), "'tool' or 'function', got the string \"pope\"."),
        (message(name=3), "'messages[0].name': expected a string, got 3."),
        (message(content={}), "expected a string or a list of text parts, got an object."),
        (
            message(content=["x"]),
            'expected {"type": "text", "text": ...} for part 0, got a string.',
        ),
        (
            message(content=[{"type": "image_url"}]),
            "the 'type' of part 0 is the string \"image_url\".",
        ),
        (
            message(content=[{"type": "text"}]),
            "expected a string for the 'text' of part 0, got null.",
        ),
        ({"model": ""}, "'model': expected at least 1 character, got an empty string."),
        (
            {"model": "x" * 600},
            "'model': expected at most 512 characters, got a string of 600 characters.",
        ),
        ({"temperature": "warm"}, "'temperature': expected a number, got the string \"warm\"."),
        ({"temperature": 2.5}, "'temperature': expected a number of at most 2, got 2.5."),
        ({"temperature": True}, "'temperature': expected a number, got true."),
        ({"typical_p": 0}, "'typical_p': expected a number greater than 0, got 0."),
        ({"n": 1.5}, "'n': expected a whole number, got 1.5."),
        ({"n": 0}, "'n': expected a number of at least 1, got 0."),
        (
            {"seed": 2**63},
            "'seed': expected a number less than 9223372036854775808, got 9223372036854775808.",
        ),
        ({"stop": 3}, "'stop': expected a string or a list of at most 4 strings, got 3."),
        (
            {"logit_bias": {"word": 1}},
            "'logit_bias': expected token ids for keys, got the string \"word\".",
        ),
        (
            {"logit_bias": {"1": 101}},
            "'logit_bias': expected a number from -100 to 100 for token 1, got 101.",
        ),
        ({"stream": "yes"}, "'stream': expected true or false, got the string \"yes\"."),
        ({"stream_options": 1}, "'stream_options': expected an object, got 1."),
        (
            {"tools": [FUNCTION] * 129},
            "'tools': expected a list of at most 128 entries, got a list of 129 entries.",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "a b"}}]},
            "expected 1 to 64 letters, digits, '_', '-' and '.', got the string \"a b\".",
        ),
        (
            {"tool_choice": 3},
            '"required" or {"type": "function", "function": {"name": ...}}, got 3.',
        ),
        ({"prompt": [1, -1]}, "none of them empty, got -1 as entry 1."),
        ({"prompt": ["a", 1]}, "none of them empty, got a list of different kinds."),
        ({"echo": "x"}, "'echo': expected true or false, got the string \"x\"."),
    ],
)
def test_the_field_what_was_expected_and_what_came_are_said(
    fields: dict[str, Any], says: str
) -> None:
    assert refused(fields).endswith(says)


# One wrong value of each type for every field: whatever the validator calls it, we have words for
# it.
WRONG = [None, True, 3, -3, 1.5, 10**400, "x", "", "x" * 2000, [], ["x"], [1.5], {}, {"x": 1}]


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
def test_no_field_is_refused_in_the_validators_own_words(
    kind: type[ChatRequest | CompletionRequest],
) -> None:
    good, said = (CHAT if kind is ChatRequest else TEXT), []
    for field in kind.model_fields:
        for wrong in WRONG:
            try:
                parse(kind, json.dumps({**good, field: wrong}).encode())
            except InvalidRequest as error:
                said.append(str(error))
    assert len(said) > 100
    assert [
        text
        for text in said
        if "nput should" in text or "validation" in text or text.count("'") < 2
    ] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "The body is empty, which is not valid JSON; expected an object."),
        (b"[]", "The body should be a JSON object, not an empty list."),
        (b'"my secret"', "The body should be a JSON object, not a string."),
        (
            b'{"model": "m", "temperature": NaN, "messages": [{"role": "user", "content": "x"}]}',
            "finite number, got NaN.",
        ),
    ],
)
def test_a_body_that_is_no_object_says_what_it_is(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(ChatRequest, body)
    assert str(caught.value).endswith(says)
