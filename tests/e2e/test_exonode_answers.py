"""From `kubectl apply` to an answer: the main job, seen on the real cluster."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from kube import Kube
from questions import chat, client, content, post

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example() -> tuple[str, str]:
    text = (EXAMPLES / "exonode.yaml").read_text()
    return yaml.safe_load(text)["metadata"]["name"], text


def curl(url: str, body: dict[str, object]) -> dict[str, object]:
    command = ["curl", "-sS", url, "-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def test_the_example_is_ready_within_a_minute_and_answers_through_service_and_port_forward(
    kube: Kube,
) -> None:
    name, manifest = example()
    started = time.monotonic()
    kube.apply(manifest)
    node = kube.ready("exonode", name, timeout=60)
    print(f"Ready after {time.monotonic() - started:.1f} s")
    conditions = {c["type"]: c["status"] for c in node["status"]["conditions"]}
    for condition in ("Ready", "Scheduled", "ModelLoaded", "Healthy"):
        assert conditions.get(condition) == "True", conditions

    with client(kube, "asker") as ask:
        assert "Paris" in content(ask(f"http://{name}:52415/v1/chat/completions", chat()))
    with kube.forward(f"service/{name}", 52415) as url:
        assert "Paris" in content(curl(f"{url}/v1/chat/completions", chat()))


def test_a_deleted_pod_comes_back_and_answers_again(kube: Kube) -> None:
    name, manifest = example()
    kube.apply(manifest)
    kube.ready("exonode", name)
    before = kube.uid(name)
    kube.run("delete", "pod", name, "--wait=false")
    kube.until("a new pod", lambda: kube.uid(name) not in (before, None), 90)
    kube.ready("exonode", name, timeout=90)
    with kube.forward(f"service/{name}", 52415) as url:
        assert "Paris" in content(post(f"{url}/v1/chat/completions", chat()))


def test_a_changed_spec_replaces_the_pod_and_ready_means_the_new_generation(kube: Kube) -> None:
    name, manifest = example()
    kube.apply(manifest)
    old = kube.ready("exonode", name)
    before = kube.uid(name)
    change = {"spec": {"extraEnv": [{"name": "EXO_LOG_FORMAT", "value": "json"}]}}
    kube.run("patch", "exonode", name, "--type=merge", "-p", json.dumps(change))
    new = kube.ready("exonode", name, timeout=120)
    assert new["metadata"]["generation"] > old["metadata"]["generation"]
    after = kube.pod(name)
    assert after is not None
    assert after["metadata"]["uid"] != before
    env = {e["name"]: e.get("value") for e in after["spec"]["containers"][0]["env"]}
    assert env["EXO_LOG_FORMAT"] == "json"


def test_a_deleted_exonode_takes_its_pod_and_services_along(kube: Kube) -> None:
    name, manifest = example()
    kube.apply(manifest)
    kube.ready("exonode", name)
    kube.run("delete", "exonode", name, timeout=90)
    kube.until("nothing left", lambda: not (kube.list("pod") or kube.list("service")), 60)


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ({"model": {"name": "gpt-17"}}, ["spec.model.name", "smollm2-135m"]),
        ({"model": {"name": "smollm2-135m"}, "storage": {"size": "-1Gi"}}, ["spec.storage.size"]),
        ({"model": {"name": "smollm2-135m", "path": "/models/x"}}, ["spec.model", "exactly one"]),
        ({"model": {}}, ["spec.model", "exactly one"]),
        (
            {"model": {"name": "smollm2-135m"}, "termination": {"drainSeconds": -3}},
            ["spec.termination.drainSeconds"],
        ),
        ({"model": {"name": "smollm2-135m"}, "engine": "cuda"}, ["spec.engine"]),
    ],
)
def test_an_invalid_manifest_is_refused_naming_the_field(
    kube: Kube, spec: dict[str, object], names: list[str]
) -> None:
    manifest = {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": "bad"},
        "spec": spec,
    }
    said = kube.refused(manifest)
    assert [name for name in names if name not in said] == [], said


def test_a_name_that_no_pod_could_carry_is_refused_naming_the_field(kube: Kube) -> None:
    manifest = {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": "n" * 64},
        "spec": {"model": {"name": "smollm2-135m"}},
    }
    assert "metadata.name" in kube.refused(manifest)
