"""`exo serve` as a real process: how it is started, watched and ended. For one: `served`."""

from __future__ import annotations

import asyncio
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
# One thread for each: several share this machine. No configuration of the person who runs it.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XDG_CONFIG_HOME": "/nonexistent",
}


class ServeProcess:
    """`start` after it ended gives a new process with the same flags and the same log."""

    def __init__(self, log: Path, *flags: str, **env: str) -> None:
        self.log = log
        self.flags = ["--host", "127.0.0.1", "--log-format", "json", *flags]
        self.env = env
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "exo", "serve", *self.flags],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **ENVIRONMENT, **self.env},
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The lines of the log that are whole JSON objects."""
        lines = self.logged.splitlines()
        return [json.loads(each) for each in lines if each.startswith("{") and each.endswith("}")]

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit code; fails with the log where it goes on running."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise self._failure(f"still running after {seconds} s") from None

    async def ended(self, seconds: float = 60.0) -> int:
        return await asyncio.to_thread(self.wait, seconds)

    def until(self, true: Callable[[], Any], seconds: float) -> Any:
        """The first truthy answer. Fails with the log when time is up or the process has ended."""
        assert self.process is not None
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := true():
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise self._failure(f"not within {seconds} s (exit code {self.process.poll()})")

    def stop(self) -> None:
        """At once, as a machine that loses its power."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def close(self) -> None:
        """By SIGTERM, and by SIGKILL where that does not help."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.stop()

    def _failure(self, what: str) -> AssertionError:
        return AssertionError(f"{what}:\n{self.logged[-4000:]}")


class ServedAlone(ServeProcess):
    """On ports of its own choice, which its log tells."""

    def __init__(self, log: Path, *flags: str, **env: str) -> None:
        ports = ("--api-port", "0", "--grpc-port", "0", "--health-port", "0")
        super().__init__(log, *ports, *flags, **env)
        self._url = ""

    @property
    def url(self) -> str:
        """Waits until the process listens."""
        if not self._url:
            self._url = self.until(lambda: re.search(r'"url": "(http[^"]+)"', self.logged), 60)[1]
        return self._url

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def ready(self) -> ServedAlone:
        self.until(lambda: self.get("/readyz")[0] == 200, 100)
        return self


@contextlib.contextmanager
def served(*flags: str, **env: str) -> Iterator[ServedAlone]:
    """One process, started; ended with the block."""
    with tempfile.TemporaryDirectory() as folder:
        node = ServedAlone(Path(folder) / "log", *flags, **env)
        node.start()
        try:
            yield node
        finally:
            node.close()
