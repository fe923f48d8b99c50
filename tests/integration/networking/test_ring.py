"""The ring of real processes when the network between them misbehaves: broken links, cuts,
discovery by datagrams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

from ports import free_ports
from serve_processes import Ring, Served, stream, under_way, until

DUMMY = ("--engine", "dummy", "--model", "dummy")


class BreakableLink:
    """Passes bytes on to `target` until `cut`, which drops every connection; new ones are taken at
    once.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[BreakableLink]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self.cut()
            server.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._writers -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def running(nodes: list[Served]) -> AsyncIterator[Ring]:
    ring = Ring(nodes)
    try:
        for node in nodes:
            node.start()
        async with ring.client:
            await ring.formed()
            yield ring
    finally:
        for node in nodes:
            node.stop()


async def test_a_link_that_breaks_between_two_living_stages_costs_no_token(tmp_path: Path) -> None:
    ports = free_ports(9)
    grpc = {f"n{i}": ports[3 * i + 1] for i in range(3)}
    async with BreakableLink(grpc["n2"]).open() as link:
        nodes = []
        for i in range(3):
            # n1 reaches n2 through the link; everybody else directly.
            known = {**grpc, "n2": link.port} if i == 1 else grpc
            config = tmp_path / f"peers-{i}.json"
            config.write_text(
                json.dumps(
                    {"peers": {k: {"address": "127.0.0.1", "port": v} for k, v in known.items()}}
                )
            )
            flags = ["--discovery", "manual", "--discovery-config", str(config), *DUMMY]
            nodes.append(Served(f"n{i}", tmp_path, *ports[3 * i : 3 * i + 3], flags))
        async with running(nodes) as ring:
            stages = [
                stage["node_id"] for stage in (await ring.get(nodes[0], "/api/v1/ring"))["stages"]
            ]
            # The broken link is one the tokens take.
            assert stages.index("n2") == stages.index("n1") + 1
            expected = (await stream(ring, nodes[0], "Tell me all.", 600, "dummy")).text
            for _ in range(3):
                answer, seen = await under_way(ring, nodes[0], "Tell me all.", 600, "dummy")
                link.cut()
                async with asyncio.timeout(20):
                    await answer
                assert seen.whole, seen
                assert seen.text == expected
                assert await ring.formed(timeout=20) < 20
            for node in nodes:
                await until(
                    lambda node=node: node.process is not None and node.process.poll() is None
                )
                assert (await ring.get(node, "/api/v1/requests"))["requests"] == []


async def test_three_nodes_form_a_ring_by_datagrams_alone(tmp_path: Path) -> None:
    *ports, udp = free_ports(10)
    flags = ["--discovery", "udp", "--discovery-port", str(udp), "--cluster", f"test-{udp}", *DUMMY]
    nodes = [Served(f"n{i}", tmp_path, *ports[3 * i : 3 * i + 3], flags) for i in range(3)]
    async with running(nodes) as ring:
        answers = await asyncio.gather(
            *(stream(ring, node, "Tell me all.", 30, "dummy") for node in nodes)
        )
        assert all(each.whole for each in answers)
        assert len({each.text for each in answers}) == 1
        known = (await ring.get(nodes[0], "/api/v1/topology"))["nodes"]
        found = {node["id"]: node["address"].rpartition(":")[2] for node in known}
        assert found == {"n0": "", "n1": str(nodes[1].grpc), "n2": str(nodes[2].grpc)}
