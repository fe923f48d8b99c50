"""Offers refuse nonsense by field; the topology is a value."""

from __future__ import annotations

import pytest

from exo.topology import NodeOffer, Topology


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_id", ""),
        ("node_id", "x" * 129),
        ("incarnation", -1),
        ("memory_mib", -1),
        ("memory_mib", 2**63),
        ("grpc_port", 65536),
        ("address", "a" * 513),
        ("peers", ("",)),
        ("peers", ("a",) * 257),
        ("slow", ("x" * 129,)),
        ("stuck", "x" * 513),
        ("pass_ms", -1),
        ("pinned", (3, 2)),
    ],
)
def test_an_offer_names_the_field_that_is_wrong(field, value):
    good = {"node_id": "a", "incarnation": 1}
    with pytest.raises(ValueError, match=f"^{field}: "):
        NodeOffer(**{**good, field: value})


def test_a_topology_has_the_connections_between_known_nodes_as_they_report_them():
    a = NodeOffer(node_id="a", incarnation=1, peers=("b",))
    b = NodeOffer(node_id="b", incarnation=1)
    assert Topology.of(a, [b]).edges() == [("a", "b")]
    b = NodeOffer(node_id="b", incarnation=1, peers=("a", "gone"))
    both = Topology.of(a, [b])
    assert both.edges() == [("a", "b"), ("b", "a")]
    assert both.nodes() == [a, b]
    assert Topology.of(a).edges() == []
