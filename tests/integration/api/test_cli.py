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

from exo.api.server import ApiServer
from exo.api.settings import ApiSettings
from exo.cli.commands.chat import Talk
from exo.cli.commands.status import show
from exo.cli.failures import Failure
from exo.inference.errors import RingUnavailable

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The server's log would be taken for what the command says."""
    with structlog.testing.capture_logs():
        yield


def exo(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "exo", *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": "/nonexistent"},
        check=False,
    )


def test_run_prints_the_answer_and_nothing_else() -> None:
    done = exo(
        "run", "smollm2-135m", "--engine", "numpy", "--prompt", "What is the capital of France?"
    )
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n")
    assert done.stderr.startswith("loaded smollm2-135m in ")
    assert done.stderr.count("\n") == 1


def test_run_reads_the_prompt_from_a_pipe_and_stops_at_the_limit() -> None:
    done = exo(
        "run",
        "smollm2-135m",
        "--engine",
        "numpy",
        "--max-tokens",
        "3",
        stdin="What is the capital of France?",
    )
    assert (done.returncode, done.stdout) == (0, "The capital of\n")


@pytest.mark.parametrize("as_json", [False, True])
async def test_status_shows_a_running_node(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = Fakes(settings=ApiSettings(host="127.0.0.1"))
    async with ApiServer(fakes.backend, fakes.view, fakes.monitor, fakes.settings) as api:  # type: ignore[arg-type]
        assert await asyncio.to_thread(show, api.url, None, as_json=as_json) == 0
        fakes.monitor.ready = {"engine": "sick"}
        assert await asyncio.to_thread(show, api.url, None, as_json=as_json) == 1
    assert "node-a" in capsys.readouterr().out


async def test_chat_answers_each_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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


async def talk(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, typed: str, *, terminal: bool = False
) -> int:
    stdin = io.StringIO(typed)
    monkeypatch.setattr(stdin, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stdin)
    async with ApiServer(fakes.backend, fakes.view, fakes.monitor, fakes.settings) as api:  # type: ignore[arg-type]
        return await asyncio.to_thread(Talk(api.url, None, None, 0.5, None).run)


def asked(fakes: Fakes) -> list[str]:
    return [turns[-1]["content"] for turns, _ in fakes.backend.chats]


@pytest.mark.parametrize("leave", ["/quit", "/exit", "/QUIT "])
async def test_chat_ends_on_command_and_the_model_never_sees_it(
    leave: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = Fakes(settings=ApiSettings(host="127.0.0.1"))
    assert await talk(fakes, monkeypatch, f"one\n /quit\n{leave}\ntwo\n") == 0
    assert asked(fakes) == ["one", "/quit"]  # with a space before it, it is text


async def test_chat_lists_its_commands_and_sends_none_to_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = Fakes(settings=ApiSettings(host="127.0.0.1"))
    assert await talk(fakes, monkeypatch, "/help\n/nope at all\n/\n") == 0
    said = capsys.readouterr().err
    assert asked(fakes) == []
    assert "/nope is not a command, and was not sent" in said
    assert all(said.count(f"\n{command} ") == 3 for command in ("/new", "/help", "/quit"))


async def test_a_person_keeps_the_conversation_when_an_answer_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fakes = Fakes(settings=ApiSettings(host="127.0.0.1"))
    fakes.backend.error = RingUnavailable("no ring")
    assert await talk(fakes, monkeypatch, "one\n/quit\n", terminal=True) == 0
    assert "no ring" in capsys.readouterr().err
    with pytest.raises(Failure, match="no ring"):
        await talk(fakes, monkeypatch, "one\n")
