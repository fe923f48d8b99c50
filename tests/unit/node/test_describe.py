"""What a node shows of the ring: where each node is reached."""

from __future__ import annotations

import asyncio

import pytest
from loopback import Net, formed, make_node

from exo.node import describe


def addresses(shown: dict[str, object]) -> dict[str, str]:
    return {node["id"]: node["address"] for node in shown["nodes"]}  # type: ignore[attr-defined]


async def test_a_peer_that_says_no_address_is_shown_where_it_was_found() -> None:
    net = Net()
    nodes = [make_node(net, name) for name in ("a", "b")]
    try:
        await asyncio.gather(*(node.initialize() for node in nodes))
        await formed(nodes, 2)
        assert addresses(nodes[0].describe_topology()) == {"a": "", "b": "loopback:1"}
        assert addresses(nodes[1].describe_topology()) == {"a": "loopback:1", "b": ""}
    finally:
        for node in nodes:
            await node.cleanup()


@pytest.mark.parametrize(
    ("said", "shown"), [("10.0.0.9", "10.0.0.9:50051"), ("fd00::9", "[fd00::9]:50051")]
)
def test_an_address_that_a_node_says_is_shown_with_its_port(said: str, shown: str) -> None:
    view = make_node(Net(), "a").view
    view.change(address=said, grpc_port=50051)
    assert addresses(describe.topology(view)) == {"a": shown}
