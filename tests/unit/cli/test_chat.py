"""What the terminal commands show of a node, and how they read its streams."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from rich.console import Console

from exo.cli.client import check
from exo.cli.commands.chat import Talk, pieces
from exo.cli.commands.doctor import Mark, checks, model_files, port_finding, ports
from exo.cli.commands.evaluation import numbers
from exo.cli.commands.status import layer_map, render
from exo.cli.failures import Failure


def views(**changes: Any) -> dict[str, Any]:
    sick = {"state": "error", "healthy": False, "reason": "pulled the plug", "last_error": None}
    return {
        "resources": {
            "node_id": "node-a",
            "progress": None,
            "ready": {"status": "unavailable", "failing": {"engine": "sick"}},
            "resources": {"engine": sick},
            "degradations": [{"name": "engine", "to": "numpy", "reason": "no onnx"}],
        },
        "topology": {
            "nodes": [{"id": "node-a", "memory_mib": 100, "address": "h:1", "state": "serving"}]
        },
        "ring": {
            "formed": True,
            "model_id": "tiny",
            "n_layers": 30,
            "epoch": "abc",
            "standby": ["node-c"],
            "stages": [
                {
                    "node_id": "node-a",
                    "start_layer": 0,
                    "end_layer": 19,
                    "planned_mib": 77,
                    "hop_ms": 0.413,
                },
                {"node_id": "node-b", "start_layer": 20, "end_layer": 29},
            ],
        },
        "requests": {
            "requests": [
                {
                    "request_id": "r1",
                    "state": "decoding",
                    "prompt_tokens": 3,
                    "completion_tokens": 4,
                    "age_seconds": 1.0,
                    "tokens_per_second": 9.5,
                }
            ]
        },
        **changes,
    }


def shown(data: dict[str, Any]) -> str:
    console = Console(width=120, no_color=True)
    with console.capture() as capture:
        console.print(render(data))
    return capture.get()


def test_status_shows_nodes_layers_resources_reasons_and_requests() -> None:
    text = shown(views())
    wanted = (
        "node-a",
        "0-19",
        "node-b",
        "20-29",
        "node-c",
        "standby",
        "pulled the plug",
        "r1",
        "9.5",
        "runs on numpy",
        "77 MiB",
        "0.413 ms",
    )
    assert [piece for piece in wanted if piece not in text] == []


def test_status_of_a_node_without_a_ring_is_no_error() -> None:
    ring = {
        "formed": False,
        "reason": "starting",
        "model_id": "",
        "n_layers": 0,
        "epoch": "",
        "standby": [],
        "stages": [],
    }
    assert "node-a" in shown(views(ring=ring, topology={"nodes": []}, requests={"requests": []}))


@pytest.mark.parametrize("split", [[30], [1, 29], [10, 10, 10], [1] * 30])
def test_the_layer_map_is_as_long_whatever_the_split(split: list[int]) -> None:
    stages, at = [], 0
    for index, size in enumerate(split):
        stages.append({"node_id": str(index), "start_layer": at, "end_layer": at + size - 1})
        at += size
    assert layer_map({"n_layers": 30, "stages": stages}, width=60).plain.count("█") == 60


def chunk(text: str) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]})


def test_the_pieces_of_a_stream_are_its_text() -> None:
    lines = [chunk("Hel"), "", chunk("lo"), ": ping", "data: [DONE]", chunk("never read")]
    assert "".join(pieces(iter(lines))) == "Hello"


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([chunk("a"), 'data: {"error": {"message": "the ring broke"}}'], "the ring broke"),
        ([chunk("a")], "broke off"),
    ],
)
def test_a_stream_that_does_not_end_whole_is_a_failure(lines: list[str], says: str) -> None:
    def read() -> Iterator[str]:
        yield from pieces(iter(lines))

    with pytest.raises(Failure, match=says):
        list(read())


def test_doctor_finds_a_taken_port() -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        finding = port_finding("api-port", port, socket.SOCK_STREAM)
    assert finding.mark is Mark.WARN
    assert "--api-port" in finding.advice


def test_doctor_names_the_models_that_are_here() -> None:
    (finding,) = model_files("gpt-17", None)
    assert finding.mark is Mark.BAD
    assert "smollm2-135m" in finding.advice


def test_doctor_names_a_variable_that_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXO_GRPC_PORT", "many")
    (bad,) = [finding for finding in ports() if finding.mark is Mark.BAD]
    assert bad.says.startswith("EXO_GRPC_PORT: expected a whole number from 0 to 65535")
    assert "50051" in bad.advice


def test_every_check_of_the_doctor_says_something() -> None:
    findings = [finding for check in checks("smollm2-135m") for finding in check()]
    assert {"Python", "Packages", "Cores", "Memory", "Model", "Cache", "Port"} <= {
        f.what for f in findings
    }
    assert [f for f in findings if f.mark is not Mark.GOOD and not f.advice] == []


def test_lists_of_numbers_are_read_or_refused() -> None:
    assert numbers("--batch", "1, 4,16") == [1, 4, 16]
    for wrong in ("", "1,,2", "0", "-1", "a"):
        with pytest.raises(Failure):
            numbers("--batch", wrong)


def test_ctrl_c_stops_an_answer_and_not_the_conversation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[list[str]] = []

    def stream(self: Talk) -> Iterator[str]:
        seen.append([turn["content"] for turn in self._turns])
        yield "so far"
        raise KeyboardInterrupt

    monkeypatch.setattr(Talk, "_stream", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    assert Talk("http://node", "tiny", None, 0.5, None).run() == 0
    assert seen == [["one"], ["one", "so far", "two"]]
    assert capsys.readouterr().out == "so far\n" * 2


@pytest.mark.parametrize(
    ("headers", "says"), [({}, "asks for an API key"), ({"authorization": "Bearer x"}, "another")]
)
def test_a_wrong_key_and_a_missing_key_have_different_messages(
    headers: dict[str, str], says: str
) -> None:
    answer = httpx.Response(
        401, request=httpx.Request("GET", "http://node/v1/models", headers=headers)
    )
    with pytest.raises(Failure, match=says):
        check(answer)
