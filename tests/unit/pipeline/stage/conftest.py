"""For the tests of a stage: one that serves, with its engine loaded; `at` says which one."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from stage_bench import Bench


@pytest.fixture(params=["first"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    made = Bench(request.param)
    await made.begin()
    yield made
    await made.stage.cleanup()
    await made.engine.cleanup()
