"""The waits that tests share, on the virtual clock."""

from __future__ import annotations

import pytest
from virtual_clock import VirtualClock
from waiting import eventually, settled

pytestmark = pytest.mark.virtual_clock


async def test_a_condition_is_asked_until_it_holds(virtual_clock: VirtualClock):
    await eventually(lambda: virtual_clock.elapsed > 5)
    assert 5 < virtual_clock.elapsed < 5.1


async def test_a_condition_that_never_holds_is_a_timeout(virtual_clock: VirtualClock):
    with pytest.raises(TimeoutError):
        await eventually(lambda: False, timeout=3)
    assert virtual_clock.elapsed == pytest.approx(3)


async def test_a_value_is_settled_once_it_has_stopped_changing(virtual_clock: VirtualClock):
    await settled(lambda: min(virtual_clock.elapsed, 1.0), seconds=0.5)
    assert 1.5 <= virtual_clock.elapsed < 1.6


async def test_a_value_that_goes_on_changing_is_a_timeout(virtual_clock: VirtualClock):
    with pytest.raises(TimeoutError):
        await settled(lambda: virtual_clock.elapsed, timeout=3)
