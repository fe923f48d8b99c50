"""The HTTP surface on a small backend: answers, errors, health, ids, keys, limits."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from api_fakes import FakeBackend, FakeMonitor, Fakes, FakeView
from structlog.typing import EventDict

from exo.api.context import ApiSettings
from exo.inference import errors
from exo.inference.sampling.constraints import FIELD
from exo.lifecycle import ResourceState

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = "The capital of France is Paris."


async def ask(fakes: Fakes, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
    async with fakes.http() as http:
        return await http.post(path, json=body)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


async def test_an_answer_has_openais_shape() -> None:
    answer = await ask(Fakes(), **CHAT)
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": ANSWER, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {"prompt_tokens": 6, "completion_tokens": 7, "total_tokens": 13}


async def test_a_stream_opens_with_the_role_and_ends_with_reason_and_usage() -> None:
    chunks = events(await ask(Fakes(), **CHAT, stream=True, stream_options={"include_usage": True}))
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert (
        "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
        == ANSWER
    )
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]] == [None] * (
        len(chunks) - 2
    ) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 7
    assert {c["id"] for c in chunks} == {chunks[0]["id"]}


async def test_choices_of_a_stream_are_told_apart_by_index() -> None:
    chunks = events(await ask(Fakes(), **CHAT, stream=True, n=3))
    said = {0: "", 1: "", 2: ""}
    for chunk in chunks:
        said[chunk["choices"][0]["index"]] += chunk["choices"][0]["delta"].get("content") or ""
    assert said == dict.fromkeys(range(3), ANSWER)


async def test_usage_counts_the_prompt_once_and_every_choice() -> None:
    usage = (await ask(Fakes(), **CHAT, n=3)).json()["usage"]
    assert usage == {"prompt_tokens": 6, "completion_tokens": 21, "total_tokens": 27}


async def test_an_answer_that_is_cut_says_length() -> None:
    choice = (await ask(Fakes(), **CHAT, max_tokens=2)).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("The capital", "length")


async def test_logprobs_name_token_bytes_and_alternatives() -> None:
    choice = (await ask(Fakes(), **CHAT, max_tokens=1, logprobs=True, top_logprobs=2)).json()[
        "choices"
    ][0]
    (token,) = choice["logprobs"]["content"]
    assert (token["token"], token["logprob"], token["bytes"]) == ("The", -0.5, list(b"The"))
    assert [top["token"] for top in token["top_logprobs"]] == ["The", " capital"]


async def test_a_stream_carries_every_logprob_once() -> None:
    chunks = events(await ask(Fakes(), **CHAT, stream=True, logprobs=True))
    tokens = [
        t["token"]
        for c in chunks
        for t in (c["choices"][0]["logprobs"] or {"content": []})["content"]
    ]
    assert "".join(tokens) == ANSWER


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
CALL = ("I add. ", "<tool", "_call>", '{"name": "add", ', '"arguments": {"a": 1}}', "</tool_call>")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_call_is_parsed_and_its_text_not_shown(stream: bool) -> None:
    fakes = Fakes(backend=FakeBackend(words=CALL))
    answer = await ask(fakes, **CHAT, tools=TOOLS, stream=stream)
    if stream:
        chunks = [c["choices"][0] for c in events(answer)]
        text = "".join(c["delta"].get("content") or "" for c in chunks)
        calls = [call for c in chunks for call in c["delta"].get("tool_calls", [])]
        finish = chunks[-1]["finish_reason"]
        assert calls[0]["index"] == 0
    else:
        choice = answer.json()["choices"][0]
        text, calls, finish = (
            choice["message"]["content"],
            choice["message"]["tool_calls"],
            choice["finish_reason"],
        )
    assert (text.strip(), finish) == ("I add.", "tool_calls")
    assert [(call["type"], call["function"]["name"]) for call in calls] == [("function", "add")]
    assert json.loads(calls[0]["function"]["arguments"]) == {"a": 1}
    assert fakes.backend.chats[0][1] == TOOLS


@pytest.mark.parametrize("stream", [False, True])
async def test_without_tools_the_same_text_is_text(stream: bool) -> None:
    answer = await ask(Fakes(backend=FakeBackend(words=CALL)), **CHAT, stream=stream)
    assert "<tool_call>" in (
        "".join(c["choices"][0]["delta"].get("content") or "" for c in events(answer))
        if stream
        else answer.json()["choices"][0]["message"]["content"]
    )


async def test_completions_echo_the_prompt_and_list_logprobs() -> None:
    body = (
        await ask(Fakes(), "/v1/completions", model="tiny", prompt="Hm. ", echo=True, logprobs=1)
    ).json()
    (choice,) = body["choices"]
    assert choice["text"] == "Hm. " + ANSWER
    assert choice["logprobs"]["tokens"][0] == "The"
    assert choice["logprobs"]["text_offset"][:2] == [4, 7]
    assert body["object"] == "text_completion"


async def test_each_prompt_has_n_choices_in_order() -> None:
    body = (
        await ask(Fakes(), "/v1/completions", model="tiny", prompt=["a", "bbb"], n=2, max_tokens=1)
    ).json()
    assert [c["index"] for c in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}


async def test_streamed_completions_say_the_same() -> None:
    chunks = events(await ask(Fakes(), "/v1/completions", model="tiny", prompt="x", stream=True))
    assert "".join(c["choices"][0]["text"] for c in chunks) == ANSWER
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


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


async def test_models_are_listed_and_found() -> None:
    async with Fakes().http() as http:
        listed = (await http.get("/v1/models")).json()
        one = (await http.get("/v1/models/tiny")).json()
    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["owned_by"]) == ("tiny", "model", "exo")


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/ring"])
async def test_a_key_is_asked_for_where_one_is_set(path: str) -> None:
    fakes = Fakes(settings=ApiSettings(api_key="right"))
    async with fakes.http() as http:
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Basic right"})).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Bearer right"})).status_code == 200
        for open_to_all in ("/livez", "/readyz", "/metrics", "/", "/chat"):
            assert (await http.get(open_to_all)).status_code == 200


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


async def test_the_request_id_is_the_clients_where_it_is_sane() -> None:
    async with Fakes().http() as http:
        own = await http.get("/v1/models", headers={"X-Request-Id": "abc-1"})
        made = await http.get("/v1/models", headers={"X-Request-Id": "a b\tc"})
    assert own.headers["x-request-id"] == "abc-1"
    assert made.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize(
    ("monitor", "view", "live", "started", "ready"),
    [
        (FakeMonitor(), FakeView(), 200, 200, 200),
        (
            FakeMonitor(started={"engine": "loading"}, ready={"engine": "loading"}),
            FakeView(progress="loading model 43 %"),
            200,
            503,
            503,
        ),
        (FakeMonitor(ready={"engine": "error: pulled the plug"}), FakeView(), 200, 200, 503),
        (FakeMonitor(), FakeView(progress="2 requests run", is_draining=True), 200, 200, 503),
        (FakeMonitor(), FakeView(progress=None, is_draining=True), 200, 200, 503),
        (FakeMonitor(), FakeView(progress="draining is only a word here"), 200, 200, 200),
        (FakeMonitor(), FakeView(progress="loading layers 10-19"), 200, 200, 200),
        (FakeMonitor(live={"event_loop": "no progress for 31 s"}), FakeView(), 503, 200, 200),
    ],
)
async def test_probes_say_what_the_monitor_says(
    monitor: FakeMonitor, view: FakeView, live: int, started: int, ready: int
) -> None:
    async with Fakes(monitor=monitor, view=view).http() as http:
        answers = [await http.get(path) for path in ("/livez", "/startupz", "/readyz")]
    assert [answer.status_code for answer in answers] == [live, started, ready]
    for answer in answers:
        body = answer.json()
        assert (body["status"] == "ok") == (answer.status_code == 200) == (not body["failing"])


async def test_a_probe_that_fails_names_the_resource_and_the_reason() -> None:
    fakes = Fakes(monitor=FakeMonitor(ready={"inference_engine-1": "error: pulled the plug"}))
    async with fakes.http() as http:
        body = (await http.get("/readyz")).json()
    assert body == {
        "status": "unavailable",
        "failing": {"inference_engine-1": "error: pulled the plug"},
    }


async def test_while_loading_the_probe_says_how_far() -> None:
    fakes = Fakes(
        monitor=FakeMonitor(started={"model": "initializing"}),
        view=FakeView(progress="loading model 43 %"),
    )
    async with fakes.http() as http:
        body = (await http.get("/startupz")).json()
        asked = await http.post("/v1/chat/completions", json=CHAT)
    assert body["failing"] == {"model": "initializing", "node": "loading model 43 %"}
    assert asked.status_code == 503
    assert "43 %" in asked.json()["error"]["message"]


async def test_verbose_lists_every_resource() -> None:
    health = SimpleNamespace(
        resource_type="server",
        state=ResourceState.READY,
        healthy=True,
        required=True,
        reason=None,
        last_error=None,
        latency_seconds=0.0012,
        checked_ago_seconds=1.5,
    )
    async with Fakes(monitor=FakeMonitor(resources={"server-a": health})).http() as http:
        body = (await http.get("/readyz?verbose")).json()
    assert body["resources"]["server-a"]["state"] == "ready"
    assert body["resources"]["server-a"]["latency_ms"] == 1.2


async def test_a_draining_node_takes_nothing_new() -> None:
    view = FakeView(progress="draining: 1 requests run", is_draining=True)
    answer = await ask(Fakes(view=view), **CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


async def test_totals_count_what_was_answered_and_what_failed() -> None:
    fakes = Fakes()
    async with fakes.http() as http:
        await http.post("/v1/chat/completions", json=CHAT)
        fakes.backend.error = errors.RingUnavailable("x")
        await http.post("/v1/chat/completions", json=CHAT)
        totals = (await http.get("/api/v1/requests")).json()["totals"]
    assert totals == {"answered": 1, "failed": 1, "prompt_tokens": 6, "completion_tokens": 7}


async def test_the_log_counts_the_prompt_once_like_the_usage(logs: list[EventDict]) -> None:
    await ask(Fakes(), "/v1/completions", model="tiny", prompt=["a", "bbb"], n=2, max_tokens=1)
    (line,) = [event for event in logs if event["event"] == "request"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (4, 4)


async def test_metrics_count_requests_by_route_and_never_by_path() -> None:
    async with Fakes().http() as http:
        await http.post("/v1/chat/completions", json=CHAT)
        await http.get("/some/scanner/path")
        text = (await http.get("/metrics")).text
    assert 'exo_api_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    assert 'route="other",status="404"' in text
    assert "scanner" not in text
    assert "exo_api_time_to_first_token_seconds_count" in text


async def test_the_access_log_says_what_a_completion_took(logs: list[EventDict]) -> None:
    await ask(Fakes(), **CHAT)
    (line,) = [event for event in logs if event["event"] == "request"]
    assert (line["status"], line["model"], line["prompt_tokens"], line["completion_tokens"]) == (
        200,
        "tiny",
        6,
        7,
    )
    assert line["first_token_ms"] >= 0


async def test_a_defect_is_logged_with_its_traceback(logs: list[EventDict]) -> None:
    await ask(Fakes(backend=FakeBackend(error=RuntimeError("a defect"))), **CHAT)
    (line,) = [event for event in logs if event["event"] == "request failed"]
    assert str(line["exc_info"]) == "a defect"


async def test_probes_do_not_fill_the_log(logs: list[EventDict]) -> None:
    async with Fakes().http() as http:
        await http.get("/livez")
        await http.get("/api/v1/ring")
    assert {event["log_level"] for event in logs} == {"debug"}


@pytest.mark.parametrize("path", ["/", "/chat"])
async def test_pages_load_nothing_from_elsewhere(path: str) -> None:
    async with Fakes().http() as http:
        answer = await http.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    outside = [
        part[:60]
        for part in answer.text.split("http")[1:]
        if not part.startswith("://www.w3.org/2000/svg")
    ]
    assert [part for part in outside if part.startswith(("://", "s://"))] == []


async def test_the_openapi_document_stands_alone() -> None:
    async with Fakes().http() as http:
        document = (await http.get("/openapi.json")).json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    assert "messages" in body["properties"]
    assert "$ref" not in json.dumps(body)


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
