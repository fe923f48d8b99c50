"""A ring of real processes over mutual TLS with a shared secret; who lacks either stays out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from serve_processes import Ring, Served, free_ports, stream, until

HERE = Path(__file__).resolve().parents[1] / "unit" / "networking" / "certificates"


def tls(parent: Path, name: str, authority: str = "ours") -> list[str]:
    """A folder as Kubernetes mounts it."""
    folder = parent / f"tls-{name}"
    folder.mkdir(exist_ok=True)
    for source, target in ((f"{name}.pem", "tls.crt"), (f"{name}.key", "tls.key"), (f"{authority}.pem", "ca.crt")):
        shutil.copyfile(HERE / source, folder / target)
    return ["--tls-dir", str(folder)]


SECRET = "open-sesame-1001"


async def test_the_secret_and_the_authority_decide_who_is_in_the_ring(tmp_path: Path) -> None:
    ports = free_ports(12)
    config = tmp_path / "peers.json"
    peers = {f"n{i}": {"address": "127.0.0.1", "port": ports[3 * i + 1]} for i in range(4)}
    config.write_text(json.dumps({"peers": peers}))
    common = ["--discovery", "manual", "--discovery-config", str(config), "--engine", "dummy", "--model", "dummy"]
    extra = [
        [*tls(tmp_path, "a"), "--secret", SECRET],
        [*tls(tmp_path, "b"), "--secret", SECRET],
        [*tls(tmp_path, "b"), "--secret", "another"],
        [*tls(tmp_path, "stranger", "theirs"), "--secret", SECRET],
    ]
    nodes = [Served(f"n{i}", tmp_path, *ports[3 * i : 3 * i + 3], [*common, *flags]) for i, flags in enumerate(extra)]
    ring = Ring(nodes)
    try:
        for node in nodes:
            node.start()
        async with ring.client:
            await ring.formed(nodes[:2])
            assert (await stream(ring, nodes[0], "Tell me all.", 20, "dummy")).whole
            for outsider in nodes[2:]:
                await ring.formed([outsider])  # each alone: a ring of one
            await until(lambda: "shared secret differs" in nodes[0].log.read_text())
    finally:
        for node in nodes:
            node.stop()
    assert SECRET not in "".join(node.log.read_text() for node in nodes)
