"""`ShardManager`: which layers this node's engine holds, whether others fit in addition, and why
some could not be loaded.

Knows no plan and no peers. Memory is judged twice: by what was planned (what the node offers), and
by what is free now (what the container's limit leaves this process, or the machine has available).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol

from exo.inference.shard import Shard
from exo.topology import ModelFootprint

MIB = 1024 * 1024


class Load(Protocol):
    def __call__(self, shard: Shard, /, *, keep_others: bool) -> Awaitable[None]:
        """Make the engine hold a shard, in addition to what it holds or in place of it."""
        ...


class ShardManager:
    """load, drop: make the engine hold a shard, and give one back.
    model: the footprint of the model served; asked once the node has found its model.
    several: whether the engine can hold more than one shard, so that `keep_others` works.
    free_mib: memory that this process may still take.
    """

    def __init__(
        self,
        load: Load,
        drop: Callable[[Shard], Awaitable[None]],
        model: Callable[[], ModelFootprint],
        *,
        several: bool,
        free_mib: Callable[[], int],
    ) -> None:
        self._load = load
        self._drop = drop
        self._model = model
        self._free_mib = free_mib
        self.several = several
        self.held: tuple[Shard, ...] = ()  # the newest last
        # Of the last load; None where that worked.
        self.error: Exception | None = None

    def lack(self, shard: Shard, offered_mib: int, tokens: int) -> str:
        """Why the shard cannot be held in addition to the others; "" where it can.

        tokens: what the sequences that run on the held shards may still grow to.
        """
        if not self.several:
            return "this engine holds one range of layers at a time"
        missing = missing_mib(
            self._model(), self.held, shard, offered_mib, self._free_mib(), tokens
        )
        return f"both at once need {missing} MiB more" if missing > 0 else ""

    async def hold(self, shard: Shard, *, keep_others: bool) -> None:
        """Raises what loading raises. With `keep_others` what was held is still held then; without
        it nothing is.
        """
        if not keep_others:
            self.held = ()
        try:
            await self._load(shard, keep_others=keep_others)
        except Exception as error:
            self.error = error
            raise
        self.held, self.error = (*self.held, shard), None

    async def keep(self, wanted: Collection[Shard]) -> bool:
        """Give all other shards back. Returns whether there were any."""
        others = [shard for shard in self.held if shard not in wanted]
        self.held = tuple(shard for shard in self.held if shard in wanted)
        for shard in others:
            await self._drop(shard)
        return bool(others)

    def fault(self) -> str:
        """Why this node cannot load its layers; "" while it can."""
        return "" if self.error is None else f"cannot load its layers: {self.error}"

    def forget(self) -> None:
        self.held, self.error = (), None


def missing_mib(
    model: ModelFootprint,
    held: Collection[Shard],
    new: Shard,
    offered_mib: int,
    free_mib: int,
    tokens: int = 0,
) -> int:
    """MiB that are missing to load `new` and keep `held`; 0 or less means that it fits.

    An engine takes up to half of what is free for its KV cache. So the new shard leaves the
    sequences of the old ones room to grow in as long as they need at most the other half.
    """
    own = _bytes(model, new)
    planned = own + sum(_bytes(model, shard) for shard in held)
    growth = (
        tokens * model.token_bytes * max((shard.get_layer_count() for shard in held), default=0)
    )
    return -(-max(planned - offered_mib * MIB, own + 2 * growth - free_mib * MIB) // MIB)


def _bytes(model: ModelFootprint, shard: Shard) -> int:
    return model.range_bytes(shard.start_layer, shard.end_layer)
