"""The bar of `exo serve`: what it reads out of the node's own words; nothing where there is no
terminal.
"""

from __future__ import annotations

import asyncio
import io
import sys

import pytest

from exo.cli.startup import LateStderr, split, startup_bar


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("loading model 43 %", ("loading model", 43)),
        ("loading model 100%", ("loading model", 100)),
        ("finding model smollm2-135m", ("finding model smollm2-135m", None)),
    ],
)
def test_a_percentage_is_split_from_its_text(text: str, parts: tuple[str, int | None]) -> None:
    assert split(text) == parts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


async def test_on_a_terminal_the_bar_says_what_the_node_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    async with startup_bar(lambda: "loading model 43 %"):
        await asyncio.sleep(0)
        LateStderr().write("a line of the log\n")
    assert "loading model" in terminal.getvalue()
    assert "a line of the log" in terminal.getvalue()


async def test_without_a_terminal_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    async with startup_bar(lambda: "loading model 43 %"):
        pass
    assert output.getvalue() == ""
