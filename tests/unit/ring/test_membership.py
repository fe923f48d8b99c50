"""Who plans together, for every way a network can be cut."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.ring import membership
from exo.topology import ModelFootprint, NodeOffer, NodeState, NoPlan, RingPlan, plan_ring

MIB = 1024 * 1024
MODEL = ModelFootprint.uniform("m", 4, 100 * MIB)


def offers(
    links: str, *, slow: Mapping[str, str] | None = None, memory: int = 1000
) -> dict[str, NodeOffer]:
    """links: "ab bc" means a-b and b-c."""
    nodes = sorted(set(links.replace(" ", "")))
    pairs = {frozenset(pair) for pair in links.split()}
    return {
        node: NodeOffer(
            node_id=node,
            incarnation=1,
            memory_mib=memory,
            state=NodeState.SERVING,
            peers=tuple(
                other for other in nodes if other != node and frozenset((node, other)) in pairs
            ),
            slow=tuple((slow or {}).get(node, "")),
        )
        for node in nodes
    }


def ids(view: list[NodeOffer]) -> str:
    return "".join(offer.node_id for offer in view)


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ("ab ac bc", {"a": "abc", "b": "abc", "c": "abc"}),
        ("ac bc", {"a": "ac", "b": "bc", "c": "ac"}),  # b is left out: c plans with a
        ("ab bc cd da", {"a": "ab", "b": "ab", "c": "bc", "d": "ad"}),
        ("aa bb", {"a": "a", "b": "b"}),
    ],
)
def test_members_are_those_who_see_each_other(links: str, expected: dict[str, str]) -> None:
    known = offers(links)
    assert {node: ids(membership.members(node, known)) for node in known} == expected


def test_a_link_that_only_one_side_reports_does_not_count() -> None:
    known = offers("ab ac bc")
    known["c"] = NodeOffer(node_id="c", incarnation=1, peers=("b",))
    assert ids(membership.members("a", known)) == "ab"


@given(st.sets(st.sampled_from([*combinations("abcde", 2)])), st.sampled_from("abcde"))
def test_members_always_form_a_clique_with_the_node_itself(
    pairs: set[tuple[str, str]], node: str
) -> None:
    known = offers(" ".join(["ab", "cd", "ee"] + ["".join(pair) for pair in pairs]))
    chosen = membership.members(node, known)
    assert node in ids(chosen)
    assert all(two.node_id in one.peers for one in chosen for two in chosen if one is not two)


def test_a_node_that_all_others_call_slow_is_planned_without() -> None:
    known = list(offers("ab ac bc", slow={"a": "c", "b": "c", "c": "ab"}).values())
    assert ids(membership.without_slow(known)) == "ab"
    assert [stage.node_id for stage in membership.plan_members(known, MODEL, plan_ring).stages] == [
        "a",
        "b",
    ]


def test_one_opinion_makes_nobody_slow_and_of_two_nodes_neither() -> None:
    known = list(offers("ab ac bc", slow={"a": "c"}).values())
    assert ids(membership.without_slow(known)) == "abc"
    pair = list(offers("ab", slow={"a": "b", "b": "a"}).values())
    assert ids(membership.without_slow(pair)) == "ab"


def test_a_slow_node_without_which_the_model_does_not_fit_stays() -> None:
    known = list(offers("ab ac bc", slow={"a": "c", "b": "c"}, memory=200).values())
    small = ModelFootprint.uniform("m", 6, 100 * MIB)
    assert len(membership.plan_members(known, small, plan_ring).stages) == 3


def test_a_plan_that_nobody_can_make_says_why() -> None:
    with pytest.raises(NoPlan, match="needs 200 MiB more"):
        membership.plan_members(list(offers("ab", memory=100).values()), MODEL, plan_ring)


def test_a_plan_is_confirmed_once_every_stage_has_adopted_its_epoch() -> None:
    known = offers("ab")
    plan: RingPlan = plan_ring(known.values(), MODEL)
    assert membership.unconfirmed(plan, known) == ["a", "b"]
    adopted = {
        node: NodeOffer(node_id=node, incarnation=1, epoch=plan.epoch if node == "a" else "older")
        for node in known
    }
    assert membership.unconfirmed(plan, adopted) == ["b"]
    assert membership.unconfirmed(plan, {"a": adopted["a"]}) == ["b"]
