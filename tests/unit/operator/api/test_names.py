"""Names that the operator gives to objects."""

from __future__ import annotations

from exo_operator.api import names


def test_names_fit_into_what_kubernetes_allows() -> None:
    longest = "a" * names.MAX_CLUSTER_NAME
    assert len(names.child_node(longest, 999)) <= names.MAX_NAME
    assert len(names.ring_service("a" * names.MAX_NAME)) <= 63
    assert len(names.cache_claim("a" * names.MAX_NAME)) <= 63
