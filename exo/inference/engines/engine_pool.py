"""`EnginePool`: an engine that holds several shards at once, each in an engine of its own with its
own worker.

So new layers load while the old ones go on to work. It decides nothing: who holds what, and whether
the memory is there, is the ring's business.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from exo.inference.arrays import Array
from exo.inference.engines.checkpoint_engine import CheckpointEngine, LoadProgress
from exo.inference.engines.inference_engine import InferenceEngine, Step
from exo.inference.shard import Shard
from exo.lifecycle import ResourceDegraded, ResourceState, ResourceUnavailable


class EnginePool(InferenceEngine):
    """make: an engine for one shard. It lives from its load to its drop, and is `PART_TYPE` in logs
    and metrics.
    """

    PART_TYPE: Final = "shard_engine"

    def __init__(self, make: Callable[[], CheckpointEngine], **options: Any) -> None:
        super().__init__(**{"initialize_timeout": 600.0, **options})
        self._make = make
        self._engines: dict[Shard, CheckpointEngine] = {}
        self._loading: set[CheckpointEngine] = set()
        self._wanted: dict[Shard, Path] = {}  # what a recovery is to load again
        self.on_progress: Callable[[LoadProgress], None] | None = None

    # -- what it holds -----------------------------------------------------------------------------

    @property
    def holds_several(self) -> bool:
        return True

    @property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(self._engines)

    @property
    def active(self) -> str | None:
        """Which engine `auto` has settled on, for the newest shard."""
        newest = next(reversed(self._engines.values()), None)
        return getattr(newest, "active", None)

    @property
    def kv_tokens_total(self) -> int | None:
        """Of the shard with the least room: all sequences are counted against it, which is on the
        safe side.
        """
        return _least(engine.kv_tokens_total for engine in self._engines.values())

    @property
    def kv_tokens_free(self) -> int | None:
        return _least(engine.kv_tokens_free for engine in self._engines.values())

    @property
    def sequences(self) -> int:
        return sum(engine.sequences for engine in self._engines.values())

    @property
    def max_sequences(self) -> int | None:
        return _least(engine.max_sequences for engine in self._engines.values())

    @property
    def marks(self) -> int:
        return sum(engine.marks for engine in self._engines.values())

    @property
    def replays_by_step(self) -> bool:
        return any(engine.replays_by_step for engine in self._engines.values())

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

    async def _reuse_prefix(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        """Of the engine with all layers: stages of a longer ring do not ask."""
        for shard, engine in self._engines.items():
            if shard.is_first_layer() and shard.is_last_layer():
                return await engine.reuse_prefix(request_id, tokens, limit)
        return 0

    async def _release(self, request_id: str) -> None:
        for engine in list(self._engines.values()):
            await engine.release(request_id)

    async def _infer_prompt(
        self, request_id: str, shard: Shard, prompt: str, inference_state: dict[str, Any] | None
    ) -> tuple[Array, dict[str, Any] | None]:
        return await self._of(shard).infer_prompt(request_id, shard, prompt, inference_state)

    async def _infer_tensor(
        self,
        request_id: str,
        shard: Shard,
        input_data: Array,
        inference_state: dict[str, Any] | None,
    ) -> tuple[Array, dict[str, Any] | None]:
        return await self._of(shard).infer_tensor(request_id, shard, input_data, inference_state)

    async def _encode(self, shard: Shard, prompt: str) -> Array:
        return await self._of(shard).encode(shard, prompt)

    async def _decode(self, shard: Shard, tokens: Array) -> str:
        return await self._of(shard).decode(shard, tokens)

    def _of(self, shard: Shard) -> CheckpointEngine:
        engine = self._engines.get(shard)
        if engine is None:
            held = ", ".join(map(str, self._engines)) or "nothing"
            # It may have been a moment ago, and be again: to the sequence this is a loss, not a
            # wrong request.
            message = f"{shard} was asked for, {held} is loaded"
            raise ResourceUnavailable(message, resource_id=self.resource_id, state=self.state)
        return engine


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
