"""A real `exo serve` process on free ports, with its log. It is ended by SIGTERM, or by SIGKILL if
that does not help.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Served:
    """`log` is what the process wrote so far, `url` where its API listens."""

    def __init__(self, *flags: str, **env: str) -> None:
        self._output = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed by `close`
        ports = ("--host", "127.0.0.1", "--api-port", "0", "--grpc-port", "0", "--health-port", "0")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "exo", "serve", *ports, "--log-format", "json", *flags],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).resolve().parents[3],
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": "/nonexistent", **env},
        )
        self._url = ""

    @property
    def log(self) -> str:
        # Not by seek and read: the process shares the position in the file, and would write there.
        file = self._output.fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        return [
            json.loads(line)
            for line in self.log.splitlines()
            if line.startswith("{") and line.endswith("}")
        ]

    @property
    def url(self) -> str:
        """Waits until the process listens."""
        if not self._url:
            self._url = self.until(lambda: re.search(r'"url": "(http[^"]+)"', self.log), 60)[1]
        return self._url

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ready(self) -> Served:
        self.until(lambda: self.get("/readyz")[0] == 200, 100)
        return self

    def until(self, true: Any, seconds: float) -> Any:
        """The first truthy answer. Fails with the log when time is up or the process has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := true():
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(
            f"not within {seconds} s (exit code {self.process.poll()}):\n{self.log[-4000:]}"
        )

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 60) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds} s:\n{self.log[-4000:]}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._output.close()


@contextlib.contextmanager
def served(*flags: str, **env: str) -> Iterator[Served]:
    node = Served(*flags, **env)
    try:
        yield node
    finally:
        node.close()
