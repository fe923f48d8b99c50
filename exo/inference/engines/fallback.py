"""`FallbackRunner`: the best of several runners that can load the model.

A fault of the checkpoint itself fails in every runner and is raised as the last one words it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import EngineFigures, Step
from exo.inference.engines.options import EngineOptions
from exo.inference.engines.runner import Cancel, ModelRunner, PassCancelled
from exo.inference.models import Weights
from exo.inference.shard import Shard

logger = logging.getLogger(__name__)


class FallbackRunner(ModelRunner):
    """candidates: engine name -> how to make its runner, best first."""

    NAME: ClassVar[str] = "auto"
    # Which candidate it will be is known only when a checkpoint has been read: those of numpy.
    WEIGHT_BYTES: ClassVar[float] = 4.0
    KV_ITEM_BYTES: ClassVar[int] = 4

    def __init__(self, candidates: Mapping[str, Callable[[], ModelRunner]]) -> None:
        if not candidates:
            raise ValueError("candidates: at least one runner is needed")
        super().__init__(EngineOptions())
        self._candidates = candidates
        self._chosen: ModelRunner | None = None
        self._name = self.NAME
        self._reason: str | None = None

    @property
    def active(self) -> str:
        return self._name

    @property
    def degraded_reason(self) -> str | None:
        return self._reason

    @property
    def figures(self) -> EngineFigures:
        if self._chosen is None:
            return EngineFigures(kv_tokens_total=0, kv_tokens_free=0)
        return self._chosen.figures

    def load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        reason: str | None = None
        for name, make in self._candidates.items():
            runner = make()
            try:
                runner.load(weights, shard, advance)
            except PassCancelled:
                runner.unload()
                raise
            except Exception as error:
                runner.unload()
                if name == list(self._candidates)[-1]:
                    raise
                reason = f"{name}: {error}"
                logger.warning(
                    "engine %s cannot run %s, trying the next one: %s", name, shard.model_id, error
                )
                continue
            self._chosen, self._name, self._reason = runner, name, reason
            return

    def forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        assert self._chosen is not None  # the engine has checked that the shard is loaded
        return self._chosen.forward(steps, cancel)

    def release(self, sequence_id: str) -> None:
        if self._chosen is not None:
            self._chosen.release(sequence_id)

    def reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        assert self._chosen is not None
        return self._chosen.reuse_prefix(sequence_id, tokens, limit)

    def unload(self) -> None:
        chosen, self._chosen, self._name = self._chosen, None, self.NAME
        if chosen is not None:
            chosen.unload()
