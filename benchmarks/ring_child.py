"""One node in a process of its own, told what to do by lines of JSON on standard input. Used by
ring.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from exo.inference.generation import GenerationRequest
from exo.inference.sampling.params import SamplingParams
from exo.networking.messages import Forward
from exo.node.build import build_node
from exo.node.node import Node
from exo.node.settings import NodeSettings

GREEDY = SamplingParams(temperature=0.0)


class Child:
    def __init__(self, node: Node) -> None:
        self.node = node
        self.arrivals: list[float] = []

    async def start(self) -> dict[str, Any]:
        begun = time.monotonic()
        await self.node.initialize()
        return {"seconds": time.monotonic() - begun}

    async def formed(self, stages: int) -> dict[str, Any]:
        """Until a plan of that many stages is in force; `at` is comparable between processes of one
        machine.
        """
        while (plan := self.node.ring.plan) is None or len(plan.stages) != stages:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        return {"at": time.monotonic()}

    async def generate(
        self, clients: int, tokens: int, prompt: int = 16, tag: str = ""
    ) -> dict[str, Any]:
        begun = time.monotonic()
        firsts = await asyncio.gather(
            *(self._one(f"{tag}{i}", i, tokens, prompt) for i in range(clients))
        )
        ended = time.monotonic()
        return {
            "seconds": ended - begun,
            "decode_seconds": ended - max(firsts),
            "tokens": clients * tokens,
        }

    async def _one(self, request_id: str, number: int, tokens: int, prompt: int) -> float:
        ids = tuple(300 % self._vocab() + (7 * i + number) % 50 for i in range(prompt))
        request = GenerationRequest(
            request_id=request_id,
            model_id=self._model(),
            prompt_tokens=ids,
            max_tokens=tokens,
            params=GREEDY,
            ignore_eos=True,
        )
        first = 0.0
        async for _ in self.node.process_tokens(request):
            first = first or time.monotonic()
            self.arrivals.append(time.monotonic())
        return first

    async def gap(self) -> dict[str, Any]:
        """The longest pause between two tokens since the last call, and when it ended."""
        times, self.arrivals = self.arrivals, []
        pauses = [(later - earlier, later) for earlier, later in itertools.pairwise(times)]
        longest, ended = max(pauses, default=(0.0, 0.0))
        return {"seconds": longest, "at": ended, "tokens": len(times)}

    async def hop(self, megabytes: float, rounds: int) -> dict[str, Any]:
        """A tensor to the peer and its refusal back (nobody serves that epoch): transfer, check and
        hand-over.
        """
        (handle,) = self.node.peers
        values = np.ones((int(megabytes * 2**20) // 4 // 1024, 1024), np.float32)
        seconds = []
        for number in range(rounds):
            arrived = asyncio.Event()
            self.node.frontend.failed = lambda sender, message, arrived=arrived: arrived.set()  # type: ignore[method-assign]
            begun = time.monotonic()
            await handle.send(
                Forward(
                    sequence_id=f"hop{number}",
                    epoch="none",
                    position=0,
                    values=values,
                    sample=False,
                )
            )
            await arrived.wait()
            seconds.append(time.monotonic() - begun)
        return {"seconds": min(seconds)}

    async def rss(self) -> dict[str, Any]:
        # Not a file on a disk.
        pages = int(Path("/proc/self/statm").read_text().split()[1])  # noqa: ASYNC240
        return {"mib": pages * 4096 / 2**20}

    async def left(self) -> dict[str, Any]:
        return {"sequences": self.node.stage.live(), "requests": self.node.frontend.live}

    async def passes(self) -> dict[str, Any]:
        return {"passes": self.node.stage.statistics().passes}

    async def stop(self) -> dict[str, Any]:
        await self.node.cleanup()
        return {}

    def _model(self) -> str:
        return str(self.node.backend.models()[0]["id"])

    def _vocab(self) -> int:
        return 200 if self._model() == "dummy" else 10**6


async def main(settings: dict[str, Any]) -> None:
    settings["discovery_config"] = (
        Path(settings["discovery_config"]) if settings.get("discovery_config") else None
    )
    child = Child(build_node(NodeSettings(**settings)))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        command = json.loads(line)
        answer = await getattr(child, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(main(json.loads(sys.argv[1])))
