"""`ModelRunner`: the synchronous object that computes one shard. Knows no event loop and no life
cycle.

An `Engine` owns a runner and calls it on its worker thread, one call at a time. Only `figures` is
read from the event loop, also while a call runs.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from exo.inference.arrays import Array
from exo.inference.engines.inference_engine import EngineFigures, Step
from exo.inference.engines.options import EngineOptions
from exo.inference.models import Weights
from exo.inference.shard import Shard


class PassCancelled(Exception):
    """A load or a forward pass stopped half-way: its caller has gone, or the engine closes."""


class Cancel:
    """Whether a pass should stop. A runner calls it between layers or chunks.

    mark: called each time, as a sign that the pass makes progress.
    """

    def __init__(self, closing: threading.Event, mark: Callable[[], None]) -> None:
        self.asked = False
        self._closing = closing
        self._mark = mark

    def __call__(self) -> None:
        """Raises `PassCancelled` when the pass should stop."""
        self._mark()
        if self.asked or self._closing.is_set():
            raise PassCancelled


class ModelRunner(ABC):
    """`load` comes before everything else; after `unload`, `load` may come again.

    Each concrete class says what planning must know before any checkpoint is read:
    NAME: the name of its engine.
    WEIGHT_BYTES: memory for each weight, scales included.
    KV_ITEM_BYTES: memory for each number of the KV cache.
    """

    NAME: ClassVar[str]
    WEIGHT_BYTES: ClassVar[float]
    KV_ITEM_BYTES: ClassVar[int]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("NAME", "WEIGHT_BYTES", "KV_ITEM_BYTES"):
            if not hasattr(cls, name):
                raise TypeError(f"{cls.__name__} does not say its {name}")

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @abstractmethod
    def load(self, weights: Weights, shard: Shard, advance: Callable[[int], None]) -> None:
        """Take the shard's weights. Call `advance(bytes on disk)` after each tensor; it may raise
        `PassCancelled`. The checkpoint closes afterwards.
        """

    @abstractmethod
    def forward(self, steps: Sequence[Step], cancel: Cancel) -> list[Array]:
        """One pass. Raises `SequenceLost` or `Overloaded` before anything is computed; when
        `cancel` raises, the KV cache is as it was before.
        """

    @abstractmethod
    def release(self, sequence_id: str) -> None:
        """Forget a sequence; an unknown one is fine, also when nothing is loaded."""

    def reuse_prefix(self, sequence_id: str, tokens: Sequence[int], limit: int) -> int:
        """See `InferenceEngine.reuse_prefix`. The default keeps nothing for reuse."""
        return 0

    @abstractmethod
    def unload(self) -> None:
        """Give weights and caches back; safe when nothing is loaded."""

    @property
    @abstractmethod
    def figures(self) -> EngineFigures: ...

    @property
    def active(self) -> str:
        """The name of the engine that computes."""
        return self.NAME

    @property
    def degraded_reason(self) -> str | None:
        """Why a better engine is not in use; None where none is better."""
        return None
