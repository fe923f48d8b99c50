"""Tool calls in the text a model writes, for the formats that are known. Pure.

- `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them: Hermes, Qwen
- `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`: Mistral
- the whole answer is `{"name": ..., "parameters": {...}}`: Llama 3
- the whole answer is `{"name": ..., "arguments": {...}}`: what a forced call is constrained to

Text that only looks like a call (bad JSON, a tool that was not offered) stays text: the client sees
what the model wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

_HERMES = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL = "[TOOL_CALLS]"
_MARKS = ("<tool_call>", _MISTRAL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """`arguments` is JSON text, as OpenAI has it."""

    id: str
    name: str
    arguments: str

    def to_dict(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


def parse_calls(text: str, names: Collection[str], *, id_prefix: str) -> tuple[str, list[ToolCall]]:
    """The text without the calls, and the calls. `names`: the tools offered."""
    rest, raw = _split(text)
    calls = [_call(item, names, f"call_{id_prefix}{index}") for index, item in enumerate(raw)]
    found = [call for call in calls if call is not None]
    if not found or len(found) != len(calls):
        return text, []
    return rest.strip(), found


def may_hold_calls(text: str, *, at_start: bool) -> bool:
    """Whether streamed text must be held back: it contains the beginning of a call, or may still
    become one.

    `at_start`: nothing of the answer was sent yet. Only then can the whole answer be a call.
    """
    if any(mark in text for mark in _MARKS):
        return True
    stripped = text.lstrip()
    if at_start and (not stripped or stripped.startswith("{")):
        return True
    return any(stripped.endswith(mark[:size]) for mark in _MARKS for size in range(1, len(mark)))


def _split(text: str) -> tuple[str, list[Any]]:
    if _HERMES.search(text):
        return _HERMES.sub("", text), [_loads(match) for match in _HERMES.findall(text)]
    if _MISTRAL in text:
        before, _, after = text.partition(_MISTRAL)
        listed = _loads(after)
        return before, listed if isinstance(listed, list) and listed else [listed]
    if text.lstrip().startswith("{"):
        return "", [_loads(text)]
    return text, []


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _call(item: Any, names: Collection[str], call_id: str) -> ToolCall | None:
    if not isinstance(item, dict) or item.get("name") not in names:
        return None
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str):  # some models quote the arguments once more
        arguments = _loads(arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(call_id, item["name"], json.dumps(arguments, ensure_ascii=False))
