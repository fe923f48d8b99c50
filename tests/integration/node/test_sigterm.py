"""SIGTERM in every state of a node: exit 0 within the grace period, parts that close in order."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults import inject
from ports import free_ports
from serve_processes import Served

ROOT = Path(__file__).resolve().parents[3]
GRACE_SECONDS = 20.0
# Types in the order in which they may be closed; not every one was up in every state.
ORDER = (
    "ring",
    "discovery",
    "server",
    "stage",
    "links",
    "model",
    "inference_engine",
    "shard_downloader",
    "health_monitor",
    "node",
    "health_server",
    "api_server",
    "process",
)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    faults = tmp_path / "faults"
    faults.mkdir()
    monkeypatch.setenv("EXO_FAULT_DIR", str(faults))
    flags = ["--engine", "dummy", "--model", "dummy", "--discovery", "none", "--drain-seconds", "5"]
    node = Served("n0", tmp_path, *free_ports(3), flags)
    yield node
    node.stop()


def events(node: Served) -> list[dict[str, Any]]:
    """The whole JSON lines of the log so far."""
    if not node.log.exists():
        return []
    lines = node.log.read_text(errors="replace").split("\n")[:-1]
    return [json.loads(line) for line in lines if line.startswith("{")]


def saw(node: Served, kind: str, state: str) -> Callable[[], bool]:
    return lambda: any(
        e.get("resource_type") == kind and e.get("to") == state for e in events(node)
    )


def wait(condition: Callable[[], bool], node: Served, timeout: float = 40.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert node.process is not None
        assert node.process.poll() is None, node.log.read_text()
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.005)


def wait_for_line(node: Served, event: str) -> None:
    """The line is in the log, whether or not the process is still there."""
    deadline = time.monotonic() + GRACE_SECONDS
    while not any(e["event"] == event for e in events(node)):
        assert time.monotonic() < deadline, node.log.read_text()
        time.sleep(0.0005)


def ends_in_order(node: Served) -> None:
    """Ends by itself with exit code 0, and has closed its parts in order."""
    assert node.process is not None
    assert node.process.wait(GRACE_SECONDS) == 0, node.log.read_text()
    # What never started has nothing to close and no place in the order.
    closed = [
        e["resource_type"]
        for e in events(node)
        if (e.get("from"), e.get("to")) == ("CLOSING", "CLOSED")
    ]
    # Engines of single shards come and go during a node's life; the engine that holds them closes
    # in its place.
    closed = [kind for kind in closed if kind not in ("group", "shard_engine")]
    assert closed == sorted(closed, key=ORDER.index), closed
    assert closed[-1] == "process"
    last = {e["resource_id"]: e["to"] for e in events(node) if e.get("event") == "transition"}
    assert set(last.values()) == {"CLOSED"}, last
    assert events(node)[-1]["event"] == "stopped"


def test_while_initializing(served: Served) -> None:
    served.start()
    wait(saw(served, "node", "INITIALIZING"), served)
    served.signal(signal.SIGTERM)
    ends_in_order(served)


@pytest.mark.parametrize("state", ["DEGRADED", "ERROR"])
def test_when_the_engine_is_unhealthy(served: Served, tmp_path: Path, state: str) -> None:
    served.start()
    wait(saw(served, "process", "READY"), served)
    inject(tmp_path / "faults", "inference_engine", "pulled the plug")
    wait(saw(served, "inference_engine", state), served)
    served.signal(signal.SIGTERM)
    ends_in_order(served)


def test_while_closing(served: Served) -> None:
    served.start()
    wait(saw(served, "process", "READY"), served)
    served.signal(signal.SIGTERM)
    time.sleep(0.01)
    served.signal(signal.SIGTERM)
    ends_in_order(served)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_everything_is_closed(served: Served, number: signal.Signals) -> None:
    """A late signal, while the interpreter shuts down, does not change the exit code."""
    served.start()
    wait(saw(served, "process", "READY"), served)
    served.signal(signal.SIGTERM)
    wait_for_line(served, "stopped")
    served.signal(number)
    ends_in_order(served)


LISTENS_AND_IGNORES = """
import asyncio, signal
from exo.cli.commands.serve import Stop

async def main():
    print("begun", flush=True)
    for _ in range(500):
        stop = Stop()
        stop.listen()
        await asyncio.sleep(0)
        stop.ignore()

signal.signal(signal.SIGTERM, signal.SIG_IGN)
asyncio.run(main())
"""


def test_no_moment_between_listening_and_ignoring_is_deadly() -> None:
    command = [sys.executable, "-c", LISTENS_AND_IGNORES]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        while process.poll() is None:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0


def test_a_fault_takes_readiness_away_with_its_reason_and_its_end_brings_it_back(
    served: Served, tmp_path: Path
) -> None:
    def ready() -> tuple[int, str]:
        answer = httpx.get(f"{served.url}/readyz", timeout=5)
        return answer.status_code, answer.text

    served.start()
    wait(saw(served, "process", "READY"), served)
    wait(lambda: ready()[0] == 200, served)
    fault = inject(tmp_path / "faults", "inference_engine", "pulled the plug")
    # Both in one answer: a moment later the engine may be recovering, with another reason.
    wait(lambda: (seen := ready())[0] == 503 and "pulled the plug" in seen[1], served, 10)
    wait(saw(served, "inference_engine", "ERROR"), served, 20)
    assert httpx.get(f"{served.url}/livez", timeout=5).status_code == 200
    fault.unlink()
    wait(lambda: ready()[0] == 200, served, 15)
    metrics = httpx.get(f"{served.url}/metrics", timeout=5).text
    assert 'exo_resource_restarts_total{resource_type="inference_engine"} ' in metrics
    assert 'resource_type="inference_engine",state="ready"} 1.0' in metrics
    served.signal(signal.SIGTERM)
    ends_in_order(served)
    closed = {e["resource_type"] for e in events(served) if e.get("to") == "CLOSED"}
    assert closed >= set(ORDER)
