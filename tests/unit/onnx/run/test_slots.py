"""Slots of the KV cache: who stays, who goes, who is a prefix of whom, and how batches become
adjacent.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.inference.arrays import Array
from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.onnx.run.slots import SlotTable, grained, window_of


def ids(*parts: int, n: int = 32) -> Array:
    """`n` tokens for each part: equal parts are equal tokens."""
    return np.concatenate([np.arange(n) + 1000 * part for part in parts])


def fill(
    table: SlotTable, name: str, tokens: Array, *, released: bool = False, long: bool = False
) -> int:
    slot, _ = table.take_slot(())
    table.put(slot, name, length=0, tokens=tokens[:0], long=long)
    table.extend(slot, len(tokens), tokens)
    if released:
        table.release(slot)
    return slot


def test_a_step_must_continue_where_its_sequence_ends() -> None:
    table = SlotTable(2, 1000)
    fill(table, "a", ids(1))
    table.check("a", 32)
    table.check("new", 0)
    for name, position, held in (("a", 31, 32), ("new", 5, None)):
        with pytest.raises(SequenceLost) as caught:
            table.check(name, position)
        assert caught.value.held == held


def test_a_released_sequence_is_found_as_a_prefix_and_not_as_a_sequence() -> None:
    table = SlotTable(2, 1000)
    slot = fill(table, "a", ids(1, 2), released=True)
    assert table.find("a") is None
    assert table.n_live == 0
    prefix = table.best_prefix(ids(1, 3), 63, long=False)
    assert prefix is not None
    assert (prefix.slot, prefix.length) == (slot, 32)


def test_the_longest_prefix_wins_and_the_limit_holds() -> None:
    table = SlotTable(3, 1000)
    fill(table, "a", ids(1, 2))
    longer = fill(table, "b", ids(1, 2, 3))
    prefix = table.best_prefix(ids(1, 2, 3, 4), 127, long=False)
    assert prefix is not None
    assert (prefix.slot, prefix.length) == (longer, 96)
    limited = table.best_prefix(ids(1, 2, 3, 4), 40, long=False)
    assert limited is not None
    assert limited.length == 40


def test_short_or_differently_rotated_beginnings_are_no_prefix() -> None:
    table = SlotTable(2, 1000)
    fill(table, "a", ids(1, n=15))
    fill(table, "b", ids(2), long=True)
    assert table.best_prefix(ids(1), 31, long=False) is None
    assert table.best_prefix(ids(2), 31, long=False) is None


def test_a_stage_that_sees_no_tokens_knows_only_those_it_was_told() -> None:
    table = SlotTable(2, 1000)
    table.put(0, "a", length=0, tokens=ids(1), long=False)
    table.extend(0, 40, None)
    assert table[0].length == 40
    table.release(0)
    assert table[0].length == 32


def test_a_short_sequence_leaves_nothing() -> None:
    table = SlotTable(1, 1000)
    slot = fill(table, "a", ids(1, n=5))
    assert table.release(slot) == [slot]
    assert table.slots == [None]


def test_of_two_prefixes_one_within_the_other_the_longer_stays() -> None:
    table = SlotTable(3, 1000)
    first = fill(table, "a", ids(1), released=True)
    second = fill(table, "b", ids(1, 2), released=True)
    assert table.slots[first] is None
    again = fill(table, "c", ids(1, 2))
    assert table.release(again) == [again]
    assert table.slots[second] is not None


def test_room_is_made_by_prefixes_before_live_sequences_and_by_age() -> None:
    table = SlotTable(4, 4 * 32)
    old = fill(table, "old", ids(1))
    fill(table, "new", ids(2))
    prefix = fill(table, "prefix", ids(3), released=True)
    assert table.make_room(32 + 1, ()) == [prefix]
    assert table.evictions == 0
    assert table.make_room(32 * 3, ()) == [old]
    assert table.evictions == 1
    assert table.find("old") is None


def test_what_cannot_fit_is_refused_and_evicts_nobody() -> None:
    table = SlotTable(4, 4 * 32)
    kept = fill(table, "a", ids(1))
    fill(table, "b", ids(2), released=True)
    with pytest.raises(Overloaded):
        table.make_room(100, {kept})
    assert table.tokens_used() == 64


def test_when_slots_run_out_the_least_worthy_goes_and_kept_ones_do_not() -> None:
    table = SlotTable(2, 1000)
    a, b = fill(table, "a", ids(1)), fill(table, "b", ids(2))
    with pytest.raises(Overloaded):
        table.take_slot({a, b})
    assert table.take_slot({a}) == (b, True)


def test_a_given_up_pass_is_taken_back() -> None:
    table = SlotTable(1, 1000)
    slot = fill(table, "a", ids(1))
    table.extend(slot, 1, np.array([7]))
    table.truncate(slot, 32)
    table.check("a", 32)
    np.testing.assert_array_equal(table[slot].known, ids(1))


def test_swapped_sequences_are_found_in_their_new_slots() -> None:
    table = SlotTable(3, 1000)
    fill(table, "a", ids(1))
    table.swap(0, 2)
    assert table.find("a") == 2
    assert table.slots[0] is None


@given(st.lists(st.integers(0, 31), min_size=1, max_size=20, unique=True))
def test_a_batch_always_becomes_adjacent(members: list[int]) -> None:
    start, stop, swaps = window_of(members, 32)
    place = {m: m for m in range(32)}
    for a, b in swaps:
        place[a], place[b] = b, a
    after = {place[m] for m in members}
    assert after <= set(range(start, stop))
    assert len(members) <= stop - start <= len(members) + len(members) // 4
    assert start >= 0
    assert stop <= 32


def test_room_is_counted_in_whole_grains() -> None:
    assert [grained(n) for n in (0, 1, 16, 17)] == [0, 16, 16, 32]
