"""Pod termination is `cleanup()`: the stream ends whole, in order, exit 0; the operator's own death
harms nobody.
"""

from __future__ import annotations

import json
from typing import Any

from installation import SYSTEM
from kube import Kube, on_node
from streamed import Stream


def manifest(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": name},
        "spec": {
            "model": {"name": "smollm2-135m"},
            "extraEnv": [{"name": "EXO_LOG_FORMAT", "value": "json"}],
        },
    }


def test_a_pod_deleted_in_mid_stream_ends_the_stream_whole_and_exits_zero(kube: Kube) -> None:
    kube.apply(manifest("drain"))
    kube.ready("exonode", "drain")
    before = kube.uid("drain")
    watching = kube.recording("get", "pod", "drain", "--watch", "-o", "json")
    with kube.recording("logs", "-f", "drain") as logs, watching as watch:
        with kube.forward("pod/drain", 52415) as url:
            stream = Stream(url, tokens=300)
            stream.start()
            assert stream.flowing.wait(30)
            kube.run("delete", "pod", "drain", "--wait=false")
            stream.join(timeout=60)
        assert stream.error == ""
        assert (stream.done, stream.finish) == (True, "length")
        kube.until("the log's end", logs.ended, 60)
        assert_cleanup_order(logs.said())
        kube.until("the pod away", lambda: kube.uid("drain") != before, 60)
        kube.until("its end in the watch", lambda: terminated(watch.said()), 10)
        codes = {s["exitCode"] for s in terminated(watch.said())}
        assert codes == {0}, watch.said()[-2000:]


def assert_cleanup_order(text: str) -> None:
    """Admission stops, then the drain, then the parts close: what took requests before what served
    them.
    """
    closed = [
        str(event["resource_type"])
        for event in (json.loads(line) for line in text.splitlines() if line.startswith("{"))
        if str(event.get("to")).lower() == "closed"
    ]
    assert "inference_engine" in closed, text[-4000:]
    order = [kind for kind in closed if kind in ("server", "inference_engine", "node")]
    assert order.index("server") < order.index("inference_engine") < order.index("node"), closed


def terminated(stream: str) -> list[dict[str, Any]]:
    """The final container states in a watch's stream of pod objects."""
    decoder, at = json.JSONDecoder(), 0
    found: list[dict[str, Any]] = []
    while (at := stream.find("{", at)) >= 0:
        try:
            pod, at = decoder.raw_decode(stream, at)
        except json.JSONDecodeError:
            break
        statuses = pod.get("status", {}).get("containerStatuses", [])
        found += [
            status["state"]["terminated"]
            for status in statuses
            if "terminated" in status.get("state", {})
        ]
    return found


def test_an_operator_killed_in_mid_create_converges_after_its_restart_and_restarts_no_pod(
    kube: Kube, operator: Kube
) -> None:
    names = [f"born-{index}" for index in range(3)]
    pods = operator.list("pod", "app.kubernetes.io/name=exo-operator")
    # An upgrade before may linger.
    (pod,) = [each for each in pods if not each["metadata"].get("deletionTimestamp")]
    node, pids = operator.host_pids(pod["metadata"]["name"])
    kube.apply("\n---\n".join(json.dumps(manifest(name)) for name in names))
    on_node(node, "kill", "-9", *map(str, pids))
    for name in names:
        kube.ready("exonode", name, timeout=150)
    assert Kube(SYSTEM).restarts(pod["metadata"]["name"]) >= 1
    assert {name: kube.restarts(name) for name in names} == dict.fromkeys(names, 0)
    assert len(kube.list("pod")) == len(names)
