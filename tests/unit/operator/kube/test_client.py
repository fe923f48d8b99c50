"""The API client against a small HTTP server on loopback: what goes over the wire, and what errors
become.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from exo_operator import uninstall
from exo_operator.kube.client import (
    Conflicted,
    Invalid,
    KubeClient,
    KubeError,
    NotFound,
    event,
    path,
)
from kubernetes.aio import client

from ..builders import exonode


class Server:
    """Answers from a list, in turn; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, str, dict[str, str], str, Any]] = []
        self.headers: dict[str, str] = {}
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        text = await request.text()
        body = json.loads(text) if text else None
        kind = request.headers.get("Content-Type", "")
        self.asked.append((request.method, request.path, dict(request.query), kind, body))
        status, answer = self.answers.pop(0) if self.answers else (200, {})
        return web.json_response(answer, status=status, headers=self.headers)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    served = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", served.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield served
    await runner.cleanup()


@pytest.fixture
async def kube(server: Server) -> AsyncIterator[KubeClient]:
    made = KubeClient(client.ApiClient(client.Configuration(host=server.url)))
    yield made
    await made.close()


def test_paths() -> None:
    assert path("Pod", "ns", "p", "status") == "/api/v1/namespaces/ns/pods/p/status"
    assert path("ExoNode") == "/apis/exo.dev/v1alpha1/exonodes"
    assert path("PodDisruptionBudget", "ns") == "/apis/policy/v1/namespaces/ns/poddisruptionbudgets"


async def test_apply_is_a_server_side_apply_under_our_field_manager(
    server: Server, kube: KubeClient
) -> None:
    manifest = {"kind": "Service", "metadata": {"name": "s", "namespace": "ns"}, "spec": {}}
    await kube.apply(manifest)
    method, where, query, content_type, body = server.asked[0]
    assert (method, where) == ("PATCH", "/api/v1/namespaces/ns/services/s")
    assert query == {"fieldManager": "exo-operator", "force": "true"}
    assert content_type == "application/apply-patch+yaml"
    assert body == manifest


async def test_a_status_is_written_to_this_very_object(server: Server, kube: KubeClient) -> None:
    await kube.apply_status(exonode(), {"conditions": []})
    _, where, _, _, body = server.asked[0]
    assert where == "/apis/exo.dev/v1alpha1/namespaces/default/exonodes/paris/status"
    assert body["metadata"] == {"name": "paris", "namespace": "default", "uid": "uid-paris"}
    assert "spec" not in body


async def test_a_deletion_names_the_uid_and_finding_nothing_is_fine(
    server: Server, kube: KubeClient
) -> None:
    server.answers = [(200, {}), (404, {"message": "no"}), (409, {"message": "other uid"})]
    for _ in range(3):
        await kube.delete("Pod", "ns", "p", "uid-1", 0)
    assert server.asked[0][4] == {
        "preconditions": {"uid": "uid-1"},
        "propagationPolicy": "Background",
        "gracePeriodSeconds": 0,
    }


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, NotFound), (409, Conflicted), (422, Invalid), (403, KubeError), (500, KubeError)],
)
async def test_errors_carry_the_servers_words(
    server: Server, kube: KubeClient, status: int, kind: type[KubeError]
) -> None:
    server.answers = [(status, {"message": "the server's words"})]
    with pytest.raises(kind, match="the server's words") as caught:
        await kube.get("Pod", "ns", "p")
    assert caught.value.status == status


async def test_retry_after_is_understood(server: Server, kube: KubeClient) -> None:
    server.answers, server.headers = [(429, {"message": "slow down"})], {"Retry-After": "7"}
    with pytest.raises(KubeError) as caught:
        await kube.get("Pod", "ns", "p")
    assert caught.value.retry_after == 7.0


async def test_a_list_follows_its_pages_and_gives_items_their_kind(
    server: Server, kube: KubeClient
) -> None:
    pages = [
        {
            "apiVersion": "v1",
            "metadata": {"continue": "next"},
            "items": [{"metadata": {"name": "a"}}],
        },
        {"apiVersion": "v1", "metadata": {}, "items": [{"metadata": {"name": "b"}}]},
    ]
    server.answers = [(200, page) for page in pages]
    found = [obj async for obj in kube.list_all("Pod", selector="a=b")]
    assert [(obj["kind"], obj["apiVersion"], obj["metadata"]["name"]) for obj in found] == [
        ("Pod", "v1", "a"),
        ("Pod", "v1", "b"),
    ]
    assert server.asked[1][2] == {"limit": "500", "labelSelector": "a=b", "continue": "next"}


def test_an_event_has_a_name_of_its_own_and_says_whom_it_is_about() -> None:
    made = [
        event(
            exonode(), type_="Normal", reason="R", action="A", note="n" * 5000, at="t", instance="i"
        )
        for _ in range(2)
    ]
    assert made[0]["metadata"]["name"].startswith("paris.")
    assert made[0]["metadata"]["name"] != made[1]["metadata"]["name"]
    assert made[0]["regarding"]["uid"] == "uid-paris"
    assert len(made[0]["note"]) == 1024


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


async def test_a_secret_is_made_where_there_is_none_and_left_alone_where_there_is(
    server: Server, kube: KubeClient
) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "ring-ring", "namespace": "ns"},
    }
    server.answers = [
        (201, {**manifest, "data": {"secret": "aGk="}}),
        (409, {"message": "already exists"}),
        (403, {}),
    ]
    assert await kube.create_secret(manifest) is True
    assert await kube.create_secret(manifest) is False
    with pytest.raises(KubeError):
        await kube.create_secret(manifest)
    assert {(method, path) for method, path, *_ in server.asked} == {
        ("POST", "/api/v1/namespaces/ns/secrets")
    }
