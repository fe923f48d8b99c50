"""What an error means, and what to do about it.

`classify` says how bad an error is, who can fix it and whether trying again may help.
`with_fallbacks` uses the first way that works. Retrying, the circuit breaker and named degradations
have modules of their own and are exported here too. Knows no transport.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final, TypeVar

from exo.lifecycle import (
    AsyncResource,
    IllegalTransition,
    ReentrantCall,
    ResourceClosed,
    ResourceDegraded,
    ResourceInitializationError,
    ResourceTimeout,
    ResourceUnavailable,
)
from exo.lifecycle.degradations import Degradation, degradations, degrade, restore
from exo.utils.circuit_breaker import BreakerState, CircuitBreaker, CircuitOpen
from exo.utils.retry import FailedTry, retrying, retrying_blocking

__all__ = [
    "BreakerState",
    "CircuitBreaker",
    "CircuitOpen",
    "Classification",
    "Degradation",
    "FailedTry",
    "Fault",
    "Severity",
    "classify",
    "degradations",
    "degrade",
    "restore",
    "retrying",
    "retrying_blocking",
    "with_fallbacks",
]

T = TypeVar("T")


class Severity(IntEnum):
    """How bad: INFO is part of normal operation, CRITICAL means the process cannot do its work."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    CRITICAL = 3


class Fault(Enum):
    """Who could make it work."""

    # A different request would work.
    CALLER = "caller"
    # Another node or service, or the network in between.
    PEER = "peer"
    # The machine: disk, memory, ports, permissions.
    ENVIRONMENT = "environment"
    # A bug in this program.
    OURS = "ours"


@dataclass(frozen=True, slots=True)
class Classification:
    severity: Severity
    fault: Fault
    retryable: bool


# Looked up along the error's method resolution order: the most specific class wins.
_BY_CLASS: Final[Mapping[type[BaseException], Classification]] = {
    asyncio.CancelledError: Classification(Severity.INFO, Fault.CALLER, False),
    ResourceDegraded: Classification(Severity.WARNING, Fault.ENVIRONMENT, False),
    ResourceClosed: Classification(Severity.INFO, Fault.CALLER, False),
    ResourceUnavailable: Classification(Severity.WARNING, Fault.ENVIRONMENT, True),
    ResourceTimeout: Classification(Severity.WARNING, Fault.ENVIRONMENT, True),
    ResourceInitializationError: Classification(Severity.ERROR, Fault.ENVIRONMENT, True),
    IllegalTransition: Classification(Severity.ERROR, Fault.OURS, False),
    ReentrantCall: Classification(Severity.ERROR, Fault.OURS, False),
    CircuitOpen: Classification(Severity.WARNING, Fault.PEER, True),
    ConnectionError: Classification(Severity.WARNING, Fault.PEER, True),
    TimeoutError: Classification(Severity.WARNING, Fault.PEER, True),
    PermissionError: Classification(Severity.ERROR, Fault.ENVIRONMENT, False),
    FileNotFoundError: Classification(Severity.ERROR, Fault.ENVIRONMENT, False),
    OSError: Classification(Severity.ERROR, Fault.ENVIRONMENT, False),
    MemoryError: Classification(Severity.CRITICAL, Fault.ENVIRONMENT, False),
    ValueError: Classification(Severity.WARNING, Fault.CALLER, False),
    Exception: Classification(Severity.ERROR, Fault.OURS, False),
    BaseException: Classification(Severity.CRITICAL, Fault.OURS, False),
}


def classify(error: BaseException) -> Classification:
    """Classify by the nearest known class of the error.

    A group is as bad as its worst error, and retryable when all of its errors are.
    """
    if isinstance(error, BaseExceptionGroup):
        parts = [classify(part) for part in error.exceptions]
        worst = max(parts, key=lambda part: part.severity)
        return Classification(worst.severity, worst.fault, all(part.retryable for part in parts))
    if isinstance(error, ResourceInitializationError) and error.__cause__ is not None:
        # What the init hook raised decides whose fault it was and whether to try again.
        cause = classify(error.__cause__)
        return Classification(max(cause.severity, Severity.ERROR), cause.fault, cause.retryable)
    return next(_BY_CLASS[kind] for kind in type(error).__mro__ if kind in _BY_CLASS)


async def with_fallbacks(
    name: str,
    ways: Mapping[str, Callable[[], Awaitable[T]]],
    *,
    on: Iterable[type[Exception]],
    resource: AsyncResource | None = None,
) -> T:
    """Return the result of the first way that works.

    on: errors that lead to the next way; any other error is raised at once.

    Any way but the first is declared as the degradation `name`; success of the first withdraws it.
    When no way works, raises an ExceptionGroup of all their errors.
    """
    kinds = tuple(on)
    errors: list[Exception] = []
    for way, operation in ways.items():
        try:
            result = await operation()
        except kinds as error:
            error.add_note(f"{name}: {way} failed")
            errors.append(error)
            continue
        if errors:
            degrade(
                name, to=way, reason="; ".join(repr(error) for error in errors), resource=resource
            )
        else:
            restore(name, resource=resource)
        return result
    raise ExceptionGroup(
        f"{name}: none of {', '.join(ways) or 'no ways'} works",
        errors or [ValueError("no ways given")],
    )
