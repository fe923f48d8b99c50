"""Pure parts of the peer handle: when a peer is slow, and what waits to be sent."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from exo.networking.errors import PeerLost
from exo.networking.liveness import Liveness, Timings
from exo.networking.send_queue import SendQueue


def ticked(liveness: Liveness, seconds: float, step: float = 0.1, start: float = 0.0) -> float:
    now = start
    while now < start + seconds:
        now += step
        liveness.tick(now)
    return now


def test_silence_is_noticed_in_time_and_forgotten_with_the_next_answer():
    liveness = Liveness(Timings())
    now = ticked(liveness, 1.0)
    assert not liveness.is_silent()
    now = ticked(liveness, 0.4, start=now)
    assert liveness.is_silent()
    assert liveness.is_slow()
    assert not liveness.is_stuck()
    liveness.heard(0.001)
    assert not liveness.is_silent()
    ticked(liveness, 16, start=now)
    assert liveness.is_stuck()


def test_a_stall_of_our_own_loop_is_no_silence_of_the_peer():
    liveness = Liveness(Timings())
    liveness.tick(0.0)
    liveness.tick(10.0)
    assert liveness.silence == pytest.approx(0.2)
    assert not liveness.is_silent()


def test_one_slow_answer_alone_says_nothing_and_three_do():
    liveness = Liveness(Timings())
    for latency in (0.001, 0.9, 0.001, 0.9, 0.9):
        liveness.heard(latency)
        assert not liveness.is_slow()
    liveness.heard(0.9)
    assert liveness.is_slow()
    assert liveness.latency == 0.9


def test_a_loss_is_noticed_within_two_seconds_by_the_default_timings():
    timings = Timings()
    assert timings.heartbeat + timings.silent_after + timings.tick + timings.probe_timeout < 2.0


def test_timings_of_zero_are_refused_by_name():
    with pytest.raises(ValueError, match="tick"):
        Timings(tick=0)


async def test_items_come_in_order_also_from_those_who_waited():
    queue = SendQueue(len, max_items=2)
    waiting = [asyncio.create_task(queue.put(bytes([number]))) for number in range(6)]
    got = [await queue.get() for _ in range(6)]
    assert got == [bytes([number]) for number in range(6)]
    await asyncio.gather(*waiting)
    assert len(queue) == 0


async def test_bytes_bound_the_queue_and_one_large_item_still_goes_alone():
    queue = SendQueue(len, max_bytes=10)
    await queue.put(bytes(50))
    second = asyncio.create_task(queue.put(b"x"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not second.done()
    assert await queue.get() == bytes(50)
    await second
    assert len(queue) == 1


async def test_the_bytes_of_what_was_taken_are_free_again():
    queue = SendQueue(len, max_bytes=10)
    for take in (queue.get, queue.clear, lambda: queue.get_together(max_items=9, max_bytes=99)):
        assert queue.put_now(bytes(4))
        assert queue.put_now(bytes(6))
        assert not queue.put_now(b"1")
        taken = take()
        await taken if inspect.isawaitable(taken) else None
        queue.clear()


async def test_what_is_put_without_waiting_overtakes_nobody_who_waits():
    queue = SendQueue(len, max_items=2)
    assert queue.put_now(b"1")
    assert queue.put_now(b"2")
    assert not queue.put_now(b"3")
    patient = asyncio.create_task(queue.put(b"4"))
    await asyncio.sleep(0)
    assert await queue.get() == b"1"
    assert not queue.put_now(b"5")  # there is room, and it is another's
    await patient
    assert [await queue.get(), await queue.get()] == [b"2", b"4"]
    queue.close(PeerLost("b", "gone"))
    with pytest.raises(PeerLost):
        queue.put_now(b"6")


async def test_a_cancelled_put_adds_nothing_and_lets_the_next_one_in():
    queue = SendQueue(len, max_items=1)
    await queue.put(b"1")
    given_up, patient = asyncio.create_task(queue.put(b"2")), asyncio.create_task(queue.put(b"3"))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    assert await queue.get() == b"1"
    assert await queue.get() == b"3"
    await patient


async def test_closing_wakes_everyone_with_the_reason():
    queue = SendQueue(len, max_items=1)
    await queue.put(b"1")
    putter = asyncio.create_task(queue.put(b"2"))
    await asyncio.sleep(0)
    queue.close(ConnectionError("gone"))
    for waiting in (putter, queue.get(), queue.put(b"3")):
        with pytest.raises(ConnectionError, match="gone"):
            await waiting
    assert len(queue) == 0
