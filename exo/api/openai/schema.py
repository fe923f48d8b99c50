"""Requests as OpenAI defines them: the only place that parses and validates bodies. Pure.

Unknown fields are ignored, as OpenAI does. A wrong type or value raises `InvalidRequest` naming the
field. Some fields that other servers know are accepted too: `top_k`, `min_p`, `typical_p`,
`repetition_penalty`, `ignore_eos`.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from exo.api.openai.validation import invalid_field, shown
from exo.inference.errors import InvalidRequest

MAX_STOPS = 4
MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
# Far above what any client sends. Parsing longer bodies would delay all other requests.
MAX_MESSAGES = 4096
MAX_BIASES = 1024
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
# Only the model knows its vocabulary, so that it checks whether it has the token.
_TOKEN_ID = re.compile(r"-?[0-9]{1,18}")


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


def _wrong(message: str) -> PydanticCustomError:
    # Braces are format fields to pydantic; those in a client's value must not be.
    return PydanticCustomError("wrong_value", "{message}", {"message": message})


def _as_stops(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong(
            f"expected a string or a list of at most {MAX_STOPS} strings, got {shown(value)}"
        )
    if len(stops) > MAX_STOPS:
        raise _wrong(f"expected at most {MAX_STOPS} strings, got {len(stops)}")
    if not all(stops):
        raise _wrong("a stop string must not be empty")
    return stops


def _as_biases(value: Any) -> dict[int, float]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong(
            f"expected an object of token ids and numbers from -100 to 100, got {shown(value)}"
        )
    if len(value) > MAX_BIASES:
        raise _wrong(f"expected at most {MAX_BIASES} tokens, got {len(value)}")
    biases = {}
    for key, bias in value.items():
        if not _TOKEN_ID.fullmatch(key):
            raise _wrong(f"expected token ids for keys, got {shown(key)}")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise _wrong(f"expected a number from -100 to 100 for token {key}, got {shown(bias)}")
        biases[int(key)] = float(bias)
    return biases


def _as_content(value: Any) -> str | None:
    """Text, or the text parts of a list joined. Other parts are refused: these models read text."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _wrong(f"expected a string or a list of text parts, got {shown(value)}")
    return "".join(_as_text(at, part) for at, part in enumerate(value))


def _as_text(at: int, part: Any) -> str:
    if not isinstance(part, dict):
        raise _wrong(
            f'expected {{"type": "text", "text": ...}} for part {at}, got {shown(part, echo=False)}'
        )
    if part.get("type") != "text":
        raise _wrong(
            f"these models read parts of type 'text' only; the 'type' of part {at} is"
            f" {shown(part.get('type'))}"
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise _wrong(f"expected a string for the 'text' of part {at}, got {shown(text)}")
    return text


Prompt = str | tuple[int, ...]


def _as_prompts(value: Any) -> list[Prompt]:
    """OpenAI's four forms: a string, strings, token ids, lists of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return list(value)
    if _is_ids(value):
        return [tuple(value)]
    if isinstance(value, list) and value and all(map(_is_ids, value)):
        return [tuple(item) for item in value]
    forms = "a string, a list of strings, a list of token ids or a list of such lists"
    raise _wrong(f"expected {forms}, none of them empty, got {_odd_one(value)}")


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _odd_one(value: Any) -> str:
    """What is wrong with it: the first entry that no form allows, or else the mix of kinds."""
    if not isinstance(value, list) or not value:
        return shown(value)
    for at, item in enumerate(value):
        if not (isinstance(item, str) or _is_id(item) or _is_ids(item)):
            return f"{shown(item)} as entry {at}"
    return "a list of different kinds"


class Message(_Body):
    """One turn. Other keys (`name`, `tool_calls`, `tool_call_id`, ...) are passed to the chat
    template as they are.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[str | None, BeforeValidator(_as_content)] = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


def _as_function_name(name: str) -> str:
    if not _FUNCTION_NAME.fullmatch(name):
        raise _wrong(f"expected 1 to 64 letters, digits, '_', '-' and '.', got {shown(name)}")
    return name


class Function(_Body):
    name: Annotated[str, AfterValidator(_as_function_name)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_Body):
    type: Literal["function"]
    function: Function


class JsonSchema(_Body):
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: Annotated[dict[str, Any], Field(alias="schema", default_factory=dict)]
    strict: bool | None = None


class ResponseFormat(_Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StreamOptions(_Body):
    include_usage: bool | None = None


def _as_tool_choice(value: Any) -> str | None:
    """`none`, `auto`, `required`, or `=` and the name of the one function to call."""
    if value is None or (isinstance(value, str) and value in ("none", "auto", "required")):
        return value
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        name = value["function"].get("name")
        if isinstance(name, str):
            return "=" + name
    forms = '"none", "auto", "required" or {"type": "function", "function": {"name": ...}}'
    raise _wrong(f"expected {forms}, got {shown(value)}")


class _Sampling(_Body):
    """What both kinds of completion share. Fields of `SamplingParams` have the same names here."""

    model: Annotated[str, Field(min_length=1, max_length=512)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_as_biases)] = Field(
        default_factory=dict
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[str], BeforeValidator(_as_stops)] = Field(default_factory=list)
    user: str | None = None
    ignore_eos: bool | None = None


class ChatRequest(_Sampling):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: Annotated[str | None, BeforeValidator(_as_tool_choice)] = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None


class CompletionRequest(_Sampling):
    prompt: Annotated[list[Prompt], BeforeValidator(_as_prompts)]
    echo: bool | None = None
    suffix: str | None = None
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None


T = TypeVar("T", bound=BaseModel)


def parse(kind: type[T], body: bytes) -> T:
    """Raises `InvalidRequest` that names a field as OpenAI does: `messages[0].content`."""
    try:
        parsed = kind.model_validate_json(body)
    except ValidationError as error:
        raise invalid_field(error.errors(include_url=False)[0], body) from None
    _check_together(parsed)
    return parsed


def _check_together(body: BaseModel) -> None:
    """Rules that concern several fields."""
    match body:
        case ChatRequest():
            _check_chat(body)
        case CompletionRequest():
            _check_completion(body)


def _check_chat(body: ChatRequest) -> None:
    _check_stream_options(body)
    if body.top_logprobs and not body.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", field="top_logprobs")
    for index, message in enumerate(body.messages):
        if message.content is None and message.role != "assistant":
            field = f"messages[{index}].content"
            raise InvalidRequest(f"Missing required parameter: '{field}'.", field=field)
    form = body.response_format
    if form is not None and form.type == "json_schema" and form.json_schema is None:
        raise InvalidRequest(
            "Missing required parameter: 'response_format.json_schema'.",
            field="response_format.json_schema",
        )
    _check_tool_choice(body)


def _check_tool_choice(body: ChatRequest) -> None:
    names = [tool.function.name for tool in body.tools or []]
    choice = body.tool_choice
    if choice in (None, "none", "auto"):
        return
    if not names:
        raise InvalidRequest("'tool_choice' needs 'tools'.", field="tool_choice")
    if choice != "required" and choice is not None and choice[1:] not in names:
        raise InvalidRequest(
            f"'tool_choice' names {json.dumps(choice[1:])}; the tools are: {', '.join(names)}.",
            field="tool_choice",
        )


def _check_completion(body: CompletionRequest) -> None:
    _check_stream_options(body)
    if body.suffix:
        raise InvalidRequest("'suffix' is not supported by these models.", field="suffix")
    choices = len(body.prompt) * (body.n or 1)
    if choices > MAX_CHOICES:
        raise InvalidRequest(
            f"Prompts times 'n' should be at most {MAX_CHOICES}, not {choices}.", field="prompt"
        )
    if body.best_of is not None and body.best_of != (body.n or 1):
        raise InvalidRequest("'best_of' other than 'n' is not supported.", field="best_of")


def _check_stream_options(body: _Sampling) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("'stream_options' needs 'stream' to be true.", field="stream_options")
