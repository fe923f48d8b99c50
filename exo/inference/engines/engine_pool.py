"""`EnginePool`: an engine that holds several shards at once, each in an engine with a worker of its
own.

In this way new layers load while the old ones go on working. The pool decides nothing: which shards
are held, and whether there is memory for them, is for the ring to say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import EngineFigures, InferenceEngine, Step
from exo.inference.shard import Shard
from exo.lifecycle import ResourceDegraded, ResourceState, ResourceUnavailable


class EnginePool(InferenceEngine):
    """make: an engine for one shard, which lives from its load to its drop. In logs and metrics its
    resource type is `PART_TYPE`.
    """

    PART_TYPE: Final = "shard_engine"

    def __init__(self, make: Callable[[], InferenceEngine], **options: Any) -> None:
        super().__init__(**{"initialize_timeout": 600.0, **options})
        self._make = make
        self._engines: dict[Shard, InferenceEngine] = {}
        self._loading: set[InferenceEngine] = set()
        self._wanted: dict[Shard, Path] = {}  # what a recovery loads again

    # -- what it holds -----------------------------------------------------------------------------

    @property
    def holds_several(self) -> bool:
        return True

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(self._engines)

    @property
    def active(self) -> str | None:
        newest = next(reversed(self._engines.values()), None)
        return None if newest is None else newest.active

    @property
    def figures(self) -> EngineFigures:
        """The room is that of the shard with the least. All sequences are counted against it,
        which errs on the safe side.
        """
        each = [engine.figures for engine in self._engines.values()]
        return EngineFigures(
            kv_tokens_total=_least(f.kv_tokens_total for f in each),
            kv_tokens_free=_least(f.kv_tokens_free for f in each),
            sequences=sum(f.sequences for f in each),
            max_sequences=_least(f.max_sequences for f in each),
            replays_by_step=any(f.replays_by_step for f in each),
        )

    @property
    def marks(self) -> int:
        return sum(engine.marks for engine in self._engines.values())

    # -- life --------------------------------------------------------------------------------------

    async def _do_initialize(self) -> None:
        for shard, path in list(self._wanted.items()):
            await self._add_checkpoint(shard, path)

    async def _do_cleanup(self) -> None:
        if self.state is ResourceState.CLOSING:
            self._wanted.clear()
        engines = (*self._engines.values(), *self._loading)
        self._engines.clear()
        results = await asyncio.gather(
            *(engine.cleanup() for engine in engines), return_exceptions=True
        )
        if errors := [result for result in results if isinstance(result, Exception)]:
            raise ExceptionGroup("engines of shards: cleanup", errors)

    async def _do_health_check(self) -> bool:
        engines = list(self._engines.values())
        healthy = await asyncio.gather(*(engine.check_health() for engine in engines))
        ailing = [engine for engine, well in zip(engines, healthy, strict=True) if not well]
        if not all(isinstance(engine.last_error, ResourceDegraded) for engine in ailing):
            return False
        if ailing:
            raise ResourceDegraded(
                ailing[0].state_reason, resource_id=self.resource_id, state=self.state
            )
        return True

    # -- hooks of InferenceEngine ------------------------------------------------------------------

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        for held in list(self._engines):
            await self._drop_shard(held)
        await self._add_checkpoint(shard, path)

    async def _add_checkpoint(self, shard: Shard, path: Path) -> None:
        if shard in self._engines:
            return
        engine = self._make()
        engine.on_progress = self.on_progress
        self._loading.add(engine)
        try:
            await engine.initialize()
            await engine.load_checkpoint(shard, path)
        except BaseException:
            await engine.cleanup()
            raise
        finally:
            self._loading.discard(engine)
        self._engines[shard] = engine
        self._wanted[shard] = path

    async def _drop_shard(self, shard: Shard) -> None:
        self._wanted.pop(shard, None)
        engine = self._engines.pop(shard, None)
        if engine is not None:
            await engine.cleanup()

    async def _infer_batch(self, shard: Shard, steps: Sequence[Step]) -> list[Array]:
        return await self._of(shard).infer_batch(shard, steps)

    async def _reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        """Asks the engine with all layers; stages of a longer ring do not use this."""
        for shard, engine in self._engines.items():
            if shard.is_first_layer() and shard.is_last_layer():
                return await engine.reuse_prefix(sequence_id, tokens, limit)
        return 0

    async def _release(self, sequence_id: str) -> None:
        for engine in list(self._engines.values()):
            await engine.release(sequence_id)

    async def _encode(self, shard: Shard, prompt: str) -> Array:
        return await self._of(shard).encode(shard, prompt)

    async def _decode(self, shard: Shard, tokens: Array) -> str:
        return await self._of(shard).decode(shard, tokens)

    def _of(self, shard: Shard) -> InferenceEngine:
        engine = self._engines.get(shard)
        if engine is None:
            held = ", ".join(map(str, self._engines)) or "nothing"
            # It may have been held a moment ago and be held again soon: the sequence has lost its
            # place, and the request is not wrong.
            message = f"{shard} was asked for, {held} is loaded"
            raise ResourceUnavailable(message, resource_id=self.resource_id, state=self.state)
        return engine


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
