"""`initialize`: single flight, roll-back, time-outs, cancellation."""

from __future__ import annotations

import asyncio
import time
import traceback
import weakref

import pytest
from specimens import Specimen, Stubborn, turns

from exo.lifecycle import (
    ResourceClosed,
    ResourceInitializationError,
    ResourceState,
    ResourceTimeout,
)

pytestmark = pytest.mark.virtual_clock

S = ResourceState


async def test_it_goes_through_initializing_to_ready_and_returns_true():
    part = Specimen()
    assert part.state is S.UNINITIALIZED
    assert await part.initialize() is True
    assert (part.path, part.initialized) == ("INITIALIZING READY", 1)
    assert part.is_initialized
    assert part.is_usable
    assert part.is_healthy
    assert part.last_error is None


async def test_the_state_is_initializing_as_soon_as_the_call_is_made():
    part = Specimen()
    part.gates["initialize"].clear()
    caller = asyncio.create_task(part.initialize())
    await asyncio.sleep(0)
    assert part.state is S.INITIALIZING
    part.gates["initialize"].set()
    await caller


async def test_ten_callers_share_one_run_and_its_result():
    part = Specimen()
    assert await asyncio.gather(*(part.initialize() for _ in range(10))) == [True] * 10
    assert part.initialized == 1


async def test_ten_callers_share_one_failure_and_none_tries_again():
    part = Specimen()
    part.fails["initialize"] = RuntimeError("no")
    results = await asyncio.gather(*(part.initialize() for _ in range(10)), return_exceptions=True)
    assert all(isinstance(result, ResourceInitializationError) for result in results)
    assert (part.initialized, part.cleaned) == (1, 1)


async def test_ready_and_degraded_return_true_at_once():
    part = Specimen()
    await part.initialize()
    assert await part.initialize()
    part.healthy = False
    await part.check_health()
    assert part.state is S.DEGRADED
    assert await part.initialize()
    assert part.initialized == 1


async def test_a_failure_is_rolled_back_ends_in_error_and_names_the_cause():
    part = Specimen()
    part.fails["initialize"] = OSError("port 1 is busy")
    with pytest.raises(ResourceInitializationError, match="port 1 is busy") as failed:
        await part.initialize()
    assert isinstance(failed.value.__cause__, OSError)
    assert (failed.value.resource_id, part.state, part.cleaned) == ("s1", S.ERROR, 1)
    assert failed.value.state is S.INITIALIZING
    assert isinstance(part.last_error, OSError)


async def test_the_roll_back_runs_before_anyone_sees_the_failure():
    part = Specimen()
    part.fails["initialize"] = OSError("no")
    part.gates["cleanup"].clear()
    caller = asyncio.create_task(part.initialize())
    await part.inside["cleanup"].wait()
    assert part.state is S.INITIALIZING
    assert not caller.done()
    part.gates["cleanup"].set()
    with pytest.raises(ResourceInitializationError):
        await caller


async def test_a_failing_roll_back_is_a_note_on_the_error_and_ends_in_error():
    part = Specimen()
    part.fails = {"initialize": OSError("no"), "cleanup": ValueError("nor that")}
    with pytest.raises(ResourceInitializationError) as failed:
        await part.initialize()
    assert "nor that" in failed.value.__notes__[0]
    assert part.state is S.ERROR
    assert part.statistics().cleanup_failures == 1


async def test_a_retry_after_a_failure_starts_clean_without_a_second_cleanup():
    part = Specimen()
    part.fails["initialize"] = [OSError("once")]
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    assert await part.initialize()
    assert (part.initialized, part.cleaned, part.last_error) == (2, 1, None)


async def test_a_hook_that_takes_too_long_is_a_timeout_of_both_kinds_and_rolled_back():
    part = Specimen(initialize_timeout=0.02)
    part.gates["initialize"].clear()
    with pytest.raises(ResourceTimeout, match=r"0\.02 s") as failed:
        await part.initialize()
    assert isinstance(failed.value, TimeoutError)
    assert isinstance(failed.value, ResourceInitializationError)
    assert isinstance(failed.value.__cause__, ResourceTimeout)
    assert (part.state, part.cleaned) == (S.ERROR, 1)


async def test_a_callers_timeout_is_its_own_and_the_others_get_their_resource():
    part = Specimen()
    part.gates["initialize"].clear()
    patient = asyncio.create_task(part.initialize())
    with pytest.raises(ResourceTimeout, match="initialize"):
        await part.initialize(timeout=0.01)
    assert part.state is S.INITIALIZING
    part.gates["initialize"].set()
    assert await patient
    assert part.initialized == 1


async def test_the_last_waiter_to_give_up_cancels_and_waits_for_the_roll_back():
    part = Specimen()
    part.gates["initialize"].clear()
    with pytest.raises(ResourceTimeout) as failed:
        await part.initialize(timeout=0.01)
    assert not isinstance(failed.value, ResourceInitializationError)
    assert (part.state, part.cleaned) == (S.ERROR, 1)


async def test_a_timeout_of_zero_gives_up_at_once():
    part = Specimen()
    with pytest.raises(ResourceTimeout):
        await part.initialize(timeout=0)
    assert part.state is S.ERROR
    assert await part.initialize()
    assert await part.initialize(timeout=0), "READY needs no time"


async def test_cancelling_the_only_caller_rolls_back_and_never_leaves_it_initializing():
    part = Specimen()
    part.gates["initialize"].clear()
    caller = asyncio.create_task(part.initialize())
    await part.inside["initialize"].wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert (part.state, part.cleaned) == (S.ERROR, 1)
    part.gates["initialize"].set()
    assert await part.initialize(timeout=1)


async def test_cancelling_one_of_two_callers_does_not_touch_the_other():
    part = Specimen()
    part.gates["initialize"].clear()
    one, two = (asyncio.create_task(part.initialize()) for _ in range(2))
    await part.inside["initialize"].wait()
    one.cancel()
    await asyncio.wait({one})
    assert part.state is S.INITIALIZING
    part.gates["initialize"].set()
    assert await two
    assert one.cancelled()


async def test_a_caller_that_comes_during_the_roll_back_of_a_given_up_start_starts_again():
    part = Specimen()
    part.gates["initialize"].clear()
    part.gates["cleanup"].clear()
    caller = asyncio.create_task(part.initialize())
    await part.inside["initialize"].wait()
    caller.cancel()
    await part.inside["cleanup"].wait()
    late = asyncio.create_task(part.initialize())
    await turns()
    part.gates["initialize"].set()
    part.gates["cleanup"].set()
    assert await late
    assert (part.initialized, part.cleaned) == (2, 1)


async def test_a_hook_that_raises_cancelled_error_by_itself_is_a_failure_not_a_cancellation():
    part = Specimen()
    part.fails["initialize"] = asyncio.CancelledError()
    with pytest.raises(ResourceInitializationError):
        await part.initialize()
    assert part.state is S.ERROR


async def test_a_hook_that_ignores_cancellation_is_left_behind_counted_and_named(
    caplog: pytest.LogCaptureFixture,
):
    part = Stubborn("initialize", initialize_timeout=0.02)
    started = time.monotonic()
    with pytest.raises(ResourceTimeout):
        await part.initialize()
    assert time.monotonic() - started < 1.0
    assert part.state is S.ERROR
    assert part.statistics().abandoned_hooks == 1
    assert "'s1': the initialize hook ignores its cancellation" in caplog.text
    part.released.set()
    await turns()
    assert part.state is S.ERROR, "what it does after its time-out moves nothing"


async def test_a_late_success_after_the_timeout_is_still_a_timeout():
    class Late(Specimen):
        async def _do_initialize(self) -> None:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return

    part = Late(initialize_timeout=0.02)
    with pytest.raises(ResourceTimeout):
        await part.initialize()
    assert part.state is S.ERROR


async def test_initialize_while_closing_is_refused_and_on_closed_begins_a_new_life():
    part = Specimen()
    await part.initialize()
    part.gates["cleanup"].clear()
    closing = asyncio.create_task(part.cleanup())
    await part.inside["cleanup"].wait()
    with pytest.raises(ResourceClosed):
        await part.initialize()
    part.gates["cleanup"].set()
    await closing
    assert await part.initialize()
    assert (part.state, part.initialized, part.cleaned) == (S.READY, 2, 1)


async def test_a_hook_that_is_not_async_gets_an_error_that_says_so():
    class Plain(Specimen):
        def _do_initialize(self) -> None:  # type: ignore[override]
            pass

    with pytest.raises(
        ResourceInitializationError, match=r"Plain\._do_initialize.*must be an async function"
    ):
        await Plain().initialize()


def test_a_resource_is_made_without_an_event_loop_and_lives_on_several():
    part = Specimen()
    for _ in range(2):
        asyncio.run(part.initialize())
        asyncio.run(part.cleanup())
    assert part.initialized == 2


def test_an_event_loop_that_is_shut_down_in_the_middle_leaves_no_transient_state():
    part = Specimen()
    part.gates["initialize"].clear()

    async def main() -> None:
        keep.append(asyncio.create_task(part.initialize()))
        await part.inside["initialize"].wait()

    keep: list[asyncio.Task[bool]] = []
    asyncio.run(main())
    assert (part.state, part.cleaned) == (S.ERROR, 1)


async def test_as_a_context_manager_it_is_ready_inside_and_closed_after():
    async with Specimen() as part:
        assert part.state is S.READY
    assert part.state is S.CLOSED


async def test_the_bodys_error_is_not_masked_by_a_failing_cleanup():
    with pytest.raises(KeyError, match="body") as failed:
        async with Specimen() as part:
            part.fails["cleanup"] = OSError("cleanup")
            raise KeyError("body")
    assert "cleanup" in failed.value.__notes__[0]


async def test_a_cleanup_error_is_raised_when_the_body_is_fine():
    with pytest.raises(OSError, match="cleanup"):
        async with Specimen() as part:
            part.fails["cleanup"] = OSError("cleanup")


async def test_a_kept_error_keeps_nothing_open_that_the_hook_held():
    class Held:
        pass

    held: list[weakref.ref[Held]] = []

    class Dropping(Specimen):
        async def _do_initialize(self) -> None:
            in_hand = Held()
            held.append(weakref.ref(in_hand))
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise OSError("outer") from error

    part = Dropping()
    with pytest.raises(ResourceInitializationError) as failed:
        await part.initialize()
    assert held[0]() is None
    assert "raise OSError" in "".join(traceback.format_exception(failed.value)), "the text stays"
