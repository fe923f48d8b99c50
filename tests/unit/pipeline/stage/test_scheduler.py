from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.inference.engines.inference_engine import Step
from exo.inference.errors import Overloaded
from exo.inference.sampling.params import SamplingParams
from exo.inference.shard import Shard
from exo.networking.messages import Open
from exo.pipeline.assignment import Assignment
from exo.pipeline.scheduler import Batch, Limits, Scheduler, SchedulerStatistics
from exo.pipeline.stage_sequence import StageSequence


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(Limits(**limits))


def sequence(
    name: str, *, entry: str = "entry", epoch: str = "epoch", reserve: int = 10
) -> StageSequence:
    assignment = Assignment(epoch, Shard("m", 0, 0, 1), ("entry",), 0)
    return StageSequence(name, "r", entry, assignment, limit=1000, reserve=reserve)


def add(
    one: Scheduler, name: str, tokens: int = 1, *, wait: bool = True, **fields: object
) -> StageSequence:
    added = sequence(name, **fields)  # type: ignore[arg-type]
    one.open(added, wait=wait)
    one.push(added, added.step(np.arange(tokens), 0, sample=True))
    return added


def shape(batch: Batch) -> dict[str, int]:
    return {each.sequence_id: len(step.values) for each, step in batch}


def admitted(one: Scheduler) -> list[str]:
    """Since the last call."""
    return [each.sequence_id for each in one.take_admitted()]


def is_sampled(step: Step) -> bool:
    return step.rows == "last"


def test_decode_steps_of_all_live_sequences_run_as_one_batch() -> None:
    one = scheduler()
    for name in "abc":
        add(one, name)
    assert shape(one.next_batch()) == {"a": 1, "b": 1, "c": 1}
    assert one.next_batch() == []


def test_a_prompt_is_cut_into_chunks_and_only_the_last_one_is_sampled() -> None:
    one = scheduler(chunk_tokens=4)
    add(one, "a", 10)
    chunks = [one.next_batch()[0][1] for _ in range(3)]
    assert [(step.position, len(step.values), is_sampled(step)) for step in chunks] == [
        (0, 4, False),
        (4, 4, False),
        (8, 2, True),
    ]
    assert [value for step in chunks for value in step.values] == list(range(10))


def test_a_long_prompt_and_decoding_sequences_take_turns() -> None:
    one = scheduler(chunk_tokens=4, pass_tokens=4)
    add(one, "long", 12)
    decoding = add(one, "decoding")
    kinds = []
    for number in range(6):
        batch = one.next_batch()
        kinds.append(next(iter(shape(batch))))
        if "decoding" in shape(batch):
            one.push(decoding, decoding.step(np.array([1]), number + 1, sample=True))
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
    for name in "abc":
        add(one, name, 4)
    assert shape(one.next_batch()) == {"a": 4, "b": 2}
    assert shape(one.next_batch()) == {"c": 4, "b": 2}


def test_sequences_of_different_epochs_never_share_a_pass() -> None:
    one = scheduler()
    add(one, "a", epoch="old")
    add(one, "b", epoch="new")
    assert shape(one.next_batch()) == {"a": 1}
    assert shape(one.next_batch()) == {"b": 1}


def test_many_decoding_sequences_are_shared_out_over_the_stages() -> None:
    one = scheduler(micro_batch=2)
    for name in "abcdef":
        add(one, name)
    assert len(one.next_batch(stages=3)) == 2
    assert len(one.next_batch(stages=3)) == 2
    few = scheduler(micro_batch=8)
    for name in "abcdef":
        add(few, name)
    assert len(few.next_batch(stages=3)) == 6


def test_a_sequence_waits_until_its_tokens_fit_the_kv_budget() -> None:
    one = scheduler(capacity_tokens=25)
    add(one, "a")
    add(one, "b")
    add(one, "c")
    assert shape(one.next_batch()) == {"a": 1, "b": 1}
    assert (one.waiting, admitted(one)) == (1, ["a", "b"])
    one.close("a")
    assert shape(one.next_batch()) == {"c": 1}
    assert one.statistics().reserved_tokens == 20


def test_nobody_overtakes_a_large_sequence_that_waits() -> None:
    one = scheduler(capacity_tokens=25)
    add(one, "a", reserve=20)
    add(one, "large", reserve=25)
    add(one, "small", reserve=5)
    assert admitted(one) == ["a"]
    one.close("a")
    assert admitted(one) == ["large"]


def test_entries_take_turns_in_being_admitted() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "running", entry="greedy")
    for number in range(3):
        add(one, f"greedy{number}", entry="greedy")
    add(one, "modest", entry="modest")
    one.close("running")
    one.close("greedy0")
    assert admitted(one) == ["modest"]


def test_a_sequence_larger_than_the_whole_budget_runs_alone() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "huge", reserve=1000)
    assert admitted(one) == ["huge"]


def test_more_than_the_queue_holds_is_overload() -> None:
    one = scheduler(capacity_tokens=10, max_waiting=1)
    add(one, "a")
    add(one, "b")
    with pytest.raises(Overloaded):
        add(one, "c")
    assert one.get("c") is None


def test_no_more_sequences_run_than_the_engine_has_places_for() -> None:
    one = scheduler(max_sequences=1)
    add(one, "a")
    add(one, "b")
    assert (admitted(one), one.waiting) == (["a"], 1)
    one.close("a")
    assert admitted(one) == ["b"]


def test_what_the_engine_knows_of_a_prompt_is_skipped() -> None:
    one = scheduler(chunk_tokens=4)
    a, b = add(one, "a", 10), add(one, "b", 3)
    assert one.take_admitted() == [a, b]
    assert one.take_admitted() == []
    one.skip(a, 7)
    one.skip(b, 2)
    prefill, decode = sorted(
        (one.next_batch() for _ in range(2)), key=lambda batch: batch[0][0].sequence_id
    )
    assert [
        (each.sequence_id, step.position, list(step.values)) for each, step in (*prefill, *decode)
    ] == [("a", 7, [7, 8, 9]), ("b", 2, [2])]
    add(one, "closed", 4)
    one.close("closed")
    assert one.take_admitted() == []


def test_one_entry_cannot_take_all_the_places() -> None:
    one = scheduler(max_per_entry=2)
    add(one, "a", entry="greedy")
    add(one, "b", entry="greedy")
    with pytest.raises(Overloaded, match="2 sequences of 'greedy'"):
        add(one, "c", entry="greedy")
    add(one, "d", entry="modest")
    one.close("a")
    add(one, "c", entry="greedy")
    assert one.statistics().sequences == 3


def test_closing_a_waiting_sequence_lets_the_others_in() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "a")
    add(one, "b", entry="x")
    add(one, "c", entry="y")
    assert one.close("b")
    assert not one.close("b")
    one.close("a")
    assert admitted(one) == ["c"]
    one.close("c")
    assert one.statistics() == SchedulerStatistics()


def test_a_larger_budget_admits_who_waits() -> None:
    one = scheduler(capacity_tokens=10)
    add(one, "a")
    add(one, "b")
    one.resize(20, 64)
    assert admitted(one) == ["a", "b"]


def test_a_smaller_budget_leaves_nobody_waiting_for_more_than_there_can_be() -> None:
    one = scheduler(capacity_tokens=100)
    add(one, "running", reserve=60)
    add(one, "large", reserve=90)
    add(one, "behind", reserve=10)
    one.resize(capacity_tokens=50, max_sequences=10)
    one.close("running")
    assert shape(one.next_batch()) == {"large": 1}
    one.close("large")
    assert shape(one.next_batch()) == {"behind": 1}


def test_a_sequence_is_opened_once() -> None:
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
        add(one, str(number), tokens, entry=str(number % 3), reserve=tokens)
    for _ in range(2000):
        batch = one.next_batch()
        if not batch:
            break
        for each, step in batch:
            run = seen.setdefault(each.sequence_id, [])
            assert step.position == len(run)
            run += step.values.tolist()
            if is_sampled(step):
                one.close(each.sequence_id)
    assert seen == {str(n): list(range(tokens)) for n, tokens in enumerate(prompts)}
    assert one.statistics() == SchedulerStatistics()


@given(tokens=st.integers(2, 300), chunk=st.integers(1, 64), budget=st.integers(1, 130))
def test_no_prompt_is_cut_so_that_one_token_is_left_alone(
    tokens: int, chunk: int, budget: int
) -> None:
    one = scheduler(chunk_tokens=chunk, pass_tokens=budget)
    add(one, "a", tokens, reserve=tokens)
    chunks = [step for _ in range(tokens) for _, step in one.next_batch()]
    assert [value for step in chunks for value in step.values] == list(range(tokens))
    assert all(2 <= len(step.values) <= max(chunk, 2) + 1 for step in chunks)
    assert [is_sampled(step) for step in chunks] == [False] * (len(chunks) - 1) + [True]


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
    opened = Open(
        sequence_id="s",
        epoch="epoch",
        entry="entry",
        tokens=tuple(range(tokens)),
        prompt_length=prompt,
        params=SamplingParams(),
    )
    steps = sequence("s").opening_steps(opened, by_step=by_step)
    assert [len(step.values) for step in steps] == sizes
    assert [value for step in steps for value in step.values] == list(range(tokens))
    assert [step.position for step in steps] == [sum(sizes[:i]) for i in range(len(sizes))]
    assert [is_sampled(step) for step in steps] == [False] * (len(sizes) - 1) + [True]
