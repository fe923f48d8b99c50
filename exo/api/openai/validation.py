"""The message for a body that is wrong: which field, what was expected there, what came. Pure.

The validator's own messages are about its types and steps ("List should have at least 1 item after
validation"), which a client does not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

from pydantic_core import ErrorDetails

from exo.inference.errors import InvalidRequest

LONGEST_ECHO: Final = 40
# A string in place of a list or an object may be a private conversation, which must not be logged.
_NOT_ECHOED: Final = frozenset({"list_type", "dict_type", "model_type"})
# By the validator's type of error: what was expected, with the limit if there is one.
_EXPECTED: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "string_type": lambda _: "a string",
    "bool_type": lambda _: "true or false",
    "int_type": lambda _: "a whole number",
    "int_from_float": lambda _: "a whole number",
    "float_type": lambda _: "a number",
    "finite_number": lambda _: "a finite number",
    "list_type": lambda _: "a list",
    "dict_type": lambda _: "an object",
    "model_type": lambda _: "an object",
    "greater_than_equal": lambda limit: f"a number of at least {limit['ge']:g}",
    "greater_than": lambda limit: f"a number greater than {limit['gt']:g}",
    "less_than_equal": lambda limit: f"a number of at most {limit['le']:g}",
    "less_than": lambda limit: f"a number less than {limit['lt']}",
    "too_short": lambda limit: (
        f"a list of at least {_counted(limit['min_length'], 'entry', 'entries')}"
    ),
    "too_long": lambda limit: (
        f"a list of at most {_counted(limit['max_length'], 'entry', 'entries')}"
    ),
    "string_too_short": lambda limit: (
        f"at least {_counted(limit['min_length'], 'character', 'characters')}"
    ),
    "string_too_long": lambda limit: (
        f"at most {_counted(limit['max_length'], 'character', 'characters')}"
    ),
    "literal_error": lambda limit: str(limit["expected"]),
}


def invalid_field(detail: ErrorDetails, body: bytes) -> InvalidRequest:
    """The error for one fault; the field is named as OpenAI does, `messages[0].content`."""
    if detail["type"] == "json_invalid":
        if not body.strip():
            return InvalidRequest("The body is empty, which is not valid JSON; expected an object.")
        return InvalidRequest(
            f"The body is not valid JSON: {detail['msg'].removeprefix('Invalid JSON: ')}."
        )
    if not detail["loc"]:
        return InvalidRequest(
            f"The body should be a JSON object, not {shown(detail['input'], echo=False)}."
        )
    field = ""
    for part in detail["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f".{part}" if field else part
    if detail["type"] == "missing":
        return InvalidRequest(f"Missing required parameter: '{field}'.", field=field)
    return InvalidRequest(f"Invalid value for '{field}': {_fault(detail)}.", field=field)


def _fault(detail: ErrorDetails) -> str:
    expected = _EXPECTED.get(detail["type"])
    if expected is None:
        return detail["msg"]
    got = shown(detail["input"], echo=detail["type"] not in _NOT_ECHOED)
    return f"expected {expected(detail.get('ctx', {}))}, got {got}"


def shown(value: Any, *, echo: bool = True) -> str:
    """What a client sent, briefly and in JSON's terms: long texts and lists by their length.
    `echo`: show a short text itself.
    """
    match value:
        case str() if not echo:
            return "a string"
        case str() if len(value) > LONGEST_ECHO:
            return f"a string of {len(value)} characters"
        case str() if value:
            return f"the string {json.dumps(value, ensure_ascii=False)}"
        case str():
            return "an empty string"
        case list():
            return (
                f"a list of {_counted(len(value), 'entry', 'entries')}"
                if value
                else "an empty list"
            )
        case dict():
            return "an object"
    text = json.dumps(value)
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}…"


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
