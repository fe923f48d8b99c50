"""`Holder`: which layers this node's engine holds, and why it could not load others. Knows no plan and no peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from exo.inference.shard import Shard

Load = Callable[[Shard], Awaitable[None]]


class Holder:
    """`load(shard)` makes the engine hold a shard in place of what it holds."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.held: Shard | None = None
        self.loading: Shard | None = None
        # Of the last load, None where that worked.
        self.error: Exception | None = None

    async def hold(self, shard: Shard) -> None:
        """Raises what loading raises; nothing is held then."""
        self.held, self.loading = None, shard
        try:
            await self._load(shard)
        except Exception as error:
            self.error = error
            raise
        finally:
            self.loading = None
        self.held, self.error = shard, None

    @property
    def fault(self) -> str:
        """ "" while nothing is wrong."""
        return "" if self.error is None else f"cannot load its layers: {self.error}"

    def forget(self) -> None:
        self.held = self.loading = self.error = None
