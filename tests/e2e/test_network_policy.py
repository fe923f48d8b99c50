"""The chart's NetworkPolicy: peers, probes and the API pass, everything else stays out. The cluster
enforces it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from installation import install
from kube import Kube
from questions import chat, client_manifest, content, post

TRY = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).close()
    print("open")
except OSError as error:
    print("closed", error)
"""
GRPC, HEALTH, API = 50051, 50052, 52415


@pytest.fixture
def policy(operator: Kube) -> Iterator[None]:
    install("--set", "networkPolicy.enabled=true")
    yield
    install()


def node(name: str, cluster: str) -> dict[str, Any]:
    return {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": name},
        "spec": {"model": {"name": "smollm2-135m"}, "cluster": cluster},
    }


def reach(kube: Kube, caller: str, address: str, port: int) -> str:
    return kube.run("exec", caller, "--", "python3", "-c", TRY, address, str(port)).split()[0]


def test_only_peers_probes_and_the_api_pass(policy: None, kube: Kube) -> None:
    kube.apply(node("guarded", "ring-a"))
    kube.apply(client_manifest("peer", {"exo.dev/cluster": "ring-a"}))
    kube.apply(client_manifest("stranger"))
    for pod in ("peer", "stranger"):
        kube.run("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=60s", timeout=70)
    found = kube.ready("exonode", "guarded", timeout=90)  # so the kubelet's probes pass
    pod = kube.pod(found["metadata"]["name"]) or {}
    address = pod["status"]["podIP"]

    kube.until("the policy at work", lambda: reach(kube, "stranger", address, GRPC) == "closed", 30)
    assert reach(kube, "peer", address, GRPC) == "open"
    assert reach(kube, "stranger", address, HEALTH) == "closed"
    assert reach(kube, "stranger", address, API) == "open"
    with kube.forward("service/guarded", API) as url:
        assert "Paris" in content(post(f"{url}/v1/chat/completions", chat()))
