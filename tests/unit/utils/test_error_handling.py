"""Classification, circuit breaking, fallbacks, named degradations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from flaky import Flaky

from exo.lifecycle import (
    AsyncResource,
    ResourceClosed,
    ResourceInitializationError,
    ResourceState,
    add_global_listener,
)
from exo.lifecycle.events import DegradationChange, LifecycleEvent
from exo.utils.error_handling import (
    BreakerState,
    CircuitBreaker,
    CircuitOpen,
    Classification,
    Fault,
    Severity,
    classify,
    degradations,
    degrade,
    restore,
    with_fallbacks,
)


class Part(AsyncResource):
    RESOURCE_TYPE = "part"


# -- classification


@pytest.mark.parametrize(
    ("error", "fault", "retryable"),
    [
        (ConnectionResetError(), Fault.PEER, True),
        (TimeoutError(), Fault.PEER, True),
        (PermissionError(), Fault.ENVIRONMENT, False),
        (ValueError(), Fault.CALLER, False),
        (ZeroDivisionError(), Fault.OURS, False),
        (ResourceClosed("gone"), Fault.CALLER, False),
        (KeyboardInterrupt(), Fault.OURS, False),
        (asyncio.CancelledError(), Fault.CALLER, False),
    ],
)
def test_errors_are_classified_by_their_nearest_known_class(
    error: BaseException, fault: Fault, retryable: bool
):
    found = classify(error)
    assert (found.fault, found.retryable) == (fault, retryable)


def test_a_failed_start_is_judged_by_its_cause():
    error = ResourceInitializationError("x")
    error.__cause__ = PermissionError("no")
    assert classify(error) == Classification(Severity.ERROR, Fault.ENVIRONMENT, False)
    error.__cause__ = ConnectionRefusedError("no")
    assert classify(error) == Classification(Severity.ERROR, Fault.PEER, True)


def test_a_group_is_as_bad_as_its_worst_and_retryable_only_as_a_whole():
    group = ExceptionGroup("both", [ConnectionError(), MemoryError()])
    assert classify(group) == Classification(Severity.CRITICAL, Fault.ENVIRONMENT, False)
    assert classify(ExceptionGroup("peers", [ConnectionError(), TimeoutError()])).retryable


# -- circuit breaker


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def opened(clock: Clock, failures: int = 3) -> CircuitBreaker:
    breaker = CircuitBreaker("peer b", failures=failures, reset_after=10, clock=clock)
    flaky = Flaky(failures)
    for _ in range(failures):
        with pytest.raises(ConnectionError):
            await breaker.call(flaky)
    return breaker


async def test_it_opens_after_failures_in_a_row_and_then_calls_nothing():
    clock = Clock()
    breaker = await opened(clock)
    clock.now = 4.0
    never = Flaky(0)
    with pytest.raises(CircuitOpen, match="peer b") as refused:
        await breaker.call(never)
    assert never.calls == 0
    assert refused.value.retry_after == 6.0
    assert breaker.state is BreakerState.OPEN


async def test_a_success_in_between_starts_the_count_again():
    breaker = CircuitBreaker("b", failures=2, clock=Clock())
    for _ in range(3):
        with pytest.raises(ConnectionError):
            await breaker.call(Flaky(1))
        await breaker.call(Flaky(0))
    assert breaker.state is BreakerState.CLOSED


async def test_half_open_lets_one_probe_through_at_a_time():
    clock = Clock()
    breaker = await opened(clock)
    clock.now = 10.0
    assert breaker.state is BreakerState.HALF_OPEN
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "up"

    probe = asyncio.create_task(breaker.call(slow))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await breaker.call(Flaky(0))
    gate.set()
    assert await probe == "up"
    assert breaker.state is BreakerState.CLOSED


async def test_a_failed_probe_opens_it_again_for_the_whole_time():
    clock = Clock()
    breaker = await opened(clock)
    clock.now = 10.0
    with pytest.raises(ConnectionError):
        await breaker.call(Flaky(1))
    assert breaker.state is BreakerState.OPEN
    clock.now = 19.9
    assert breaker.state is BreakerState.OPEN


async def test_a_cancelled_probe_makes_room_for_the_next():
    clock = Clock()
    breaker = await opened(clock)
    clock.now = 10.0
    probe = asyncio.create_task(breaker.call(asyncio.Event().wait))
    await asyncio.sleep(0)
    probe.cancel()
    await asyncio.wait({probe})
    assert await breaker.call(Flaky(0)) == "answer"


async def test_errors_that_are_not_the_callees_do_not_count():
    breaker = CircuitBreaker("b", failures=1, counts=[ConnectionError], clock=Clock())
    with pytest.raises(ValueError):
        await breaker.call(Flaky(1, ValueError))
    assert breaker.state is BreakerState.CLOSED


def test_bad_breaker_settings_are_named():
    with pytest.raises(ValueError, match=r"'b'.*failures"):
        CircuitBreaker("b", failures=0)
    with pytest.raises(ValueError, match=r"'b'.*reset_after"):
        CircuitBreaker("b", reset_after=-1)


# -- degradations


@pytest.fixture
def events() -> Iterator[list[DegradationChange]]:
    heard: list[DegradationChange] = []

    def listen(event: LifecycleEvent) -> None:
        if isinstance(event, DegradationChange):
            heard.append(event)

    remove = add_global_listener(listen)
    yield heard
    remove()
    for made in degradations():
        restore(made.name)


async def test_a_degradation_shows_in_state_snapshot_and_events_until_restored(
    events: list[DegradationChange],
):
    async with Part(resource_id="p1") as part:
        degrade("engine", to="numpy", reason=OSError("no onnxruntime"), resource=part)
        assert part.state is ResourceState.DEGRADED
        assert "engine runs on numpy" in str(part.last_error)
        for _ in range(5):
            assert not await part.check_health()
        assert part.state is ResourceState.DEGRADED, "declared degradations never add up to ERROR"
        (made,) = degradations()
        assert (made.name, made.to, made.reason, made.resource_id) == (
            "engine",
            "numpy",
            "no onnxruntime",
            "p1",
        )
        assert restore("engine", resource=part)
        assert not restore("engine", resource=part)
        assert await part.check_health()
        assert part.state is ResourceState.READY
        assert degradations() == ()
    assert [(event.name, event.active) for event in events] == [("engine", True), ("engine", False)]


async def test_a_degradation_declared_while_initializing_shows_from_the_end_of_it(
    events: list[DegradationChange],
):
    class Falls(Part):
        async def _do_initialize(self) -> None:
            degrade("weights", to="cache", reason="hub unreachable", resource=self)

    part = Falls(resource_id="p2")
    assert await part.initialize()
    assert part.state is ResourceState.DEGRADED
    await part.cleanup()
    assert degradations() == ()


async def test_a_new_life_starts_without_the_old_degradations(events: list[DegradationChange]):
    async with Part() as part:
        degrade("engine", to="numpy", reason="broken", resource=part)
        await part.recover()
        assert part.state is ResourceState.READY


def test_a_degradation_of_the_whole_process_needs_no_resource(events: list[DegradationChange]):
    degrade("metrics", to="no metrics", reason="port 9090 is taken")
    assert [str(made) for made in degradations()] == [
        "metrics runs on no metrics: port 9090 is taken"
    ]
    with pytest.raises(ValueError, match=r"'metrics'.*reason"):
        degrade("metrics", to="none", reason="")


async def test_fallbacks_are_tried_in_order_and_the_one_that_serves_is_declared(
    events: list[DegradationChange],
):
    async with Part(resource_id="p3") as part:
        ways = {"onnx": Flaky(1, OSError), "numpy": Flaky(0)}
        assert await with_fallbacks("engine", ways, on=[OSError], resource=part) == "answer"
        assert degradations()[0].to == "numpy"
        assert "OSError('call 1')" in degradations()[0].reason
        assert await with_fallbacks("engine", ways, on=[OSError], resource=part) == "answer"
        assert degradations() == (), "the first way works again"


async def test_when_no_way_works_all_errors_are_reported(events: list[DegradationChange]):
    with pytest.raises(ExceptionGroup, match="engine: none of onnx, numpy works") as failed:
        await with_fallbacks(
            "engine", {"onnx": Flaky(1, OSError), "numpy": Flaky(1, OSError)}, on=[OSError]
        )
    assert len(failed.value.exceptions) == 2
    with pytest.raises(ValueError):
        await with_fallbacks(
            "engine", {"onnx": Flaky(1, ValueError), "numpy": Flaky(0)}, on=[OSError]
        )
    assert degradations() == ()
