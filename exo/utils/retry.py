"""`retrying` and `retrying_blocking`: call again what failed for a reason that may pass.

Both wrap tenacity and differ only in how they pause: one on the event loop, the other in a thread.
The caller decides which errors are retried, how long the pauses are and when to give up. Knows no
transport.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, ParamSpec, TypeAlias, TypeVar

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_never,
)
from tenacity.stop import stop_base

from exo.lifecycle.core import arguments as check

log = logging.getLogger("exo.errors")

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=Callable[..., Any])

# 2**32 times any base is far beyond any ceiling; a larger power would overflow a float in the end.
_LARGEST_POWER: Final = 32


@dataclass(frozen=True, slots=True)
class FailedTry:
    """A try that failed and will be repeated. `number` counts from 1; `attempts` None: no limit."""

    operation: str
    number: int
    attempts: int | None
    error: BaseException
    pause: float


# `Any`, because they take whatever class of error the caller lists.
Predicate: TypeAlias = "Callable[[Any], bool]"
DelayHint: TypeAlias = "Callable[[Any], float | None]"


def _always(_: BaseException) -> bool:
    return True


def _no_hint(_: BaseException) -> float | None:
    return None


def _log(failed: FailedTry) -> None:
    log.info(
        "try %d%s of %s failed, again in %.2f s: %r",
        failed.number,
        "" if failed.attempts is None else f" of {failed.attempts}",
        failed.operation,
        failed.pause,
        failed.error,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policy:
    """What both decorators share: which errors, how many tries, how long the pauses."""

    kinds: tuple[type[BaseException], ...]
    idempotent: bool
    attempts: int | None
    base: float
    most: float
    jitter: float
    when: Predicate
    delay_for: DelayHint
    on_retry: Callable[[FailedTry], None]

    def __post_init__(self) -> None:
        _check_kinds(self.kinds)
        if self.idempotent is not True:
            raise ValueError(
                "retrying: idempotent=True must be declared; what must not run twice must not be"
                " retried"
            )
        if self.attempts is not None:
            check.count("retrying", "attempts", self.attempts)
        for field in ("base", "most", "jitter"):
            check.seconds("retrying", field, getattr(self, field), zero=True)
        if self.jitter > 1:
            raise ValueError(f"retrying: jitter must be between 0 and 1, got {self.jitter!r}")

    @property
    def retry(self) -> retry_if_exception:
        return retry_if_exception(lambda error: isinstance(error, self.kinds) and self.when(error))

    @property
    def stop(self) -> stop_base:
        return stop_never if self.attempts is None else stop_after_attempt(self.attempts)

    def pause(self, state: RetryCallState) -> float:
        hint = self.delay_for(_error_of(state))
        if hint is not None:
            return max(0.0, hint)
        power = min(state.attempt_number - 1, _LARGEST_POWER)
        ceiling = min(self.most, self.base * 2.0**power)
        return random.uniform(ceiling * (1.0 - self.jitter), ceiling)

    def report(self, operation: str, state: RetryCallState) -> None:
        error, pause = _error_of(state), state.upcoming_sleep
        self.on_retry(FailedTry(operation, state.attempt_number, self.attempts, error, pause))


def retrying(
    *,
    on: Iterable[type[BaseException]],
    idempotent: Literal[True],
    attempts: int | None = 3,
    base: float = 0.1,
    most: float = 5.0,
    jitter: float = 1.0,
    timeout: float | None = None,
    when: Predicate = _always,
    delay_for: DelayHint = _no_hint,
    on_retry: Callable[[FailedTry], None] = _log,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Awaitable[T]]]:
    """Decorate an async operation: try again on the listed errors, after a growing random pause.

    on: only these errors are retried; cancellation never is.
    when: of the listed errors, retry only those it accepts.
    idempotent: `True` states that doing the operation twice is harmless.
    attempts: how many tries in all; None: no limit.
    base, most, jitter: the pause after try n is `min(most, base * 2**(n - 1))` seconds, of which
        the share `jitter` is random. 1 is full jitter, from zero upwards.
    delay_for: the exact pause after an error that says so itself (a Retry-After header); None
        leaves it to the back-off.
    timeout: seconds for all tries together, pauses included; then `TimeoutError`.
    on_retry: called before each pause, in place of the log line.
    sleep: how to pause.

    The last error is raised as it is. A plain function that returns an awaitable, such as a lambda
    around a coroutine, is awaited too.
    """
    policy = _Policy(
        kinds=tuple(on),
        idempotent=idempotent,
        attempts=attempts,
        base=base,
        most=most,
        jitter=jitter,
        when=when,
        delay_for=delay_for,
        on_retry=on_retry,
    )
    limit = None if timeout is None else check.seconds("retrying", "timeout", timeout)

    def decorate(operation: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        name = getattr(operation, "__qualname__", repr(operation))

        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            tries = AsyncRetrying(
                retry=policy.retry,
                stop=policy.stop,
                wait=policy.pause,
                before_sleep=functools.partial(policy.report, name),
                sleep=sleep,
                reraise=True,
            )
            async with asyncio.timeout(limit):
                return await tries(_awaited, operation, args, kwargs)

        return _named(call, operation)

    return decorate


def retrying_blocking(
    *,
    on: Iterable[type[BaseException]],
    idempotent: Literal[True],
    attempts: int | None = 3,
    base: float = 0.1,
    most: float = 5.0,
    jitter: float = 1.0,
    when: Predicate = _always,
    delay_for: DelayHint = _no_hint,
    on_retry: Callable[[FailedTry], None] = _log,
    sleep: Callable[[float], object] = time.sleep,
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`retrying` for an operation that blocks its thread; the arguments mean the same.

    A thread cannot be cancelled, so give it a `sleep` that wakes early (`threading.Event.wait`) and
    a `when` that refuses further tries once the event is set.
    """
    policy = _Policy(
        kinds=tuple(on),
        idempotent=idempotent,
        attempts=attempts,
        base=base,
        most=most,
        jitter=jitter,
        when=when,
        delay_for=delay_for,
        on_retry=on_retry,
    )

    def decorate(operation: Callable[P, T]) -> Callable[P, T]:
        name = getattr(operation, "__qualname__", repr(operation))

        def pause(seconds: float) -> None:
            sleep(seconds)

        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            tries = Retrying(
                retry=policy.retry,
                stop=policy.stop,
                wait=policy.pause,
                before_sleep=functools.partial(policy.report, name),
                sleep=pause,
                reraise=True,
            )
            return tries(operation, *args, **kwargs)

        return _named(call, operation)

    return decorate


def _check_kinds(kinds: tuple[type[BaseException], ...]) -> None:
    if not kinds or not all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    ):
        raise TypeError(f"retrying: on must list the exception classes to retry, got {kinds!r}")
    if any(issubclass(asyncio.CancelledError, kind) for kind in kinds):
        raise ValueError(
            "retrying: on must not take in cancellation (BaseException, CancelledError)"
        )


async def _awaited(
    operation: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    result = operation(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


def _error_of(state: RetryCallState) -> BaseException:
    """The error of a try that failed; tenacity asks for a pause only after one of those."""
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None
    return error


def _named(call: C, operation: Any) -> C:
    call.__name__ = getattr(operation, "__name__", "call")
    call.__qualname__ = getattr(operation, "__qualname__", repr(operation))
    call.__doc__ = operation.__doc__
    return call
