"""What a failed start or a failed cleanup raises, made from what its hook did."""

from __future__ import annotations

import asyncio

from exo.lifecycle.core.hooks import HookStopped, HookTimeout
from exo.lifecycle.core.record import LifeRecord
from exo.lifecycle.core.state import ResourceState
from exo.lifecycle.errors import (
    ResourceClosed,
    ResourceError,
    ResourceInitializationError,
    ResourceInitializationTimeout,
    ResourceTimeout,
)


def start_failure(record: LifeRecord, cause: BaseException, limit: float) -> ResourceError:
    """limit: the seconds that the init hook had."""
    if record.machine.state is ResourceState.CLOSING:
        return record.error(ResourceClosed, "was closed while it initialized")
    if isinstance(cause, HookTimeout):
        failure = record.error(
            ResourceInitializationTimeout,
            f"did not initialize within {limit:g} s and was rolled back",
        )
        failure.__cause__ = record.error(ResourceTimeout, f"init hook ran out of its {limit:g} s")
    elif isinstance(cause, HookStopped):
        failure = record.error(
            ResourceInitializationError, f"gave up initializing: {cause}; it was rolled back"
        )
    else:
        failure = record.error(
            ResourceInitializationError, f"failed to initialize and was rolled back: {cause!r}"
        )
        failure.__cause__ = cause
    return failure


def cleanup_failure(record: LifeRecord, raised: BaseException) -> BaseException:
    if isinstance(raised, HookTimeout):
        limit = record.subject.cleanup_timeout
        return record.error(ResourceTimeout, f"did not clean up within {limit:g} s")
    if isinstance(raised, HookStopped | asyncio.CancelledError):
        error = record.error(ResourceError, "its cleanup was cancelled")
        error.__cause__ = raised
        return error
    return raised
