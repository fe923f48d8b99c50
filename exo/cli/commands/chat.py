"""`exo chat`: a conversation with a running node in the terminal. A line that begins with / is a
command (`HELP`).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Final

import httpx
from rich.console import Console
from rich.text import Text

from exo.cli.client import ask, check, connect, unreachable
from exo.cli.failures import Failure

HELP: Final = """\
/new    starts a new conversation
/help   shows this
/quit   leaves, as do /exit, Ctrl-D, and Ctrl-C where no answer is coming
Ctrl-C stops an answer. Put a space before a line that begins with / to send it to the model."""


class Talk:
    def __init__(
        self,
        url: str,
        model: str | None,
        system: str | None,
        temperature: float,
        api_key: str | None,
    ) -> None:
        self._client = connect(url, api_key, timeout=None)
        self._model = model
        self._temperature = temperature
        self._turns = [{"role": "system", "content": system}] if system else []
        self._console = Console(stderr=True, highlight=False)

    def run(self) -> int:
        with self._client:
            self._model = self._model or self._first_model()
            self._note(
                f"{self._model} at {self._client.base_url}. /help lists the commands, /quit leaves."
            )
            while (line := self._read()) is not None:
                if line.startswith("/"):
                    if not self._obey(line.strip()):
                        break
                elif prompt := line.strip():
                    self._answer(prompt)
        return 0

    def _obey(self, command: str) -> bool:
        """False when it ends the conversation. An unknown command is not sent to the model: it was
        meant for this program.
        """
        match command.lower():
            case "/quit" | "/exit":
                return False
            case "/new":
                self._turns = [turn for turn in self._turns if turn["role"] == "system"]
                self._note("A new conversation.")
            case "/help":
                self._note(HELP)
            case _:
                self._note(
                    f"{command.split()[0]} is not a command, and was not sent to the model.\n{HELP}"
                )
        return True

    def _first_model(self) -> str:
        listed = ask(self._client, "/v1/models")["data"]
        if not listed:
            raise Failure(f"the node at {self._client.base_url} serves no model yet")
        return str(listed[0]["id"])

    def _read(self) -> str | None:
        """One line from the user; None at the end. The prompt goes to standard error, so that
        standard output has only answers.
        """
        try:
            if sys.stdin.isatty():
                self._console.print("[bold blue]> [/]", end="")
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            line = ""
        if not line and sys.stdin.isatty():
            self._console.print()  # else the shell's prompt would follow ours on the same line
        return line or None

    def _answer(self, prompt: str) -> None:
        self._turns.append({"role": "user", "content": prompt})
        started, said = time.monotonic(), []
        try:
            for piece in self._stream():
                said.append(piece)
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:
            self._note(" (stopped)")
        except Failure as failure:
            if not sys.stdin.isatty():
                raise
            self._turns.pop()  # the person can ask again
            self._console.print(Text(str(failure), "red"))
            return
        sys.stdout.write("\n")
        sys.stdout.flush()
        seconds = time.monotonic() - started
        if len(said) > 1:
            self._note(
                f"{len(said)} pieces in {seconds:.1f} s, {len(said) / seconds:.1f} per second"
            )
        self._turns.append({"role": "assistant", "content": "".join(said)})

    def _stream(self) -> Iterator[str]:
        body = {
            "model": self._model,
            "messages": self._turns,
            "temperature": self._temperature,
            "stream": True,
        }
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    check(answer)
                yield from pieces(answer.iter_lines())
        except httpx.HTTPError as error:
            raise unreachable(self._client, error) from error

    def _note(self, text: str) -> None:
        self._console.print(Text(text, "dim"))


def pieces(lines: Iterator[str]) -> Iterator[str]:
    """The text of a streamed chat completion. Raises `Failure` for an error event and for a stream
    that is cut short.
    """
    for line in lines:
        if line == "data: [DONE]":
            return
        if not line.startswith("data: "):
            continue
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            raise Failure(event["error"]["message"])
        for choice in event["choices"]:
            if text := choice["delta"].get("content"):
                yield text
    raise Failure("the node broke off in the middle of the answer")
