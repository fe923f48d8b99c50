"""What an error means and what to do about it: classification, retry, circuit breaking, named
degradations.

Knows no transport: packages add their own errors with `classify_as`. Retry is tenacity's.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, Final, Literal, ParamSpec, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt

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
from exo.lifecycle.core import arguments as check
from exo.lifecycle.degradations import Degradation, degradations, degrade, restore
from exo.utils.circuit_breaker import BreakerState, CircuitBreaker, CircuitOpen

__all__ = [
    "BreakerState",
    "CircuitBreaker",
    "CircuitOpen",
    "Classification",
    "Degradation",
    "Fault",
    "Severity",
    "classify",
    "classify_as",
    "degradations",
    "degrade",
    "restore",
    "retrying",
    "with_fallbacks",
]

log = logging.getLogger("exo.errors")

P = ParamSpec("P")
T = TypeVar("T")


class Severity(IntEnum):
    """How bad: INFO is expected in normal life, CRITICAL means the process cannot do its work."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    CRITICAL = 3


class Fault(Enum):
    """Whose fault: who could make it work."""

    CALLER = "caller"  # another request would work
    PEER = "peer"  # another node or service, or the network between
    ENVIRONMENT = "environment"  # the machine: disk, memory, ports, rights
    OURS = "ours"  # a bug here


@dataclass(frozen=True, slots=True)
class Classification:
    severity: Severity
    fault: Fault
    retryable: bool


_MRO_TABLE: Final[dict[type[BaseException], Classification]] = {
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


def classify_as(kind: type[BaseException], classification: Classification) -> None:
    """Say what errors of `kind` (and of its subclasses) mean;
    for packages that define their own.
    """
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        raise TypeError(f"kind must be an exception class, got {kind!r}")
    _MRO_TABLE[kind] = classification


def classify(error: BaseException) -> Classification:
    """By the nearest class in the table. A group is as bad as its worst, retryable when all of it
    is.
    """
    if isinstance(error, BaseExceptionGroup):
        parts = [classify(part) for part in error.exceptions]
        worst = max(parts, key=lambda part: part.severity)
        return Classification(worst.severity, worst.fault, all(part.retryable for part in parts))
    if isinstance(error, ResourceInitializationError) and error.__cause__ is not None:
        # The init hook's own error tells whose fault it was; trying again may help only where it
        # would there.
        cause = classify(error.__cause__)
        return Classification(max(cause.severity, Severity.ERROR), cause.fault, cause.retryable)
    return next(_MRO_TABLE[kind] for kind in type(error).__mro__ if kind in _MRO_TABLE)


def retrying(
    *,
    on: Iterable[type[BaseException]],
    idempotent: Literal[True],
    attempts: int = 3,
    base: float = 0.1,
    most: float = 5.0,
    timeout: float | None = None,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Decorate an async operation: try again on the listed errors, after a random pause that grows.

    on: only these are retried; cancellation never is. idempotent: say `True` to vouch that doing it
        twice is harmless.
    base, most: the pause before try n is uniform in 0..min(most, base * 2**(n - 1)) seconds ("full
        jitter").
    timeout: seconds for all tries together, pauses included; TimeoutError then. The last error is
        raised as it is.

    Plain functions that return an awaitable (a lambda around a coroutine) are awaited too.
    """
    kinds = tuple(on)
    _check_retry(kinds, idempotent)
    tries = check.count("retrying", "attempts", attempts)
    first = check.seconds("retrying", "base", base, zero=True)
    ceiling = check.seconds("retrying", "most", most, zero=True)
    limit = None if timeout is None else check.seconds("retrying", "timeout", timeout)

    def pause(state: RetryCallState) -> float:
        return random.uniform(0.0, min(ceiling, first * 2.0 ** min(state.attempt_number - 1, 32)))

    def decorate(operation: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        name = getattr(operation, "__qualname__", repr(operation))

        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            policy = AsyncRetrying(
                retry=retry_if_exception(lambda error: isinstance(error, kinds)),
                stop=stop_after_attempt(tries),
                wait=pause,
                before_sleep=lambda state: _say(name, tries, state),
                reraise=True,
            )
            async with asyncio.timeout(limit):
                return await policy(_awaited, operation, args, kwargs)

        call.__name__ = getattr(operation, "__name__", "call")
        call.__qualname__ = name
        call.__doc__ = operation.__doc__
        return call

    return decorate


async def with_fallbacks(
    name: str,
    ways: Mapping[str, Callable[[], Awaitable[T]]],
    *,
    on: Iterable[type[Exception]],
    resource: AsyncResource | None = None,
) -> T:
    """The result of the first way that works; one that is not the first is declared as the
    degradation `name`.

    on: errors that pass on to the next way; any other is raised. When no way works, an
        ExceptionGroup of all.
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


def _check_retry(kinds: tuple[type[BaseException], ...], idempotent: object) -> None:
    if not kinds or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise TypeError(f"retrying: on must list the exception classes to retry, got {kinds!r}")
    if any(issubclass(asyncio.CancelledError, kind) for kind in kinds):
        raise ValueError(
            "retrying: on must not take in cancellation (BaseException, CancelledError)"
        )
    if idempotent is not True:
        raise ValueError(
            "retrying: idempotent=True must be declared; what must not run twice must not be"
            " retried"
        )


async def _awaited(
    operation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    result = operation(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _say(name: str, tries: int, state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.info(
        "try %d of %d of %s failed, again in %.2f s: %r",
        state.attempt_number,
        tries,
        name,
        state.upcoming_sleep,
        error,
    )
