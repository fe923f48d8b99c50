"""Drawing for many sequences at once: each gets its own, whoever draws it and whatever befalls the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from exo.inference.worker import Worker
from exo.orchestration.forward_pass import Array, Choice, Draw, sample


class Counting:
    """Chooses the position; notes the thread. One at position 13 fails."""

    def __init__(self, threads: dict[int, str], *, is_cheap: bool = False) -> None:
        self._threads = threads
        self.is_cheap = is_cheap

    def choose(self, logits: Array, position: int) -> Choice:
        self._threads[position] = threading.current_thread().name
        if position == 13:
            raise ValueError("unlucky")
        return Choice(position)


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    workers = [Worker(f"sampling-{n}") for n in range(3)]
    yield workers
    for worker in workers:
        worker.stop()


def draws(n: int, threads: dict[int, str], *, is_cheap: bool = False) -> list[Draw]:
    return [Draw(Counting(threads, is_cheap=is_cheap), np.zeros((1, 8), np.float32), 10 + i) for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 7, 16])
async def test_choices_come_in_the_order_of_the_draws_however_they_are_shared(workers: list[Worker], n: int) -> None:
    threads: dict[int, str] = {}
    chosen = await sample(draws(n, threads), workers)
    assert [c.token if isinstance(c, Choice) else str(c) for c in chosen] == [
        "unlucky" if position == 13 else position for position in range(10, 10 + n)
    ]
    assert len(set(threads.values())) == {4: 2}.get(n, min(n, 3))


async def test_mere_maxima_are_not_worth_a_thread(workers: list[Worker]) -> None:
    threads: dict[int, str] = {}
    await sample(draws(5, threads, is_cheap=True), workers)
    assert set(threads.values()) == {threading.current_thread().name}
