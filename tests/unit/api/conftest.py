"""Fixtures of the API's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from structlog.typing import EventDict


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What is logged, instead of on the terminal."""
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as events:
        yield events
