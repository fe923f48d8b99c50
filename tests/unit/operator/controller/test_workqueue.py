"""The work queue, by an injected clock: nothing here sleeps."""

from __future__ import annotations

import asyncio

from exo_operator.controller.workqueue import Backoff, TokenBucket, WorkQueue
from hypothesis import given
from hypothesis import strategies as st


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drain(queue: WorkQueue[str]) -> list[str]:
    found = []
    while (key := queue.take_nowait()) is not None:
        found.append(key)
    return found


def test_back_off_doubles_up_to_five_minutes() -> None:
    backoff: Backoff[str] = Backoff(chance=lambda: 1.0)
    assert [backoff.failed("a") for _ in range(12)] == [
        0.5,
        1,
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        300,
        300,
    ]


def test_back_off_is_jittered_over_the_upper_half_and_per_key() -> None:
    backoff: Backoff[str] = Backoff(chance=lambda: 0.0)
    backoff.failed("a")
    assert backoff.failed("a") == 0.5
    assert backoff.failed("b") == 0.25
    backoff.succeeded("a")
    assert backoff.failed("a") == 0.25


def test_back_off_never_overflows() -> None:
    backoff: Backoff[str] = Backoff(chance=lambda: 1.0)
    assert [backoff.failed("a") for _ in range(5000)][-1] == 300


def test_a_token_bucket_lets_a_burst_through_and_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(rate=10.0, burst=3, clock=clock)
    assert [round(bucket.take(), 3) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]
    clock.now += 10.0
    assert bucket.take() == 0


async def test_a_key_added_many_times_runs_once() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    for _ in range(10):
        queue.add("a")
    assert drain(queue) == ["a"]


async def test_a_key_added_while_it_is_worked_on_runs_once_more_after() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    assert queue.take_nowait() == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take_nowait() is None
    queue.done("a")
    assert drain(queue) == ["a"]


async def test_the_earliest_time_asked_for_wins() -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    queue.add("a", 60.0)
    queue.add("a", 5.0)
    queue.add("a", 30.0)
    clock.now += 4.9
    assert drain(queue) == []
    clock.now += 0.2
    assert drain(queue) == ["a"]
    queue.done("a")
    clock.now += 100.0
    assert drain(queue) == []


async def test_a_key_that_waits_does_not_hold_up_the_others() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("poison", 300.0)
    for number in range(999):
        queue.add(f"good-{number}")
    assert len(drain(queue)) == 999


async def test_a_forgotten_key_does_not_run() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    queue.add("a")
    queue.forget("a")
    assert drain(queue) == []


async def test_workers_run_every_key_and_never_one_key_twice_at_once() -> None:
    queue: WorkQueue[int] = WorkQueue()
    running: set[int] = set()
    runs: list[int] = []
    done = asyncio.Event()

    async def run(key: int) -> None:
        assert key not in running
        running.add(key)
        await asyncio.sleep(0)
        if len(runs) < 50:
            queue.add(key)
        running.discard(key)
        runs.append(key)
        if len(runs) >= 50 and set(runs) == set(range(10)) and not len(queue):
            done.set()

    workers = [asyncio.create_task(queue.work(run)) for _ in range(4)]
    for key in range(10):
        queue.add(key)
    await asyncio.wait_for(done.wait(), 5)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["add", "take", "done", "tick"])),
        max_size=60,
    )
)
def test_no_key_is_ever_lost_or_doubled(steps: list[tuple[str, str]]) -> None:
    clock = Clock()
    queue: WorkQueue[str] = WorkQueue(clock)
    wanted: set[str] = set()
    active: set[str] = set()
    for key, step in steps:
        if step == "add":
            queue.add(key, 1.0)
            wanted.add(key)
        elif step == "done" and key in active:
            active.discard(key)
            queue.done(key)
        elif step == "tick":
            clock.now += 1.0
        elif step == "take" and (taken := queue.take_nowait()) is not None:
            assert taken in wanted
            assert taken not in active
            wanted.discard(taken)
            active.add(taken)
    for key in active:
        queue.done(key)
    clock.now += 10.0
    assert sorted(drain(queue)) == sorted(wanted)


async def test_taking_waits_for_a_key() -> None:
    queue: WorkQueue[str] = WorkQueue()
    taker = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    assert not taker.done()
    queue.add("a")
    assert await asyncio.wait_for(taker, 5) == "a"


def test_an_empty_queue_has_no_length() -> None:
    queue: WorkQueue[str] = WorkQueue(Clock())
    assert len(queue) == 0
    queue.add("a")
    assert len(queue) == 1
