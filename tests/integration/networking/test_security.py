"""A ring of real processes over mutual TLS with a shared secret; who lacks either stays out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

from ports import free_ports
from serve_processes import KILL, Ring, Served, stream, until

HERE = Path(__file__).resolve().parents[2] / "unit" / "networking" / "certificates"


def install(folder: Path, name: str, authority: str) -> None:
    """Each file is replaced at once, as Kubernetes does it."""
    for source, target in (
        (f"{name}.pem", "tls.crt"),
        (f"{name}.key", "tls.key"),
        (f"{authority}.pem", "ca.crt"),
    ):
        shutil.copyfile(HERE / source, folder / f"{target}.new")
        os.replace(folder / f"{target}.new", folder / target)


def tls(parent: Path, name: str, authority: str = "ours") -> list[str]:
    """A folder as Kubernetes mounts it."""
    folder = parent / f"tls-{name}"
    folder.mkdir(exist_ok=True)
    install(folder, name, authority)
    return ["--tls-dir", str(folder)]


SECRET = "open-sesame-1001"


async def test_the_secret_and_the_authority_decide_who_is_in_the_ring(tmp_path: Path) -> None:
    ports = free_ports(12)
    config = tmp_path / "peers.json"
    peers = {f"n{i}": {"address": "127.0.0.1", "port": ports[3 * i + 1]} for i in range(4)}
    config.write_text(json.dumps({"peers": peers}))
    common = [
        "--discovery",
        "manual",
        "--discovery-config",
        str(config),
        "--engine",
        "dummy",
        "--model",
        "dummy",
    ]
    extra = [
        [*tls(tmp_path, "a"), "--secret", SECRET],
        [*tls(tmp_path, "b"), "--secret", SECRET],
        [*tls(tmp_path, "b"), "--secret", "another"],
        [*tls(tmp_path, "stranger", "theirs"), "--secret", SECRET],
    ]
    nodes = [
        Served(f"n{i}", tmp_path, *ports[3 * i : 3 * i + 3], [*common, *flags])
        for i, flags in enumerate(extra)
    ]
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


@contextlib.asynccontextmanager
async def started(folder: Path, flags: dict[str, list[str]]) -> AsyncIterator[Ring]:
    """Nodes by these names, each with its own flags; none is waited for."""
    ports = free_ports(3 * len(flags))
    config = folder / "peers.json"
    peers = {
        name: {"address": "127.0.0.1", "port": ports[3 * i + 1]} for i, name in enumerate(flags)
    }
    config.write_text(json.dumps({"peers": peers}))
    common = [
        "--discovery",
        "manual",
        "--discovery-config",
        str(config),
        "--engine",
        "dummy",
        "--model",
        "dummy",
    ]
    ring = Ring(
        [
            Served(n, folder, *ports[3 * i : 3 * i + 3], [*common, *flags[n]])
            for i, n in enumerate(flags)
        ]
    )
    try:
        for node in ring.nodes:
            node.start()
        async with ring.client:
            yield ring
    finally:
        for node in ring.nodes:
            node.stop()


async def test_a_certificate_that_names_another_node_keeps_its_bearer_out_where_identity_is_checked(
    tmp_path: Path,
) -> None:
    check = "--tls-check-identity"
    flags = {
        "a": [*tls(tmp_path, "a"), check],
        "b": [*tls(tmp_path, "b"), check],
        "c": tls(tmp_path, "b"),
    }
    async with started(tmp_path, flags) as ring:
        await ring.formed(ring.nodes[:2])
        await ring.formed(ring.nodes[2:])
        await until(
            lambda: (
                "its certificate names ['b', 'exo-node'], not 'c'" in ring.nodes[2].log.read_text()
            )
        )
        assert (await stream(ring, ring.nodes[0], "Tell me all.", 20, "dummy")).whole


async def test_a_ring_takes_new_certificates_of_another_authority_while_it_serves(
    tmp_path: Path,
) -> None:
    flags = {"n0": tls(tmp_path, "a"), "n1": tls(tmp_path, "b")}
    async with started(tmp_path, flags) as ring:
        stays, restarted = ring.nodes
        await ring.formed()
        for name in ("a", "b"):
            install(tmp_path / f"tls-{name}", "stranger", "theirs")
        # Connections outlive the change.
        assert (await stream(ring, stays, "Tell me all.", 20, "dummy")).whole
        restarted.signal(KILL)
        await restarted.ended()
        restarted.start()  # knows the new authority only
        await ring.formed()
        assert (await stream(ring, stays, "Tell me all.", 20, "dummy")).whole
