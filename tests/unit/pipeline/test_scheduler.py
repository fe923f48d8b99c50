from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.inference.errors import Overloaded
from exo.pipeline.scheduler import Limits, Piece, Scheduler, Work, opening_pieces


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(Limits(**limits))


def add(
    one: Scheduler,
    lane: str,
    tokens: int = 1,
    *,
    owner: str = "entry",
    group: str = "epoch",
    reserve: int = 10,
    wait: bool = True,
) -> None:
    one.open(lane, owner=owner, group=group, reserve=reserve, wait=wait)
    one.push(lane, Piece(0, tuple(range(tokens)), sample=True))


def shape(batch: list[Work]) -> dict[str, int]:
    return {work.lane_id: len(work.piece.values) for work in batch}


def test_decode_steps_of_all_live_sequences_run_as_one_batch() -> None:
    one = scheduler()
    for lane in "abc":
        add(one, lane)
    assert shape(one.next_batch()) == {"a": 1, "b": 1, "c": 1}
    assert one.next_batch() == []


def test_a_prompt_is_cut_into_chunks_and_only_the_last_one_is_sampled() -> None:
    one = scheduler(chunk_tokens=4)
    add(one, "a", 10)
    chunks = [one.next_batch()[0].piece for _ in range(3)]
    assert [(piece.position, len(piece.values), piece.sample) for piece in chunks] == [
        (0, 4, False),
        (4, 4, False),
        (8, 2, True),
    ]
    assert [value for piece in chunks for value in piece.values] == list(range(10))


def test_a_long_prompt_and_decoding_sequences_take_turns() -> None:
    one = scheduler(chunk_tokens=4, pass_tokens=4)
    add(one, "long", 12)
    add(one, "decoding")
    kinds = []
    for step in range(6):
        batch = one.next_batch()
        kinds.append(next(iter(shape(batch))))
        if "decoding" in shape(batch):
            one.push("decoding", Piece(step + 1, (1,), sample=True))
    assert kinds == ["decoding", "long", "decoding", "long", "decoding", "long"]


def test_a_short_prompt_does_not_wait_for_the_end_of_a_long_one() -> None:
    one = scheduler(chunk_tokens=4, pass_tokens=4)
    add(one, "long", 100)
    one.next_batch()
    add(one, "short", 4)
    served = [next(iter(shape(one.next_batch()))) for _ in range(2)]
    assert "short" in served


def test_a_pass_prefills_several_sequences_up_to_its_budget() -> None:
    one = scheduler(chunk_tokens=4, pass_tokens=6)
    for lane in "abc":
        add(one, lane, 4)
    assert shape(one.next_batch()) == {"a": 4, "b": 2}
    assert shape(one.next_batch()) == {"c": 4, "b": 2}


def test_sequences_of_different_epochs_never_share_a_pass() -> None:
    one = scheduler()
    add(one, "a", group="old")
    add(one, "b", group="new")
    assert shape(one.next_batch()) == {"a": 1}
    assert shape(one.next_batch()) == {"b": 1}


def test_many_decoding_sequences_are_shared_out_over_the_stages() -> None:
    one = scheduler(micro_batch=2)
    for lane in "abcdef":
        add(one, lane)
    assert len(one.next_batch(stages=3)) == 2
    assert len(one.next_batch(stages=3)) == 2
    few = scheduler(micro_batch=8)
    for lane in "abcdef":
        add(few, lane)
    assert len(few.next_batch(stages=3)) == 6


def test_a_sequence_waits_until_its_tokens_fit_the_kv_budget() -> None:
    one = scheduler(capacity_tokens=25)
    add(one, "a")
    add(one, "b")
    add(one, "c")
    assert shape(one.next_batch()) == {"a": 1, "b": 1}
    assert (one.waiting, one.is_running("c")) == (1, False)
    one.close("a")
    assert shape(one.next_batch()) == {"c": 1}
    assert one.reserved == 20


def test_nobody_overtakes_a_large_sequence_that_waits() -> None:
    one = scheduler(capacity_tokens=25)
    add(one, "a", reserve=20)
    add(one, "large", reserve=25)
    add(one, "small", reserve=5)
    assert not one.is_running("small")
    one.close("a")
    assert one.is_running("large")


def test_entries_take_turns_in_being_admitted() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "running", owner="greedy")
    for number in range(3):
        add(one, f"greedy{number}", owner="greedy")
    add(one, "modest", owner="modest")
    one.close("running")
    one.close("greedy0")
    assert one.is_running("modest")


def test_a_sequence_larger_than_the_whole_budget_runs_alone() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "huge", reserve=1000)
    assert one.is_running("huge")


def test_more_than_the_queue_holds_is_overload() -> None:
    one = scheduler(capacity_tokens=10, max_waiting=1)
    add(one, "a")
    add(one, "b")
    with pytest.raises(Overloaded):
        add(one, "c")
    assert "c" not in one


def test_no_more_sequences_run_than_the_engine_has_places_for() -> None:
    one = scheduler(max_lanes=1)
    add(one, "a")
    add(one, "b")
    assert (one.is_running("b"), one.waiting) == (False, 1)
    one.close("a")
    assert one.is_running("b")


def test_what_the_engine_knows_of_a_prompt_is_skipped() -> None:
    one = scheduler(chunk_tokens=4)
    add(one, "a", 10)
    add(one, "b", 3)
    assert one.take_admitted() == ["a", "b"]
    assert one.take_admitted() == []
    one.skip("a", 7)
    one.skip("b", 2)
    prefill, decode = sorted(
        (one.next_batch() for _ in range(2)), key=lambda batch: batch[0].lane_id
    )
    assert [(w.lane_id, w.piece.position, list(w.piece.values)) for w in (*prefill, *decode)] == [
        ("a", 7, [7, 8, 9]),
        ("b", 2, [2]),
    ]
    add(one, "closed", 4)
    one.close("closed")
    assert one.take_admitted() == []


def test_one_entry_cannot_take_all_the_places() -> None:
    one = scheduler(max_per_owner=2)
    add(one, "a", owner="greedy")
    add(one, "b", owner="greedy")
    with pytest.raises(Overloaded, match="2 sequences of 'greedy'"):
        add(one, "c", owner="greedy")
    add(one, "d", owner="modest")
    one.close("a")
    add(one, "c", owner="greedy")
    assert len(one) == 3


def test_closing_a_waiting_sequence_lets_the_others_in() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "a")
    add(one, "b", owner="x")
    add(one, "c", owner="y")
    assert one.close("b")
    assert not one.close("b")
    one.close("a")
    assert one.is_running("c")
    one.close("c")
    assert (one.reserved, len(one), one.waiting) == (0, 0, 0)


def test_a_larger_budget_admits_who_waits() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "a")
    add(one, "b")
    one.resize(20, 64)
    assert one.is_running("b")


def test_a_smaller_budget_leaves_nobody_waiting_for_more_than_there_can_be() -> None:
    one = scheduler(capacity_tokens=100)
    add(one, "running", reserve=60)
    add(one, "large", reserve=90)
    add(one, "behind", reserve=10)
    one.resize(capacity_tokens=50, max_lanes=10)
    one.close("running")
    assert shape(one.next_batch()) == {"large": 1}
    one.close("large")
    assert shape(one.next_batch()) == {"behind": 1}


def test_a_lane_is_opened_once() -> None:
    one = scheduler()
    add(one, "a")
    with pytest.raises(ValueError, match="'a' is open already"):
        add(one, "a")


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    chunk=st.integers(1, 16),
    budget=st.integers(1, 32),
    capacity=st.integers(5, 100),
)
def test_every_token_of_every_sequence_runs_once_in_order_and_all_end(
    prompts: list[int], chunk: int, budget: int, capacity: int
) -> None:
    one = scheduler(chunk_tokens=chunk, pass_tokens=budget, capacity_tokens=capacity)
    seen: dict[str, list[int]] = {}
    for number, tokens in enumerate(prompts):
        add(one, str(number), tokens, owner=str(number % 3), reserve=tokens)
    for _ in range(2000):
        batch = one.next_batch()
        if not batch:
            break
        for work in batch:
            run = seen.setdefault(work.lane_id, [])
            assert work.piece.position == len(run)
            run += work.piece.values
            if work.piece.sample:
                one.close(work.lane_id)
    assert {lane: len(run) for lane, run in seen.items()} == {
        str(n): tokens for n, tokens in enumerate(prompts)
    }
    assert (one.reserved, len(one)) == (0, 0)


@given(tokens=st.integers(2, 300), chunk=st.integers(1, 64), budget=st.integers(1, 130))
def test_no_prompt_is_cut_so_that_one_token_is_left_alone(
    tokens: int, chunk: int, budget: int
) -> None:
    one = scheduler(chunk_tokens=chunk, pass_tokens=budget)
    add(one, "a", tokens, reserve=tokens)
    pieces = [work.piece for _ in range(tokens) for work in one.next_batch()]
    assert [value for piece in pieces for value in piece.values] == list(range(tokens))
    assert all(2 <= len(piece.values) <= max(chunk, 2) + 1 for piece in pieces)
    assert [piece.sample for piece in pieces] == [False] * (len(pieces) - 1) + [True]


@pytest.mark.parametrize(
    ("tokens", "prompt", "by_step", "sizes"),
    [
        (5, 5, False, [5]),
        (5, 3, False, [5]),
        (5, 5, True, [5]),
        (5, 3, True, [3, 1, 1]),
        (3, 0, True, [1, 1, 1]),
        (1, 1, True, [1]),
    ],
)
def test_what_was_produced_is_replayed_as_it_was_where_steps_round_otherwise(
    tokens: int, prompt: int, by_step: bool, sizes: list[int]
) -> None:
    pieces = opening_pieces(tuple(range(tokens)), prompt, by_step=by_step)
    assert [len(piece.values) for piece in pieces] == sizes
    assert [value for piece in pieces for value in piece.values] == list(range(tokens))
    assert [piece.position for piece in pieces] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert [piece.sample for piece in pieces] == [False] * (len(sizes) - 1) + [True]
