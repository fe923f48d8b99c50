"""Tool calls are found in each known format; what only looks like one stays text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.api.openai.tools import may_hold_calls, parse_calls

NAMES = {"add", "now"}
ADD = '{"name": "add", "arguments": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "rest", "called"),
    [
        (f"<tool_call>\n{ADD}\n</tool_call>", "", ["add"]),
        (f"Let me see. <tool_call>{ADD}</tool_call>", "Let me see.", ["add"]),
        (
            f'<tool_call>{ADD}</tool_call><tool_call>{{"name": "now", "arguments": {{}}}}',
            "",
            ["add", "now"],
        ),
        (f"[TOOL_CALLS] [{ADD}, {ADD}]", "", ["add", "add"]),
        (f"[TOOL_CALLS]{ADD}", "", ["add"]),
        ('{"name": "add", "parameters": {"a": 1}}', "", ["add"]),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", ["add"]),
    ],
)
def test_a_call_is_found_in_each_format(text: str, rest: str, called: list[str]) -> None:
    left, calls = parse_calls(text, NAMES, id_prefix="x")
    assert left == rest
    assert [call.name for call in calls] == called
    assert all(isinstance(json.loads(call.arguments), dict) for call in calls)
    assert len({call.id for call in calls}) == len(calls)


@pytest.mark.parametrize(
    "text",
    [
        "just words",
        '{"answer": 42}',
        '{"name": "rm", "arguments": {}}',
        '{"name": "add", "arguments": 3}',
        "<tool_call>not json</tool_call>",
        f'<tool_call>{ADD}</tool_call><tool_call>{{"name": "rm", "arguments": {{}}}}</tool_call>',
        "[TOOL_CALLS] []",
        "{" * 5000,
        "",
    ],
)
def test_what_only_looks_like_a_call_stays_text(text: str) -> None:
    assert parse_calls(text, NAMES, id_prefix="x") == (text, [])


def test_text_before_a_call_is_not_kept_back() -> None:
    assert not may_hold_calls("Let me see. ", at_start=True)
    assert may_hold_calls("Let me see. <tool", at_start=True)
    assert not may_hold_calls("a < b and", at_start=True)


def test_an_object_is_a_call_only_where_it_begins_the_answer() -> None:
    assert may_hold_calls(' {"na', at_start=True)
    assert not may_hold_calls('{"na', at_start=False)


@given(st.text(alphabet='<tool_cal>[]TOOL_CALLS {}"name:add/argumets\n', max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    left, calls = parse_calls(text, NAMES, id_prefix="x")
    assert calls or left == text
    may_hold_calls(text, at_start=True)


@given(st.text(max_size=10), st.integers(0, 60))
def test_the_opening_of_a_call_is_kept_back_wherever_it_is_cut(before: str, cut: int) -> None:
    text = f"{before}<tool_call>{ADD}</tool_call>"
    shown = text[: len(before) + 1 + cut]
    assert may_hold_calls(shown, at_start=True)
