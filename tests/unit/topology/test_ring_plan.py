"""Plans over every view: each layer once, nothing empty, everything fits, the same everywhere."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exo.topology import (
    ModelFootprint,
    NodeOffer,
    NodeState,
    NoPlan,
    RingMemoryWeightedPartitioningStrategy,
    plan_ring,
)

MIB = 1024 * 1024
steady = settings(derandomize=True, deadline=None)


def node(
    node_id: str,
    memory: int,
    *,
    incarnation: int = 1,
    state: NodeState = NodeState.SERVING,
    pinned=None,
):
    return NodeOffer(
        node_id=node_id, incarnation=incarnation, memory_mib=memory, state=state, pinned=pinned
    )


def model(layers: int, layer_mib: int = 10, **extra: int) -> ModelFootprint:
    return ModelFootprint.uniform(
        "m", layers, layer_mib * MIB, **{key: value * MIB for key, value in extra.items()}
    )


def outcome(view, footprint):
    try:
        return plan_ring(view, footprint)
    except NoPlan as none:
        return none


def covered(plan) -> list[int]:
    return [
        layer for stage in plan.stages for layer in range(stage.start_layer, stage.end_layer + 1)
    ]


views = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3), st.integers(0, 900), min_size=1, max_size=9
).map(lambda sizes: [node(node_id, memory) for node_id, memory in sizes.items()])
models = st.builds(
    lambda layers, first, last, shared: ModelFootprint(
        model_id="m",
        layer_bytes=tuple(size * MIB for size in layers),
        first_bytes=first * MIB,
        last_bytes=last * MIB,
        shared_bytes=min(first, last, shared) * MIB,
    ),
    st.lists(st.integers(1, 60), min_size=1, max_size=24),
    st.integers(0, 50),
    st.integers(0, 50),
    st.integers(0, 50),
)


@steady
@given(views, models)
def test_a_plan_has_each_layer_once_and_every_stage_fits_its_node(view, footprint):
    memory = {offer.node_id: offer.memory_mib for offer in view}
    plan = outcome(view, footprint)
    if isinstance(plan, NoPlan):
        assert plan.missing_mib > 0
        assert f"needs {plan.missing_mib} MiB more" in str(plan)
        return
    assert covered(plan) == list(range(footprint.n_layers))
    for stage in plan.stages:
        assert (
            footprint.range_bytes(stage.start_layer, stage.end_layer) <= memory[stage.node_id] * MIB
        )
    placed = [stage.node_id for stage in plan.stages]
    assert sorted([*placed, *plan.standby]) == sorted(memory)


@steady
@given(views, models, st.randoms(use_true_random=False))
def test_the_order_in_which_nodes_were_seen_changes_nothing(view, footprint, rng: random.Random):
    shuffled = list(view)
    rng.shuffle(shuffled)
    one, two = outcome(view, footprint), outcome(shuffled, footprint)
    assert str(one) == str(two)


@steady
@given(views, models)
def test_whoever_could_hold_the_model_alone_always_gets_a_plan(view, footprint):
    largest = max(offer.memory_mib for offer in view)
    if largest * MIB >= footprint.range_bytes(0, footprint.n_layers - 1) and largest > 0:
        assert covered(plan_ring(view, footprint)) == list(range(footprint.n_layers))


@steady
@given(st.integers(1, 40), st.lists(st.integers(1, 16), min_size=1, max_size=6))
def test_shares_of_equal_layers_follow_memory_to_within_a_layer_or_two(layers, weights):
    view = [node(f"n{index}", weight * 1000) for index, weight in enumerate(weights)]
    plan = plan_ring(view, model(layers))
    if len(plan.stages) < len(weights):
        assert len(plan.stages) <= layers
        return
    fullest = max(
        (stage.end_layer - stage.start_layer + 1) / (weights[int(stage.node_id[1:])] * 1000)
        for stage in plan.stages
    )
    # No other partition of this order is less full: at most one layer above the ideal share on the
    # smallest node.
    assert fullest <= layers / (sum(weights) * 1000) + 1 / (min(weights) * 1000)


def test_equal_nodes_get_equal_layers():
    plan = plan_ring([node("a", 500), node("b", 500), node("c", 500)], model(30))
    assert [(stage.node_id, stage.start_layer, stage.end_layer) for stage in plan.stages] == [
        ("a", 0, 9),
        ("b", 10, 19),
        ("c", 20, 29),
    ]


def test_four_equal_layers_on_three_equal_nodes_leave_no_node_empty():
    plan = plan_ring([node("a", 500), node("b", 500), node("c", 500)], model(4))
    assert len(plan.stages) == 3
    assert plan.standby == ()


def test_more_nodes_than_layers_leaves_the_smallest_as_standby():
    plan = plan_ring([node("a", 100), node("b", 300), node("c", 200)], model(2))
    assert {stage.node_id for stage in plan.stages} == {"b", "c"}
    assert plan.standby == ("a",)


def test_a_node_too_small_for_one_layer_stands_by():
    plan = plan_ring([node("big", 400), node("tiny", 5)], model(30))
    assert [stage.node_id for stage in plan.stages] == ["big"]
    assert plan.standby == ("tiny",)


def test_a_head_the_smallest_node_cannot_hold_goes_to_the_second_largest():
    plan = plan_ring([node("a", 200), node("b", 200), node("c", 25)], model(6, 10, last_bytes=120))
    assert plan.stages[-1].node_id == "b"
    assert {stage.node_id for stage in plan.stages} == {"a", "b", "c"}


def test_too_little_memory_is_refused_with_the_sum():
    with pytest.raises(NoPlan) as caught:
        plan_ring([node("a", 100), node("b", 60)], model(30))
    assert (
        str(caught.value)
        == "'m' takes 300 MiB, the nodes offer a 100 + b 60 = 160 MiB: needs 140 MiB more"
    )
    assert caught.value.missing_mib == 140


def test_memory_that_would_do_only_with_split_layers_says_so():
    with pytest.raises(NoPlan, match=r"a layer is never split between nodes: needs 100 MiB more"):
        plan_ring([node("a", 150), node("b", 150)], model(3, 100))


def test_pinned_layers_stay_where_they_are_pinned_and_the_rest_is_shared():
    view = [node("a", 500), node("b", 500), node("p", 100, pinned=(10, 14))]
    plan = plan_ring(view, model(30))
    assert covered(plan) == list(range(30))
    assert [(s.start_layer, s.end_layer) for s in plan.stages if s.node_id == "p"] == [(10, 14)]


def test_pins_alone_make_a_plan():
    plan = plan_ring([node("a", 300, pinned=(15, 29)), node("b", 300, pinned=(0, 14))], model(30))
    assert [stage.node_id for stage in plan.stages] == ["b", "a"]


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (
            [node("a", 500, pinned=(0, 9)), node("b", 500, pinned=(5, 29))],
            r"'a' and 'b'.*overlapping layers: 0-9 and 5-29",
        ),
        ([node("a", 500, pinned=(0, 30))], r"'a' is pinned to layers 0-30, 'm' has 0-29"),
        (
            [node("a", 40, pinned=(0, 29))],
            r"'a' is pinned .* 300 MiB, and offers 40 MiB: needs 260 MiB more",
        ),
        (
            [node("a", 500, pinned=(0, 9))],
            r"layers 10-29 of 'm' take 200 MiB, the nodes offer none = 0 MiB",
        ),
        (
            [node("a", 500, pinned=(0, 28))],
            r"^layer 29 of 'm' takes 10 MiB, the nodes offer none = 0 MiB",
        ),
        (
            [node("a", 5, pinned=(7, 7))],
            r"'a' is pinned to layer 7 of 'm', which takes 10 MiB, and offers 5 MiB",
        ),
        ([node("a", 500, pinned=(30, 30))], r"'a' is pinned to layer 30, 'm' has 0-29"),
        ([node("a", 40)], r"^'m' takes 300 MiB, node 'a' offers 40 MiB: needs 260 MiB more$"),
    ],
)
def test_pins_and_memory_that_cannot_work_are_named(view, message):
    with pytest.raises(NoPlan, match=message):
        plan_ring(view, model(30))


def test_a_second_node_with_the_same_pin_stands_by():
    plan = plan_ring([node("a", 300, pinned=(0, 29)), node("b", 300, pinned=(0, 29))], model(30))
    assert [stage.node_id for stage in plan.stages] == ["a"]
    assert plan.standby == ("b",)


def test_leaving_nodes_and_nodes_of_another_model_are_left_out():
    other = NodeOffer(node_id="z", incarnation=1, memory_mib=900, model_id="other")
    plan = plan_ring([node("a", 500), node("b", 500, state=NodeState.LEAVING), other], model(30))
    assert [stage.node_id for stage in plan.stages] == ["a"]
    assert plan.standby == ()
    with pytest.raises(NoPlan, match="all are leaving"):
        plan_ring([node("b", 500, state=NodeState.LEAVING)], model(30))


def test_a_restarted_node_makes_a_new_epoch_and_a_heartbeat_does_not():
    first = plan_ring([node("a", 500), node("b", 500)], model(30))
    assert (
        plan_ring([node("a", 500), node("b", 500, state=NodeState.JOINING)], model(30)).epoch
        == first.epoch
    )
    assert (
        plan_ring([node("a", 500), node("b", 500, incarnation=2)], model(30)).epoch != first.epoch
    )
    assert plan_ring([node("a", 500)], model(30)).epoch != first.epoch
    changed = ModelFootprint.uniform("m", 30, 10 * MIB, model_hash="other weights")
    assert plan_ring([node("a", 500), node("b", 500)], changed).epoch != first.epoch


def test_an_id_twice_in_the_view_is_an_error():
    with pytest.raises(ValueError, match="'a' is in the view twice"):
        plan_ring([node("a", 1), node("a", 2)], model(1))


def test_the_strategy_is_the_plan():
    view = [node("a", 500), node("b", 700)]
    assert RingMemoryWeightedPartitioningStrategy().partition(view, model(30)) == plan_ring(
        view, model(30)
    )


def test_a_hundred_layers_on_sixteen_nodes_take_well_under_a_second():
    view = [node(f"n{index}", 1000 + index) for index in range(16)]
    started = time.process_time()
    plan = plan_ring(view, model(100, 20))
    assert time.process_time() - started < 1.0
    assert len(plan.stages) == 16
