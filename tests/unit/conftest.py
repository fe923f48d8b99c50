"""For unit tests: an event loop for each async test, with a virtual clock where it asks for one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from virtual_clock import VirtualClock, VirtualClockLoop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(config: Any, item: Any) -> Mapping[str, LoopFactory]:
    """pytest-asyncio asks once per async test, before it makes the loop."""
    asked = item.get_closest_marker("virtual_clock") or "virtual_clock" in item.fixturenames
    if asked:
        return {"virtual": VirtualClockLoop}
    return {"real": asyncio.new_event_loop}


@pytest.fixture
async def virtual_clock() -> VirtualClock:
    """See tests/support/virtual_clock.py."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualClockLoop), "for async tests only"
    return loop.clock
