"""Whatever a client posts: an answer in OpenAI's shape, and never a 500."""

from __future__ import annotations

import json
from typing import Any

from api_fakes import Fakes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FIELDS = (
    *(
        "model",
        "messages",
        "prompt",
        "stream",
        "stream_options",
        "n",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "stop",
    ),
    *(
        "seed",
        "max_tokens",
        "max_completion_tokens",
        "logprobs",
        "top_logprobs",
        "tools",
        "tool_choice",
        "echo",
    ),
    *(
        "response_format",
        "logit_bias",
        "presence_penalty",
        "repetition_penalty",
        "user",
        "suffix",
        "best_of",
    ),
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANY = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system"]) | ANY},
    optional={"content": st.text(max_size=5) | ANY, "tool_calls": ANY, "name": ANY},
)
BODIES = st.fixed_dictionaries(
    {
        "model": st.just("tiny"),
        "messages": st.lists(MESSAGE, max_size=3) | ANY,
        "prompt": st.just("x") | ANY,
    },
    optional={
        name: ANY | st.integers(0, 3) | st.just("auto")
        for name in FIELDS
        if name not in ("model", "messages", "prompt")
    },
)
PATHS = st.sampled_from(["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
ALLOWED = {200, 400, 404, 413}
BOUNDED = settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@BOUNDED
@given(PATHS, BODIES)
async def test_no_body_of_fields_is_a_server_error(path: str, body: dict[str, Any]) -> None:
    await post(path, json.dumps(body).encode())


@BOUNDED
@given(PATHS, st.binary(max_size=60) | st.text(max_size=40).map(str.encode))
async def test_no_bytes_are_a_server_error(path: str, body: bytes) -> None:
    await post(path, body)


@BOUNDED
@given(
    st.sampled_from(["GET", "PUT", "DELETE", "OPTIONS", "BREW"]),
    st.text(
        alphabet=st.characters(min_codepoint=33, max_codepoint=126, blacklist_characters="?#"),
        max_size=30,
    ),
)
async def test_no_address_is_a_server_error(method: str, path: str) -> None:
    async with Fakes().http() as http:
        answer = await http.request(method, "/" + path.lstrip("/"))
    assert answer.status_code < 500


async def post(path: str, body: bytes) -> None:
    async with Fakes().http() as http:
        answer = await http.post(path, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in ALLOWED, answer.text
    if answer.status_code != 200:
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
