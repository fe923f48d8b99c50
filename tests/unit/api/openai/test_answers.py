"""Answers on a small backend: OpenAI's shapes, whole and streamed, with logprobs and tool calls."""

from __future__ import annotations

import json

import pytest
from api_fakes import ANSWER, CHAT, FakeBackend, Fakes, ask, events


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


async def test_choices_of_a_stream_have_their_index() -> None:
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
