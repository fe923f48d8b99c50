"""`FallbackEngine`: the fast engine where it can run the model, else the next one, and it says so.

A fault of the checkpoint itself fails in every engine and is raised as the last one tells it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from exo.inference.arrays import Array
from exo.inference.engines.checkpoint_engine import Cancel, CheckpointEngine, PassCancelled
from exo.inference.engines.inference_engine import Step
from exo.inference.models import Weights
from exo.inference.shard import Shard
from exo.utils.error_handling import degrade, restore

# What the degradation is called in state, metrics and logs.
DEGRADATION: Final = "engine"
logger = logging.getLogger(__name__)


class FallbackEngine(CheckpointEngine):
    """candidates: engine name -> how to make one, best first. The one in use is `active`.

    The candidates are never initialized themselves: their hooks run on this engine's worker thread.
    """

    def __init__(
        self, candidates: dict[str, Callable[[], CheckpointEngine]], **options: Any
    ) -> None:
        super().__init__(**options)
        if not candidates:
            raise ValueError("candidates: at least one engine is needed")
        self._candidates = candidates
        self._inner: CheckpointEngine | None = None
        # Name of the engine in use; None before a checkpoint is loaded.
        self.active: str | None = None
        # Why the best candidate is not in use; None when it is.
        self.degraded_reason: str | None = None

    @property
    def kv_tokens_total(self) -> int | None:
        return self._inner.kv_tokens_total if self._inner else 0

    @property
    def kv_tokens_free(self) -> int | None:
        return self._inner.kv_tokens_free if self._inner else 0

    @property
    def sequences(self) -> int:
        return self._inner.sequences if self._inner else 0

    @property
    def max_sequences(self) -> int | None:
        return self._inner.max_sequences if self._inner else None

    @property
    def replays_by_step(self) -> bool:
        return self._inner is not None and self._inner.replays_by_step

    async def _load_checkpoint(self, shard: Shard, path: Path) -> None:
        await super()._load_checkpoint(shard, path)
        if self.degraded_reason is None:
            restore(DEGRADATION, resource=self)
        else:
            degrade(DEGRADATION, to=str(self.active), reason=self.degraded_reason, resource=self)

    def _load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        reason: str | None = None
        for name, make in self._candidates.items():
            inner = make()
            # What its hooks ask about what is loaded.
            inner.config, inner.shard, inner.path = weights.config, shard, weights.checkpoint.path
            try:
                inner._load(weights, shard, advance)
            except PassCancelled:
                inner._unload()
                raise
            except Exception as error:
                inner._unload()
                if name == list(self._candidates)[-1]:
                    raise
                reason = f"{name}: {error}"
                logger.warning(
                    "engine %s cannot run %s, trying the next one: %s", name, shard.model_id, error
                )
                continue
            self._inner, self.active, self.degraded_reason = inner, name, reason
            return

    def _forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        assert self._inner is not None  # _check_shard has passed
        return self._inner._forward(steps, cancel)

    def _drop(self, request_id: str) -> None:
        if self._inner is not None:
            self._inner._drop(request_id)

    def _reuse(self, request_id: str, tokens: Sequence[int], limit: int) -> int:
        assert self._inner is not None
        return self._inner._reuse(request_id, tokens, limit)

    def _unload(self) -> None:
        inner, self._inner, self.active = self._inner, None, None
        if inner is not None:
            inner._unload()
