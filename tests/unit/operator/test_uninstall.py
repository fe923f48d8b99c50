"""The drain before an uninstall, against a small HTTP server on loopback."""

from __future__ import annotations

from exo_operator import uninstall
from exo_operator.kube.client import KubeClient

from .http_server import Server


async def test_a_drain_deletes_all_and_ends_when_nothing_is_left(
    server: Server, kube: KubeClient
) -> None:
    empty = {"apiVersion": "v1", "metadata": {}, "items": []}
    node = {"metadata": {"name": "n", "namespace": "ns", "uid": "u"}}
    gone = (404, {"message": "the custom resources are gone"})
    server.answers = [
        gone,
        (200, empty | {"items": [node]}),
        (200, empty),
        (200, {}),
        gone,
        gone,
        (200, empty),
    ]
    assert await uninstall.drain(kube, ("",), grace=5, timeout=60.0, pause=0.0) == 0
    deleted = [where for method, where, *_ in server.asked if method == "DELETE"]
    assert deleted == ["/apis/exo.dev/v1alpha1/namespaces/ns/exonodes/n"]


async def test_a_drain_forces_pods_when_most_of_the_time_is_over(
    server: Server, kube: KubeClient
) -> None:
    empty = {"apiVersion": "v1", "metadata": {}, "items": []}
    stuck = {
        "metadata": {
            "name": "p",
            "namespace": "ns",
            "uid": "u",
            "deletionTimestamp": "2030-01-01T00:00:00Z",
        }
    }
    server.answers = [(200, empty), (200, empty), (200, empty | {"items": [stuck]}), (200, {})]
    server.answers += [(200, empty)] * 3
    assert await uninstall.drain(kube, ("",), grace=5, timeout=0.0, pause=0.0) == 0
    (body,) = [body for method, *_, body in server.asked if method == "DELETE"]
    assert body["gracePeriodSeconds"] == 0
