"""From a validated body to the sequences it asks for. Pure: random seeds come in as arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields, replace
from typing import Any, Final

from exo.api.openai.schema import ChatRequest, CompletionRequest, Message
from exo.inference.errors import InvalidRequest
from exo.inference.generation import FILL_WINDOW, GenerationRequest
from exo.inference.sampling.params import SamplingParams

Body = ChatRequest | CompletionRequest
SEEDS: Final = 2**63
COMPLETION_TOKENS: Final = 16  # OpenAI's default of the legacy endpoint


def sampling(body: Body, *, seed: int) -> SamplingParams:
    """Each field of `SamplingParams` from the body's field of the same name; `_TRANSLATED` holds
    those that OpenAI has in another form. `seed` is for a body without one.

    What the body leaves out has the default of `SamplingParams`, which is OpenAI's as well.
    """
    return SamplingParams(
        **{each.name: _value(body, each, seed) for each in fields(SamplingParams)}
    )


def _value(body: Body, each: Field[Any], seed: int) -> Any:
    if each.name == "seed":
        return (seed if body.seed is None else body.seed) % SEEDS
    translate = _TRANSLATED.get(each.name)
    given = getattr(body, each.name) if translate is None else translate(body)
    return _default(each) if given is None else given


def _default(each: Field[Any]) -> Any:
    return each.default if each.default_factory is MISSING else each.default_factory()


def _top_k(body: Body) -> int | None:
    """-1 means "off" to some clients; here that is 0."""
    return None if body.top_k is None else max(body.top_k, 0)


def _logprobs(body: Body) -> int | None:
    """How many alternatives: one number in the legacy form, a flag and a number in chat."""
    if isinstance(body, CompletionRequest):
        return body.logprobs
    return (body.top_logprobs or 0) if body.logprobs else None


def _json_schema(body: Body) -> dict[str, Any] | None:
    if not isinstance(body, ChatRequest):
        return None
    if is_forced(body):
        return _forced_call(body)
    form = body.response_format
    if form is None or form.type == "text":
        return None
    return form.json_schema.schema_ if form.json_schema and form.type == "json_schema" else {}


# By the field of `SamplingParams`, where the body does not simply have that field.
_TRANSLATED: Final[dict[str, Callable[[Body], Any]]] = {
    "top_k": _top_k,
    "logprobs": _logprobs,
    "json_schema": _json_schema,
}


def is_forced(body: ChatRequest) -> bool:
    """True when the answer must be a tool call. It is then constrained to the form of one, which
    works with models that were not trained to call tools.
    """
    return body.tool_choice not in (None, "none", "auto")


def _forced_call(body: ChatRequest) -> dict[str, Any]:
    choice = body.tool_choice or ""
    functions = [
        tool.function
        for tool in body.tools or []
        if choice == "required" or tool.function.name == choice[1:]
    ]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function.name},
                "arguments": function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def chat_messages(messages: list[Message]) -> list[dict[str, Any]]:
    """As templates expect them: content is a string, the newer role `developer` is `system`."""
    rendered = []
    for message in messages:
        turn = message.model_dump(exclude_unset=True)
        turn["content"] = message.content or ""
        turn["role"] = "system" if message.role == "developer" else message.role
        rendered.append(turn)
    return rendered


def chat_tools(body: ChatRequest) -> list[dict[str, Any]] | None:
    if not body.tools or body.tool_choice == "none":
        return None
    return [tool.model_dump(exclude_unset=True) for tool in body.tools]


def max_tokens(body: Body) -> int:
    """The longest answer that the body allows. The node cuts it to its context window."""
    if isinstance(body, CompletionRequest):
        return min(body.max_tokens or COMPLETION_TOKENS, FILL_WINDOW)
    return min(body.max_completion_tokens or body.max_tokens or FILL_WINDOW, FILL_WINDOW)


def sequences(
    body: Body, *, request_id: str, prompt: tuple[int, ...], seed: int
) -> list[GenerationRequest]:
    """One sequence per choice. The first has the body's seed, the others the numbers after it."""
    if not prompt:
        raise InvalidRequest("The prompt is empty: it has no token to start from.", field="prompt")
    params = sampling(body, seed=seed)
    return [
        GenerationRequest(
            request_id=request_id,
            model_id=body.model,
            prompt_tokens=prompt,
            max_tokens=max_tokens(body),
            params=replace(params, seed=(params.seed + index) % SEEDS),
            stop=tuple(body.stop),
            ignore_eos=bool(body.ignore_eos),
        )
        for index in range(body.n or 1)
    ]
