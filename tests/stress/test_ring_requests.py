"""Many requests of mixed kinds through three nodes over real gRPC: nothing is left of them, memory
stays flat.

`EXO_STRESS_REQUESTS` says how many; the suite runs 1,000.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import random
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
from loopback import formed, leftovers, until
from ports import free_ports

from exo.inference.errors import ExoError
from exo.inference.generation import GenerationRequest
from exo.inference.sampling.params import SamplingParams
from exo.node.build import build_node
from exo.node.node import Node
from exo.node.settings import NodeSettings
from exo.pipeline.scheduler import SchedulerStatistics

COUNT = int(os.environ.get("EXO_STRESS_REQUESTS", "1000"))
AT_ONCE = 24
KINDS = (
    "whole",
    "whole",
    "cancelled early",
    "cancelled late",
    "abandoned task",
    "refused",
    "sampled",
)


@contextlib.asynccontextmanager
async def three_nodes(folder: Path) -> AsyncIterator[list[Node]]:
    ports = free_ports(3)
    config = folder / "peers.json"
    config.write_text(
        json.dumps(
            {
                "peers": {
                    f"n{i}": {"address": "127.0.0.1", "port": port} for i, port in enumerate(ports)
                }
            }
        )
    )
    nodes = [
        build_node(
            NodeSettings(
                node_id=f"n{i}",
                engine="dummy",
                model="dummy",
                host="127.0.0.1",
                grpc_port=port,
                discovery="manual",
                discovery_config=config,
                drain_seconds=5.0,
            )
        )
        for i, port in enumerate(ports)
    ]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, 3)
        yield nodes
    finally:
        for node in nodes:
            await node.cleanup()


async def one(node: Node, kind: str, number: int, choose: random.Random) -> str:
    request = GenerationRequest(
        request_id=f"r{number}",
        model_id="nothing" if kind == "refused" else "dummy",
        prompt_tokens=tuple(choose.randrange(3, 250) for _ in range(choose.randrange(1, 60))),
        max_tokens=choose.randrange(1, 12) if kind in ("whole", "sampled") else 2000,
        params=SamplingParams(temperature=0.8 if kind == "sampled" else 0.0, seed=number),
    )
    stream = node.process_tokens(request)
    if kind == "abandoned task":
        task = asyncio.create_task(anext(stream))
        await asyncio.sleep(choose.uniform(0, 0.005))
        task.cancel()
        await asyncio.wait([task])
        await stream.aclose()
        return kind
    wanted = {"cancelled early": 1, "cancelled late": choose.randrange(2, 15)}.get(kind, 10**6)
    try:
        async with contextlib.aclosing(stream):
            async for chunk in stream:
                wanted -= 1
                if chunk.finish_reason is not None:
                    return "ended"
                if wanted == 0:
                    return kind
    except ExoError:
        return "refused"
    return "cut short"


async def run(nodes: list[Node], count: int, seed: int) -> Counter[str]:
    choose = random.Random(seed)
    numbers = iter(range(count))
    seen: Counter[str] = Counter()

    async def client() -> None:
        for number in numbers:
            seen[await one(choose.choice(nodes), choose.choice(KINDS), number, choose)] += 1

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    await until(lambda: not any(leftovers(node) for node in nodes))
    return seen


async def test_a_thousand_mixed_requests_leave_nothing_behind(tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as nodes:
        await run(nodes, COUNT // 3, seed=1)
        gc.collect()
        tasks, memory = len(asyncio.all_tasks()), psutil.Process().memory_info().rss
        seen = await run(nodes, COUNT, seed=2)
        gc.collect()
        assert sum(seen.values()) == COUNT
        assert seen["cut short"] == 0
        assert all(
            seen[kind]
            for kind in ("ended", "cancelled early", "cancelled late", "abandoned task", "refused")
        )
        # An announcement or a check may be on its way.
        await until(lambda: len(asyncio.all_tasks()) <= tasks + 3)
        grown = psutil.Process().memory_info().rss - memory
        assert grown < 8 * 2**20 + 500 * COUNT // 10, f"{grown / 2**20:.1f} MiB more"
        for node in nodes:
            assert node.describe_requests() == []
            left = node.stage.statistics()
            assert left.scheduler == SchedulerStatistics()
            assert left.unreleased == 0
