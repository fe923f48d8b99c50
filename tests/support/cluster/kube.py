"""kubectl and the cluster's own verbs as thin calls with a time limit.

Acts on the cluster that `KUBECONFIG` names and on nothing else. Knows no operator code.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ports import free_ports

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = ROOT / "tests" / "cluster" / "cluster"


@dataclass
class Recording:
    """A running kubectl and its output. It writes to a file: a full pipe would block it."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    def said(self) -> str:
        file = self.output.fileno()
        # Not by seek and read: the process shares the position in the file.
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def ended(self) -> bool:
        return self.process.poll() is not None


@dataclass
class Kube:
    """kubectl against one namespace. `run` raises with kubectl's own words."""

    namespace: str
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    def run(
        self, *args: str, stdin: str | None = None, timeout: float = 60, check: bool = True
    ) -> str:
        done = self.call(*args, stdin=stdin, timeout=timeout)
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def call(
        self, *args: str, stdin: str | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["kubectl", "-n", self.namespace, *args],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.env,
            check=False,
        )

    def popen(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["kubectl", "-n", self.namespace, *args],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.env,
        )

    @contextlib.contextmanager
    def recording(self, *args: str) -> Iterator[Recording]:
        """A kubectl, such as a watch, that runs until the block ends."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                ["kubectl", "-n", self.namespace, *args],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.env,
            )
            try:
                yield Recording(process, output)
            finally:
                process.terminate()
                process.wait(timeout=10)

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        out = self.run("get", kind, name, "--ignore-not-found", "-o", "json")
        found: dict[str, Any] | None = json.loads(out) if out.strip() else None
        return found

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        args = ["-l", selector] if selector else []
        items: list[dict[str, Any]] = json.loads(self.run("get", kind, *args, "-o", "json"))[
            "items"
        ]
        return items

    def apply(self, manifest: dict[str, Any] | str) -> str:
        return self.run(
            "apply",
            "-f",
            "-",
            stdin=manifest if isinstance(manifest, str) else json.dumps(manifest),
        )

    def refused(self, manifest: dict[str, Any]) -> str:
        """Apply what must be refused; returns the API server's words."""
        done = self.call("apply", "-f", "-", stdin=json.dumps(manifest))
        assert done.returncode != 0, f"accepted: {manifest}"
        return done.stderr

    def condition(self, kind: str, name: str, condition: str) -> dict[str, Any]:
        found = self.get(kind, name) or {}
        for entry in found.get("status", {}).get("conditions", []):
            if entry["type"] == condition:
                return dict(entry)
        return {}

    def until(self, what: str, check: Callable[[], Any], timeout: float, every: float = 0.5) -> Any:
        """The first truthy answer of `check`, or a failure that says what was last seen."""
        deadline, last = time.monotonic() + timeout, None
        while time.monotonic() < deadline:
            last = check()
            if last:
                return last
            time.sleep(every)
        events = self.call("get", "events", "--sort-by=.lastTimestamp").stdout[-3000:]
        raise AssertionError(f"{what}: not within {timeout} s; last seen: {last!r}\n{events}")

    def ready(self, kind: str, name: str, timeout: float = 60) -> dict[str, Any]:
        def check() -> dict[str, Any] | None:
            found = self.get(kind, name) or {}
            ready = next(
                (c for c in found.get("status", {}).get("conditions", []) if c["type"] == "Ready"),
                {},
            )
            current = found.get("metadata", {}).get("generation") == ready.get(
                "observedGeneration", -1
            )
            return found if ready.get("status") == "True" and current else None

        try:
            return dict(self.until(f"{kind}/{name} Ready", check, timeout))
        except AssertionError as error:
            raise AssertionError(
                f"{error}\n{self.call('get', kind, name, '-o', 'yaml').stdout[-4000:]}"
            ) from None

    def pod(self, name: str) -> dict[str, Any] | None:
        return self.get("pod", name)

    def uid(self, name: str) -> str | None:
        """The unique id of a pod: another one is another pod."""
        found = (self.pod(name) or {}).get("metadata", {}).get("uid")
        return str(found) if found else None

    def restarts(self, name: str) -> int:
        statuses = (self.pod(name) or {}).get("status", {}).get("containerStatuses", [])
        return sum(int(status["restartCount"]) for status in statuses)

    def host_pids(self, pod: str) -> tuple[str, list[int]]:
        """A pod's cluster node, and the ids on that node of its containers' first processes."""
        found = self.pod(pod) or {}
        node = found["spec"]["nodeName"]
        pids = []
        for status in found["status"]["containerStatuses"]:
            container = status["containerID"].removeprefix("containerd://")
            out = on_node(
                node,
                "crictl",
                "inspect",
                "-o",
                "go-template",
                "--template",
                "{{.info.pid}}",
                container,
            )
            pids.append(int(out.strip()))
        return node, pids

    @contextlib.contextmanager
    def forward(self, target: str, port: int) -> Iterator[str]:
        """`kubectl port-forward`; yields the address under which it answers."""
        (local,) = free_ports(1)
        process = self.popen("port-forward", "--address", "127.0.0.1", target, f"{local}:{port}")
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "Forwarding from" in line, line
            yield f"http://127.0.0.1:{local}"
        finally:
            process.terminate()
            process.wait(timeout=10)
            process.stdout.close()  # type: ignore[union-attr]


def on_node(node: str, *command: str) -> str:
    """Run a command in a shell on a cluster node."""
    done = subprocess.run(
        [str(CLUSTER), "exec-node", node, *command],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{node}: {command}: {done.stderr}"
    return done.stdout


def verb(name: str, *args: str) -> str:
    """One of the cluster's own verbs, such as `kill-node NODE`."""
    done = subprocess.run(
        [str(CLUSTER), name, *args], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{name} {args}: {done.stderr}"
    return done.stdout
