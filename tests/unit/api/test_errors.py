"""Errors over HTTP: status, OpenAI's shape, and the name of the field that is wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from api_fakes import CHAT, FakeBackend, Fakes, ask
from structlog.typing import EventDict

from exo.api.settings import ApiSettings
from exo.inference import errors
from exo.inference.sampling.constraints import FIELD


async def test_embeddings_are_refused_clearly() -> None:
    answer = await ask(Fakes(), "/v1/embeddings", model="tiny", input="x")
    assert answer.status_code == 400
    assert "embeddings" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.Overloaded("full", retry_after=3), 429),
        (errors.NodeDraining("leaving"), 503),
        (errors.RingUnavailable("no plan"), 503),
        (errors.InvalidRequest("no", field="logit_bias"), 400),
        (RuntimeError("a defect"), 500),
    ],
)
async def test_an_error_before_the_first_token_has_its_status(
    error: Exception, status: int, stream: bool
) -> None:
    answer = await ask(Fakes(backend=FakeBackend(error=error)), **CHAT, stream=stream)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    if status in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1


async def test_an_error_in_mid_stream_is_an_event_and_no_end() -> None:
    backend = FakeBackend(error=errors.RingUnavailable("the ring broke"), error_at=2)
    answer = await ask(Fakes(backend=backend), **CHAT, stream=True)
    lines = [line for line in answer.text.splitlines() if line]
    assert answer.status_code == 200
    assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "the ring broke"
    assert "data: [DONE]" not in lines


async def test_one_failing_choice_ends_the_others() -> None:
    backend = FakeBackend(error=errors.RingUnavailable("broke"), error_at=3)
    assert (await ask(Fakes(backend=backend), **CHAT, n=4)).status_code == 503
    assert backend.open == set()


async def test_an_unknown_model_is_404_with_the_ones_there_are() -> None:
    answer = await ask(Fakes(), **{**CHAT, "model": "gpt-17"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "tiny" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/chat/completions", 405),
        ("GET", "/v1/models/gpt-17", 404),
    ],
)
async def test_wrong_addresses_answer_in_openais_shape(method: str, path: str, status: int) -> None:
    async with Fakes().http() as http:
        answer = await http.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"]


async def test_a_body_over_the_limit_is_413_also_when_it_comes_in_pieces() -> None:
    fakes = Fakes(settings=ApiSettings(max_body_bytes=100))

    async def pieces() -> Any:
        for _ in range(10):
            yield b" " * 20

    async with fakes.http() as http:
        announced = await http.post("/v1/completions", content=b" " * 101)
        streamed = await http.post("/v1/completions", content=pieces())
    assert (announced.status_code, streamed.status_code) == (413, 413)


async def test_a_body_that_does_not_come_is_408() -> None:
    async def stuck() -> Any:
        yield b"{"
        await asyncio.Event().wait()

    async with Fakes(settings=ApiSettings(body_seconds=0.01)).http() as http:
        assert (await http.post("/v1/completions", content=stuck())).status_code == 408


async def test_a_defect_is_logged_with_its_traceback(logs: list[EventDict]) -> None:
    await ask(Fakes(backend=FakeBackend(error=RuntimeError("a defect"))), **CHAT)
    (line,) = [event for event in logs if event["event"] == "request failed"]
    assert str(line["exc_info"]) == "a defect"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_schema_that_cannot_be_used_is_said_of_the_field_it_came_in(stream: bool) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "nonsense"}}}]
    asked: dict[str, Any] = {
        "tools": {"tools": tools, "tool_choice": "required"},
        "response_format": {"response_format": {"type": "json_object"}},
    }
    for field, body in asked.items():
        wrong = errors.InvalidRequest("the JSON schema cannot be used", field=FIELD)
        answer = await ask(Fakes(backend=FakeBackend(error=wrong)), **CHAT, **body, stream=stream)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", CHAT, "messages"),
        ("/v1/completions", {"model": "tiny", "prompt": "123456"}, "prompt"),
    ],
)
async def test_a_prompt_that_fills_the_window_names_the_field(
    path: str, body: dict[str, Any], param: str, stream: bool
) -> None:
    answer = await ask(Fakes(backend=FakeBackend(context=6)), path, **body, stream=stream)
    problem = answer.json()["error"]
    assert (answer.status_code, problem["code"]) == (400, "context_length_exceeded")
    assert (problem["param"], problem["message"]) == (
        param,
        "the prompt has 6 tokens, the context window 6",
    )


async def test_an_empty_prompt_names_the_field() -> None:
    answer = await ask(Fakes(), "/v1/completions", model="tiny", prompt="")
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "prompt")


async def test_an_error_in_mid_stream_names_the_field_as_the_api_does() -> None:
    wrong = errors.InvalidRequest("no schema", field=FIELD)
    answer = await ask(Fakes(backend=FakeBackend(error=wrong, error_at=2)), **CHAT, stream=True)
    last = [line for line in answer.text.splitlines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["param"] == "response_format"
