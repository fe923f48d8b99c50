"""The clock that other unit tests rely on: what it jumps over, and what it must not overtake."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import virtual_clock as module
from virtual_clock import Deadlock, RealInput, VirtualClock, VirtualClockLoop

from exo.inference.engines.worker import Worker

real_monotonic = time.monotonic
pytestmark = pytest.mark.virtual_clock


@pytest.fixture(autouse=True)
def quick():
    """Whatever the clock says, the test itself takes no time worth mentioning."""
    started = real_monotonic()
    yield
    assert real_monotonic() - started < 10


async def test_sleeps_end_in_the_order_of_their_times(virtual_clock: VirtualClock):
    ended: list[float] = []

    async def sleeper(seconds: float) -> None:
        await asyncio.sleep(seconds)
        ended.append(seconds)
        assert virtual_clock.elapsed == pytest.approx(seconds)

    await asyncio.gather(*map(sleeper, (3600, 1, 0.001, 86400 * 30, 60)))
    assert ended == [0.001, 1, 60, 3600, 86400 * 30]


async def test_timeouts_and_call_later_fire_at_their_time(virtual_clock: VirtualClock):
    fired: list[float] = []
    asyncio.get_running_loop().call_later(5, lambda: fired.append(virtual_clock.elapsed))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(7):
            await asyncio.Event().wait()
    assert virtual_clock.elapsed == pytest.approx(7)
    assert fired == [pytest.approx(5)]


async def test_a_timeout_that_is_not_reached_costs_no_time(virtual_clock: VirtualClock):
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
    assert virtual_clock.elapsed == 0


async def test_no_time_passes_while_a_task_can_run(virtual_clock: VirtualClock):
    sleeping = asyncio.create_task(asyncio.sleep(0.001))
    for _ in range(1000):
        await asyncio.sleep(0)
    assert not sleeping.done()
    assert virtual_clock.elapsed == 0
    await sleeping


async def test_time_monotonic_is_the_time_of_the_loop(virtual_clock: VirtualClock):
    before = time.monotonic()
    await asyncio.sleep(1000)
    assert time.monotonic() - before == pytest.approx(1000)
    assert time.monotonic() == asyncio.get_running_loop().time() == virtual_clock.time()
    assert await asyncio.to_thread(time.monotonic) == pytest.approx(time.monotonic(), abs=1)


async def test_advance_stands_for_a_blocked_loop(virtual_clock: VirtualClock):
    sleeping = asyncio.create_task(asyncio.sleep(1))
    await asyncio.sleep(0)
    virtual_clock.advance(5)
    assert not sleeping.done()
    await sleeping
    assert virtual_clock.elapsed == pytest.approx(5)


@pytest.mark.parametrize("how", ["to_thread", "executor", "worker", "thread"])
async def test_a_thread_is_not_overtaken(how: str, virtual_clock: VirtualClock):
    go, done = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def work() -> str:
        assert go.wait(10)
        loop.call_soon_threadsafe(done.set)
        return "worked"

    async def run() -> None:
        if how == "to_thread":
            assert await asyncio.to_thread(work) == "worked"
        elif how == "executor":
            with ThreadPoolExecutor(1) as pool:
                assert await loop.run_in_executor(pool, work) == "worked"
        elif how == "worker":
            worker = Worker("worker")
            assert await worker.submit(work) == "worked"
            worker.stop()
        else:
            threading.Thread(target=work).start()
        await done.wait()

    timer = threading.Timer(0.05, go.set)
    timer.start()
    async with asyncio.timeout(5):
        await run()
    assert virtual_clock.elapsed < 5
    timer.join()
    await asyncio.sleep(3600)
    assert virtual_clock.elapsed >= 3600


async def test_a_thread_that_ends_without_waking_the_loop_holds_time_up_no_longer(
    virtual_clock: VirtualClock,
):
    threading.Thread(target=threading.Event().wait, args=(0.05,)).start()
    await asyncio.sleep(3600)
    assert virtual_clock.elapsed == pytest.approx(3600, abs=1)


async def test_a_timeout_ends_the_wait_for_a_thread_that_hangs(virtual_clock: VirtualClock):
    go = threading.Event()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await asyncio.to_thread(go.wait, 10)
    go.set()
    assert virtual_clock.elapsed >= 0.02


async def test_idle_workers_and_threads_of_earlier_tests_do_not_hold_time_up(
    virtual_clock: VirtualClock,
):
    worker = Worker("idle")
    await asyncio.to_thread(lambda: None)
    await asyncio.sleep(3600)
    worker.stop()


def run(main) -> VirtualClock:
    """Its own loop, as pytest-asyncio makes one."""
    with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
        runner.run(main())
        return runner.get_loop().clock


def test_a_deadlock_is_reported_with_the_tasks_that_wait():
    async def main() -> None:
        asyncio.current_task().set_name("the main one")
        await asyncio.Event().wait()

    with pytest.raises(Deadlock, match=r"the main one at .*test_virtual_clock.py:\d+"):
        run(main)


def test_periodic_tasks_do_not_hide_a_deadlock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_JUMPS", 100)

    async def beat() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(10)

    async def main() -> None:
        beating = asyncio.create_task(beat())
        await asyncio.Event().wait()
        beating.cancel()

    with pytest.raises(Deadlock, match="only timers"):
        run(main)


def test_polling_without_a_timer_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_TURNS", 100)

    async def main() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    with pytest.raises(Deadlock, match="only sleep"):
        run(main)


async def test_servers_connections_and_processes_are_refused():
    loop = asyncio.get_running_loop()
    for refused in (
        asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0),
        asyncio.open_connection("127.0.0.1", 1),
        loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0)),
        asyncio.create_subprocess_exec(sys.executable, "-c", ""),
    ):
        with pytest.raises(RealInput, match=r"under the virtual clock: \w+"):
            await refused


async def test_a_descriptor_given_to_the_loop_is_refused():
    with socket.socket() as sock, pytest.raises(RealInput, match="reading"):
        asyncio.get_running_loop().add_reader(sock, lambda: None)


def test_the_real_clock_is_back_after_the_loop_is_closed():
    submit = Worker.submit

    async def main() -> None:
        assert time.monotonic is not real_monotonic
        await asyncio.sleep(3600)

    assert run(main).elapsed == pytest.approx(3600)
    assert time.monotonic is real_monotonic
    assert Worker.submit is submit


async def test_the_marker_alone_turns_it_on():
    assert isinstance(asyncio.get_running_loop(), VirtualClockLoop)
