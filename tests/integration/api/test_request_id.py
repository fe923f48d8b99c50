"""The log of a real node: every line of a request has its id, and no other line has it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from serve_process import ServedAlone, served

pytestmark = pytest.mark.timeout(120)
N = 2
BODY = {
    "model": "smollm2-135m",
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 4,
    "ignore_eos": True,
    "n": N,
}


@pytest.fixture(scope="module")
def node() -> Iterator[ServedAlone]:
    with served("--engine", "dummy", "--log-level", "debug") as node:
        yield node.ready()


def ask(node: ServedAlone, *, stream: bool) -> str:
    """The id that the answer carries."""
    request = urllib.request.Request(
        f"{node.url}/v1/chat/completions",
        json.dumps({**BODY, "stream": stream}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
        return str(answer.headers["x-request-id"])


def lines_of(node: ServedAlone, request_id: str) -> list[dict[str, Any]]:
    return [event for event in node.events if event.get("request_id") == request_id]


def wait_for_all_lines(node: ServedAlone, request_id: str) -> list[str]:
    """The events of a request that is over on every part of the node."""

    def events() -> list[str]:
        return [line["event"] for line in lines_of(node, request_id)]

    node.until(lambda: "request" in events() and events().count("sequence closed") == N, 20)
    return events()


@pytest.mark.parametrize("stream", [False, True])
def test_every_line_of_a_request_has_its_id(node: ServedAlone, stream: bool) -> None:
    request_id = ask(node, stream=stream)
    assert wait_for_all_lines(node, request_id).count("sequence opened") == N
    lines = lines_of(node, request_id)
    assert len({line["sequence_id"] for line in lines if "sequence_id" in line}) == N
    (access,) = [line for line in lines if line["event"] == "request"]
    assert access["answer_id"] == "chatcmpl-" + request_id.removeprefix("req_")


def test_no_line_has_the_id_of_a_request_that_is_over(node: ServedAlone) -> None:
    """A task that a request started, and that lives on, must not keep its id."""
    earlier = [ask(node, stream=stream) for stream in (False, True)]
    counts = {one: len(wait_for_all_lines(node, one)) for one in earlier}
    for stream in (False, True):
        wait_for_all_lines(node, ask(node, stream=stream))
    assert {one: len(lines_of(node, one)) for one in earlier} == counts
