"""The ring in network namespaces: one node is cut off in mid-answer and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[3]
NODES = ("n0", "n1", "n2")
API, GRPC, HEALTH = 52415, 50051, 50052


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def address(node: str) -> str:
    return f"10.78.0.{NODES.index(node) + 1}"


class Lan:
    """A switch in a namespace of its own, a namespace with a cable to it per node, and a place for
    clients at it.
    """

    def __init__(self) -> None:
        self._tag = uuid.uuid4().hex[:5]
        self._made: list[str] = []

    def namespace(self, name: str) -> str:
        return f"exo-{self._tag}-{name}"

    def build(self) -> None:
        hub = self._add("hub")
        ip("-n", hub, "link", "add", "switch", "type", "bridge")
        ip("-n", hub, "address", "add", "10.78.0.254/24", "dev", "switch")
        ip("-n", hub, "link", "set", "switch", "up")
        for node in NODES:
            space, port, cable = self._add(node), f"p{self._tag}{node}", f"c{self._tag}{node}"
            ip("link", "add", port, "netns", hub, "type", "veth", "peer", cable, "netns", space)
            ip("-n", hub, "link", "set", port, "master", "switch")
            ip("-n", hub, "link", "set", port, "up")
            ip("-n", space, "address", "add", f"{address(node)}/24", "dev", cable)
            ip("-n", space, "link", "set", cable, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def plug(self, node: str, state: str) -> None:
        """`up` or `down`: the switch's port of this node."""
        ip("-n", self.namespace("hub"), "link", "set", f"p{self._tag}{node}", state)

    def enter(self, name: str) -> None:
        """For a thread of its own: what it opens from now on is there, at the switch (`hub`) or at
        a node.
        """
        with open(f"/var/run/netns/{self.namespace(name)}") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")

    def remove(self) -> None:
        for space in self._made:
            ip("netns", "delete", space)

    def _add(self, name: str) -> str:
        space = self.namespace(name)
        ip("netns", "add", space)
        self._made.append(space)
        return space


@pytest.fixture
def lan() -> Iterator[Lan]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the ip command (iproute2)")
    lan = Lan()
    try:
        try:
            lan.build()
        except subprocess.CalledProcessError as error:
            pytest.skip(
                f"this machine makes no network namespaces with a bridge: {error.stderr.strip()}"
            )
        yield lan
    finally:
        lan.remove()


class Clients:
    """HTTP from the switch, or from a node's own machine, in threads that live there."""

    def __init__(self, lan: Lan, place: str = "hub", model: str = "dummy") -> None:
        self._pool = ThreadPoolExecutor(8, initializer=lan.enter, initargs=(place,))
        self._model = model

    async def get(self, node: str, path: str) -> tuple[int, dict]:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._get, node, path)

    def answer(
        self, node: str, tokens: int, flows: Callable[[], object] = lambda: None
    ) -> asyncio.Future[tuple[str, str]]:
        """The text and how it ended. flows: called in its thread as soon as text comes."""
        return asyncio.get_running_loop().run_in_executor(
            self._pool, self._answer, node, tokens, flows
        )

    async def under_way(self, node: str, tokens: int) -> asyncio.Future[tuple[str, str]]:
        """An answer of which the first text is there."""
        loop, flowing = asyncio.get_running_loop(), asyncio.Event()
        answer = self.answer(node, tokens, lambda: loop.call_soon_threadsafe(flowing.set))
        async with asyncio.timeout(30):
            await flowing.wait()
        return answer

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _get(self, node: str, path: str) -> tuple[int, dict]:
        try:
            response = httpx.get(
                f"http://{address(node)}:{API}{path}", timeout=10.0, trust_env=False
            )
        except httpx.TransportError:
            return 0, {}
        return response.status_code, response.json()

    def _answer(self, node: str, tokens: int, flows: Callable[[], object]) -> tuple[str, str]:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": "Tell me all."}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "ignore_eos": True,
        }
        text, end = "", "cut off"
        url = f"http://{address(node)}:{API}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60.0, trust_env=False) as response:
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return text, str(event["error"])
                for choice in event["choices"]:
                    if not text and choice["delta"].get("content"):
                        flows()
                    text += choice["delta"].get("content") or ""
                    end = choice.get("finish_reason") or end
        return text, end


DUMMY = ("--engine", "dummy", "--model", "dummy")


def start(
    lan: Lan, node: str, folder: Path, peers: Path, flags: Sequence[str]
) -> subprocess.Popen[bytes]:
    command = [
        *("ip", "netns", "exec", lan.namespace(node), sys.executable, "-m", "exo", "serve"),
        *("--node-id", node, "--host", "0.0.0.0", *flags),
        *("--discovery", "manual", "--discovery-config", str(peers), "--log-format", "json"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / f"{node}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)


@contextlib.asynccontextmanager
async def serving(lan: Lan, folder: Path, flags: Sequence[str] = DUMMY) -> AsyncIterator[Clients]:
    peers = folder / "peers.json"
    peers.write_text(
        json.dumps({"peers": {node: {"address": address(node), "port": GRPC} for node in NODES}})
    )
    clients = Clients(lan, model=flags[flags.index("--model") + 1])
    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes += [start(lan, node, folder, peers, flags) for node in NODES]
        yield clients
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait(10)
        clients.close()


async def formed(
    clients: Clients, asked: tuple[str, ...], stages: set[str], timeout: float
) -> float:
    """Until each of `asked` is ready on a ring of exactly these stages; seconds."""
    begun = time.monotonic()
    async with asyncio.timeout(timeout):
        for node in asked:
            while True:
                _, ring = await clients.get(node, "/api/v1/ring")
                ready, _ = await clients.get(node, "/readyz")
                if (
                    ready == 200
                    and ring.get("formed")
                    and {each["node_id"] for each in ring["stages"]} == stages
                ):
                    break
                await asyncio.sleep(0.05)
    return time.monotonic() - begun


async def test_a_node_cut_off_in_mid_answer_costs_no_token_and_is_back_within_five_seconds(
    lan: Lan, tmp_path: Path
) -> None:
    everyone = set(NODES)
    async with serving(lan, tmp_path) as clients:
        await formed(clients, NODES, everyone, 60)
        expected, end = await clients.answer("n0", 800)
        assert end == "length"
        for _ in range(2):
            under_way = await asyncio.gather(*(clients.under_way("n0", 800) for _ in range(3)))
            lan.plug("n2", "down")
            assert not any(answer.done() for answer in under_way)
            # 2 s to notice, then a new plan.
            assert await formed(clients, ("n0", "n1"), everyone - {"n2"}, 20) < 5.0
            lan.plug("n2", "up")
            assert await formed(clients, NODES, everyone, 20) < 5.0
            assert await asyncio.gather(*under_way) == [(expected, "length")] * 3
        for node in NODES:
            assert (await clients.get(node, "/api/v1/requests"))[1]["requests"] == []
            assert await clients.answer(node, 800) == (expected, "length")


# Any two of the nodes can hold the model, none can alone.
HALF = ("--engine", "numpy", "--model", "smollm2-135m", "--memory", "420")


async def test_an_entry_node_cut_off_waits_with_its_streams_and_says_so_while_the_others_serve(
    lan: Lan, tmp_path: Path
) -> None:
    everyone = set(NODES)
    async with serving(lan, tmp_path, HALF) as clients:
        await formed(clients, NODES, everyone, 60)
        expected, end = await clients.answer("n1", 60)
        assert end == "length"
        cut_off = Clients(lan, "n0", "smollm2-135m")
        try:
            asked = [cut_off.under_way("n0", 60), cut_off.under_way("n0", 60)]
            asked += [clients.under_way(node, 60) for node in ("n1", "n2")]
            *theirs, one, two = await asyncio.gather(*asked)
            others = [one, two]
            assert not any(answer.done() for answer in (*theirs, *others))
            lan.plug("n0", "down")
            assert await formed(clients, ("n1", "n2"), everyone - {"n0"}, 20) < 5.0
            assert await asyncio.gather(*others) == [(expected, "length")] * 2
            # The half with one node: its streams are there and wait, and its readiness names what
            # is missing.
            ready, report = await cut_off.get("n0", "/readyz")
            assert ready == 503
            assert "MiB more" in report["failing"]["ring formed"]
            assert not any(answer.done() for answer in theirs)
            lan.plug("n0", "up")
            assert await formed(clients, NODES, everyone, 20) < 5.0
            assert await asyncio.gather(*theirs) == [(expected, "length")] * 2
        finally:
            cut_off.close()
        # With that much memory the larger ranges do not fit next to the smaller ones, and the nodes
        # said so.
        assert any("both at once need" in (tmp_path / f"{node}.log").read_text() for node in NODES)
        for node in NODES:
            assert (await clients.get(node, "/api/v1/requests"))[1]["requests"] == []
