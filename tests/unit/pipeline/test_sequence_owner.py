"""A sequence's id says whose it is, so that a peer cannot open or close what is another's."""

from __future__ import annotations

import pytest

from exo.pipeline.sequence import is_entry_of


@pytest.mark.parametrize("node_id", ["a", "a.b", "node-1", "x" * 64, "y" * 128])
def test_a_node_owns_the_ids_it_gives_out(node_id: str) -> None:
    assert is_entry_of(node_id, f"{node_id[:64]}.18eb1f/7/2")


@pytest.mark.parametrize(
    ("node_id", "sequence_id"),
    [
        ("a", "b.1/1/1"),
        ("a", "a.b.1/1/1"),
        ("a.b", "a.1/1/1"),
        ("a", "1/1"),
        ("a", "/"),
        ("a", "a"),
    ],
)
def test_nobody_owns_anything_else(node_id: str, sequence_id: str) -> None:
    assert not is_entry_of(node_id, sequence_id)
