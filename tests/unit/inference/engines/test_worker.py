"""The engine's thread: calls in order, answers to those who still wait, and no process kept from
its end.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from exo.inference.engines.worker import Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("engine-test")
    yield worker
    worker.stop()


async def test_calls_run_in_order_on_one_thread_and_their_answers_come_back(worker: Worker) -> None:
    seen: list[tuple[int, str]] = []

    def call(number: int) -> int:
        seen.append((number, threading.current_thread().name))
        return number * number

    assert await asyncio.gather(*(worker.submit(call, n) for n in range(5))) == [0, 1, 4, 9, 16]
    assert seen == [(n, "engine-test") for n in range(5)]


async def test_what_a_call_raises_is_its_callers_and_the_next_call_runs(worker: Worker) -> None:
    with pytest.raises(ZeroDivisionError):
        await worker.submit(lambda: 1 // 0)
    assert await worker.submit(lambda: "on") == "on"


async def test_a_call_cancelled_before_it_began_never_runs(worker: Worker) -> None:
    begin, ran = threading.Event(), []
    first = worker.submit(begin.wait)
    second = worker.submit(ran.append, "second")
    second.cancel()
    begin.set()
    await first
    await worker.submit(ran.append, "third")
    assert ran == ["third"]


async def test_a_call_cancelled_while_it_runs_ends_unheard(worker: Worker) -> None:
    begun, end = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        end.wait()
        raise ValueError("nobody hears this")

    future = worker.submit(call)
    await asyncio.to_thread(begun.wait)
    future.cancel()
    end.set()
    assert await worker.submit(lambda: "next") == "next"
    assert future.cancelled()


def test_the_answer_to_a_loop_that_is_closed_is_dropped(worker: Worker) -> None:
    end = threading.Event()

    async def leave() -> None:
        worker.submit(end.wait)

    asyncio.run(leave())
    end.set()

    async def come_back() -> str:
        return await worker.submit(lambda: "still here")

    assert asyncio.run(come_back()) == "still here"


async def test_stopped_it_ends_after_what_was_asked_before() -> None:
    worker = Worker("engine-stopped")
    last = worker.submit(threading.current_thread)
    worker.stop()
    thread = await last
    await asyncio.to_thread(thread.join, 30)
    assert not thread.is_alive()


def test_a_worker_that_nobody_stopped_keeps_no_interpreter_from_its_end() -> None:
    code = (
        "import asyncio; from exo.inference.engines.worker import Worker\n"
        "async def main():\n"
        "    print(await Worker('forgotten').submit(lambda: 'done'))\n"
        "asyncio.run(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
