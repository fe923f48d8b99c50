"""The commands against the real model, as a person runs them."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from api_fakes import Fakes
from httpx import AsyncClient

from exo.api.context import ApiSettings
from exo.api.server import ApiServer
from exo.cli.status import show
from exo.cli.terminal import Talk

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The server's log would be taken for what the command says."""
    with structlog.testing.capture_logs():
        yield


def exo(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exo", *args], input=stdin, capture_output=True, text=True, timeout=100, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": "/nonexistent"}, check=False,
    )  # fmt: skip


def test_run_prints_the_answer_and_nothing_else() -> None:
    done = exo("run", "smollm2-135m", "--engine", "numpy", "--prompt", "What is the capital of France?")
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n")
    assert done.stderr.startswith("loaded smollm2-135m in ")
    assert done.stderr.count("\n") == 1


def test_run_reads_the_prompt_from_a_pipe_and_stops_at_the_limit() -> None:
    done = exo("run", "smollm2-135m", "--engine", "numpy", "--max-tokens", "3", stdin="What is the capital of France?")
    assert (done.returncode, done.stdout) == (0, "The capital of\n")


@pytest.mark.parametrize("as_json", [False, True])
async def test_status_shows_a_running_node(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    fakes = Fakes(settings=ApiSettings(host="127.0.0.1"))
    async with ApiServer(fakes.backend, fakes.view, fakes.monitor, fakes.settings) as api:  # type: ignore[arg-type]
        assert await asyncio.to_thread(show, api.url, None, as_json=as_json) == 0
        fakes.monitor.ready = {"engine": "sick"}
        assert await asyncio.to_thread(show, api.url, None, as_json=as_json) == 1
    assert "node-a" in capsys.readouterr().out


async def test_chat_answers_each_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fakes = Fakes(settings=ApiSettings(host="127.0.0.1", api_key="k"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n/new\nagain\n"))
    async with ApiServer(fakes.backend, fakes.view, fakes.monitor, fakes.settings) as api:  # type: ignore[arg-type]
        assert await asyncio.to_thread(Talk(api.url, None, "be brief", 0.5, "k").run) == 0
        async with AsyncClient() as http:
            assert (await http.get(f"{api.url}/v1/models")).status_code == 401
    assert capsys.readouterr().out == "The capital of France is Paris.\n" * 2
    assert [[turn["content"] for turn in turns] for turns, _ in fakes.backend.chats] == [
        ["be brief", "hi"],
        ["be brief", "again"],
    ]
