"""Closes what a resource has open: its background tasks, then its cleanup hook."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from exo.lifecycle.core.flight import Flight
from exo.lifecycle.core.hooks import HookStopped, run_hook
from exo.lifecycle.core.record import LifeRecord
from exo.lifecycle.tasks import TaskManager


async def close(
    record: LifeRecord, tasks: TaskManager, timeout: float, flight: Flight[Any]
) -> None:
    """Cancel the background tasks, then run the cleanup hook if something is open, all within
    `timeout` seconds.

    The tasks get half of the time at most, so that the hook always has the other half.
    """
    started = time.monotonic()
    tasks.close()
    if tasks.tasks:
        await tasks.cancel_all_tasks(timeout=timeout / 2)
    if not record.opened:
        return
    record.counts.cleanups += 1
    left = max(timeout / 2, timeout - (time.monotonic() - started))
    try:
        try:
            await run_hook(record, "cleanup", left, flight, stoppable=False)
        except (HookStopped, asyncio.CancelledError):
            if not record.opened:
                raise
            # An event loop that is being closed cancelled the hook before its first step: nothing
            # is closed yet.
            await run_hook(record, "cleanup", left, flight, stoppable=False)
    except (Exception, asyncio.CancelledError):
        record.counts.cleanup_failures += 1
        raise
    finally:
        record.counts.last_cleanup_seconds = time.monotonic() - started
