"""The KV store: budget, eviction that is never silent, prefixes for reuse."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.inference.errors import Overloaded, SequenceLost
from exo.inference.numpy.kv_cache import BLOCK, SHORTEST_PREFIX, KVStore, Sequence

# Bytes of a position: two layers, keys and values, one head of four floats.
TOKEN = 2 * 2 * 1 * 4 * 4


def store(blocks: int = 4, context: int = 100_000) -> KVStore:
    return KVStore(2, 1, 4, blocks * BLOCK * TOKEN, context)


def fill(kv: KVStore, name: str, tokens: list[int] | int, position: int = 0) -> Sequence:
    """Take a sequence through a step as the engine does; keys hold the tokens, so that copies can
    be told.
    """
    ids = np.arange(tokens) if isinstance(tokens, int) else np.array(tokens)
    sequence = kv.at(name, position)
    kv.reserve(sequence, position + len(ids), [name])
    for keys in sequence.keys:
        keys[:, position : position + len(ids)] = ids[None, :, None]
    sequence.length = position + len(ids)
    sequence.tokens = np.concatenate([sequence.tokens[:position], ids])
    return sequence


def test_a_sequence_goes_on_only_where_it_is() -> None:
    kv = store()
    fill(kv, "a", 10)
    fill(kv, "a", 5, position=10)
    for position in (10, 14, 16):
        with pytest.raises(SequenceLost) as error:
            kv.at("a", position)
        assert (error.value.expected, error.value.held) == (position, 15)
    with pytest.raises(SequenceLost) as error:
        kv.at("unknown", 3)
    assert error.value.held is None


def test_position_zero_begins_anew_and_gives_the_old_room_back() -> None:
    kv = store()
    fill(kv, "a", 3 * BLOCK)
    fill(kv, "a", 1)
    assert kv.used == BLOCK * TOKEN
    assert len(kv) == 1


def test_the_least_recently_used_sequence_goes_first_and_is_missed_at_its_next_use() -> None:
    kv = store(blocks=3)
    for name in "abc":
        fill(kv, name, BLOCK - 1)
    kv.at("a", BLOCK - 1)  # used again
    fill(kv, "d", 1)
    with pytest.raises(SequenceLost):
        kv.at("b", BLOCK - 1)
    assert "a" in kv
    assert "c" in kv
    assert kv.evictions == 1


def test_no_sequence_of_the_same_pass_is_evicted_for_another() -> None:
    kv = store(blocks=2)
    fill(kv, "a", 2 * BLOCK)
    new = kv.at("b", 0)
    with pytest.raises(Overloaded, match="no room for 10 tokens"):
        kv.reserve(new, 10, ["a", "b"])
    assert "a" in kv


def test_more_than_the_whole_budget_is_refused() -> None:
    kv = store(blocks=2)
    sequence = kv.at("a", 0)
    with pytest.raises(Overloaded):
        kv.reserve(sequence, 2 * BLOCK + 1, ["a"])


def test_growing_keeps_what_is_there_and_never_wastes_what_others_need() -> None:
    kv = store(blocks=5)
    a = fill(kv, "a", 2 * BLOCK)
    fill(kv, "b", BLOCK)
    fill(kv, "a", 1, position=2 * BLOCK)  # by half would be 3 blocks, which is also the least
    assert a.capacity == 3 * BLOCK
    assert np.array_equal(a.keys[1][0, : 2 * BLOCK, 0], np.arange(2 * BLOCK))
    assert "b" in kv


def test_a_released_sequence_serves_one_that_begins_alike() -> None:
    kv = store()
    fill(kv, "a", 50)
    kv.release("a")
    assert len(kv) == 0
    assert kv.free_tokens == 4 * BLOCK
    sequence = kv.at("b", 0)
    tokens = np.array([*range(40), 7, 7, 7])
    assert kv.borrow(sequence, tokens, 100, ["b"]) == 40
    assert np.array_equal(sequence.keys[0][0, :40, 0], np.arange(40))
    assert np.array_equal(sequence.tokens, tokens[:40])


def test_a_live_sequence_can_be_borrowed_from_too() -> None:
    kv = store()
    fill(kv, "a", 50)
    assert kv.borrow(kv.at("b", 0), np.arange(50), 49, ["b"]) == 49
    assert "a" in kv


@pytest.mark.parametrize("alike", [0, SHORTEST_PREFIX - 1])
def test_a_short_common_beginning_is_not_worth_a_copy(alike: int) -> None:
    kv = store()
    fill(kv, "a", 50)
    kv.release("a")
    tokens = np.array([*range(alike), *[99] * 30])
    assert kv.borrow(kv.at("b", 0), tokens, 100, ["b"]) == 0


def test_prefixes_give_way_before_any_live_sequence() -> None:
    kv = store(blocks=2)
    fill(kv, "a", 50)
    kv.release("a")
    fill(kv, "b", 50)
    fill(kv, "c", 50)
    assert "b" in kv
    assert kv.evictions == 0
    # From b or c, which are live.
    assert kv.borrow(kv.at("d", 0), np.arange(50), 49, ["d"]) in (0, 49)


def test_the_room_to_borrow_is_never_taken_from_the_lender() -> None:
    kv = store(blocks=1)
    fill(kv, "a", 50)
    with pytest.raises(Overloaded):
        kv.borrow(kv.at("b", 0), np.arange(50), 49, ["b"])
    assert "a" in kv


def test_the_same_request_again_and_again_keeps_one_prefix() -> None:
    kv = store()
    for _ in range(1000):
        fill(kv, "a", 40)
        kv.release("a")
    assert kv.used == BLOCK * TOKEN


def test_only_so_much_is_kept_for_reuse_and_the_oldest_goes_first() -> None:
    kv = KVStore(2, 1, 4, 100 * BLOCK * TOKEN, 100_000, prefix_budget=3 * BLOCK * TOKEN)
    for name in "abcde":
        fill(kv, name, np.random.default_rng(ord(name)).integers(0, 99, 50).tolist())
        kv.release(name)
    assert kv.used == 3 * BLOCK * TOKEN
    for name, held in (("a", 0), ("e", 49)):
        tokens = np.random.default_rng(ord(name)).integers(0, 99, 50)
        assert kv.borrow(kv.at(f"again-{name}", 0), tokens, 49, []) == held


def test_releasing_what_is_unknown_is_fine() -> None:
    kv = store()
    kv.release("nobody")
    assert kv.used == 0


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.integers(1, 3 * BLOCK)),
        max_size=40,
    )
)
def test_the_count_of_bytes_is_that_of_the_arrays_and_within_the_budget(
    orders: list[tuple[str, int, int]],
) -> None:
    kv = store(blocks=6)
    for name, kind, n in orders:
        if kind == 0:
            kv.release(name)
            continue
        position = kv._live[name].length if kind == 1 and name in kv else 0
        try:
            fill(kv, name, n, position)
        except Overloaded:
            kv.release(name)
    held = [*kv._live.values(), *kv._prefixes.values()]
    assert kv.used == sum(a.nbytes for s in held for a in (*s.keys, *s.values))
    assert kv.used <= kv.budget
