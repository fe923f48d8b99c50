"""A forward pass that never ends, in a process whose heartbeats go on: real processes, real threads
that hang.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from serve_processes import TERM, Ring, Served, Stream, ring_of, stream, under_way

PATIENCE = 1.0
FLAGS = (
    "--engine",
    "dummy",
    "--model",
    "dummy",
    "--stuck-seconds",
    str(PATIENCE),
    "--recovery-seconds",
    "2",
)
TOKENS = 700


def may_fail(folder: Path, *nodes: str) -> None:
    for node_id in nodes:
        (folder / f"{node_id}-faults").mkdir()


class Hang:
    """Of every forward pass of a node, for as long as it is entered."""

    def __init__(self, node: Served) -> None:
        self._file = node.faults / "hang-inference_engine"

    def __enter__(self) -> None:
        self._file.touch()

    def __exit__(self, *_: object) -> None:
        self._file.unlink()


async def readiness(ring: Ring, node: Served) -> tuple[int, dict[str, Any]]:
    answer = await ring.client.get(f"{node.url}/readyz")
    return answer.status_code, answer.json()


async def flowing(ring: Ring, entry: Served) -> tuple[asyncio.Task[Stream], Stream]:
    return await under_way(ring, entry, "Tell me all.", TOKENS, "dummy")


async def test_a_node_that_hangs_in_mid_stream_says_so_and_the_stream_goes_on_without_it(
    tmp_path: Path,
) -> None:
    may_fail(tmp_path, "n0", "n2")
    async with ring_of(tmp_path, 3, *FLAGS) as ring:
        entry, other, stuck = ring.nodes
        expected = (await stream(ring, entry, "Tell me all.", TOKENS, "dummy")).text
        running, seen = await flowing(ring, entry)
        with Hang(stuck):
            begun = time.monotonic()
            await ring.formed([entry, other], timeout=20)
            await running
            assert time.monotonic() - begun < 20
            assert (seen.whole, seen.text == expected) == (True, True), seen
            status, body = await readiness(ring, stuck)
            assert status == 503
            assert "made no progress for" in str(body), body
            assert (await readiness(ring, other))[0] == (await readiness(ring, entry))[0] == 200
            # It is alive: nobody restarts it, and it takes requests, which the others compute.
            assert (await ring.client.get(f"{stuck.url}/livez")).status_code == 200
            assert (await stream(ring, stuck, "Tell me all.", TOKENS, "dummy")).text == expected
        await ring.formed(timeout=20)  # the pass came to an end after all: it is planned in again
        await the_entry_itself_hangs(ring, expected)


async def the_entry_itself_hangs(ring: Ring, expected: str) -> None:
    entry, *others = ring.nodes
    running, seen = await flowing(ring, entry)
    with Hang(entry):
        await ring.formed(others, timeout=20)
        await running
        assert (seen.whole, seen.text == expected) == (True, True), seen
        entry.signal(TERM)
        assert await entry.ended() == 0  # though its thread never returns


async def test_where_nobody_else_has_the_layers_the_client_gets_an_error_that_says_why(
    tmp_path: Path,
) -> None:
    may_fail(tmp_path, "n0")
    async with ring_of(tmp_path, 1, *FLAGS) as ring:
        (alone,) = ring.nodes
        running, seen = await flowing(ring, alone)
        begun = time.monotonic()
        with Hang(alone):
            await running
            assert time.monotonic() - begun < 20
            assert seen.error is not None
            assert "is stuck: a forward pass has made no progress" in seen.error["message"], (
                seen.error
            )
            status, body = await readiness(ring, alone)
            assert (status, "no progress" in str(body)) == (503, True)
