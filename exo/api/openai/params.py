"""From a validated body to the sequences it asks for. Pure: the seed of the unseeded comes in as an
argument.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exo.api.openai.schema import ChatRequest, CompletionRequest, Message
from exo.inference.errors import ContextExceeded, InvalidRequest
from exo.inference.generation import GenerationRequest
from exo.inference.sampling.params import SamplingParams

SEEDS = 2**63
COMPLETION_TOKENS = 16  # OpenAI's default of the legacy endpoint


def sampling(body: ChatRequest | CompletionRequest, *, seed: int) -> SamplingParams:
    """`seed` is used where the body has none. What the body leaves out is OpenAI's default."""

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    return SamplingParams(
        temperature=given(body.temperature, 1.0),
        top_p=given(body.top_p, 1.0),
        top_k=max(given(body.top_k, 0), 0),
        min_p=given(body.min_p, 0.0),
        typical_p=given(body.typical_p, 1.0),
        repetition_penalty=given(body.repetition_penalty, 1.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        logit_bias=body.logit_bias,
        seed=given(body.seed, seed) % SEEDS,
        logprobs=_logprobs(body),
        json_schema=_json_schema(body),
    )


def _logprobs(body: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(body, CompletionRequest):
        return body.logprobs
    return (body.top_logprobs or 0) if body.logprobs else None


def _json_schema(body: ChatRequest | CompletionRequest) -> dict[str, Any] | None:
    if not isinstance(body, ChatRequest):
        return None
    if is_forced(body):
        return _forced_call(body)
    form = body.response_format
    if form is None or form.type == "text":
        return None
    return (
        form.json_schema.schema_
        if form.json_schema is not None and form.type == "json_schema"
        else {}
    )


def is_forced(body: ChatRequest) -> bool:
    """Whether the answer must be a tool call: then it is constrained to one, whatever the model's
    own format.
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
    """As templates expect them: content is a string, `developer` is the newer name of `system`."""
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


def max_tokens(
    body: ChatRequest | CompletionRequest, *, prompt: int, context: int, field: str
) -> int:
    """What is asked for, at most what the context window has left. Raises `ContextExceeded` when
    that is nothing.
    """
    left = context - prompt
    if left < 1:
        error = ContextExceeded(prompt, context)
        error.field = field
        raise error
    if isinstance(body, CompletionRequest):
        return min(body.max_tokens or COMPLETION_TOKENS, left)
    return min(body.max_completion_tokens or body.max_tokens or left, left)


def sequences(
    body: ChatRequest | CompletionRequest,
    *,
    request_id: str,
    prompt: tuple[int, ...],
    context: int,
    seed: int,
    field: str,
) -> list[GenerationRequest]:
    """One sequence per choice; the first has the seed of the body, the others seeds that follow
    from it.
    """
    if not prompt:
        raise InvalidRequest("The prompt is empty: it has no token to start from.", field=field)
    params = sampling(body, seed=seed)
    limit = max_tokens(body, prompt=len(prompt), context=context, field=field)
    return [
        GenerationRequest(
            request_id=request_id if not index else f"{request_id}-{index}",
            model_id=body.model,
            prompt_tokens=prompt,
            max_tokens=limit,
            params=replace(params, seed=(params.seed + index) % SEEDS),
            stop=tuple(body.stop),
            ignore_eos=bool(body.ignore_eos),
        )
        for index in range(body.n or 1)
    ]
