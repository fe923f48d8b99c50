"""Three ExoNodes, one per cluster node, serve one model; a lost machine loses no token."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from kube import Kube, verb
from questions import chat, client_manifest, content, post
from streamed import Stream

NAME = "trio"
LOAD = """
import json, os, sys, threading, urllib.request
url, answers, failed = sys.argv[1], 0, []
body = json.dumps({"model": "smollm2-135m", "stream": True, "max_tokens": 24,
                   "temperature": 0, "ignore_eos": True,
                   "messages": [{"role": "user", "content": "Count to ten."}]}).encode()
def client():
    global answers
    while not os.path.exists("/tmp/stop"):
        try:
            request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=120) as response:
                text = response.read().decode()
            assert '"error"' not in text and text.rstrip().endswith("data: [DONE]"), text[-300:]
            answers += 1
            print("answers", answers, flush=True)
        except Exception as error:
            failed.append(repr(error))
            print("failed with", error, flush=True)
threads = [threading.Thread(target=client) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(json.dumps({"answers": answers, "failed": failed}), flush=True)
"""
NODES = [f"{NAME}-{index}" for index in range(3)]
PROMPTS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "How many days has a week?",
)


def ring(engine: str = "numpy") -> dict[str, Any]:
    return {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoCluster",
        "metadata": {"name": NAME},
        "spec": {"model": {"name": "smollm2-135m"}, "nodes": 3, "template": {"engine": engine}},
    }


def single() -> dict[str, Any]:
    return {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": "alone"},
        "spec": {"model": {"name": "smollm2-135m"}, "engine": "numpy"},
    }


def ask(url: str, prompt: str, tokens: int = 32) -> str:
    body = chat(messages=[{"role": "user", "content": prompt}], max_tokens=tokens)
    return content(post(f"{url}/v1/chat/completions", body, timeout=120))


def layers(kube: Kube) -> dict[str, tuple[int, int]]:
    """Who runs which layers, as the ExoNodes' status tells it."""
    found = {}
    for node in kube.list("exonode", f"exo.dev/cluster={NAME}"):
        held = node.get("status", {}).get("layers") or {}
        if "start" in held:
            found[node["metadata"]["name"]] = (int(held["start"]), int(held["end"]))
    return found


def placed(kube: Kube) -> dict[str, str]:
    pods = kube.list("pod", f"exo.dev/cluster={NAME}")
    return {p["metadata"]["name"]: p["spec"].get("nodeName", "") for p in pods}


@pytest.fixture
def lost_machine() -> Iterator[list[str]]:
    """Cluster nodes put in here are powered on again afterwards."""
    lost: list[str] = []
    yield lost
    for node in lost:
        verb("start-node", node)


def the_nodes_share_a_secret_of_their_own(kube: Kube) -> None:
    """Each pod reads it from the Secret, nowhere is it in clear, and another ring has another."""
    made, other = kube.get("secret", f"{NAME}-ring"), kube.get("secret", "alone-ring")
    assert made is not None
    assert other is not None
    value = made["data"]["secret"]
    assert len(value) > 40
    assert value != other["data"]["secret"]
    assert [owner["kind"] for owner in made["metadata"]["ownerReferences"]] == ["ExoCluster"]
    pods = kube.list("pod", f"exo.dev/cluster={NAME}")
    source = {"secretKeyRef": {"name": f"{NAME}-ring", "key": "secret"}}
    for pod in pods:
        env = {each["name"]: each for each in pod["spec"]["containers"][0]["env"]}
        assert env["EXO_SECRET"] == {"name": "EXO_SECRET", "valueFrom": source}
    assert base64.b64decode(value).decode() not in json.dumps(pods)


@pytest.mark.timeout(600)
def test_three_slices_speak_as_one_and_a_lost_machine_loses_no_token(
    kube: Kube, lost_machine: list[str]
) -> None:
    kube.apply(single())
    kube.apply(ring())
    kube.ready("exonode", "alone", timeout=120)
    kube.ready("exocluster", NAME, timeout=180)
    # Ready as soon as all are; a node's status may still tell the slice that it had before the last
    # one joined.
    kube.until(
        "a plan told by all",
        lambda: kube.condition("exocluster", NAME, "PlanValid").get("status") == "True",
        60,
    )
    held = layers(kube)
    assert sorted(held) == NODES, held
    covered = sorted(layer for start, end in held.values() for layer in range(start, end + 1))
    assert covered == list(range(30)), held
    where = placed(kube)
    assert len(set(where.values())) == 3, where
    the_nodes_share_a_secret_of_their_own(kube)

    with kube.forward("pod/alone", 52415) as alone, kube.forward(f"pod/{NODES[0]}", 52415) as entry:
        expected = [ask(alone, prompt) for prompt in PROMPTS]
        assert [ask(entry, prompt) for prompt in PROMPTS] == expected

        whole = Stream(alone, 200)
        whole.run()
        victim = next(n for n in NODES[1:] if where[n] != where[NODES[0]])
        stream = Stream(entry, 200)
        stream.start()
        assert stream.flowing.wait(60)
        verb("kill-node", where[victim])
        lost_machine.append(where[victim])
        stream.join(timeout=120)
    assert stream.error == ""
    assert (stream.done, stream.finish, stream.text) == (True, whole.finish, whole.text)


def load_pod() -> dict[str, Any]:
    """Eight clients inside the cluster that stream through the Service till told to stop, and count
    what failed.
    """
    pod = client_manifest("load")
    pod["spec"]["restartPolicy"] = "Never"  # started again, it would have a log without the sum
    pod["spec"]["containers"][0]["command"] = [
        "python3",
        "-c",
        LOAD,
        f"http://{NAME}:52415/v1/chat/completions",
    ]
    return pod


@pytest.mark.timeout(600)
def test_a_rolling_replacement_under_load_fails_no_request(kube: Kube) -> None:
    kube.apply(ring("auto"))
    kube.ready("exocluster", NAME, timeout=180)
    before = {name: kube.uid(name) for name in NODES}
    kube.apply(load_pod())
    kube.until("load running", lambda: "answers 8" in kube.call("logs", "load").stdout, 120)
    change = {"spec": {"template": {"extraEnv": [{"name": "EXO_LOG_FORMAT", "value": "json"}]}}}
    kube.run("patch", "exocluster", NAME, "--type=merge", "-p", json.dumps(change))
    kube.until(
        "all replaced", lambda: all(kube.uid(n) not in (before[n], None) for n in NODES), 300
    )
    kube.ready("exocluster", NAME, timeout=120)
    kube.run("exec", "load", "--", "python3", "-c", "open('/tmp/stop', 'w')")
    logged = kube.until(
        "the load's sum", lambda: '"failed":' in (seen := kube.run("logs", "load")) and seen, 120
    )
    told = json.loads(logged.splitlines()[-1])
    assert told["answers"] > 8
    assert told["failed"] == [], told
