"""A ring of `exo serve` processes on loopback, and clients that read their streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from ports import free_ports
from serve_process import ServeProcess
from waiting import eventually


class Served(ServeProcess):
    """One node of a ring: it keeps its name and its ports when it is started again.

    faults: if this is a folder, files in it make parts of the node fail (see
        `exo.lifecycle.faults`).
    """

    def __init__(
        self, node_id: str, folder: Path, api: int, grpc: int, health: int, flags: list[str]
    ) -> None:
        ports = ("--api-port", str(api), "--grpc-port", str(grpc), "--health-port", str(health))
        super().__init__(folder / f"{node_id}.log", "--node-id", node_id, *ports, *flags)
        self.node_id, self.api, self.grpc = node_id, api, grpc
        self.faults = folder / f"{node_id}-faults"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api}"

    def start(self) -> None:
        if self.faults.is_dir():
            self.env["EXO_FAULT_DIR"] = str(self.faults)
        super().start()


@dataclass
class Ring:
    nodes: list[Served]
    client: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(timeout=60.0))

    async def get(self, node: Served, path: str) -> Any:
        return (await self.client.get(f"{node.url}{path}")).json()

    async def formed(self, nodes: list[Served] | None = None, timeout: float = 60.0) -> float:
        """Wait until these nodes (default: all) form one ready ring; the seconds that it took."""
        nodes = self.nodes if nodes is None else nodes
        names = {node.node_id for node in nodes}
        begun = time.monotonic()

        async def is_formed(node: Served) -> bool:
            try:
                ring = await self.get(node, "/api/v1/ring")
                ready = (await self.client.get(f"{node.url}/readyz")).status_code == 200
            except httpx.TransportError:
                return False
            return (
                ready
                and bool(ring["formed"])
                and {stage["node_id"] for stage in ring["stages"]} == names
            )

        async with asyncio.timeout(timeout):
            while not all([await is_formed(node) for node in nodes]):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return time.monotonic() - begun


@contextlib.asynccontextmanager
async def ring_of(folder: Path, count: int, *flags: str) -> AsyncIterator[Ring]:
    ports = free_ports(3 * count)
    peers = {f"n{i}": {"address": "127.0.0.1", "port": ports[3 * i + 1]} for i in range(count)}
    config = folder / "peers.json"
    config.write_text(json.dumps({"peers": peers}))
    every = ["--discovery", "manual", "--discovery-config", str(config), *flags]
    ring = Ring([Served(f"n{i}", folder, *ports[3 * i : 3 * i + 3], every) for i in range(count)])
    try:
        for node in ring.nodes:
            node.start()
        async with ring.client:
            await ring.formed()
            yield ring
    finally:
        for node in ring.nodes:
            node.stop()


@dataclass
class Stream:
    """What one streamed answer was: `text` so far, how it ended, the error event if one came.

    flowing: set after `enough` pieces, or when the answer ends before that, so that a test that
        waits for its middle sees how it ended.
    """

    enough: int = 4
    text: str = ""
    pieces: int = 0
    finish: str | None = None
    done: bool = False
    error: dict[str, Any] | None = None
    refused: int | None = None
    flowing: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def whole(self) -> bool:
        return self.done and self.finish is not None and self.error is None


async def stream(
    ring: Ring, node: Served, prompt: str, max_tokens: int, model: str, into: Stream | None = None
) -> Stream:
    """A chat at temperature 0, streamed. Never raises: what went wrong is in the result."""
    seen = into or Stream()
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    try:
        async with ring.client.stream(
            "POST", f"{node.url}/v1/chat/completions", json=body
        ) as response:
            if response.status_code != 200:
                seen.refused = response.status_code
                return seen
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    seen.done = True
                elif line.startswith("data: "):
                    _take(seen, json.loads(line.removeprefix("data: ")))
    except httpx.TransportError as error:
        seen.error = {"message": f"{type(error).__name__}: {error}"}
    finally:
        seen.flowing.set()
    return seen


async def under_way(
    ring: Ring, node: Served, prompt: str, max_tokens: int, model: str, enough: int = 4
) -> tuple[asyncio.Task[Stream], Stream]:
    """A chat in the middle of its answer: its task, and what was seen of it so far.

    If this process was held up until the answer was over, it asks again.
    """
    for _ in range(5):
        seen = Stream(enough=enough)
        running = asyncio.create_task(stream(ring, node, prompt, max_tokens, model, seen))
        await seen.flowing.wait()
        if seen.pieces >= enough and not seen.done:
            return running, seen
        assert (await running).whole, seen
    raise AssertionError(
        f"each time {max_tokens} tokens were there before the first {enough} were seen"
    )


def _take(seen: Stream, event: dict[str, Any]) -> None:
    if "error" in event:
        seen.error = event["error"]
    for choice in event.get("choices", []):
        text = choice["delta"].get("content") or ""
        seen.text += text
        seen.pieces += 1
        seen.finish = choice.get("finish_reason") or seen.finish
    if seen.pieces >= seen.enough:
        seen.flowing.set()


until = eventually
CONT = signal.SIGCONT
KILL = signal.SIGKILL
STOP = signal.SIGSTOP
TERM = signal.SIGTERM
