"""Sampling for many sequences at once: each gets its own token, on whatever thread, and whatever
happens to the others.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from exo.inference.engines.worker import Worker
from exo.networking.messages import Token
from exo.pipeline.samplers import ARGMAX, DRAW, INLINE_LOGITS, SLOW, Array, Draw, sample


class Counting:
    """Chooses the position; notes the thread. One at position 13 fails."""

    def __init__(self, threads: dict[int, str], cost: int) -> None:
        self._threads = threads
        self.cost = cost

    def choose(self, logits: Array, position: int) -> Token:
        self._threads[position] = threading.current_thread().name
        if position == 13:
            raise ValueError("unlucky")
        return Token(sequence_id="s", epoch="e", position=position, token=position)


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("sampling")
    yield worker
    worker.stop()


def draws(n: int, threads: dict[int, str], cost: int = INLINE_LOGITS, vocab: int = 8) -> list[Draw]:
    return [(Counting(threads, cost), np.zeros((1, vocab), np.float32), 10 + i) for i in range(n)]


@pytest.mark.parametrize("n", [0, 1, 4, 16])
async def test_choices_come_in_the_order_of_the_draws_and_one_that_fails_fails_alone(
    worker: Worker, n: int
) -> None:
    threads: dict[int, str] = {}
    chosen = await sample(draws(n, threads), worker)
    assert [c.token if isinstance(c, Token) else str(c) for c in chosen] == [
        "unlucky" if position == 13 else position for position in range(10, 10 + n)
    ]
    assert set(threads.values()) == ({"sampling"} if n else set())


@pytest.mark.parametrize(
    ("n", "cost", "vocab", "inline"),
    [
        pytest.param(8, ARGMAX, 49_152, True, id="the largest of eight"),
        pytest.param(8, ARGMAX, 152_000, False, id="the largest of eight, of a large vocabulary"),
        pytest.param(1, DRAW, 49_152, True, id="one draw"),
        pytest.param(2, DRAW, 49_152, False, id="two draws"),
        pytest.param(1, SLOW, 2_000, False, id="a constraint"),
    ],
)
async def test_only_what_takes_longer_than_the_way_to_a_thread_takes_that_way(
    worker: Worker, n: int, cost: int, vocab: int, inline: bool
) -> None:
    threads: dict[int, str] = {}
    await sample(draws(n, threads, cost, vocab), worker)
    assert (set(threads.values()) == {threading.current_thread().name}) is inline
