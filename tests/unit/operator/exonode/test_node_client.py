"""Asking a node about itself, over real HTTP on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from exo_operator.api.status import ResourceHealth
from exo_operator.exonode import node_client as nodes
from exo_operator.exonode.node_client import NodeClient
from hypothesis import given
from hypothesis import strategies as st

RESOURCES = {
    "ring-paris": {"state": "ready", "healthy": True, "reason": None, "last_error": None},
    "stage-paris": {
        "state": "degraded",
        "healthy": False,
        "reason": "forced",
        "last_error": "boom",
    },
}
RING = {
    "formed": True,
    "reason": "",
    "n_layers": 30,
    "epoch": "f3406db3",
    "stages": [
        {"node_id": "paris", "start_layer": 0, "end_layer": 14, "planned_mib": 90, "hop_ms": 0.4},
        {"node_id": "rome", "start_layer": 15, "end_layer": 29, "planned_mib": 110},
    ],
}
METRICS = """# HELP exo_api_tokens_per_second x
exo_api_tokens_per_second_sum 150.0
exo_api_tokens_per_second_count 3.0
exo_api_time_to_first_token_seconds_sum 0.6
exo_api_time_to_first_token_seconds_count 3.0
process_resident_memory_bytes 5.24288e+08
"""


class Node:
    """A node that answers what it is told to."""

    def __init__(self) -> None:
        self.ready: tuple[int, Any] = (200, {"status": "ok", "failing": {}, "resources": RESOURCES})
        self.ring: tuple[int, Any] = (200, RING)
        self.slow = False
        self.asked: list[str] = []
        self.port = 0

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.slow:
            await asyncio.sleep(3600)
        if request.path == "/metrics":
            return web.Response(text=METRICS)
        status, body = self.ready if request.path == "/readyz" else self.ring
        if isinstance(body, str):
            return web.Response(text=body, status=status, content_type="application/json")
        return web.json_response(body, status=status)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    served = Node()
    app = web.Application()
    app.router.add_get("/{path:.*}", served.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    served.port = runner.addresses[0][1]
    yield served
    await runner.cleanup()


async def ask(node: Node, timeout: float = 5.0, **options: Any) -> Any:
    client = NodeClient(timeout=timeout, port=node.port)
    try:
        return await client.report("127.0.0.1", "paris", **options)
    finally:
        await client.close()


async def test_a_healthy_node_tells_its_layers_its_ring_and_its_resources(node: Node) -> None:
    report = await ask(node)
    assert (report.reachable, report.ready, report.failing) == (True, True, {})
    assert (report.layers, report.total_layers, report.ring_size) == ((0, 14), 30, 2)
    assert (report.ring_formed, report.ring_epoch) == (True, "f3406db3")
    assert (report.planned_mib, report.hop_ms) == (90, 0.4)
    assert report.resources == (
        ResourceHealth(name="ring-paris", healthy=True, state="ready"),
        ResourceHealth(
            name="stage-paris", healthy=False, state="degraded", reason="forced", last_error="boom"
        ),
    )


async def test_figures_are_asked_for_only_when_wanted(node: Node) -> None:
    assert (await ask(node)).tokens_per_second is None
    assert "/metrics" not in node.asked
    report = await ask(node, figures=True)
    assert (report.tokens_per_second, report.used_mib) == (50.0, 500)
    assert report.ttft_ms == pytest.approx(200.0)


async def test_a_node_that_is_not_ready_names_what_fails(node: Node) -> None:
    node.ready = (
        503,
        {"status": "unavailable", "failing": {"stage-paris": "forced", "ring": "no peers"}},
    )
    report = await ask(node)
    assert report.ready is False
    assert report.failing == {"stage-paris": "forced", "ring": "no peers"}


async def test_behind_an_api_key_readiness_tells_of_the_ring(node: Node) -> None:
    node.ring = (401, {"error": {"message": "no key"}})
    assert (await ask(node)).ring_formed is True
    node.ready = (503, {"failing": {"ring": "no peers"}})
    assert (await ask(node)).ring_formed is False
    node.ready = (503, {"failing": {"stage": "forced"}})
    assert (await ask(node)).ring_formed is None


async def test_a_node_that_hangs_or_is_not_there_is_unreachable_in_bounded_time(node: Node) -> None:
    node.slow = True
    report = await ask(node, timeout=0.05)
    assert (report.reachable, report.ready) == (False, None)
    client = NodeClient(timeout=1.0, port=1)
    assert (await client.report("127.0.0.1", "paris")).reachable is False
    await client.close()


@pytest.mark.parametrize(
    "body", ["not json", "[]", '{"failing": 3, "resources": "x"}', '{"failing": {"a": {"b": 1}}}']
)
async def test_odd_answers_are_read_as_far_as_they_go(node: Node, body: str) -> None:
    node.ready = (503, body)
    node.ring = (200, {"stages": {"a": 1}, "epoch": ["x"], "formed": "yes"})
    report = await ask(node)
    assert report.ready in (False, None)
    assert report.layers is None


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
keys = st.sampled_from(
    ["stages", "epoch", "formed", "n_layers", "failing", "resources", "node_id", "start_layer"]
)


@given(
    body=st.dictionaries(
        keys, json | st.lists(st.dictionaries(keys, json, max_size=3), max_size=3), max_size=6
    )
)
def test_no_answer_of_a_node_can_break_the_operator(body: dict[str, Any]) -> None:
    nodes.parse_ring(body, "paris")
    facts = nodes.parse_ready(503, body)
    assert isinstance(facts["failing"], dict)
    nodes.NodeReport(reachable=True, **(facts | nodes.parse_ring(body, "paris")))


@given(st.text(max_size=200))
def test_no_metrics_page_can_break_the_operator(page: str) -> None:
    nodes.parse_metrics(page + "\nprocess_resident_memory_bytes nonsense\n")
