"""Retry: which errors, how often, how long in between."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from typing import Any

import pytest
from flaky import Flaky

from exo.utils.error_handling import FailedTry, retrying, retrying_blocking


async def test_a_listed_error_is_retried_until_the_answer():
    flaky = Flaky(2)
    assert await retrying(on=[ConnectionError], idempotent=True, base=0)(flaky)() == "answer"
    assert flaky.calls == 3


async def test_the_last_error_is_raised_as_it_is():
    flaky = Flaky(9)
    with pytest.raises(ConnectionError, match="call 3"):
        await retrying(on=[ConnectionError], idempotent=True, attempts=3, base=0)(flaky)()


@pytest.mark.parametrize("error", [TypeError, asyncio.CancelledError])
async def test_an_unlisted_error_is_never_retried(error: type[BaseException]):
    flaky = Flaky(1, error)
    with pytest.raises(error):
        await retrying(on=[ConnectionError], idempotent=True, base=0)(flaky)()
    assert flaky.calls == 1


async def test_a_lambda_around_a_coroutine_is_awaited_and_retried():
    flaky = Flaky(1)
    assert (
        await retrying(on=[ConnectionError], idempotent=True, base=0)(lambda: flaky())() == "answer"
    )


async def test_arguments_reach_the_operation_and_its_name_stays():
    @retrying(on=[ConnectionError], idempotent=True)
    async def add(a: int, *, b: int) -> int:
        """Sum."""
        return a + b

    assert await add(1, b=2) == 3
    assert (add.__name__, add.__doc__) == ("add", "Sum.")


async def test_all_tries_together_are_bounded():
    with pytest.raises(TimeoutError):
        await retrying(
            on=[ConnectionError], idempotent=True, attempts=99, base=60, most=60, timeout=0.02
        )(Flaky(99))()


async def test_the_pauses_are_random_within_a_growing_bound(monkeypatch: pytest.MonkeyPatch):
    bounds: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        bounds.append((low, high))
        return 0.0

    monkeypatch.setattr(random, "uniform", uniform)
    await retrying(on=[ConnectionError], idempotent=True, attempts=6, base=1, most=5)(Flaky(5))()
    assert bounds == [(0, 1), (0, 2), (0, 4), (0, 5), (0, 5)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on": [ConnectionError], "idempotent": False}, "idempotent"),
        ({"on": [], "idempotent": True}, "on must list"),
        ({"on": ["ConnectionError"], "idempotent": True}, "on must list"),
        ({"on": [BaseException], "idempotent": True}, "cancellation"),
        ({"on": [ConnectionError], "idempotent": True, "attempts": 0}, "attempts"),
        ({"on": [ConnectionError], "idempotent": True, "base": -1}, "base"),
        ({"on": [ConnectionError], "idempotent": True, "jitter": 1.5}, "jitter"),
        ({"on": [ConnectionError], "idempotent": True, "timeout": "1"}, "timeout"),
    ],
)
def test_bad_retry_settings_are_named(settings: dict[str, Any], message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        retrying(**settings)


# -- what a download hub needs: pauses that the server asks for, in a thread


class TooMany(Exception):
    def __init__(self, retry_after: float | None) -> None:
        super().__init__(f"again in {retry_after} s")
        self.retry_after = retry_after


class Hub:
    """Answers after the errors it was given."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def get(self, name: str) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return name

    async def fetch(self, name: str) -> str:
        return self.get(name)


def no_jitter(low: float, high: float) -> float:
    return high


async def test_a_pause_that_the_error_asks_for_replaces_the_back_off(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(random, "uniform", no_jitter)
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    hub = Hub(TooMany(30.0), TooMany(None), TooMany(7.0))
    fetch = retrying(
        on=[TooMany],
        idempotent=True,
        attempts=4,
        base=1,
        delay_for=lambda error: error.retry_after,
        sleep=sleep,
    )(hub.fetch)
    assert await fetch("weights") == "weights"
    assert paused == [30.0, 2.0, 7.0]


def test_a_blocking_call_is_retried_in_the_same_way(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(random, "uniform", no_jitter)
    paused: list[float] = []
    hub = Hub(ConnectionError(), TooMany(9.0), ConnectionError())
    get = retrying_blocking(
        on=[ConnectionError, TooMany],
        idempotent=True,
        attempts=4,
        base=1,
        delay_for=lambda error: getattr(error, "retry_after", None),
        sleep=paused.append,
    )(hub.get)
    assert get("weights") == "weights"
    assert paused == [1.0, 9.0, 4.0]
    assert (get.__name__, hub.calls) == ("get", 4)


def test_a_blocking_call_ends_early_when_its_event_is_set():
    cancelled = threading.Event()
    hub = Hub(ConnectionError("first"), ConnectionError("second"), ConnectionError("third"))

    def cancel(_: FailedTry) -> None:
        cancelled.set()

    get = retrying_blocking(
        on=[ConnectionError],
        idempotent=True,
        base=60,
        when=lambda _: not cancelled.is_set(),
        on_retry=cancel,
        sleep=cancelled.wait,
    )(hub.get)
    with pytest.raises(ConnectionError, match="second"):
        get("weights")


# -- what a pool of peers needs: no limit, errors that end it, one report per try


async def test_without_a_limit_it_goes_on_until_the_answer_and_the_pause_stays_bounded():
    paused: list[float] = []

    async def sleep(seconds: float) -> None:
        paused.append(seconds)

    flaky = Flaky(2000)
    connect = retrying(
        on=[ConnectionError],
        idempotent=True,
        attempts=None,
        base=0.01,
        most=0.7,
        jitter=0.3,
        on_retry=lambda _: None,
        sleep=sleep,
    )(flaky)
    assert await connect() == "answer"
    assert len(paused) == 2000
    assert 0.007 <= paused[0] <= 0.01
    assert all(0.49 <= pause <= 0.7 for pause in paused[10:])


async def test_of_the_listed_errors_only_those_accepted_are_retried():
    hub = Hub(TooMany(0.0), TooMany(None))
    fetch = retrying(
        on=[TooMany],
        idempotent=True,
        attempts=None,
        base=0,
        when=lambda error: error.retry_after is not None,
    )(hub.fetch)
    with pytest.raises(TooMany, match="None"):
        await fetch("x")
    assert hub.calls == 2


async def test_each_failed_try_is_reported_before_its_pause(caplog: pytest.LogCaptureFixture):
    reports: list[FailedTry] = []
    errors = [ConnectionError("one"), ConnectionError("two")]
    hub = Hub(*errors)
    fetch = retrying(
        on=[ConnectionError], idempotent=True, base=0, on_retry=reports.append, attempts=None
    )(hub.fetch)
    with caplog.at_level(logging.INFO):
        await fetch("x")
    assert [(each.number, each.attempts, each.error, each.pause) for each in reports] == [
        (1, None, errors[0], 0.0),
        (2, None, errors[1], 0.0),
    ]
    assert reports[0].operation == "Hub.fetch"
    assert caplog.text == ""


@pytest.mark.parametrize(("attempts", "said"), [(3, "try 1 of 3 of"), (None, "try 1 of")])
async def test_a_failed_try_is_logged(
    attempts: int | None, said: str, caplog: pytest.LogCaptureFixture
):
    hub = Hub(ConnectionError("cut"))
    with caplog.at_level(logging.INFO):
        await retrying(on=[ConnectionError], idempotent=True, attempts=attempts, base=0)(hub.fetch)(
            "x"
        )
    assert f"{said} Hub.fetch failed, again in 0.00 s: ConnectionError('cut')" in caplog.text
