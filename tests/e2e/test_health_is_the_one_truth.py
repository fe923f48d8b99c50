"""Readiness and liveness on the real kubelet follow the resources' own health checks."""

from __future__ import annotations

import concurrent.futures
import time
import urllib.error
import urllib.request
from typing import Any

from kube import Kube, on_node
from questions import chat, post

FAULTS = "/tmp/faults"


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "smollm2-135m"},
            "extraEnv": [{"name": "EXO_FAULT_DIR", "value": FAULTS}],
            **spec,
        },
    }


def readyz(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as response:
            return int(response.status), response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def ready_endpoints(kube: Kube, name: str) -> int:
    slices = kube.list("endpointslices", f"kubernetes.io/service-name={name}")
    endpoints = [e for s in slices for e in s.get("endpoints") or []]
    return sum(bool(e["conditions"].get("ready")) for e in endpoints)


def pod_ready(kube: Kube, name: str) -> bool:
    conditions = (kube.pod(name) or {}).get("status", {}).get("conditions", [])
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def exec_python(kube: Kube, pod: str, code: str) -> None:
    kube.run("exec", pod, "--", "python3", "-c", code)


def inject(kube: Kube, pod: str, kind: str, reason: str) -> None:
    """The file is there with all its text at once: a check may look at any moment."""
    new, fault = f"{FAULTS}/{kind}.new", f"{FAULTS}/{kind}"
    code = (
        f"import os; os.makedirs('{FAULTS}'); open('{new}', 'w').write('{reason}');"
        f" os.rename('{new}', '{fault}')"
    )
    exec_python(kube, pod, code)


def test_a_failing_health_check_takes_the_node_out_within_ten_seconds_and_back(kube: Kube) -> None:
    kube.apply(manifest("sick"))
    kube.ready("exonode", "sick")
    with kube.forward("pod/sick", 52415) as url:
        assert readyz(url)[0] == 200
        fault = f"{FAULTS}/inference_engine"
        inject(kube, "sick", "inference_engine", "pulled the plug")
        struck = time.monotonic()

        def says_why() -> bool:
            """In one answer: a moment later the engine may be in its first recovery, with other
            words.
            """
            status, body = readyz(url)
            return status == 503 and "pulled the plug" in body

        kube.until("/readyz 503 that says why", says_why, 10, 0.2)
        kube.until(
            "pod NotReady",
            lambda: not pod_ready(kube, "sick"),
            10 - (time.monotonic() - struck),
            0.2,
        )
        kube.until(
            "endpoint away",
            lambda: not ready_endpoints(kube, "sick"),
            10 - (time.monotonic() - struck),
            0.2,
        )

        def told() -> dict[str, Any] | None:
            ready = kube.condition("exonode", "sick", "Ready")
            return (
                ready
                if ready.get("status") == "False" and "engine" in ready.get("message", "")
                else None
            )

        ready = kube.until(
            "ExoNode Ready False naming the resource", told, 10 - (time.monotonic() - struck), 0.2
        )
        print(
            f"told after {time.monotonic() - struck:.1f} s: {ready['reason']}: {ready['message']}"
        )
        exec_python(kube, "sick", f"import os; os.remove('{fault}')")
        kube.ready("exonode", "sick", timeout=15)
        assert readyz(url)[0] == 200
        # Whoever keeps the endpoints follows the pod, as the operator does, a moment later or
        # earlier.
        kube.until("endpoint back", lambda: ready_endpoints(kube, "sick") == 1, 10, 0.2)
    assert kube.restarts("sick") == 0


def test_a_hanging_process_is_restarted_and_a_busy_one_is_not(kube: Kube) -> None:
    kube.apply(manifest("busy"))
    kube.ready("exonode", "busy")
    with kube.forward("pod/busy", 52415) as url, concurrent.futures.ThreadPoolExecutor(8) as pool:
        body = chat(max_tokens=200, ignore_eos=True)
        answers = list(
            pool.map(lambda _: post(f"{url}/v1/chat/completions", body, timeout=200), range(8))
        )
    assert [a["usage"]["completion_tokens"] for a in answers] == [200] * 8
    assert kube.restarts("busy") == 0
    assert pod_ready(kube, "busy")

    node, (pid,) = kube.host_pids("busy")
    on_node(node, "kill", "-STOP", str(pid))
    kube.until("a restart by the kubelet", lambda: kube.restarts("busy") == 1, 90)
    kube.ready("exonode", "busy", timeout=60)


def test_native_grpc_probes_report_the_same_truth(kube: Kube) -> None:
    kube.apply(manifest("native", probes={"protocol": "GRPC"}))
    kube.ready("exonode", "native")
    container = (kube.pod("native") or {})["spec"]["containers"][0]
    services = {
        probe: container[probe]["grpc"]["service"] for probe in container if probe.endswith("Probe")
    }
    assert services == {
        "startupProbe": "started",
        "readinessProbe": "ready",
        "livenessProbe": "live",
    }
    fault = f"{FAULTS}/inference_engine"
    inject(kube, "native", "inference_engine", "gone")
    kube.until("pod NotReady", lambda: not pod_ready(kube, "native"), 12, 0.2)
    exec_python(kube, "native", f"import os; os.remove('{fault}')")
    kube.ready("exonode", "native", timeout=20)
