"""A node of the network tests as a process: real server, real discovery from a peers file, no ring.

Started as a script, this module is the node. It prints one JSON object a line: `listening`, then
`peers` when the connected peers change, `lost` for each loss, `slow` when that changes. A test
starts it with `NodeProcess.start` and waits for what it says.

    python node_processes.py NODE_ID HOST PORT PEERS_FILE
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ring_nodes import RecordingHandler, make_handle, make_server

from exo.networking.grpc.grpc_peer_handle import GRPCPeerHandle
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.messages import Message

ROOT = Path(__file__).resolve().parents[3]
Event = dict[str, Any]


class NodeProcess:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.events: list[Event] = []

    @classmethod
    async def start(
        cls, node_id: str, host: str, port: int, peers_file: Path, prefix: Sequence[str] = ()
    ) -> NodeProcess:
        """prefix: a command that runs the process, such as `ip netns exec NAME`."""
        paths = (ROOT, ROOT / "tests" / "support")
        process = await asyncio.create_subprocess_exec(
            *(*prefix, sys.executable, __file__, node_id, host, str(port), str(peers_file)),
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "OMP_NUM_THREADS": "1",
            },
        )
        return cls(process)

    async def wait(self, matches: Callable[[Event], object], timeout: float) -> Event:
        """The next event that matches; earlier ones are kept in `events`."""
        assert self.process.stdout is not None
        async with asyncio.timeout(timeout):
            while line := await self.process.stdout.readline():
                event = json.loads(line)
                self.events.append(event)
                if matches(event):
                    return event
        raise AssertionError(f"the process ended; it said {self.events}")

    async def wait_peers(self, ids: list[str], timeout: float) -> Event:
        return await self.wait(
            lambda event: event["event"] == "peers" and event["ids"] == ids, timeout
        )

    async def close(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


# -- in the process


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, "at": time.time(), **fields}), flush=True)


class TellingHandler(RecordingHandler):
    """Says what it hears, and keeps none of it."""

    async def on_message(self, peer_id: str, message: Message) -> None:
        say("message", sequence=message.sequence_id)

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        say("lost", peer=peer_id, reason=reason)


async def main(node_id: str, host: str, port: int, peers_file: str) -> None:
    handler = TellingHandler(node_id, incarnation=time.time_ns())

    def connect(peer_id: str | None, address: str, port: int) -> GRPCPeerHandle:
        return make_handle(handler, port, host=address, node_id=peer_id)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    discovery = ManualDiscovery(node_id, peers_file, connect, poll_interval=0.1)
    discovery.on_change(lambda peers: say("peers", ids=[peer.id() for peer in peers]))
    async with make_server(handler, host=host, port=port) as server:
        say("listening", port=server.port)
        async with discovery:
            await say_who_is_slow(discovery, stop)


async def say_who_is_slow(discovery: ManualDiscovery, stop: asyncio.Event) -> None:
    """Whenever that changes, until `stop`."""
    told: dict[str, bool] = {}
    while not stop.is_set():
        now = {peer.id(): peer.is_slow() for peer in discovery.peers()}
        if now != told:
            told = now
            say("slow", peers=[peer for peer, is_slow in now.items() if is_slow])
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
