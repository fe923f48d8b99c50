"""`check_health` and `recover`: thresholds, stale results, single flight, back-off."""

from __future__ import annotations

import asyncio
import time

import pytest
from specimens import Specimen, Stubborn, turns

from exo.lifecycle import (
    ResourceClosed,
    ResourceDegraded,
    ResourceInitializationError,
    ResourceState,
    ResourceTimeout,
)
from exo.lifecycle.core.backoff import backoff

pytestmark = pytest.mark.virtual_clock

S = ResourceState


async def test_a_resource_that_is_not_up_is_not_healthy_and_its_hook_is_not_called():
    part = Specimen()
    assert await part.check_health() is False
    part.fails["initialize"] = OSError()
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    assert await part.check_health() is False
    assert part.checked == 0


@pytest.mark.parametrize("failure", [False, None, RuntimeError("no answer"), "slow"])
async def test_false_none_an_error_and_a_timeout_are_each_one_failed_check(failure: object):
    part = Specimen(health_check_timeout=0.02)
    await part.initialize()
    if failure == "slow":
        part.gates["health_check"].clear()
    elif isinstance(failure, BaseException):
        part.fails["health_check"] = failure
    else:
        part.healthy = failure
    assert await part.check_health() is False
    assert part.state is S.DEGRADED
    assert part.last_error is not None
    statistics = part.statistics()
    assert (
        statistics.health_checks,
        statistics.health_failures,
        statistics.consecutive_health_failures,
    ) == (1, 1, 1)


async def test_as_many_failures_in_a_row_as_the_threshold_end_in_error_and_checks_stop():
    part = Specimen(failure_threshold=3)
    await part.initialize()
    part.healthy = False
    states = []
    for _ in range(4):
        await part.check_health()
        states.append(part.state)
    assert states == [S.DEGRADED, S.DEGRADED, S.ERROR, S.ERROR]
    assert part.checked == 3


async def test_one_success_brings_it_back_and_the_count_starts_again():
    part = Specimen(failure_threshold=2)
    await part.initialize()
    for _ in range(3):
        part.healthy = False
        assert not await part.check_health()
        assert part.state is S.DEGRADED
        part.healthy = True
        assert await part.check_health()
        assert (part.state, part.last_error) == (S.READY, None)
    assert part.statistics().consecutive_health_failures == 0


async def test_a_threshold_of_one_goes_to_error_at_once():
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part.healthy = False
    await part.check_health()
    assert part.path == "INITIALIZING READY ERROR"


async def test_a_declared_degradation_shows_but_never_counts():
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part.fails["health_check"] = ResourceDegraded("late heartbeats")
    for _ in range(3):
        assert not await part.check_health()
    assert part.state is S.DEGRADED
    part.fails.clear()
    assert await part.check_health()


async def test_callers_share_one_check():
    part = Specimen()
    await part.initialize()
    assert await asyncio.gather(*(part.check_health() for _ in range(10))) == [True] * 10
    assert part.checked == 1


async def test_a_cancelled_caller_does_not_cancel_the_check_of_others():
    part = Specimen()
    await part.initialize()
    part.gates["health_check"].clear()
    one, two = (asyncio.create_task(part.check_health()) for _ in range(2))
    await part.inside["health_check"].wait()
    one.cancel()
    await asyncio.wait({one})
    part.gates["health_check"].set()
    assert await two
    assert part.checked == 1


async def test_when_the_last_caller_leaves_the_check_ends_and_says_nothing():
    part = Specimen()
    await part.initialize()
    part.gates["health_check"].clear()
    caller = asyncio.create_task(part.check_health())
    await part.inside["health_check"].wait()
    caller.cancel()
    await asyncio.wait({caller})
    assert part.state is S.READY
    assert part.statistics().health_checks == 0


async def test_a_hung_check_that_ignores_cancellation_delays_no_caller_beyond_its_timeout():
    part = Stubborn("health_check", health_check_timeout=0.02)
    await part.initialize()
    started = time.monotonic()
    assert await part.check_health() is False
    assert time.monotonic() - started < 1.0
    assert part.statistics().abandoned_hooks == 1
    part.released.set()
    await turns()
    assert part.state is S.DEGRADED, "its late result counts for nothing"
    await part.cleanup()


async def test_a_result_from_before_a_new_life_is_dropped():
    part = Stubborn("health_check", health_check_timeout=5)
    await part.initialize()
    stale = asyncio.create_task(part.check_health())
    await part.inside["health_check"].wait()
    part.stubborn = ""
    part.healthy = False
    closing = asyncio.create_task(part.cleanup())
    part.released.set()
    await closing
    await part.initialize()
    assert await stale is False
    assert part.state is S.READY
    assert part.statistics().health_failures == 0


async def test_recover_on_ready_does_nothing():
    part = Specimen()
    await part.initialize()
    assert await part.recover()
    assert part.initialized == 1


async def test_recover_from_uninitialized_initializes():
    part = Specimen()
    assert await part.recover()
    assert part.path == "INITIALIZING READY"
    assert part.statistics().recoveries == 0


async def test_recover_from_degraded_goes_through_error_and_cleans_inside_initializing():
    part = Specimen()
    await part.initialize()
    part.healthy = False
    await part.check_health()
    part.gates["cleanup"].clear()
    recovering = asyncio.create_task(part.recover())
    await part.inside["cleanup"].wait()
    assert part.state is S.INITIALIZING
    part.gates["cleanup"].set()
    assert await recovering
    assert part.path == "INITIALIZING READY DEGRADED ERROR INITIALIZING READY"
    assert part.changes[3].reason == "recover"
    assert (part.initialized, part.cleaned) == (2, 1)
    assert part.statistics().recoveries == 1


async def test_recover_after_a_failed_start_has_nothing_to_clean():
    part = Specimen()
    part.fails["initialize"] = [OSError("once")]
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    assert await part.recover()
    assert (part.initialized, part.cleaned, part.last_error) == (2, 1, None)


async def test_what_fails_to_close_is_still_started_again(caplog: pytest.LogCaptureFixture):
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part.healthy = False
    await part.check_health()
    part.fails["cleanup"] = BrokenPipeError("the other side is gone")
    await part.ensure_ready()
    assert (part.state, part.initialized, part.cleaned) == (S.READY, 2, 1)
    assert part.statistics().cleanup_failures == 1
    assert "the other side is gone" in caplog.text


async def test_recover_tries_again_after_growing_pauses_and_then_raises():
    part = Specimen()
    part.fails["initialize"] = OSError("broken")
    with pytest.raises(ResourceInitializationError, match="broken"):
        await part.initialize()
    with pytest.raises(ResourceInitializationError, match="broken"):
        await part.recover()
    assert part.initialized == 1 + Specimen.RECOVER_ATTEMPTS
    assert part.state is S.ERROR


async def test_recover_succeeds_when_a_later_try_does():
    part = Specimen()
    part.fails["initialize"] = [OSError(), OSError(), None]
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    assert await part.recover()
    assert part.initialized == 3


async def test_callers_share_one_recovery_and_initialize_joins_it():
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part.healthy = False
    await part.check_health()
    part.healthy = True
    await asyncio.gather(part.recover(), part.recover(), part.ensure_ready(), part.initialize())
    assert part.initialized == 2


async def test_initialize_from_error_starts_clean():
    part = Specimen(failure_threshold=1)
    await part.initialize()
    part.healthy = False
    await part.check_health()
    assert await part.initialize()
    assert (part.initialized, part.cleaned) == (2, 1)


async def test_a_recovery_whose_caller_leaves_during_the_pause_ends_in_error():
    part = Specimen()
    part.fails["initialize"] = OSError()
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    part.RECOVER_BASE_DELAY = part.RECOVER_MAX_DELAY = 20  # type: ignore[misc]
    recovering = asyncio.create_task(part.recover())
    while part.initialized < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await turns(20)
    assert part.state is S.ERROR
    recovering.cancel()
    await asyncio.wait({recovering}, timeout=5)
    assert recovering.cancelled()
    part.fails.clear()
    assert await part.recover()


async def test_a_cleanup_during_the_pause_of_a_recovery_closes_at_once():
    part = Specimen()
    part.RECOVER_BASE_DELAY = part.RECOVER_MAX_DELAY = 20  # type: ignore[misc]
    part.fails["initialize"] = OSError()
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    recovering = asyncio.create_task(part.recover())
    while part.initialized < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await turns(20)
    await asyncio.wait_for(part.cleanup(), 5)
    assert part.state is S.CLOSED
    await asyncio.wait({recovering}, timeout=5)
    assert isinstance(recovering.exception(), ResourceClosed)


async def test_recovery_as_a_whole_has_a_deadline():
    part = Specimen(initialize_timeout=0.02, cleanup_timeout=0.02)
    part.gates["initialize"].clear()
    with pytest.raises(ResourceTimeout):
        await part.initialize()
    started = time.monotonic()
    with pytest.raises(ResourceTimeout):
        await part.recover()
    assert time.monotonic() - started < 2.0
    assert part.state is S.ERROR


def test_the_pauses_grow_are_bounded_and_jittered():
    for attempt, ceiling in ((1, 1.0), (2, 2.0), (3, 4.0), (9, 5.0), (5000, 5.0)):
        drawn = {backoff(attempt, 1.0, 5.0) for _ in range(50)}
        assert all(ceiling / 2 <= pause <= ceiling for pause in drawn)
        assert len(drawn) > 10, "real jitter"
