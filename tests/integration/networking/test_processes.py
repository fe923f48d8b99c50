"""Nodes as processes: one killed, one stopped, and a network cut and healed between two
namespaces.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from node_processes import NodeProcess
from ports import free_ports


def write_peers(path: Path, addresses: dict[str, tuple[str, int]]) -> None:
    peers = {
        node_id: {"address": host, "port": port} for node_id, (host, port) in addresses.items()
    }
    path.write_text(json.dumps({"peers": peers}))


@pytest.fixture
def peers_file(tmp_path):
    ports = free_ports(2)
    path = tmp_path / "peers.json"
    write_peers(path, {name: ("127.0.0.1", port) for name, port in zip("ab", ports, strict=True)})
    return path, ports


async def test_a_killed_process_is_noticed_at_once_and_found_again(peers_file):
    path, ports = peers_file
    a = await NodeProcess.start("a", "127.0.0.1", ports[0], path)
    b = await NodeProcess.start("b", "127.0.0.1", ports[1], path)
    try:
        await a.wait_peers(["b"], 30)
        b.process.kill()
        killed = time.time()
        lost = await a.wait_peers([], 10)
        assert lost["at"] - killed < 1.0
        await b.close()
        b = await NodeProcess.start("b", "127.0.0.1", ports[1], path)
        listening = await b.wait(lambda event: event["event"] == "listening", 30)
        found = await a.wait_peers(["b"], 10)
        assert found["at"] - listening["at"] < 3.0
    finally:
        await a.close()
        await b.close()


async def test_a_stopped_process_is_slow_and_not_lost(peers_file):
    path, ports = peers_file
    a = await NodeProcess.start("a", "127.0.0.1", ports[0], path)
    b = await NodeProcess.start("b", "127.0.0.1", ports[1], path)
    try:
        await a.wait_peers(["b"], 30)
        await b.wait_peers(["a"], 30)  # stopped in its own hello, it would be lost and not slow
        b.process.send_signal(signal.SIGSTOP)
        await a.wait(lambda event: event["event"] == "slow" and event["peers"] == ["b"], 10)
        await asyncio.sleep(2)
        b.process.send_signal(signal.SIGCONT)
        await a.wait(lambda event: event["event"] == "slow" and event["peers"] == [], 10)
        assert [event for event in a.events if event["event"] == "lost"] == []
    finally:
        await a.close()
        await b.close()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces():
    """Two network namespaces joined by a cable: 10.77.0.1 in the first, 10.77.0.2 in the second."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need the ip command (iproute2)")
    tag = uuid.uuid4().hex[:6]
    names = [f"exo-{tag}-a", f"exo-{tag}-b"]
    made: list[str] = []
    try:
        try:
            for name in names:
                ip("netns", "add", name)
                made.append(name)
            ip(
                "link",
                "add",
                f"va{tag}",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                f"vb{tag}",
                "netns",
                names[1],
            )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
        for number, (name, link) in enumerate(
            zip(names, (f"va{tag}", f"vb{tag}"), strict=True), start=1
        ):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names, f"va{tag}"
    finally:
        for name in made:
            ip("netns", "delete", name)


async def test_a_cut_is_noticed_within_two_seconds_and_healed_within_five(namespaces, tmp_path):
    names, link = namespaces
    path = tmp_path / "peers.json"
    write_peers(path, {"a": ("10.77.0.1", 50051), "b": ("10.77.0.2", 50051)})
    a, b = [
        await NodeProcess.start(
            node_id, f"10.77.0.{number}", 50051, path, prefix=("ip", "netns", "exec", name)
        )
        for number, (node_id, name) in enumerate(zip("ab", names, strict=True), start=1)
    ]
    try:
        await asyncio.gather(a.wait_peers(["b"], 30), b.wait_peers(["a"], 30))
        for seconds in (4.0, 0.0):
            cut = time.time()
            ip("-n", names[0], "link", "set", link, "down")
            lost = await asyncio.gather(a.wait_peers([], 10), b.wait_peers([], 10))
            # 2 s and what a busy machine adds.
            assert max(event["at"] for event in lost) - cut < 2.5
            await asyncio.sleep(seconds)
            healed = time.time()
            ip("-n", names[0], "link", "set", link, "up")
            found = await asyncio.gather(a.wait_peers(["b"], 10), b.wait_peers(["a"], 10))
            assert max(event["at"] for event in found) - healed < 5.0
    finally:
        await a.close()
        await b.close()
