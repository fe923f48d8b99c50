"""`exo serve` as a real process: how it ends, by a signal or because it cannot start."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import openai
import pytest
from serve_process import served

pytestmark = pytest.mark.timeout(300)
NUMPY = ("--engine", "numpy", "--context-length", "1024")
MODEL = "smollm2-135m"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]


def test_sigterm_in_mid_stream_ends_the_stream_whole_and_closes_in_order(tmp_path: Path) -> None:
    hang = tmp_path / "hang-inference_engine"
    with served(*NUMPY, EXO_FAULT_DIR=str(tmp_path)) as node:
        client = openai.OpenAI(
            base_url=f"{node.ready().url}/v1", api_key="-", max_retries=0, timeout=100
        )
        with client:
            stream = client.chat.completions.create(
                model=MODEL,
                messages=QUESTION,
                stream=True,
                max_tokens=60,
                extra_body={"ignore_eos": True},
            )
            chunks = [next(iter(stream)) for _ in range(3)]
            hang.touch()  # the answer stays in its middle while the node is examined
            node.signal()
            node.until(lambda: "draining" in str(node.get("/readyz")), 20)
            assert node.get("/livez")[0] == 200
            with pytest.raises(openai.InternalServerError, match="draining"):
                client.chat.completions.create(model=MODEL, messages=QUESTION)
            hang.unlink()
            chunks += list(stream)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert node.wait() == 0
        closed = [
            event["resource_type"]
            for event in node.events
            if str(event.get("to")).lower() == "closed"
        ]
        order = [
            kind
            for kind in closed
            if kind in ("server", "inference_engine", "node", "api_server", "process")
        ]
        assert order == ["server", "inference_engine", "node", "api_server", "process"]


@pytest.mark.parametrize("why", ["deadline", "second signal"])
def test_a_drain_that_is_cut_short_ends_the_stream_with_an_error_and_closes_in_order(
    why: str, tmp_path: Path
) -> None:
    seconds = "0.2" if why == "deadline" else "60"
    hang = tmp_path / "hang-inference_engine"
    with served(
        "--engine", "dummy", "--drain-seconds", seconds, EXO_FAULT_DIR=str(tmp_path)
    ) as node:
        client = openai.OpenAI(
            base_url=f"{node.ready().url}/v1", api_key="-", max_retries=0, timeout=100
        )
        with client:
            stream = client.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True, max_tokens=8000
            )
            next(iter(stream))
            hang.touch()  # so that it does not end by itself, even on a fast machine
            node.signal()
            if why == "second signal":
                node.until(lambda: "draining" in str(node.get("/readyz")), 20)
                node.signal(signal.SIGINT)
            with pytest.raises(openai.APIError):
                list(stream)
            hang.unlink()
        assert node.wait(60) == 0
        closed = [
            event["resource_type"]
            for event in node.events
            if str(event.get("to")).lower() == "closed"
        ]
        assert closed[-4:] == ["node", "health_server", "api_server", "process"]


def test_sigterm_while_it_starts_is_a_clean_end() -> None:
    with served(*NUMPY) as node:
        assert node.get("/startupz")[0] == 503
        node.signal()
        assert node.wait(60) == 0
        assert "Traceback" not in node.logged


@pytest.mark.parametrize("flag", ["--api-port", "--grpc-port", "--health-port"])
def test_a_busy_port_ends_with_one_line_and_nothing_left_running(flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with served("--engine", "dummy", flag, port) as node:
            assert node.wait(60) == 1
            says = (
                f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another"
                f" with {flag}"
            )
            assert node.logged.splitlines()[-1] == f"exo: {says}"
            assert "Traceback" not in node.logged


def test_a_misspelt_variable_is_reported_once_without_its_value() -> None:
    with served(
        "--engine", "dummy", EXO_SECERT="hush-hush", EXO_PORT="tcp://10.96.0.7:52415"
    ) as node:
        assert node.url
        told = [event for event in node.events if event["event"] == "unknown variable ignored"]
        assert [(event["level"], event["variable"], event["meant"]) for event in told] == [
            ("warning", "EXO_SECERT", "EXO_SECRET")
        ]
        assert "hush-hush" not in node.logged


def test_a_wrong_model_is_wrong_usage_and_names_the_models(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    with served("--model", "gpt-17", "--models-dir", str(tmp_path)) as node:
        assert node.wait(60) == 2
        assert f"mine, {MODEL}" in node.logged.splitlines()[-1]


@pytest.mark.parametrize(
    ("text", "says"), [("nope", "line 1, column 1"), ("{}", "peers: the file must be")]
)
def test_a_peers_file_that_is_wrong_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "peers.json").write_text(text)
    flags = ("--discovery", "manual", "--discovery-config", str(tmp_path / "peers.json"))
    with served("--engine", "dummy", *flags) as node:
        assert node.wait(60) == 1
        assert node.logged.splitlines()[-1].startswith(f"exo: {tmp_path / 'peers.json'}: {says}")
