"""One id ties a request together: header, log lines, answer, sequences."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from api_fakes import CHAT, FakeBackend, Fakes, ask, events
from structlog.typing import EventDict

from exo.api.exchange import answer_id
from exo.inference.generation import GenerationChunk, GenerationRequest

TEXT = {"model": "tiny", "prompt": "hi"}


class Chatty(FakeBackend):
    """Logs a line with each step, on its own, from a task, and from a thread."""

    async def process_tokens(self, request: GenerationRequest) -> AsyncIterator[GenerationChunk]:
        log = structlog.get_logger("backend")
        async for chunk in super().process_tokens(request):
            log.info("step")
            await asyncio.create_task(self._say(log))
            await asyncio.to_thread(log.info, "thread")
            yield chunk

    async def _say(self, log: Any) -> None:
        log.info("task")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("given", [None, "trace-7.b"])
async def test_every_log_line_of_a_request_has_its_id(
    logs: list[EventDict], stream: bool, n: int, given: str | None
) -> None:
    fakes = Fakes(backend=Chatty())
    headers = {} if given is None else {"X-Request-Id": given}
    async with fakes.http(**headers) as http:
        answers = [
            await http.post("/v1/chat/completions", json={**CHAT, "stream": stream, "n": n})
            for _ in range(2)
        ]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert given is None or ids == [given, given]
    lines = [(line["event"], line["request_id"]) for line in logs]
    for request_id in set(ids):
        repeats = n * 7 * ids.count(request_id)
        for event in ("step", "task", "thread"):
            assert lines.count((event, request_id)) == repeats
    assert [line for line in lines if line[0] == "request"] == [("request", one) for one in ids]
    assert [request.request_id for request in fakes.backend.requests] == [
        one for one in ids for _ in range(n)
    ]


async def test_requests_at_the_same_time_keep_their_own_ids(logs: list[EventDict]) -> None:
    fakes = Fakes(backend=Chatty())
    async with fakes.http() as http:
        await asyncio.gather(
            *(
                http.post("/v1/completions", json=TEXT, headers={"X-Request-Id": f"r{index}"})
                for index in range(5)
            )
        )
    steps = [line["request_id"] for line in logs if line["event"] == "step"]
    assert {one: steps.count(one) for one in steps} == {f"r{index}": 7 for index in range(5)}
    assert "request_id" not in structlog.contextvars.get_contextvars()


async def test_a_defect_is_logged_with_the_id(logs: list[EventDict]) -> None:
    answer = await ask(Fakes(backend=FakeBackend(error=RuntimeError("a defect"))), **CHAT)
    (line,) = [event for event in logs if event["event"] == "request failed"]
    assert line["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("path", "body", "prefix"),
    [("/v1/chat/completions", CHAT, "chatcmpl-"), ("/v1/completions", TEXT, "cmpl-")],
)
async def test_the_answers_id_is_found_from_the_requests_and_back(
    logs: list[EventDict], path: str, body: dict[str, Any], prefix: str
) -> None:
    whole = await ask(Fakes(), path, **body)
    streamed = await ask(Fakes(), path, **body, stream=True)
    for answer, made in ((whole, [whole.json()]), (streamed, events(streamed))):
        request_id = answer.headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{24}", request_id)
        assert {one["id"] for one in made} == {prefix + request_id.removeprefix("req_")}
    lines = [line["answer_id"] for line in logs if line["event"] == "request"]
    assert lines == [whole.json()["id"], events(streamed)[0]["id"]]


def test_answers_to_requests_with_one_id_have_ids_of_their_own() -> None:
    """A client may send one id with all requests of a conversation."""
    made = {answer_id("chatcmpl", "trace-7") for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"chatcmpl-trace-7-[0-9a-f]{8}", one) for one in made)
