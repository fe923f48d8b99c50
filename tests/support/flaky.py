"""An operation that fails at first: for tests of retries, fallbacks and circuit breakers."""

from __future__ import annotations


class Flaky:
    """Fails the given number of times, then answers."""

    def __init__(self, failures: int, error: type[BaseException] = ConnectionError) -> None:
        self.left = failures
        self.error = error
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.left > 0:
            self.left -= 1
            raise self.error(f"call {self.calls}")
        return "answer"
