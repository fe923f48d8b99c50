"""The official `openai` client is the judge: every feature through it, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from api_fakes import Fakes
from pydantic import BaseModel

from exo.api.server import ApiServer
from exo.api.settings import ApiSettings
from exo.inference import errors

MESSAGES: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture
def fakes() -> Fakes:
    return Fakes(settings=ApiSettings(host="127.0.0.1", api_key="right", drain_seconds=2))


@pytest.fixture
async def client(fakes: Fakes) -> AsyncIterator[openai.AsyncOpenAI]:
    api = ApiServer(fakes.backend, fakes.view, fakes.monitor, fakes.settings)  # type: ignore[arg-type]
    async with (
        api,
        openai.AsyncOpenAI(base_url=f"{api.url}/v1", api_key="right", max_retries=0) as made,
    ):
        yield made


async def test_a_chat_completion(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, temperature=0, user="me"
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert answer._request_id is not None


async def test_a_streamed_chat_completion_with_usage(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == ANSWER
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 7


async def test_the_streaming_helper_puts_the_answer_together(client: openai.AsyncOpenAI) -> None:
    async with client.chat.completions.stream(model="tiny", messages=MESSAGES, n=2) as stream:
        async for _ in stream:
            pass
        whole = await stream.get_final_completion()
    assert [choice.message.content for choice in whole.choices] == [ANSWER, ANSWER]


async def test_logprobs(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(
        model="tiny", messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    listed = answer.choices[0].logprobs
    assert listed is not None
    assert listed.content is not None
    assert "".join(token.token for token in listed.content) == ANSWER
    assert [len(token.top_logprobs) for token in listed.content] == [2] * 7


async def test_every_parameter_reaches_the_backend(
    client: openai.AsyncOpenAI, fakes: Fakes
) -> None:
    await client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        temperature=0.5,
        top_p=0.9,
        seed=11,
        max_completion_tokens=3,
        stop=["a", "b"],
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": -100},
        extra_body={
            "top_k": 40,
            "min_p": 0.05,
            "repetition_penalty": 1.1,
            "ignore_eos": True,
            "nonsense": 1,
        },
    )
    (request,) = fakes.backend.requests
    chosen = request.params
    assert (request.max_tokens, request.stop, request.ignore_eos) == (3, ("a", "b"), True)
    assert (chosen.temperature, chosen.top_p, chosen.top_k, chosen.min_p) == (0.5, 0.9, 40, 0.05)
    assert (chosen.repetition_penalty, chosen.presence_penalty, chosen.frequency_penalty) == (
        1.1,
        0.1,
        0.2,
    )
    assert (chosen.logit_bias, chosen.seed) == ({5: -100.0}, 11)


class Capital(BaseModel):
    city: str


async def test_a_parsed_answer_is_constrained_by_its_schema(
    client: openai.AsyncOpenAI, fakes: Fakes
) -> None:
    fakes.backend.words = ('{"city"', ': "Paris"', "}")
    answer = await client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=Capital
    )
    assert answer.choices[0].message.parsed == Capital(city="Paris")
    schema = fakes.backend.requests[0].params.json_schema
    assert schema is not None
    assert schema["properties"].keys() == {"city"}


@pytest.mark.parametrize("stream", [False, True])
async def test_tool_calls(client: openai.AsyncOpenAI, fakes: Fakes, stream: bool) -> None:
    fakes.backend.words = (
        "<tool_call>",
        '{"name": "weather", "arguments": {"city": ',
        '"Paris"}}',
        "</tool_call>",
    )
    tools: Any = [
        {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    ]
    if stream:
        async with client.chat.completions.stream(
            model="tiny", messages=MESSAGES, tools=tools
        ) as opened:
            async for _ in opened:
                pass
            choice: Any = (await opened.get_final_completion()).choices[0]
    else:
        choice = (
            await client.chat.completions.create(model="tiny", messages=MESSAGES, tools=tools)
        ).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == (
        "weather",
        {"city": "Paris"},
    )
    assert choice.finish_reason == "tool_calls"


async def test_text_completions(client: openai.AsyncOpenAI) -> None:
    answer = await client.completions.create(model="tiny", prompt=["a", "b"], logprobs=1, echo=True)
    assert [choice.text for choice in answer.choices] == ["a" + ANSWER, "b" + ANSWER]
    stream = await client.completions.create(model="tiny", prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == ANSWER


async def test_models(client: openai.AsyncOpenAI) -> None:
    assert [model.id async for model in client.models.list()] == ["tiny"]
    assert (await client.models.retrieve("tiny")).owned_by == "exo"


async def test_errors_are_the_clients_own_classes(client: openai.AsyncOpenAI, fakes: Fakes) -> None:
    with pytest.raises(openai.NotFoundError, match="available: tiny") as missing:
        await client.chat.completions.create(model="gpt-17", messages=MESSAGES)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        await client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=9)
    assert wrong.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="embeddings"):
        await client.embeddings.create(model="tiny", input="x")
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="wrong").models.list()
    fakes.backend.error = errors.Overloaded("full", retry_after=2)
    with pytest.raises(openai.RateLimitError) as busy:
        await client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert busy.value.response.headers["retry-after"] == "2"
    fakes.backend.error = errors.RingUnavailable("no plan")
    with pytest.raises(openai.InternalServerError) as gone:
        await client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert gone.value.status_code == 503


async def test_an_error_in_mid_stream_is_raised_by_the_client(
    client: openai.AsyncOpenAI, fakes: Fakes
) -> None:
    fakes.backend.error, fakes.backend.error_at = errors.RingUnavailable("the ring broke"), 2
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError, match="the ring broke"):
        async for _ in stream:
            pass


async def test_a_stream_that_is_closed_ends_the_sequence(
    client: openai.AsyncOpenAI, fakes: Fakes
) -> None:
    fakes.backend.hold = asyncio.Event()
    stream = await client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True)
    await anext(stream)
    assert len(fakes.backend.open) == 1
    await stream.close()
    async with asyncio.timeout(10):
        while fakes.backend.open:  # noqa: ASYNC110 - it closes in another task
            await asyncio.sleep(0.001)
