"""A progress bar while `exo serve` starts on a terminal. Log lines scroll above it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import sys
from collections.abc import AsyncIterator, Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

_PERCENT = re.compile(r"\s*(\d+)\s*%")
_REFRESH_SECONDS = 0.1


class LateStderr(io.TextIOBase):
    """Writes to what `sys.stderr` is at that moment: while the bar is shown, it replaces that."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


@contextlib.asynccontextmanager
async def startup_bar(progress: Callable[[], str | None]) -> AsyncIterator[None]:
    """Show what `progress` says ("loading model 43 %") until the block ends."""
    if not sys.stderr.isatty():
        yield
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        async def follow() -> None:
            while True:
                text, percent = split(progress() or "starting")
                bar.update(
                    task,
                    description=text,
                    total=None if percent is None else 100,
                    completed=percent or 0,
                )
                await asyncio.sleep(_REFRESH_SECONDS)

        following = asyncio.create_task(follow(), name="startup bar")
        try:
            yield
        finally:
            following.cancel()


def split(text: str) -> tuple[str, int | None]:
    """`loading model 43 %` is `loading model` and 43. Without a number the bar just moves."""
    match = _PERCENT.search(text)
    return (text, None) if match is None else (text[: match.start()], min(100, int(match[1])))
