"""Starts `ring_node_process.py` and waits for what it says."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
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
        environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
        process = await asyncio.create_subprocess_exec(
            *prefix,
            sys.executable,
            str(HERE / "ring_node_process.py"),
            node_id,
            host,
            str(port),
            str(peers_file),
            stdout=asyncio.subprocess.PIPE,
            env=environment,
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
