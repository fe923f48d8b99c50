"""Asking a node on the cluster: over a forwarded port, or from a pod of its own inside."""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from kube import Kube

QUESTION = "What is the capital of France?"
NODE_IMAGE = os.environ.get("EXO_NODE_IMAGE", "exo-node:dev")
CLIENT_CODE = """
import json, sys, urllib.error, urllib.request
url, body = sys.argv[1], sys.argv[2]
headers = {"Content-Type": "application/json"}
request = urllib.request.Request(url, data=body.encode() or None, headers=headers)
try:
    with urllib.request.urlopen(request, timeout=60) as response:
        sys.stdout.write(response.read().decode())
except urllib.error.HTTPError as error:
    sys.stdout.write(error.read().decode())
"""


def post(url: str, body: dict[str, Any], timeout: float = 60) -> dict[str, Any]:
    request = urllib.request.Request(
        url,
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=timeout) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


def content(answer: dict[str, Any]) -> str:
    """The text of a chat completion; an error's own JSON where there is none."""
    assert "choices" in answer, answer
    return str(answer["choices"][0]["message"]["content"])


def chat(**more: Any) -> dict[str, Any]:
    """The body of a chat completion that asks the question, greedily."""
    messages = [{"role": "user", "content": QUESTION}]
    return {
        "model": "smollm2-135m",
        "messages": messages,
        "max_tokens": 24,
        "temperature": 0,
        **more,
    }


def client_manifest(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A restricted pod of the node's image that only waits: a place in the cluster to ask from."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "client",
                    "image": NODE_IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", "import signal; signal.pause()"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


@contextlib.contextmanager
def client(
    kube: Kube, name: str, labels: dict[str, str] | None = None
) -> Iterator[Callable[[str, dict[str, Any] | None], dict[str, Any]]]:
    """A client inside the cluster: `ask(url, body)` returns the JSON of the answer."""
    kube.apply(client_manifest(name, labels))
    kube.run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s", timeout=70)

    def ask(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        out = kube.run(
            "exec", name, "--", "python3", "-c", CLIENT_CODE, url, json.dumps(body) if body else ""
        )
        answer: dict[str, Any] = json.loads(out)
        return answer

    try:
        yield ask
    finally:
        kube.run("delete", "pod", name, "--wait=false")
