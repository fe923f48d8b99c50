"""Chat messages to tokens: the model's own Jinja template, run in a sandbox. User text cannot forge
control tokens.

Before rendering, control tokens written in messages get an invisible mark inside. Afterwards the
text is split at the template's own control tokens, and the marks are removed from the parts in
between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

from jinja2 import Template, TemplateError, Undefined, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from exo.inference.errors import InvalidRequest
from exo.inference.text.tokenizer import Tokenizer

# For models without a template.
CHATML: Final = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] +"
    " '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%"
    " endif %}"
)
MAX_RENDERED: Final = 16 << 20
# A private-use character, which messages may not contain.
MARK: Final = "\U0010fffd"

Message = dict[str, Any]


class _Sandbox(ImmutableSandboxedEnvironment):
    """Also refuses products and powers that would fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = [abs(v) for v in (left, right) if isinstance(v, int | float)]
        sized = [len(v) for v in (left, right) if hasattr(v, "__len__")]
        if operator == "**" and any(n > 64 for n in numbers):
            raise SecurityError("the power is too large")
        if operator == "*" and sized and numbers and sized[0] * numbers[0] > MAX_RENDERED:
            raise SecurityError("the product is too large")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """`{% generation %}` marks what the model itself wrote, for training. Here only its contents
    matter.
    """

    tags = {"generation"}  # noqa: RUF012  as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def encode_chat(
    tokenizer: Tokenizer,
    messages: list[Message],
    tools: list[dict[str, Any]] | None = None,
    **variables: Any,
) -> list[int]:
    """Token ids of a conversation, up to where the assistant's answer begins. Raises
    `InvalidRequest`.
    """
    names: dict[str, Any] = {**tokenizer.special_texts, **variables}
    text = render_chat(
        tokenizer.chat_template, messages, tools, control=tuple(tokenizer.control), **names
    )
    texts: list[str] = []
    controls: list[int] = []
    at = 0
    for start, stop in _control_spans(text, tuple(tokenizer.control)):
        texts.append(text[at:start].replace(MARK, ""))
        controls.append(tokenizer.control[text[start:stop]])
        at = stop
    return tokenizer.encode_around([*texts, text[at:].replace(MARK, "")], controls)


def render_chat(
    template: str | None,
    messages: list[Message],
    tools: list[dict[str, Any]] | None = None,
    *,
    add_generation_prompt: bool = True,
    control: tuple[str, ...] = (),
    **variables: Any,
) -> str:
    """The text of the conversation. With `control`, those tokens are marked where a message
    contains them.

    Raises `InvalidRequest`, naming the message, for a shape that this function or the template
    refuses.
    """
    checked = [_message(i, m) for i, m in enumerate(_nonempty(messages))]
    mark = _marker(control)
    try:
        text = _compile(template or CHATML).render(
            messages=_map_strings(mark, checked),
            tools=_map_strings(mark, tools) if tools else None,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
    except _Refused as error:
        raise InvalidRequest(
            f"the model's chat template refuses: {error}", field="messages"
        ) from error
    except (
        TemplateError,
        SecurityError,
        TypeError,
        ValueError,
        KeyError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise InvalidRequest(
            f"the model's chat template fails on these messages: {error}", field="messages"
        ) from error
    if len(text) > MAX_RENDERED:
        raise InvalidRequest(
            f"the conversation is longer than {MAX_RENDERED} characters", field="messages"
        )
    return text


class _Refused(Exception):
    """The template called raise_exception."""


@lru_cache(maxsize=16)
def _compile(template: str) -> Template:
    environment = _Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template)
    except (TemplateError, RecursionError) as error:
        raise InvalidRequest(
            f"the model's chat template cannot be compiled: {error}", field="messages"
        ) from error


def _raise(message: str) -> None:
    raise _Refused(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    # Jinja's own filter escapes for HTML, which a model must not see. The options are those of
    # json.dumps: indent, separators, sort_keys.
    return json.dumps(
        None if isinstance(value, Undefined) else value, ensure_ascii=ensure_ascii, **options
    )


def _nonempty(messages: Any) -> list[Any]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("messages must be a list with at least one message", field="messages")
    return messages


def _message(index: int, message: Any) -> Message:
    if not isinstance(message, dict):
        raise InvalidRequest(f"messages[{index}] must be an object", field=f"messages[{index}]")
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(
            f"messages[{index}].role must be a string", field=f"messages[{index}].role"
        )
    return {**message, "content": _content(index, message)}


def _content(index: int, message: Message) -> str:
    """OpenAI allows text, a list of parts, or nothing next to tool calls; templates want text."""
    content, field = message.get("content"), f"messages[{index}].content"
    if isinstance(content, str):
        return content
    if content is None and (message.get("tool_calls") or message.get("function_call")):
        return ""
    if not isinstance(content, list):
        raise InvalidRequest(f"{field} must be a string or a list of text parts", field=field)
    texts: list[str] = []
    for part in content:
        if (
            not isinstance(part, dict)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise InvalidRequest(
                f"{field}: a part of type {kind!r} is not supported; only text is", field=field
            )
        texts.append(part["text"])
    return "".join(texts)


def _marker(control: tuple[str, ...]) -> Callable[[str], str]:
    if not control:
        return lambda text: text
    pattern = _pattern(control)
    # The mark goes after the first character of each control token.
    return lambda text: pattern.sub(
        lambda m: m.group()[0] + MARK + m.group()[1:], text.replace(MARK, "")
    )


@lru_cache(maxsize=16)
def _pattern(control: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))


def _control_spans(text: str, control: tuple[str, ...]) -> list[tuple[int, int]]:
    return [m.span() for m in _pattern(control).finditer(text)] if control else []


def _map_strings(change: Callable[[str], str], value: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_map_strings(change, v) for v in value]
    if isinstance(value, dict):
        return {k: _map_strings(change, v) for k, v in value.items()}
    return value
