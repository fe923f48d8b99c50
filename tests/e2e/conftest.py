"""Fixtures of the e2e tests: the operator installed by Helm, and a namespace of its own for each
test.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from installation import SYSTEM, install
from kube import Kube


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.cluster)
            item.add_marker(pytest.mark.timeout(300))
            if not os.environ.get("EXO_E2E"):
                item.add_marker(
                    pytest.mark.skip(reason="needs the local Kubernetes cluster: run `make e2e`")
                )


@pytest.fixture(scope="session")
def operator() -> Kube:
    """The operator, installed by real Helm; the namespace it lives in."""
    install()
    return Kube(SYSTEM)


@pytest.fixture
def kube(operator: Kube, request: pytest.FixtureRequest) -> Iterator[Kube]:
    """A namespace of the test's own, held to the restricted Pod Security standard,
    gone afterwards.
    """
    name = "e2e-" + request.node.name.removeprefix("test_").split("[")[0].replace("_", "-")[
        :50
    ].rstrip("-")
    cluster = Kube(name)
    cluster.call("delete", "namespace", name, "--ignore-not-found", "--wait=true", timeout=120)
    cluster.run("create", "namespace", name)
    cluster.run("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield cluster
    if request.session.testsfailed and os.environ.get("KEEP_FAILED"):
        return
    cluster.call("delete", "namespace", name, "--wait=false")
