"""`helm uninstall` takes everything along within a minute, also when the operator is already gone.
Runs last.
"""

from __future__ import annotations

import time

import pytest
from installation import RELEASE, SYSTEM, helm, install
from kube import Kube


def node(name: str) -> dict[str, object]:
    return {
        "apiVersion": "exo.dev/v1alpha1",
        "kind": "ExoNode",
        "metadata": {"name": name},
        "spec": {"model": {"name": "smollm2-135m"}},
    }


@pytest.mark.parametrize("operator_gone", [False, True])
def test_helm_uninstall_leaves_nothing_terminating(kube: Kube, operator_gone: bool) -> None:
    install()
    kube.apply(node("last"))
    kube.ready("exonode", "last", timeout=90)
    if operator_gone:
        Kube(SYSTEM).run(
            "scale", "deployment", "-l", f"app.kubernetes.io/instance={RELEASE}", "--replicas=0"
        )
    started = time.monotonic()
    helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait", "--timeout", "90s")
    assert time.monotonic() - started < 60
    kube.until("no pod left", lambda: not kube.list("pod"), 30)
    terminating = [
        f"{kind}/{item['metadata']['name']}"
        for kind in ("pod", "service", "configmap", "persistentvolumeclaim")
        for item in kube.list(kind)
        if item["metadata"].get("deletionTimestamp")
    ]
    assert terminating == []
    # Namespaces of the tests before this one may still be ending: Kubernetes empties a namespace in
    # passes, pods first, each up to half a pod's grace period after the last. What our objects held
    # back would never end.
    kube.until("no namespace hangs in its termination", lambda: not ending_namespaces(kube), 120)


def ending_namespaces(kube: Kube) -> list[str]:
    return [
        n["metadata"]["name"]
        for n in kube.list("namespace")
        if n["status"]["phase"] == "Terminating"
    ]
